"""What time it is as far as ages go: a clock that is wrong for a while must not delete a history."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import func, select

from ..problems import Unready
from .database import Database
from .models import Inspection, SeenTime

log = logging.getLogger("moleflow.station")

DAY = 86400.0
HASTE = 24  # as fast as time passes, a clock that is ahead is followed: a day an hour
KEPT_EVERY = 3600.0  # seconds that were seen to pass
TOLD = 7  # days that a clock is ahead or behind before the log says so


@dataclass(frozen=True)
class Moment:
    """A time in seconds since 1970.

    Attributes:
        sure: what is older than this by the age it may have is old.
        latest: what claims to be of later has a wrong time.
    """

    sure: float
    latest: float


class Clock:
    """Of one database, in which it stands up to when time was seen to pass.

    From there on the system's clock is followed, but only `HASTE` times as fast as time passes while the
    station runs. One that is years ahead for an hour makes everything a day older, and what was not looked
    at for months is old some days later. Time that was seen to pass is never taken back.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looked = time.monotonic()
        self._seen = self._kept = -math.inf
        self._told = ""
        self._begin()

    def now(self) -> Moment:
        """The time; where a full disk kept the history from being asked, one at which nothing is old."""
        now, looked = time.time(), time.monotonic()
        passed, self._looked = looked - self._looked, looked
        if self._seen == -math.inf:
            self._begin()
        if self._seen == -math.inf:
            return Moment(-math.inf, now + DAY)
        self._seen = max(self._seen, min(now, self._seen + HASTE * passed))
        self._keep()
        self._tell((now - self._seen) / DAY)
        return Moment(min(now, self._seen), max(now, self._seen) + DAY)

    def _begin(self) -> None:
        """As it was kept; of a history that has nothing kept, the time of what is in it."""
        now = time.time()
        with _while_there_is_room(), self._database.session() as session:
            kept = session.get(SeenTime, 1)
            if kept is not None:
                self._seen = self._kept = kept.until
                return
            newest = session.scalar(select(func.max(Inspection.time)))
            self._seen = now if newest is None else min(now, float(newest))

    def _keep(self) -> None:
        """Now and then: it is a disk that is written to."""
        if self._seen - self._kept < KEPT_EVERY:
            return
        with _while_there_is_room():
            with self._database.session() as session:
                session.merge(SeenTime(id=1, until=self._seen))
            self._kept = self._seen

    def _tell(self, days: float) -> None:
        """Once, when it begins."""
        told = "" if abs(days) < TOLD else "ahead of" if days > 0 else "behind"
        if told and told != self._told:
            log.warning(
                "the clock is %d days %s the time that this station has seen pass; what is deleted by age "
                "is deleted by the earlier of the two, which follows by a day an hour: is the clock right?",
                abs(days),
                told,
            )
        self._told = told


@contextmanager
def _while_there_is_room() -> Iterator[None]:
    try:
        yield
    except Unready as problem:
        if problem.code != "disk_full":
            raise
