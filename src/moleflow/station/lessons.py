"""Between a person who teaches and the process that learns: what is asked for, reviewed and accepted."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TaskError
from ..store import check_new_name
from ..store.names import folded_name
from .history.audit import Person
from .history.clock import Moment
from .history.jobs import LIVE, REVIEW, Jobs
from .history.models import Job
from .lesson import Wish
from .pictures import size_in_memory
from .problems import Conflict, Missing, Problem, TooLarge, Unready, Unusable
from .teaching import PAST, PHOTOS, Teaching

if TYPE_CHECKING:
    from .service import Station

KINDS = ("teach", "update")
PAST_PICTURES = 100  # inspections of a product that an update is tried on
CHECKED = 8 << 20  # bytes of photographs between two looks at the disk
FORGOTTEN = 14 * 86400.0  # seconds after which the photographs of a lesson that came to nothing go


class Arriving:
    """Photographs that come in.

    Args:
        folder: for them.
        check: says no where there is no room for more.
    """

    def __init__(self, folder: Path, check: Callable[[], None]) -> None:
        self.folder, self._check, self._came = folder, check, 0

    def count(self, size: int) -> None:
        """So many bytes came: others may have come beside them, and who sends need not have said how many."""
        self._came += size
        if self._came >= CHECKED:
            self._came = 0
            self._check()


class Lessons:
    """Of one station."""

    def __init__(self, station: Station, jobs: Jobs) -> None:
        self._station, self.jobs = station, jobs
        self._arriving = station.settings.data / "arriving"
        shutil.rmtree(self._arriving, ignore_errors=True)
        self.teaching = Teaching(jobs, station.settings.data / "jobs", self._wish)

    @contextmanager
    def arriving(self, size: int = 0) -> Iterator[Arriving]:
        """A folder for so many bytes of photographs; what was not made a lesson of goes at the end."""
        self.check_disk(size)
        self._arriving.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._arriving))
        try:
            yield Arriving(folder, self.check_disk)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check_disk(self, size: int = 0) -> None:
        """Unready where there is no room to learn, or would be none with so many bytes more."""
        free, least = self._station.disk_free(looked_within=0.0) - size, self._station.settings.least_free
        if free < least:
            left = f"{max(free, 0) >> 20} MB are left on the disk, learning needs {least >> 20} MB"
            raise Unready(f"{left}; inspection goes on", "disk_full")

    def begin(
        self,
        who: Person,
        kind: str,
        name: str,
        *,
        folder: Path,
        photos: Sequence[tuple[str, Path]],
        inspections: Sequence[int] = (),
    ) -> Job:
        """A lesson.

        Args:
            who: asks for it.
            kind: "teach" or "update".
            name: of the product.
            folder: of `arriving`.
            photos: a name and a file in that folder each.
            inspections: whose kept pictures are good ones as well.

        Raises:
            Unusable: another kind, no name of a product, no photographs.
            Conflict: a new product's name is taken, or the line does not learn.
            Missing: there is no product to update, or a picture is no longer kept.
            TooLarge: a photograph has more pixels than the limit.
            NotAnImage: none of the photographs can be read; single ones are named in the review.
        """
        line = self._station.line
        if kind not in KINDS:
            raise Unusable(f"expected a kind among {', '.join(KINDS)}, got {kind!r}")
        if not line.can_learn:
            raise Conflict(
                "this station does not learn: it has no torch, or its line was exported", "no_learning"
            )
        name, version = self._name(kind, name)
        limits = self._station.settings.limits
        if len(photos) + len(inspections) > limits.lesson_images:
            raise TooLarge(f"more than the limit of {limits.lesson_images} photographs", "too_many_images")
        self._check(photos)
        photos = [*photos, *self._kept(inspections, folder)]
        if not photos:
            raise Unusable("expected photographs to learn from, got none", "no_images")
        with self._station.audit.change(who, f"{kind} begins", name, images=len(photos)) as more:
            job = self.teaching.add(kind, name, photos, version)
            more["job"] = job.id
        return job

    def accept(self, who: Person, number: int, drop: Sequence[int]) -> Job:
        """Puts what was learned on the line; with `drop` it is learned again without these photographs."""
        with self.teaching.deciding(number) as job:
            if job.state != REVIEW:
                raise Conflict(f"job {number} is {job.state}; expected it to be in review", "wrong_state")
            if drop:
                self.check_disk()
                return self.teaching.again(number, drop=drop, among=(REVIEW,))
            draft = self.teaching.draft(number)
            self._station.changing.adopt(who, job.kind, job.name, draft, job.base_version, number)
            job = self.jobs.move(number, LIVE, among=(REVIEW,), finished=time.time())
            self.teaching.forget(number)
            return job

    def resume(self, number: int, drop: Sequence[int] = ()) -> Job:
        """Learns what was cancelled, failed or interrupted, without the photographs in `drop`."""
        self.check_disk()
        return self.teaching.again(number, drop=drop)

    def as_json(self, job: Job) -> dict[str, Any]:
        """A lesson as a station tells it."""
        return self.teaching.as_json(job)

    def tidy(self, now: Moment) -> None:
        """Deletes photographs of lessons that nobody took up again."""
        for number in self.jobs.settled_before(now.sure - FORGOTTEN, latest=now.latest):
            self.teaching.forget(number)

    def close(self) -> None:
        """Interrupts the lesson that is learned."""
        self.teaching.close()

    def _name(self, kind: str, name: str) -> tuple[str, str | None]:
        """The product's name, and its version where it is updated."""
        now, products = self._station.line.now, self._station.products
        if kind == "update":
            name = products.check(name)
            if name in now.damaged:
                raise Conflict(f"{name!r} is quarantined: roll it back or remove it", "quarantined")
            return name, now.version(name)
        try:
            name = check_new_name(name)
        except TaskError as error:
            raise Unusable(str(error), "unusable_name") from error
        if folded_name(name) in {folded_name(known) for known in now.names}:
            raise Conflict(f"{name!r} is a product of this line already: update it", "taken")
        return name, None

    def _check(self, photos: Sequence[tuple[str, Path]]) -> None:
        """The problem of the first, where all are unusable, or of one that nobody has to decode."""
        problems: list[Problem] = []
        for source, file in photos:
            try:
                self._check_photo(source, file)
            except TooLarge as problem:
                raise TooLarge(f"{source}: {problem}", problem.code) from problem
            except Problem as problem:
                problems.append(problem)
        if problems and len(problems) == len(photos):
            raise problems[0]

    def _check_photo(self, source: str, file: Path) -> None:
        size_in_memory(file, source, most_pixels=self._station.settings.limits.pixels)

    def _kept(self, inspections: Sequence[int], folder: Path) -> Iterator[tuple[str, Path]]:
        """Kept pictures of inspections as photographs, in the folder of the others."""
        if not inspections:
            return
        self._check_depth()
        for number in inspections:
            row, picture = self._station.inspections.get(number), self._station.inspections.picture(number)
            file = folder / f"kept-{number}"
            file.write_bytes(picture.jpeg)
            yield row.source, file

    def _check_depth(self) -> None:
        inspector = self._station.line.now.inspector
        if inspector is not None and not _takes_kept(inspector):
            found = (
                "this line's camera has more than 8 bits, and kept pictures have 8: upload the photographs"
            )
            raise Conflict(found, "deep_line")

    def _wish(self, job: Job, home: Path) -> Wish:
        """What a lesson is to learn, once its turn has come."""
        self.check_disk()
        settings = self._station.settings
        names = {i: name for i, name in enumerate(job.sources) if i not in job.dropped}
        threads = max(1, (settings.threads or os.cpu_count() or 2) - 1)  # inspection goes on
        return Wish(
            line=str(settings.line.absolute()),
            kind=job.kind,
            name=job.name,
            photos={index: str(home.absolute() / PHOTOS / f"{index:05d}") for index in names},
            names=names,
            past=self._past(job, home),
            threads=threads,
            device=settings.device,
            runtime=settings.runtime,
            weights=settings.weights,
        )

    def _past(self, job: Job, home: Path) -> dict[int, str]:
        """The last kept pictures of a product that is updated, as files."""
        inspector = self._station.line.now.inspector
        shutil.rmtree(home / PAST, ignore_errors=True)
        if job.kind != "update" or inspector is None or not _takes_kept(inspector):
            return {}
        (home / PAST).mkdir(mode=0o700)
        found = {}
        for row in self._station.inspections.last(job.name, PAST_PICTURES, kept=True):
            file = home.absolute() / PAST / f"{row.id}.jpg"
            try:
                file.write_bytes(self._station.inspections.picture(row.id).jpeg)
            except Missing:  # retention took it meanwhile
                continue
            found[row.id] = str(file)
        return found


def _takes_kept(inspector: Any) -> bool:
    """Whether the line sees a kept picture, of 8 bits, as it saw the image."""
    intensity = inspector.intake.intensity
    return bool(intensity.plain or intensity.depth == "any")
