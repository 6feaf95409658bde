"""Lessons as they stand in the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import select, update

from ..problems import Conflict, Missing, Unready
from .database import Database
from .inspections import MOST_ID
from .models import Job

QUEUED, LEARNING, REVIEW, LIVE = "queued", "learning", "review", "live"
CANCELLED, FAILED, INTERRUPTED = "cancelled", "failed", "interrupted"
OPEN = (QUEUED, LEARNING, REVIEW)
RESUMABLE = (CANCELLED, FAILED, INTERRUPTED)


class Jobs:
    """Of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._late = False  # whether `interrupted` found no room

    def add(
        self,
        kind: str,
        name: str,
        *,
        sources: list[str],
        base_version: str | None,
        place: Callable[[int], None],
    ) -> Job:
        """A new lesson that waits.

        Args:
            kind: "teach" or "update".
            name: of the product.
            sources: names of its photographs.
            base_version: of the product that is updated.
            place: puts the photographs where those of this number belong, before anybody sees the lesson.
        """
        job = Job(
            kind=kind,
            name=name,
            state=QUEUED,
            stage="",
            progress=0.0,
            sources=sources,
            dropped=[],
            base_version=base_version,
            created=time.time(),
        )
        with self._database.session() as session:
            session.add(job)
            session.flush()
            place(job.id)
        return job

    def get(self, number: int) -> Job:
        """One; Missing where there is none."""
        with self._database.session() as session:
            found = session.get(Job, number) if 0 < number <= MOST_ID else None
        if found is None:
            raise Missing(f"there is no job {number}")
        return found

    def recent(self, most: int = 200) -> list[Job]:
        """The newest first."""
        with self._database.session() as session:
            return [*session.scalars(select(Job).order_by(Job.id.desc()).limit(most))]

    def move(self, number: int, to: str, *, among: tuple[str, ...], **values: Any) -> Job:
        """Another state, if it is in one of `among`; Conflict otherwise. Of two at once, one succeeds."""
        self.get(number)
        where = (Job.id == number, Job.state.in_(among))
        with self._database.session() as session:
            moved: Any = session.execute(update(Job).where(*where).values(state=to, **values))
            count = moved.rowcount
        job = self.get(number)
        if not count:
            raise Conflict(
                f"job {number} is {job.state}; expected it to be {' or '.join(among)}", "wrong_state"
            )
        return job

    def states(self) -> dict[int, tuple[str, float | None]]:
        """Of all by number: the state, and when it ended where it did; one that went on has another."""
        with self._database.session() as session:
            rows = session.execute(select(Job.id, Job.state, Job.finished))
            return {number: (state, finished) for number, state, finished in rows}

    def gone(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers that were given to lessons which are there no more; SQLite only.

        What was given is asked first: a lesson that is added meanwhile is beyond it.
        """
        last = self._database.last_given(Job.__tablename__)
        known = self.states()
        return [number for number in numbers if 0 < number <= last and number not in known]

    def next(self) -> Job | None:
        """The first that waits; none while the disk is full, which lets nothing be learned."""
        try:
            if self._late:
                self._interrupt()
            with self._database.session() as session:
                waiting = select(Job).where(Job.state == QUEUED).order_by(Job.id)
                return session.scalars(waiting.limit(1)).first()
        except Unready as problem:
            if problem.code != "disk_full":
                raise
            return None

    def interrupted(self) -> int:
        """Those that were being learned when the station ended are so no more; how many there were.

        What a full disk does not let be written is made up for before the next lesson begins.
        """
        try:
            return self._interrupt()
        except Unready as problem:
            if problem.code != "disk_full":
                raise
            self._late = True
            return 0

    def _interrupt(self) -> int:
        error = "the station ended while it was learned; resume it"
        values = {"state": INTERRUPTED, "error": error, "finished": time.time()}
        with self._database.session() as session:
            done: Any = session.execute(update(Job).where(Job.state == LEARNING).values(values))
            count = int(done.rowcount)
        self._late = False
        return count

    def settled_before(self, moment: float, latest: float) -> list[int]:
        """Those that nobody has taken up since, by number.

        A lesson that claims to have ended before an earlier one began ended after it, and what claims to be
        later than `latest` says nothing: the clock was wrong.
        """
        settled, begun = [], None
        with self._database.session() as session:
            columns = (Job.id, Job.state, Job.created, Job.finished)
            rows = session.execute(select(*columns).order_by(Job.id)).all()
        for number, state, created, finished in rows:
            begun = max((one for one in (begun, created) if one is not None and one <= latest), default=None)
            ended = max((one for one in (begun, finished) if one is not None and one <= latest), default=None)
            if state in (LIVE, *RESUMABLE) and ended is not None and ended < moment:
                settled.append(number)
        return settled
