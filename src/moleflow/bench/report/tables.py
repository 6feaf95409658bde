"""Tables of figures, and how numbers and options are written in a cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ... import report as html
from ...report import Html, number
from .findings import Findings, Spread

Row = Sequence[object]


def by_entry(
    bench: Findings,
    heads: Sequence[str],
    cells: Callable[[str], Row],
    *,
    entries: Sequence[str] = (),
    best: Sequence[int] = (),
    caption: object = "",
) -> Html:
    """A table of figures with a row for each of these entries, or for all."""
    rows = [[bench.title(entry), *cells(entry)] for entry in entries or bench.entries]
    return figures_table(["method", *heads], rows, best=best, caption=caption)


def figures_table(
    headers: Row, rows: Sequence[Row], *, best: Sequence[int] = (), caption: object = ""
) -> Html:
    """A table of figures: spreads as mean ± sd, None as a dash, the best of a column bold.

    `best` has for the columns after the first 1 where high is good, -1 where low is, 0 for neither.
    """
    ways = dict(enumerate(best, 1)) if len(rows) > 1 else {}
    tops = {}
    for column, way in ways.items():
        found = [_mean_of(row[column]) for row in rows]
        there = [way * round(value, 3) for value in found if value is not None]
        if way and len(set(there)) > 1:
            tops[column] = max(there)
    body = []
    for row in rows:
        cells: list[object] = [row[0]]
        for column, value in enumerate(row[1:], 1):
            mean, cell = _mean_of(value), _cell(value)
            bold = column in tops and mean is not None and ways[column] * round(mean, 3) == tops[column]
            cells.append(Html(f"<b>{cell}</b>") if bold else cell)
        body.append(cells)
    return html.table(headers, body, caption=caption)


def narrow(names: Sequence[str], made: Callable[[Sequence[str]], Html]) -> Html:
    """A table with many columns, made narrower: a little smaller, and its headings upright."""
    if len(names) <= 10:
        return made(names)
    turned = "writing-mode:vertical-rl;transform:rotate(180deg)"
    heads = [Html(f'<span style="{turned}">{html.escaped(name)}</span>') for name in names]
    return Html(f'<div style="zoom:0.82">{made(heads)}</div>')


def _mean_of(value: object) -> float | None:
    if isinstance(value, Mapping):
        return value["mean"]
    return value if isinstance(value, float) else None


def _cell(value: object) -> Html:
    if isinstance(value, Mapping):
        return plus_minus(value)
    return html.escaped(_figure(value) if value is None or isinstance(value, float) else value)


_SMALL = "color:var(--soft);font-weight:400;white-space:nowrap"


def _figure(value: float | None) -> str:
    """A figure with three digits and a true minus, which a zero has not."""
    return number(None if value is None else round(value, 3) + 0.0).replace("-", "−")


def plus_minus(value: Spread, write: Callable[[float | None], str] = _figure) -> Html:
    """Mean, with the standard deviation small below it where there is one."""
    text = html.escaped(write(value["mean"]))
    if value["sd"] is None:
        return text
    places = len(text.rpartition(".")[2])
    return Html(f'{text}<br><small style="{_SMALL}">± {number(value["sd"], places)}</small>')


def left(text: object) -> Html:
    """A cell of words, set to the left."""
    return Html(f'<div style="text-align:left;min-width:10ch">{html.escaped(text)}</div>')


def yes(value: bool) -> str:
    """Yes or no."""
    return "yes" if value else "no"


def amount(value: float | None) -> str:
    """A mean number of bytes; a dash where there is none."""
    return number(None) if value is None else html.amount(round(value))


def count(value: float | None) -> str:
    """A mean of whole numbers, rounded; a dash where there is none."""
    return number(None) if value is None else f"{round(value):,}"


def value_text(value: Any) -> str:
    """An option's value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return yes(value)
    if isinstance(value, Mapping):
        return options_text(value)
    if isinstance(value, list | tuple):
        return " × ".join(value_text(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value)


def said_value(value: Any) -> str:
    """An option's value as text, where None leaves a part of the method out."""
    return "left out" if value is None else value_text(value)


def options_text(values: Mapping[str, Any]) -> str:
    """Options with their values in one line."""
    said = [f"{name} {said_value(value)}" for name, value in values.items()]
    return ", ".join(said) or "–"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested options as dotted names with their values."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, said_value(value)))
    return rows
