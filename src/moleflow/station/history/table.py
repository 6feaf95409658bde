"""Inspections as CSV, which a spreadsheet opens without running anything in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from .inspections import as_json
from .models import Inspection

COLUMNS = (
    *("id", "time", "source", "sha256", "task", "version", "status", "known"),
    *("pred_score", "p_value", "threshold", "reason", "place_score", "whole_score", "map_threshold"),
    *("height", "width", "latency_ms", "mark", "mark_task", "mark_note", "mark_time"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
AT_ONCE = 200  # rows of a piece


def as_csv(rows: Iterable[Inspection]) -> Iterator[str]:
    """Pieces of a file, header first."""
    piece = io.StringIO()
    writer = csv.writer(piece, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for count, row in enumerate(rows, 1):
        writer.writerow([guarded(value) for value in _values(row)])
        if count % AT_ONCE == 0:
            yield _taken(piece)
    yield _taken(piece)


def guarded(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _values(row: Inspection) -> list[Any]:
    told = as_json(row)
    mark = told["mark"] or {}
    told |= {"height": row.height, "width": row.width, "mark": mark.get("kind")}
    told |= {f"mark_{key}": mark.get(key) for key in ("task", "note", "time")}
    return [told[column] for column in COLUMNS]


def _taken(piece: io.StringIO) -> str:
    text = piece.getvalue()
    piece.seek(0)
    piece.truncate()
    return text
