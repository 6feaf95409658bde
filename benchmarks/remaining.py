"""How long runs still take, from what their finished units took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from moleflow.bench.files import read_json
from moleflow.bench.plan import Unit, Work
from moleflow.bench.unit import figures_path, unit_folder

Kind = tuple[int, str, int]  # which run, entry, step


class Remaining:
    """Counts finished units of several runs of the same entries, such as one for each image size.

    A unit is expected to take what those of the same run, entry and step took; where none is done, what the
    nearest kind took that is: any step, or the same of another run, by the images' pixels.

    Args:
        works: the runs.
        jobs: processes side by side.
    """

    def __init__(self, works: Sequence[Work], jobs: int = 1) -> None:
        self._works, self._jobs = works, jobs
        self._left: dict[Kind, int] = {}
        self._took: dict[Kind, list[float]] = {}
        self.done, self.total = 0, 0
        for number, work in enumerate(works):
            for unit in work.plan.units():
                self.total += 1
                kind = (number, unit.entry, unit.step)
                self._left[kind] = self._left.get(kind, 0) + 1

    def finished(self, number: int, unit: Unit) -> None:
        """Takes note of a finished unit of a run."""
        work, kind = self._works[number], (number, unit.entry, unit.step)
        self.done += 1
        self._left[kind] -= 1
        path = unit_folder(work, unit) / f"time-{unit.step:02}.json"
        if figures_path(work, unit).exists() and path.exists():
            seconds = read_json(path).get("unit")
            if seconds is not None:
                self._took.setdefault(kind, []).append(seconds)

    def seconds(self) -> float | None:
        """Expected until the last run is done; None while nothing is known."""
        if not self._took:
            return None
        total = sum(count * self._expected(kind) for kind, count in self._left.items() if count)
        return total / self._jobs

    def _expected(self, kind: Kind) -> float:
        number, entry, step = kind
        wider = (
            lambda k: k == kind,
            lambda k: k[:2] == (number, entry),
            lambda k: k[1:] == (entry, step),
            lambda k: k[1] == entry,
            lambda k: True,
        )
        for fits in wider:
            found = [
                value * self._pixels(number) / self._pixels(k[0])
                for k, values in self._took.items()
                if fits(k)
                for value in values
            ]
            if found:
                return fmean(found)
        return 0.0

    def _pixels(self, number: int) -> float:
        size = self._works[number].plan.image_size
        return 1.0 if size is None else float(size[0] * size[1])
