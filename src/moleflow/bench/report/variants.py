"""Variants of one method: what leaving a part out costs, and how much an option matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import report as html
from ...report import Html, joined, number
from ..results import VIEWS, over_seeds
from .charts import Axis, Point, Series, plot, signed
from .findings import MAIN, METRICS, Findings, Spread
from .tables import Row, amount, left, options_text, plus_minus


def worth(bench: Findings) -> Html:
    """The section on methods with several entries: differences from the first, charts of lone options."""
    blocks: list[object] = []
    for family in bench.families:
        blocks += [
            html.subsection(f"Variants of {bench.title(family[0])}", _differences(bench, family)),
            *(_sensitivity(bench, family, option) for option in _lone_options(bench, family)),
        ]
    return html.section("What each option is worth", *blocks) if blocks else Html("")


def _differences(bench: Findings, family: Sequence[str]) -> Html:
    first, columns = family[0], [(m, v) for m in (*MAIN, "aupro_30") for v in VIEWS]
    start = [plus_minus(bench.acc(first, metric, view)) for metric, view in columns]
    rows: list[Row] = [[bench.title(first), left("the first"), *start, *_costs(bench, first)]]
    for entry in family[1:]:
        changed = options_text(_changes(bench, first, entry))
        found = [plus_minus(_paired(bench, first, entry, metric, view), signed) for metric, view in columns]
        rows.append([bench.title(entry), left(changed), *found, *_costs(bench, entry)])
    said = [f"{METRICS[m]}, {'product given' if v == 'oracle' else v}" for m, v in columns]
    return html.table(
        ["entry", left("options"), *said, "bytes a product", "seconds a product"],
        rows,
        caption="The first row is as it is; below it are differences from it, run by run on the same stream "
        "with the same seed: mean ± standard deviation of the difference. A difference smaller than its "
        "deviation says little. Bytes and seconds are not differences.",
    )


def _costs(bench: Findings, entry: str) -> list[object]:
    learn = bench.seconds(entry, "learn")["mean"]
    return [amount(bench.per_product(entry, "bytes")["mean"]), number(learn, 1)]


def _paired(bench: Findings, first: str, entry: str, metric: str, view: str) -> Spread:
    base = {(r["stream"], r["seed"]): r["continual"][view][metric]["acc"] for r in bench.runs(first)}

    def less_base(run: Mapping[str, Any]) -> float | None:
        a, b = base.get((run["stream"], run["seed"])), run["continual"][view][metric]["acc"]
        return None if a is None or b is None else b - a

    return over_seeds(bench.runs(entry), less_base)


def _changes(bench: Findings, first: str, entry: str) -> dict[str, Any]:
    """Options in which an entry differs from the first, with its values."""
    entries = bench.plan["entries"]
    names = {**entries[first]["options"], **entries[entry]["options"]}
    values = {name: _option(bench, entry, name) for name in names}
    changed = {name: value for name, value in values.items() if value != _option(bench, first, name)}
    other = bench.method(entry) != bench.method(first)
    return {"method": bench.method(entry), **changed} if other else changed


def _option(bench: Findings, entry: str, name: str) -> Any:
    value = bench.plan["configs"][entry]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _lone_options(bench: Findings, family: Sequence[str]) -> list[str]:
    """Numeric options with three values or more among entries that differ from the first in nothing else."""
    values: dict[str, set[float]] = {}
    for entry in family[1:]:
        changed = _changes(bench, family[0], entry)
        if len(changed) == 1:
            ((name, value),) = changed.items()
            base = _option(bench, family[0], name)
            if _is_number(value) and _is_number(base):
                values.setdefault(name, {base}).add(value)
    return [name for name, found in values.items() if len(found) > 2]


def _sensitivity(bench: Findings, family: Sequence[str], option: str) -> Html:
    chosen = [e for e in family if set(_changes(bench, family[0], e)) <= {option}]
    chosen.sort(key=lambda entry: _option(bench, entry, option))
    places = {_option(bench, entry, option): i for i, entry in enumerate(chosen)}
    charts = []
    for metric in MAIN:
        points = []
        for entry in chosen:
            found = bench.acc(entry, metric)
            if found["mean"] is not None:
                at = places[_option(bench, entry, option)]
                points.append(Point(at, found["mean"], found["sd"], bench.title(entry)))
        unnamed = tuple(Point(p.x, p.y, p.sd) for p in points)
        axis = Axis(option, places=tuple((at, f"{value:g}") for value, at in places.items()))
        charts.append(
            plot(
                f"{METRICS[metric]} against {option}",
                [Series(METRICS[metric], unnamed)] if len(points) > 1 else [],
                axis,
                Axis(METRICS[metric]),
            )
        )
    return joined([html.paragraph(f"{option}, all else unchanged"), html.columns(*charts)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
