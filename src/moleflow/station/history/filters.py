"""Which inspections are meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, or_

from .models import Inspection

ESCAPE = "\\"
ANY_MARK = "any"


@dataclass(frozen=True)
class Filters:
    """All that is given must hold.

    Attributes:
        product: judged as this one.
        status: "good", "defective", "unknown" or "drifting".
        mark: what a person said: a kind of mark, or "any".
        since, until: seconds since 1970; from the first on, before the second.
        sha256: of the file.
        text: part of the source's name, of the reason or of a note, in any case.
        version: of the product.
    """

    product: str | None = None
    status: str | None = None
    mark: str | None = None
    since: float | None = None
    until: float | None = None
    sha256: str | None = None
    text: str | None = None
    version: str | None = None

    def clauses(self) -> Sequence[ColumnElement[bool]]:
        """For a query."""
        row, found = Inspection, []
        equal = ((row.task, self.product), (row.status, self.status), (row.version, self.version))
        found += [column == value for column, value in equal if value is not None]
        if self.sha256 is not None:
            found.append(row.sha256 == self.sha256.lower())
        if self.mark is not None:
            found.append(row.mark_kind.is_not(None) if self.mark == ANY_MARK else row.mark_kind == self.mark)
        if self.since is not None:
            found.append(row.time >= self.since)
        if self.until is not None:
            found.append(row.time < self.until)
        if self.text:
            found.append(
                or_(*(_holds(column, self.text) for column in (row.source, row.reason, row.mark_note)))
            )
        return found


def _holds(column: Any, text: str) -> ColumnElement[bool]:
    for special in (ESCAPE, "%", "_"):
        text = text.replace(special, ESCAPE + special)
    found: ColumnElement[bool] = column.ilike(f"%{text}%", escape=ESCAPE)
    return found
