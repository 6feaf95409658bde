"""The section on how much each option of a sweep matters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import report as html
from ...report import Html, number
from ..results import mean, spread
from .charts import bars
from .tables import left, plus_minus, said_value
from .trials import Trial

Group = tuple[str, list[Trial]]  # a value of an option, or a range of values, and the trials that had it

BINS = 4  # of a range's values
NAME = 26  # characters that stand beside a bar


def options_section(found: Mapping[str, Any]) -> Html:
    """The section on the values of every option: means of the criterion and of the test figure."""
    sides = ("criterion",) if found["best_by_oracle"] is None else ("criterion", "oracle")
    done = [t for t in found["trials"] if t["criterion"] is not None]
    groups = {name: _groups(done, name, tried) for name, tried in found["space"].items()}
    groups = {name: own for name, own in groups.items() if len(own) > 1}
    if not groups:
        return Html("")
    order = sorted(groups, key=lambda name: -_span(groups[name], "criterion"))
    said = {"criterion": "criterion", "oracle": "test figure"}
    summary = []
    for name in order:
        own = groups[name]
        summary.append([name, *(number(_span(own, s)) for s in sides), *(left(_top(own, s)) for s in sides)])
    rows = [
        [name, left(value), len(own), *(plus_minus(spread([t[side] for t in own])) for side in sides)]
        for name in order
        for value, own in groups[name]
    ]
    return html.section(
        "How much each option matters",
        html.paragraph(
            "Means over the trials that had a value, whatever their other options. Where trials were drawn "
            "or suggested, the other options differ between values as well: a small difference between two "
            "values of few trials says little."
        ),
        html.table(
            [
                "option",
                *(f"spread, {said[s]}" for s in sides),
                *(left(f"best value, {said[s]}") for s in sides),
            ],
            summary,
            caption="Spread: the largest mean of any value less the smallest. Largest by criterion first.",
        ),
        *(
            html.subsection(name, html.columns(*(_bars(name, groups[name], s, said[s]) for s in sides)))
            for name in order
        ),
        html.folded(
            "All values",
            html.table(
                ["option", left("value"), "trials", *(said[s] for s in sides)],
                rows,
                caption="Mean ± standard deviation over trials.",
            ),
        ),
    )


def _groups(trials: Sequence[Trial], name: str, tried: Any) -> list[Group]:
    """Trials by their value of an option, in the order of the space; ranges in as many bins as `BINS`."""
    if isinstance(tried, Mapping):
        bins = np.array_split(sorted({t["options"][name] for t in trials}), BINS)
        spans = [(own[0], own[-1]) for own in bins if len(own)]
        return [
            (
                f"{low:.3g} to {high:.3g}" if low < high else f"{low:.3g}",
                [t for t in trials if low <= t["options"][name] <= high],
            )
            for low, high in spans
        ]
    found: dict[str, list[Trial]] = {}  # by their JSON, which tells 1 from true; a value may be a table
    for trial in trials:
        found.setdefault(json.dumps(trial["options"][name], sort_keys=True), []).append(trial)
    texts = [(value, json.dumps(value, sort_keys=True)) for value in tried]
    return [(said_value(value), found[text]) for value, text in texts if text in found]


def _means(groups: Sequence[Group], side: str) -> list[tuple[str, float]]:
    found = [(value, mean([trial[side] for trial in own])) for value, own in groups]
    return [(value, figure) for value, figure in found if figure is not None]


def _span(groups: Sequence[Group], side: str) -> float:
    values = [figure for _, figure in _means(groups, side)]
    return max(values, default=0.0) - min(values, default=0.0)


def _top(groups: Sequence[Group], side: str) -> str:
    return max(_means(groups, side), key=lambda pair: pair[1], default=("–", 0.0))[0]


def _bars(name: str, groups: Sequence[Group], side: str, said: str) -> Html:
    whole = mean([trial[side] for _, own in groups for trial in own]) or 0.0
    values = [(_short(value), figure - whole) for value, figure in _means(groups, side)]
    return bars(f"{name}: {said} by value", values, f"{said}, against the mean of all trials")


def _short(text: str) -> str:
    return text if len(text) <= NAME else text[: NAME - 1] + "…"
