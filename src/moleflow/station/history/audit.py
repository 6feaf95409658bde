"""Every change of the line: who, what, when, and what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update

from ..problems import Unready
from .database import Database
from .inspections import MOST_ID, moment
from .models import Change

log = logging.getLogger("moleflow.station")

BEGUN, DONE = "begun", "done"


@dataclass(frozen=True)
class Person:
    """Who asks.

    Attributes:
        role: "inspect", "teach" or "admin".
        fingerprint: of the token, the first characters of its hash; "open" without one.
        address: where the request came from.
    """

    role: str
    fingerprint: str = "open"
    address: str = ""


class Audit:
    """Of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def change(
        self, who: Person, action: str, product: str | None, **detail: Any
    ) -> Iterator[dict[str, Any]]:
        """Around a change: nothing is changed that was not written down before.

        What is put into the dictionary that is handed out is added to the detail.
        """
        row = Change(
            time=time.time(),
            role=who.role,
            fingerprint=who.fingerprint,
            address=who.address[:64],
            action=action,
            product=product,
            detail=detail,
            outcome=BEGUN,
        )
        with self._database.session() as session:
            session.add(row)
        more: dict[str, Any] = {}
        try:
            yield more
        except BaseException as error:
            self._end(row.id, f"failed: {error}"[:500], detail)
            raise
        self._end(row.id, DONE, detail | more)

    def _end(self, number: int, outcome: str, detail: dict[str, Any]) -> None:
        values = {"outcome": outcome, "detail": detail}
        try:
            with self._database.session() as session:
                session.execute(update(Change).where(Change.id == number).values(values))
        except Unready as problem:  # the change itself is made, and was written down as begun
            log.error("what became of change %d (%s) cannot be written: %s", number, outcome, problem)

    def page(self, *, before: int | None, limit: int) -> tuple[list[Change], int | None]:
        """The newest first, and the number to go on before; None at the end."""
        query = select(Change).order_by(Change.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(Change.id < min(before, MOST_ID))
        with self._database.session() as session:
            rows = list(session.scalars(query))
        return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def change_as_json(row: Change) -> dict[str, Any]:
    """A change as a station tells it."""
    return {
        "id": row.id,
        "time": moment(row.time),
        "role": row.role,
        "fingerprint": row.fingerprint,
        "address": row.address,
        "action": row.action,
        "product": row.product,
        "detail": row.detail,
        "outcome": row.outcome,
    }
