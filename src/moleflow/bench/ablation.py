"""Each part of the method left out, or put into another's place, against the whole at the same budget.

A product is learned for as many steps in every row, from the same seeds; only the named object differs. The
first row is the baseline. A whole flow per product divides these steps between base and expert; the longer
one spends on every product what the line spends on its first.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..config import LineConfig, override
from .plan import Variant

FULL = "full"

ABLATIONS: Mapping[str, Variant] = {
    FULL: Variant("moleflow"),
    "no DIA": Variant("moleflow", {"flow.dia": None}),
    "no whitening": Variant("moleflow", {"flow.whitening": None, "flow.statistics": False}),
    "no LoRA": Variant("moleflow", {"flow.lora": None}),
    "no spatial context": Variant("moleflow", {"flow.mixer": None}),
    "no scale context": Variant("moleflow", {"flow.context": None}),
    "no tail loss": Variant("moleflow", {"training.tail_weight": 0.0}),
    "no log-det penalty": Variant("moleflow", {"training.log_det_weight": 0.0}),
    "no position": Variant("moleflow", {"flow.position": 0.0}),
    "no base": Variant("moleflow", {"flow.couplings": 0, "flow.mixer": None}),
    "whole flow per product": Variant("task-separated", {"training.base_steps": 250, "training.steps": 250}),
    "whole flow, longer": Variant("task-separated"),
    "no feature noise": Variant("moleflow", {"training.noise": 0.0}),
    "no position calibration": Variant("moleflow", {"scoring.position_calibration": False}),
    "flow alone": Variant("moleflow", {"scoring.cells": None}),
    "cells alone": Variant("moleflow", {"scoring.flow_weight": 0.0}),
    "covariance per product": Variant("moleflow", {"router.metric": "product"}),
}
"""The seven of the original method, position, the two ways to share nothing, and what this project added:
noise, position calibration, the cells beside the flow, the shared metric of the router. "flow alone" leaves
the cell Gaussians out, so the other rows with the cells in place are read beside it: where the cells carry
the detection, a part of the flow cannot move it far."""

BARE = {"scoring.cells": None, "scoring.position_calibration": False}
LIKE_FOR_LIKE: Mapping[str, Variant] = {
    f"{method}-flow-alone": Variant(method, BARE) for method in ("moleflow", "task-separated")
}
"""What rivals with a single flow compare with: they have neither cells nor calibration by position."""

FLOW_ALONE: Mapping[str, Variant] = {
    name: Variant(variant.method, {**variant.options, "scoring.cells": None})
    for name, variant in ABLATIONS.items()
    if name not in ("flow alone", "cells alone", "covariance per product")
}
"""The same parts of the flow with nothing beside it: what each is worth where the flow has to do the work."""


_STEPS = ("training.base_steps", "training.steps")


def rows_for(table: Mapping[str, Variant], whole: LineConfig) -> dict[str, Variant]:
    """The rows of a table around a whole of other options than the defaults: a preset, or what was set.

    A flow of its own divides the steps that a product has there. Rows that would take away what the whole
    does not have are left out.
    """
    rows = {name: _within_budget(variant, whole) for name, variant in table.items()}
    full = override(whole, rows[FULL].options)

    def tells(name: str, variant: Variant) -> bool:
        other = variant.method != rows[FULL].method
        return name == FULL or other or _differs(override(whole, variant.options), full)

    return {name: variant for name, variant in rows.items() if tells(name, variant)}


def _within_budget(variant: Variant, whole: LineConfig) -> Variant:
    halved = {key: max(1, whole.training.steps // 2) for key in _STEPS if key in variant.options}
    return Variant(variant.method, {**variant.options, **halved})


def _differs(config: LineConfig, full: LineConfig) -> bool:
    """Whether something comes of the difference: without cells the flow's weight beside them is of no use."""
    if config.scoring.cells is None and full.scoring.cells is None:
        same_weight = override(config, {"scoring.flow_weight": full.scoring.flow_weight})
        return same_weight != full
    return config != full
