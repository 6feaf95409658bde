"""Inspections: written in batches, found again, marked by people."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, Subquery, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from ..problems import Missing
from .database import Database
from .filters import Filters
from .models import Inspection, Picture

STATUSES = ("good", "defective", "unknown", "drifting")
AT_ONCE = 500  # rows of a stream
SEARCHED = 100_000  # numbers that a text is looked for among at once
RECENT, LOOKED_AT = 1000, 10_000  # inspections of a product
MOST_ID = 2**63 - 1  # of what a database can count


class Inspections:
    """Of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Sequence[dict[str, Any]], pictures: Sequence[dict[str, Any] | None]) -> list[int]:
        """Writes a batch in one transaction, and returns the numbers in its order.

        Args:
            rows: columns of `Inspection`.
            pictures: for each the columns of its `Picture` but the number; None where none is kept.
        """
        with self._database.session() as session:
            statement = insert(Inspection).returning(Inspection.id, sort_by_parameter_order=True)
            numbers = list(session.scalars(statement, rows))
            kept = [
                {"inspection_id": number, **picture}
                for number, picture in zip(numbers, pictures, strict=True)
                if picture is not None
            ]
            if kept:
                session.execute(insert(Picture), kept)
        return numbers

    def get(self, number: int) -> Inspection:
        """One; Missing where there is none."""
        with self._database.session() as session:
            found = session.get(Inspection, number) if 0 < number <= MOST_ID else None
        if found is None:
            raise Missing(f"there is no inspection {number}")
        return found

    def keyed(self, keys: Collection[str]) -> dict[str, Inspection]:
        """Those that were sent under these keys, by key."""
        if not keys:
            return {}
        with self._database.session() as session:
            rows = session.scalars(select(Inspection).where(Inspection.key.in_(keys)))
            return {str(row.key): row for row in rows}

    def picture(self, number: int) -> Picture:
        """Picture and map of one; Missing once retention took them."""
        with self._database.session() as session:
            found = session.get(Picture, number) if 0 < number <= MOST_ID else None
        if found is None:
            raise Missing(f"the picture of inspection {number} is not kept")
        return found

    def page(
        self, filters: Filters, *, before: int | None, limit: int
    ) -> tuple[list[Inspection], int | None]:
        """The newest first, and the number to go on before; None at the end.

        A text is looked for among `SEARCHED` numbers at once: there may be more where nothing was found.
        """
        query = select(Inspection).where(*filters.clauses()).order_by(Inspection.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(Inspection.id < min(before, MOST_ID))
        with self._database.session() as session:
            down_to = self._searched(session, before) if filters.text else None
            if down_to is not None:
                query = query.where(Inspection.id >= down_to)
            rows = list(session.scalars(query))
        return rows[:limit], rows[limit - 1].id if len(rows) > limit else down_to

    @staticmethod
    def _searched(session: Session, before: int | None) -> int | None:
        """The number down to which is searched at once; None where that is all."""
        first, last = (session.scalar(select(end(Inspection.id))) for end in (func.min, func.max))
        if first is None or last is None:
            return None
        down_to = min(last + 1, before or last + 1) - SEARCHED
        return down_to if down_to > first else None

    def all(self, filters: Filters) -> Iterator[Inspection]:
        """Every one, the newest first, few in memory at a time."""
        before: int | None = None
        while True:
            rows, before = self.page(filters, before=before, limit=AT_ONCE)
            yield from rows
            if before is None:
                return

    def mark(self, number: int, kind: str | None, *, task: str | None = None, note: str = "") -> Inspection:
        """What a person says of one; a kind of None takes it back."""
        values: dict[str, Any] = {
            "mark_kind": kind,
            "mark_task": task if kind else None,
            "mark_note": note if kind else None,
            "mark_time": time.time() if kind else None,
        }
        self.get(number)
        with self._database.session() as session:
            session.execute(update(Inspection).where(Inspection.id == number).values(values))
        return self.get(number)

    def counts(self, product: str) -> dict[str, int]:
        """How many of the last `RECENT` of a product there are, by status."""
        recent = self._recent(product, None, RECENT)
        query = select(recent.c.status, func.count()).group_by(recent.c.status)
        with self._database.session() as session:
            found = {status: count for status, count in session.execute(query)}
        return {status: found.get(status, 0) for status in STATUSES}

    def under_threshold(self, product: str, version: str | None, threshold: float) -> dict[str, int]:
        """How verdicts of a version, of the last `LOOKED_AT` on the product, would be with another threshold.

        Inspections that were taken for none of the products do not count: a threshold says nothing of them.
        """
        row = self._recent(product, version, LOOKED_AT).c
        was, would = row.pred_score > row.threshold, row.pred_score > threshold
        query = select(
            func.count(),
            func.count().filter(was & ~would),
            func.count().filter(~was & would),
        ).where(row.known)
        with self._database.session() as session:
            total, to_good, to_defective = session.execute(query).one()
        return {"inspections": total, "to_good": to_good, "to_defective": to_defective}

    @staticmethod
    def _recent(product: str, version: str | None, most: int) -> Subquery:
        row = Inspection
        columns = (row.status, row.known, row.pred_score, row.threshold)
        return select(*columns).where(*_of(product, version)).order_by(row.id.desc()).limit(most).subquery()

    def last(
        self, product: str, most: int, *, version: str | None = None, kept: bool = False
    ) -> list[Inspection]:
        """The last ones of a product, the newest first; with `kept` only those that have a picture.

        Those of a version, or with a picture, are looked for among the last `LOOKED_AT`.
        """
        query = select(Inspection).where(*_of(product, version))
        if kept:
            query = query.join(Picture, Picture.inspection_id == Inspection.id)
        with self._database.session() as session:
            return list(session.scalars(query.order_by(Inspection.id.desc()).limit(most)))


def _of(product: str, version: str | None) -> Sequence[ColumnElement[bool]]:
    """Those of a version among the last of a product, so that a long history of others slows nothing down."""
    other = aliased(Inspection)
    before = (
        select(other.id).where(other.task == product).order_by(other.id.desc()).offset(LOOKED_AT).limit(1)
    )
    within = Inspection.id > func.coalesce(before.scalar_subquery(), 0)
    return [*Filters(product=product, version=version).clauses(), within]


def as_json(row: Inspection) -> dict[str, Any]:
    """An inspection as a station tells it."""
    mark = None
    if row.mark_kind is not None:
        said = {"kind": row.mark_kind, "task": row.mark_task, "note": row.mark_note or ""}
        mark = said | {"time": moment(row.mark_time or 0.0)}
    return {
        "id": row.id,
        "recorded": True,
        "time": moment(row.time),
        "source": row.source,
        "sha256": row.sha256,
        "task": row.task,
        "version": row.version,
        "status": row.status,
        "known": row.known,
        "pred_score": row.pred_score,
        "p_value": row.p_value,
        "threshold": row.threshold,
        "reason": row.reason,
        "place_score": row.place_score,
        "whole_score": row.whole_score,
        "map_threshold": row.map_threshold,
        "image_size": [row.height, row.width],
        "certainty": row.certainty,
        "regions": row.regions,
        "latency_ms": row.latency_ms,
        "mark": mark,
    }


def moment(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return (
        datetime.fromtimestamp(seconds, timezone.utc)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
