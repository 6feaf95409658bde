"""Each part of the method left out, or put into another's place, against the whole at the same budget.

A product is learned for as many steps in every row, from the same seeds; only the named object differs. The
first row is the baseline. A whole flow per product divides these steps between base and expert; the longer
one spends on every product what the line spends on its first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..config import LineConfig, ScoringConfig, override
from ..errors import ConfigError
from ..presets import LAYERED, NO_FLOW, WHOLE_IMAGES, layered_options
from .methods import METHODS
from .methods import TABLES as METHOD_TABLES
from .plan import Variant

FULL = "full"
PUBLISHED = {
    **LAYERED,
    "flow.mixer": {"kernel": "full", "gate_limit": 0.5},
    "training.window": 8,
    "training.margin": 3,
    "training.tail": "image",
    "training.log_det_of": "flow",
}
"""The parts as published, over normalised features: a free 3x3 mixer, a context that sees all its neighbours,
the tail of each window, the penalty on couplings and DIA alone. Windows of 8 x 8 stand for whole images, of
which a step could only see two; with the margin mixer and context of their own patches see what they see in
the image."""

ABLATIONS: Mapping[str, Variant] = {
    FULL: Variant("moleflow"),
    "no DIA": Variant("moleflow", {"flow.dia": None}),
    "no whitening": Variant("moleflow", {"flow.whitening": None}),
    "no LoRA": Variant("moleflow", {"flow.lora": None}),
    "no spatial context": Variant("moleflow", {"flow.mixer": None}),
    "no scale context": Variant("moleflow", {"flow.context": None}),
    "no tail loss": Variant("moleflow", {"training.tail_weight": 0.0}),
    "no log-det penalty": Variant("moleflow", {"training.log_det_weight": 0.0}),
    "no position": Variant("moleflow", {"flow.position": 0.0}),
    "base from the first product": Variant("moleflow", {"training.base": "learn"}),
    "no base": Variant("moleflow", {"flow.couplings": 0, "flow.mixer": None}),
    "no flow": Variant("moleflow", NO_FLOW),
    "whole flow per product": Variant("task-separated", {"training.base_steps": 100, "training.steps": 100}),
    "whole flow for longer": Variant("task-separated"),
    "no feature noise": Variant("moleflow", {"training.noise": 0.0}),
    "no early stop": Variant("moleflow", {"training.early_stop": False}),
    "no position calibration": Variant("moleflow", {"scoring.position_calibration": False}),
    "no coreset": Variant("moleflow", {"scoring.coreset": None}),
    "no picture as a whole": Variant("moleflow", {"scoring.whole": None}),
    "flow alone": Variant("moleflow", {"scoring.coreset": None, "scoring.whole": None}),
    "cells alone": Variant("moleflow", {**NO_FLOW, "scoring.coreset": None}),
    "flow over normalised features": Variant("moleflow", LAYERED),
    "covariance per product": Variant("moleflow", {"router.metric": "product"}),
    "full mixer kernel": Variant("moleflow", {"flow.mixer.kernel": "full"}),
    "windows with a margin": Variant("moleflow", {"training.margin": 2}),
    "penalty on the flow": Variant("moleflow", {"training.log_det_of": "flow"}),
    "whole images": Variant("moleflow", {"training.window": WHOLE_IMAGES}),
    "tail per image": Variant("moleflow", {"training.window": WHOLE_IMAGES, "training.tail": "image"}),
    "on the sphere": Variant("moleflow", {**LAYERED, "flow.normalisation": "sphere"}),
    "on the sphere without noise": Variant(
        "moleflow", {**LAYERED, "flow.normalisation": "sphere", "training.noise": 0.0}
    ),
    "published": Variant("moleflow", PUBLISHED),
    "published without mixer": Variant("moleflow", {**PUBLISHED, "flow.mixer": None}),
    "published without scale context": Variant("moleflow", {**PUBLISHED, "flow.context": None}),
    "published without tail loss": Variant("moleflow", {**PUBLISHED, "training.tail_weight": 0.0}),
    "published without penalty": Variant("moleflow", {**PUBLISHED, "training.log_det_weight": 0.0}),
}
"""The seven of the original method, position, the base of a line's own, the two ways to share nothing, and
what this project added: noise, early stop, position calibration, the coreset, the picture as a whole, the
shared metric of the router. "no flow" is everything in closed form, "flow alone" the density without the
rest, "cells alone" what it begins with. Then what this project made weaker than it was published, at its
published strength: each by itself, all together, and each left out of all together; the last ones, and the
sphere, over normalised features. A row that changes the shape of the base learns it from the first product:
none of that shape comes along."""

BARE = {
    **LAYERED,
    "scoring.cells": None,
    "scoring.coreset": None,
    "scoring.whole": None,
    "scoring.position_calibration": False,
}
LIKE_FOR_LIKE: Mapping[str, Variant] = {
    f"{method}-flow-alone": Variant(method, BARE) for method in ("moleflow", "task-separated")
}
"""What rivals with a single flow compare with: like theirs a flow over normalised features, with neither
cells nor coreset nor whole pictures nor calibration by position."""

CLOSED_FORM: Mapping[str, Variant] = {"moleflow-lean": Variant("moleflow", NO_FLOW)}
"""The line without anything that learns by steps: its strongest rival."""

ENTRIES: Mapping[str, Variant] = {name: Variant(name) for name in METHODS} | {**LIKE_FOR_LIKE, **CLOSED_FORM}
"""Everything that `--methods` can name."""

TABLES: Mapping[str, tuple[str, ...]] = {
    **METHOD_TABLES,
    "all": (*METHOD_TABLES["all"], *LIKE_FOR_LIKE, *CLOSED_FORM),
}
"""And the names that stand for several of them."""

BESIDE = ("no coreset", "no picture as a whole", "flow alone", "no flow", "covariance per product")
_NOTHING_BESIDE = dict.fromkeys(("scoring.cells", "scoring.coreset", "scoring.whole"), None)
FLOW_ALONE: Mapping[str, Variant] = {
    name: Variant(variant.method, {**variant.options, **_NOTHING_BESIDE})
    for name, variant in ABLATIONS.items()
    if name not in BESIDE
}
"""The same parts of the flow with nothing beside it: what each is worth where the flow has to do the work."""


_STEPS = ("training.base_steps", "training.steps")
_WINDOWS = ("training.window", "training.margin")


def rows_for(table: Mapping[str, Variant], whole: LineConfig) -> dict[str, Variant]:
    """The rows of a table around a whole of other options than the defaults: a preset, or what was set.

    A flow of its own divides the steps that a product has there, and whole images stay whole images. Rows
    that come to the same as one before them are left out: what the whole lacks cannot be taken from it.
    """
    rows: dict[str, Variant] = {}
    seen: list[tuple[str, LineConfig]] = []
    for name, variant in table.items():
        around = _around(variant, whole)
        try:
            learned = around.method, _told(override(whole, around.options))
        except ConfigError:  # a part of what the whole lacks
            continue
        if learned not in seen:
            rows[name] = around
            seen.append(learned)
    return rows


def _around(variant: Variant, whole: LineConfig) -> Variant:
    options = dict(variant.options)
    if variant.method == "task-separated":
        options |= {key: max(1, whole.training.steps // 2) for key in _STEPS if key in options}
    elif LAYERED.items() <= options.items() or whole.flow.cells is None:
        kept = layered_options(whole) if whole.flow.cells is not None else {}
        options = {k: v for k, v in options.items() if k in kept or LAYERED.get(k, ...) != v}
    if whole.training.window >= WHOLE_IMAGES:
        options = {key: value for key, value in options.items() if key not in _WINDOWS}
    return Variant(variant.method, options)


def _told(config: LineConfig) -> LineConfig:
    """Of options that say the same one: without cells the flow's weight beside them is of no use."""
    if config.scoring.cells is None:
        return override(config, {"scoring.flow_weight": ScoringConfig().flow_weight})
    return config


def chosen(words: Iterable[str]) -> dict[str, Variant]:
    """The entries that these names stand for, of entries and tables, none twice.

    Raises ConfigError for a name that is neither.
    """
    names = [name for word in words for name in TABLES.get(word, (word,))]
    for name in names:
        if name not in ENTRIES:
            known = f"{', '.join(ENTRIES)}, and the tables {', '.join(TABLES)}"
            raise ConfigError(f"unknown method {name!r}; known are {known}")
    return {name: ENTRIES[name] for name in names}
