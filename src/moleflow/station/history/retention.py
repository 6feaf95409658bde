"""What is old goes: inspections by age, pictures by the room they take."""

from __future__ import annotations

from sqlalchemy import delete, func, select

from .clock import DAY, Moment
from .database import Database
from .models import Inspection, Picture

AT_ONCE = 200  # rows of a transaction, so that inspections never wait long for one


class Retention:
    """Of one database.

    Args:
        keep_days: age in days after which inspections are deleted; None keeps them.
        keep_bytes: of all pictures; the oldest go first, those that a person marked last.
    """

    def __init__(self, database: Database, *, keep_days: float | None, keep_bytes: int) -> None:
        self._database, self._days, self._bytes = database, keep_days, keep_bytes

    def run(self, now: Moment) -> tuple[int, int]:
        """How many inspections and how many pictures went."""
        aged = 0 if self._days is None else self._old(now)
        freed = self._large()
        self._database.shrink()
        return aged, freed

    def kept_bytes(self) -> int:
        """Of all pictures."""
        with self._database.session() as session:
            return int(session.scalar(select(func.coalesce(func.sum(Picture.size), 0))) or 0)

    def _old(self, now: Moment) -> int:
        gone, last = 0, self._last_old(now)
        while last is not None:
            with self._database.session() as session:
                old = select(Inspection.id).where(Inspection.id <= last).order_by(Inspection.id)
                numbers = list(session.scalars(old.limit(AT_ONCE)))
                session.execute(delete(Picture).where(Picture.inspection_id.in_(numbers)))
                session.execute(delete(Inspection).where(Inspection.id.in_(numbers)))
            gone += len(numbers)
            if len(numbers) < AT_ONCE:
                break
        return gone

    def _last_old(self, now: Moment) -> int | None:
        """The number up to which all are old; None where none is.

        Numbers are given in the order in which things happened, whatever the clock said. What claims to be
        old behind a young one is not, and what claims to be of the future is as old as the next one.
        """
        number, claimed = Inspection.id, Inspection.time
        before = now.sure - DAY * (self._days or 0.0)
        with self._database.session() as session:
            if session.scalar(select(number).where(claimed < before).limit(1)) is None:
                return None
            # Where nothing is added SQLite takes the other index, and walks through nearly the whole history.
            young = select(number).where(claimed + 0 >= before, claimed + 0 <= now.latest)
            first = session.scalar(young.order_by(number).limit(1))
            old = select(func.max(number + 0)).where(claimed < before)
            return session.scalar(old if first is None else old.where(number + 0 < first))

    def _large(self) -> int:
        gone, over = 0, self.kept_bytes() - self._bytes
        while over > 0:
            oldest = (
                select(Picture.inspection_id, Picture.size)
                .join(Inspection, Inspection.id == Picture.inspection_id)
                .order_by(Inspection.mark_kind.is_not(None), Picture.inspection_id)
                .limit(AT_ONCE)
            )
            with self._database.session() as session:
                numbers = []
                for number, size in session.execute(oldest):
                    numbers.append(number)
                    over -= size
                    if over <= 0:
                        break
                if not numbers:
                    return gone
                session.execute(delete(Picture).where(Picture.inspection_id.in_(numbers)))
            gone += len(numbers)
        return gone
