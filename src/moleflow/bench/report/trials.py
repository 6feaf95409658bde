"""The section on the trials of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import report as html
from ...report import Html, number
from .charts import Axis, Point, Series, plot
from .tables import left, options_text

Trial = Mapping[str, Any]  # options, criterion and oracle, as `moleflow.bench.sweep.sweep` gives it


def journey(trials: Sequence[Trial], agreement: float | None) -> Html:
    """The section on a search: its trials in their order, and how far the criterion can be trusted.

    Args:
        trials: as they were tried.
        agreement: rank correlation of criterion and test figure over them.
    """
    done = [(i, t["criterion"]) for i, t in enumerate(trials, 1) if t["criterion"] is not None]
    best = np.maximum.accumulate([value for _, value in done]).tolist() if done else []
    order = plot(
        "Criterion of every trial in order, with the best so far",
        [
            Series("trial", tuple(Point(i, value) for i, value in done), 0, joined=False),
            Series("best so far", tuple(Point(i, v) for (i, _), v in zip(done, best, strict=True)), 1),
        ],
        Axis("trial"),
        Axis("criterion"),
    )
    both = both_values(trials)
    scatter = plot(
        "Criterion of every trial against its test figure",
        [Series("trial", tuple(Point(a, b) for a, b in both), 0, joined=False), *_highlights(trials)],
        Axis("criterion"),
        Axis("test figure"),
        caption=f"Spearman's rank correlation {number(agreement, 2)} over {len(both)} trials.",
    )
    rows = [
        [i, left(options_text(t["options"])), number(t["criterion"], 4), number(t["oracle"], 4)]
        for i, t in enumerate(trials, 1)
    ]
    return html.section(
        "The search",
        html.paragraph(
            "The criterion (higher is better) sees no test image and no label, and it alone chose."
            + (
                " The test figure beside it was looked at afterwards: it shows how far the criterion can be "
                "trusted."
                if both
                else ""
            )
        ),
        html.columns(*(chart for chart in (order, scatter) if chart)),
        html.folded(
            f"All {len(trials)} trials",
            html.table(["trial", left("options"), "criterion", "test figure"], rows),
        ),
    )


def _highlights(trials: Sequence[Trial]) -> list[Series]:
    """The first of the best by either value, drawn over the marks of all."""
    places: dict[tuple[float, float], list[str]] = {}
    for value, name in (("criterion", "best by criterion"), ("oracle", "best by test figure")):
        top = max((t for t in trials if t[value] is not None), key=lambda t: t[value], default=None)
        for at in both_values([top] if top else []):
            places.setdefault(at, []).append(name)
    return [
        Series("", (Point(*at, None, " and ".join(names)),), style, joined=False)
        for style, (at, names) in enumerate(places.items(), 1)
    ]


def both_values(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Criterion and test figure of the trials that have both."""
    pairs = [(t["criterion"], t["oracle"]) for t in trials]
    return [(a, b) for a, b in pairs if a is not None and b is not None]
