"""Every method learns, scores, is kept and taken up on another device, with the processor's results."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from devices import CARD, Misplaced, on_card, pretended
from moleflow.bench.methods import METHODS, make
from moleflow.bench.methods.base import Setting
from moleflow.bench.pictures import Shelf
from moleflow.bench.unit import _pooled
from moleflow.config import override
from moleflow.data.factory import write_product
from moleflow.data.layouts import read_dataset
from moleflow.features.cache import FeatureCache
from moleflow.features.extractor import Extractor
from rows import normalised, of_all_products

pytestmark = pytest.mark.long

SIZE = 64
PRODUCTS = ("gear", "wood")
LEARNS_LONG = (  # as others do that are not slow
    *("decoflow", "task-separated"),
    *(f"{name}-with-cells" for name in ("fine-tuning", "lwf", "replay", "ewc")),
)
OWN = {
    "ucad": {
        "backbone": "timm:vit_tiny_patch16_224.augreg_in21k@0,1",
        "weights": "random",
        "image_size": (32, 32),
        "layers": 2,
        "images": 2,
        "epochs": 1,
        "key_size": 8,
        "knowledge_size": 8,
    },
    "dne": {"epochs": 2, "images": 3, "redrawn": 1},
    "ewc": {"windows": 2},
    "ewc-with-cells": {"windows": 2},
}
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none was found")


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    root = tmp_path_factory.mktemp("devices") / "data"
    for name in PRODUCTS:
        write_product(name, root, train=6, test_good=1, test_defective=1, size=SIZE)
    return read_dataset(root).products


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("devices") / "features"


@functools.lru_cache
def extractor_on(device):
    return Extractor(image_size=(SIZE, SIZE), device=device)


def shelf_on(device, cache):
    return Shelf(FeatureCache(cache, extractor_on(device)))


def setting_on(shelf, config):
    extractor = shelf.cache.extractor
    config = override(config, {"flow.hidden": 8, "flow.dia.hidden": 8})
    size = {"grid": extractor.grid, "channels": extractor.dim, "image_size": extractor.image_size}
    return Setting(**size, seed=0, config=config, device=extractor.device)


def told(method, shelf, products):
    """Scores and maps of all test images, product given and not."""
    probes = [shelf.pictures(products[name], "test") for name in PRODUCTS]
    found = [one for p in probes for task in (None, p.product) for one in method.inspect(p, task)]
    return [(one.task, one.score, None if one.patch_map is None else one.patch_map) for one in found]


def run(name, device, cache, products, config):
    """What a method says after learning, and after its state was taken up by another."""
    shelf = shelf_on(device, cache)
    setting = setting_on(shelf, normalised(config) if of_all_products(name) else config)
    method = make(name, setting, OWN.get(name, {}))
    for product in PRODUCTS:
        lesson = shelf.pictures(products[product], "train")
        method.learn([lesson])
    state = method.state()
    again = make(name, setting, OWN.get(name, {}))
    again.restore(state)
    return told(method, shelf, products), told(again, shelf, products), state


def same(one, other, *, rtol=0.0, atol=0.0) -> None:
    for (task, score, found), (own, expected, wanted) in zip(one, other, strict=True):
        assert task == own
        np.testing.assert_allclose(score, expected, rtol=rtol, atol=atol)
        if wanted is not None:
            np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LEARNS_LONG else name for name in METHODS],
)
def test_nothing_is_left_on_the_processor_that_belongs_on_the_card(name, cache, products, quick, monkeypatch):
    """On a device that is only pretended, a tensor that was forgotten is refused as by a card."""
    expected, _, _ = run(name, "cpu", cache, products, quick)
    with pretended(monkeypatch):
        assert on_card(shelf_on(CARD, cache).pictures(products["gear"], "train").features)
        found, again, state = run(name, CARD, cache, products, quick)
        assert not any(map(on_card, state.tensors.values())), "a state is the processor's"
    same(found, expected)
    same(again, expected)


def test_the_images_of_an_unnamed_task_are_pooled_on_their_device(cache, products, monkeypatch):
    with pretended(monkeypatch):
        shelf = shelf_on(CARD, cache)
        pool = _pooled([shelf.pictures(products[name], "train") for name in PRODUCTS])
        assert on_card(pool.features)
        assert on_card(pool.take([0, 3]).features)
        assert not on_card(pool.descriptors), "the router's numbers are the processor's"


def test_the_pretended_card_refuses_what_a_card_refuses(monkeypatch):
    with pretended(monkeypatch):
        card, here = torch.ones(2, 3, device=CARD), torch.ones(2, 3)
        assert card.device == CARD
        assert (card + 1).device == card.new_zeros(2).device == torch.empty_like(card).device == CARD
        assert card.cpu().device.type == here.device.type == "cpu"
        assert (card * torch.tensor(2.0))[torch.tensor([1])].device == CARD
        layer = torch.nn.Linear(3, 2).to(CARD)
        assert layer(card).device == next(layer.parameters()).device == CARD
        layer(card).sum().backward()
        assert layer.weight.grad.device == CARD
        refused = (
            lambda: card + here,
            lambda: torch.cat([card, here]),
            lambda: here[torch.tensor([0], device=CARD)],
            lambda: layer(here),
            lambda: card.numpy(),
            lambda: torch.randn(2, generator=torch.Generator(), device=CARD),
        )
        for wrong in refused:
            with pytest.raises(Misplaced):
                wrong()


@needs_card
@pytest.mark.parametrize("name", METHODS)
def test_a_card_says_what_the_processor_says(name, cache, products, quick):
    """From the same cached features and after the same few steps; what many steps come to is measured by
    `python benchmarks/devices.py`."""
    expected, _, _ = run(name, "cpu", cache, products, quick)
    found, again, _ = run(name, "cuda", cache, products, quick)
    same(found, expected, rtol=0.02, atol=0.02)
    same(again, found)
