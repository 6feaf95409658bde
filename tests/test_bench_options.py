"""Every option of every method does something: each in turn is changed, and what is learned or said with it.

An option without a line here fails; so does one that changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import replace

import pytest
import torch

from moleflow.bench.methods import METHODS, OPTIONS, make
from moleflow.bench.methods.base import Method, PerProduct, Pictures, Setting
from moleflow.bench.methods.with_image import WithImage
from moleflow.config import LineConfig, override, to_dict
from moleflow.data.factory import make_sample
from moleflow.features.extractor import Extractor
from moleflow.presets import LAYERED
from rows import CHANNELS, CONFIG, GRID, POOLED, faulty, images, setting_of

BANK = {"candidates": 300, "projection": 8, "share": 0.1, "least": 20, "most": 60}
TINY = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@11"
START = {
    "EWC": {"windows": 2},
    "CalibratedBankOptions": BANK,
    "BankOptions": {**BANK, "neighbours": 3},
    "SharedBankOptions": {"candidates": 300, "projection": 8, "size": 60, "neighbours": 3},
    "ProjectionOptions": {**BANK, "banks": 3, "neighbours": 3, "top_share": 0.1},
    "PrototypeOptions": {"size": 40, "nearest": 5, "tokens": 12, "share": 0.2, "candidates": 300},
    "PlaceOptions": {"share": 0.5, "least": 5, "radius": 1},
    "Consolidation": {"windows": 2},
    "DneOptions": {"epochs": 2, "batch": 3, "images": 4, "redrawn": 2},
    "UcadOptions": {
        "backbone": TINY, "weights": "random", "image_size": (48, 48), "layers": 2, "images": 3, "epochs": 1,
        "memory_images": 4, "key_size": 6, "knowledge_size": 7, "regions": 2,
    },
}  # fmt: skip
CHANGED = {
    "Consolidation": {"strength": 30.0, "windows": 3},
    "Distillation": {"weight": 10.0},
    "Rehearsal": {"kept": 0.5, "old": 0.9},
    "CalibratedBankOptions": {"candidates": 100, "projection": 4, "share": 0.05, "least": 55, "most": 40},
    "SharedBankOptions": {"candidates": 100, "projection": 4, "size": 50, "neighbours": 9},
    "GaussianOptions": {"channels": 5, "ridge": 0.7},
    "PrototypeOptions": {"size": 30, "nearest": 9, "tokens": 3, "share": 0.02, "candidates": 100},
    "PlaceOptions": {"share": 0.8, "least": 11, "radius": 3},
    "ImageOptions": {"rank": 3},
    "DneOptions": {"epochs": 4, "batch": 2, "learning_rate": 1e-2, "images": 3, "redrawn": 0},
    "UcadOptions": {
        "backbone": "timm:vit_tiny_patch16_224.augreg_in21k@11", "weights": None, "image_size": (64, 64),
        "layers": 1, "images": 2, "epochs": 2, "learning_rate": 0.5, "memory_images": 2, "key_size": 4,
        "knowledge_size": 5, "regions": 4, "temperature": 5.0, "patch": 3, "smoothing": 20.0,
    },
}  # fmt: skip
CHANGED["BankOptions"] = {**CHANGED["CalibratedBankOptions"], "neighbours": 9}
CHANGED["ProjectionOptions"] = {
    **CHANGED["CalibratedBankOptions"], "banks": 2, "neighbours": 2, "top_share": 0.5,
}  # fmt: skip
NEEDS_WEIGHTS = {("ucad", "backbone"), ("ucad", "weights")}  # other weights than random cannot be had here

LINE = {
    "flow.cells.side": 1,
    "flow.cells.rank": 2,
    "flow.cells.mean_side": 2,
    "flow.cells.ridge": 0.9,
    "flow.cells.bits": 16,
    "flow.cells": None,
    "flow.bits": 16,
    "flow.position": 0.5,
    "flow.whitening": None,
    "flow.whitening.scale_limit": 1.01,
    "flow.whitening.shift_limit": 1e-3,
    "flow.mixer": None,
    "flow.mixer.gate_limit": 0.1,
    "flow.couplings": 1,
    "flow.hidden": 4,
    "flow.clamp": 0.01,
    "flow.mixer.kernel": "full",
    "flow.context": None,
    "flow.context.kernel": 1,
    "flow.context.gate": 0.5,
    "flow.lora": None,
    "flow.lora.rank": 2,
    "flow.lora.alpha": 1.0,
    "flow.dia": None,
    "flow.dia.blocks": 1,
    "flow.dia.hidden": 4,
    "training.steps": 12,
    "training.base_steps": 12,
    "training.patches": 30,
    "training.window": 2,
    "training.learning_rate": 1e-2,
    "training.tail_weight": 0.1,
    "training.tail_share": 0.5,
    "training.log_det_weight": 1.0,
    "training.noise": 0.0,
    "training.margin": 1,
    "training.tail": "image",
    "training.early_stop": False,
    "training.log_det_of": "flow",
    "training.clip": 1e-9,
    "scoring.coreset": None,
    "scoring.coreset.patches": 20,
    "scoring.coreset.candidates": 50,
    "scoring.coreset.weight": 0.2,
    "scoring.coreset.bits": 8,
    "scoring.coreset.rank": 3,
    "scoring.coreset.layers": (2, CHANNELS - 2),
    "scoring.whole": None,
    "scoring.whole.rank": 2,
    "scoring.whole.bits": 16,
    "scoring.position_calibration": False,
    "scoring.smoothing": 0.0,
    "scoring.top_share": 0.5,
    "scoring.top_least": 1,
    "scoring.blocks": 2,
    "scoring.single_up_to": 100,
    "router.metric": "product",
    "router.rank": 2,
}
LINE_ELSEWHERE = {"training.base"}  # tests/test_shipped.py: none comes with the library for these features
LINE_BESIDE = {"training.early_stop": {"training.learning_rate": 1.0}}
"""What else has to be so for it to matter: nothing is stopped that gets better to its end."""
AROUND_LAYERED = {
    "flow.normalisation": "none",
    "flow.statistics": False,
    "flow.position": 0.5,
    "training.noise": 0.0,
    "scoring.cells": None,
    "scoring.cells.side": 1,
    "scoring.cells.rank": 2,
    "scoring.cells.mean_side": 2,
    "scoring.cells.ridge": 0.9,
    "scoring.cells.bits": 8,
    "scoring.flow_weight": 2.0,
}
"""Options of a flow that begins with normalised features, or that act otherwise there, and of what stands
beside such a flow alone."""
RIVALS = {
    "scoring.holdout": 0.4,
    "scoring.holdout_least": 5,
    "scoring.cross_fit_below": 100,
    "scoring.folds": 4,
    "router.false_rejection_rate": 0.5,
    "router.least_distance": 9.0,
}
"""Options of the line that the bench's rivals alone look at."""
RIVALS_BESIDE = {
    "scoring.folds": {"scoring.cross_fit_below": 100},
    "router.least_distance": {"scoring.holdout_least": 5, "router.false_rejection_rate": 0.3},
}
"""What else has to be so for it to matter."""
LINE_START = {"scoring.single_up_to": 4, "scoring.blocks": 4, "training.steps": 6, "training.base_steps": 6}
LAYERED_START = {
    **LAYERED, **LINE_START, "scoring.cells": {**to_dict(CONFIG)["flow"]["cells"], "bits": 16},
}  # fmt: skip
RIVAL_START = {"scoring.cross_fit_below": 6, "scoring.holdout_least": 2, "router.least_distance": 0.1}


def trace(method: Method, probes: Pictures) -> str:
    """Everything that a method has learned and says, as one hash."""
    told = hashlib.sha256()
    state = method.state()
    for name in sorted(state.tensors):
        told.update(name.encode() + state.tensors[name].contiguous().numpy().tobytes())
    told.update(repr(timeless(state.notes)).encode())
    for task in (None, "a"):
        for one in method.inspect(probes, task):
            told.update(repr((one.task, one.known, one.score, one.threshold)).encode())
            told.update(b"" if one.patch_map is None else one.patch_map.tobytes())
    router = method.inner if isinstance(method, WithImage) else method
    if isinstance(router, PerProduct):
        told.update(repr([router.decide(probes, i).distances for i in range(len(probes))]).encode())
    return told.hexdigest()


def timeless(notes: object) -> object:
    """Notes without how long anything took, which is another at every run."""
    if isinstance(notes, dict):
        return {key: timeless(value) for key, value in notes.items() if key != "seconds"}
    return notes


def probes() -> Pictures:
    """A good image, a faulty one, and others that lie farther and farther from the product."""
    good, bad = images("a", 10, seed=5), faulty("a", 1)
    far = good.features + torch.linspace(0, 3, len(good))[:, None, None, None].half()
    pooled = torch.cat([good.pooled, bad.pooled])
    return Pictures("a", torch.cat([far, bad.features]), good.read, pooled=pooled)


@functools.cache
def extractor() -> Extractor:
    return Extractor("efficientnet_lite0", weights="random", image_size=32)


@functools.cache
def photographs(product: str) -> Pictures:
    pictures = [make_sample("gear" if product == "a" else "wood", i, size=64).image for i in range(5)]
    features = extractor().features(extractor().stack([picture[:32, :32] for picture in pictures])).half()
    return Pictures(product, features, lambda i, size: pictures[i][: size[0], : size[1]])


def outcome(name: str, options: tuple) -> str:
    """What comes of a method with some of its own options."""
    if name in ("dne", "ucad"):
        own = extractor()
        setting = Setting(own.grid, own.dim, own.image_size, weights="random")
        method, show = make(name, setting, dict(options)), photographs
        some = photographs("a").take([0, 1])
    else:
        method, show, some = (
            make(name, setting_of(name), dict(options)),
            functools.partial(images, count=14),
            probes(),
        )
    for product in ("a", "b"):
        method.learn([show(product)])
    return trace(method, some)


@functools.cache
def unchanged(name: str) -> str:
    return outcome(name, tuple(START.get(OPTIONS[name].__name__, {}).items()))


WALK = [(name, field.name) for name, kind in OPTIONS.items() for field in dataclasses.fields(kind)]


@pytest.mark.long
@pytest.mark.parametrize(("name", "option"), [one for one in WALK if one not in NEEDS_WEIGHTS])
def test_every_option_of_a_method_does_something(name, option):
    kind = OPTIONS[name].__name__
    start = START.get(kind, {})
    assert outcome(name, tuple((start | {option: CHANGED[kind][option]}).items())) != unchanged(name)


def test_no_option_is_left_out_of_the_walk():
    for kind in OPTIONS.values():
        assert {field.name for field in dataclasses.fields(kind)} == set(CHANGED[kind.__name__])
    assert set(OPTIONS) <= set(METHODS)


def leaves(table: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        found.add(f"{prefix}{name}")
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{name}.")
    return found


def test_no_option_of_the_line_is_left_out_of_the_walk():
    sections = {"flow", "training", "scoring", "router"}
    beginnings = LineConfig(), override(CONFIG, LAYERED_START)
    options = set.union(*(leaves(to_dict(config)) for config in beginnings)) - sections
    assert options == set(LINE) | LINE_ELSEWHERE | set(AROUND_LAYERED) | set(RIVALS)


def test_the_same_options_leave_the_same_trace():
    """Or every walk would pass, whatever an option does."""
    for name, start in (
        ("moleflow", LINE_START),
        ("moleflow", LAYERED_START),
        ("memory-bank-calibrated", RIVAL_START),
    ):
        assert of_line(name, start, {}) == of_line(name, start, {})
    for name in ("ewc", "dne"):
        options = tuple(START[OPTIONS[name].__name__].items())
        assert outcome(name, options) == unchanged(name)


def of_line(name: str, start: dict, change: dict) -> str:
    config = override(override(CONFIG, start), change)
    setting = Setting(GRID, CHANNELS, (48, 48), config=config)
    method = make(name, setting, BANK if name == "memory-bank-calibrated" else {})
    for product in ("a", "b") if name != "moleflow" or "router" in next(iter(change), "") else ("a",):
        method.learn([replace(images(product, 10), pooled=images(product, 10).pooled[:, :POOLED])])
    return trace(method, probes())


@functools.cache
def line_with(change: tuple, *, layered: bool = False) -> str:
    return of_line("moleflow", LAYERED_START if layered else LINE_START, dict(change))


@pytest.mark.long
@pytest.mark.parametrize("option", LINE)
def test_every_option_of_the_line_does_something(option):
    before = {"router.rank": CONFIG.router.rank} if option.startswith("router") else {}
    before |= LINE_BESIDE.get(option, {})
    after = {**LINE_BESIDE.get(option, {}), option: LINE[option]}
    assert line_with(tuple(after.items())) != line_with(tuple(before.items()))


@pytest.mark.long
@pytest.mark.parametrize("option", AROUND_LAYERED)
def test_every_option_of_a_flow_over_normalised_features_does_something(option):
    assert line_with(((option, AROUND_LAYERED[option]),), layered=True) != line_with((), layered=True)


@functools.cache
def rival_with(change: tuple) -> str:
    return of_line("memory-bank-calibrated", RIVAL_START, dict(change))


@pytest.mark.parametrize("option", RIVALS)
def test_every_option_that_rivals_alone_look_at_does_something(option):
    start = RIVALS_BESIDE.get(option, {})
    assert rival_with(tuple({**start, option: RIVALS[option]}.items())) != rival_with(tuple(start.items()))
