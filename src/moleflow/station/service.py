"""The station: inspects, remembers, teaches, and changes the line; it knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError  # before Python 3.11 it is not the built-in one
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from ..errors import MoleFlowError
from .changing import Changing
from .current import CurrentLine, refuse_other
from .history import Database
from .history.audit import Audit
from .history.clock import Clock
from .history.inspections import Inspections
from .history.jobs import Jobs
from .history.models import Inspection
from .history.retention import Retention
from .inspecting import Inspecting, Room
from .lessons import Lessons
from .pictures import Shot, reduced, size_in_memory, take
from .problems import Problem, TooLarge, Unready
from .products import Products
from .recording import Recorder, answer_of, first_of
from .settings import Settings

log = logging.getLogger("moleflow.station")

LOCK = "station.lock"
CARE_SECONDS = 60.0
LOOKED = 1.0  # seconds that a look at the disk counts for
ANSWER_SECONDS = 300.0  # that a verdict is waited for, of each picture

Told = Callable[[Sequence[Inspection], bool], None]


@dataclass(frozen=True)
class Upload:
    """A file as it came.

    Attributes:
        source: how it is called.
        data: its bytes.
        key: its sender's, by which it is known where it is sent again; of 80 characters at most.
    """

    source: str
    data: bytes
    key: str | None = None


class Station:
    """One line, one database, one queue of pictures, one lesson at a time.

    Args:
        settings: of all of them.
        told: of every batch of inspections that was answered, and whether it was recorded.

    Raises:
        LineError: the line is damaged beyond single products.
        ConfigError: an impossible setting.
        Unready: the database cannot be opened.
    """

    def __init__(self, settings: Settings, *, told: Told = lambda found, recorded: None) -> None:
        self.settings = settings
        refuse_other(settings.line)  # before anything is made beside it
        _make_folder(settings.data)
        self._alone = _held_alone(settings.data / LOCK)
        _limit_threads(settings.threads)
        self.line = CurrentLine(settings)
        self.database = Database(settings.url)
        self.inspections = Inspections(self.database)
        self.audit = Audit(self.database)
        self.products = Products(self.line, self.inspections)
        self.changing = Changing(self.line, self.audit)
        self.lessons = Lessons(self, Jobs(self.database))
        self._disk = 0.0, 0
        self._clock = Clock(self.database)
        self._retention = Retention(
            self.database, keep_days=settings.keep_days, keep_bytes=settings.keep_bytes
        )
        self._room = Room(settings.limits.memory, "memory")
        self._decoding = Room(os.cpu_count() or 1, "processor")
        self.inspecting = Inspecting(
            lambda: self.line.now,
            Recorder(self.inspections, lambda: self.disk_free() >= settings.least_free, told),
            batch=settings.batch,
            wait=settings.wait,
            most=settings.limits.waiting,
        )
        self._closing = threading.Event()
        self._looking = [
            threading.Thread(target=self._repeat, args=job, daemon=True)
            for job in ((settings.poll, self.line.look), (CARE_SECONDS, self.care))
        ]
        for thread in self._looking:
            thread.start()

    def inspect(self, uploads: Sequence[Upload], task: str | None = None) -> list[dict[str, Any] | Problem]:
        """What is said of each, in order; a problem in the place of one of which nothing can be said.

        What was recorded under its key before is said again, and nothing more is recorded.

        Raises:
            Unready: nothing can be inspected at the moment.
            Missing: there is no product `task`.
        """
        since = time.perf_counter()
        limits = self.settings.limits
        if len(uploads) > limits.images:
            found = f"{len(uploads)} images, more than the limit of {limits.images}"
            raise TooLarge(found, "too_many_images")
        before = self._answered(uploads)
        rest = [upload for upload, answer in zip(uploads, before, strict=True) if answer is None]
        answers = iter(self._inspect(rest, task, since) if rest else ())
        return [next(answers) if answer is None else answer for answer in before]

    def disk_free(self, *, looked_within: float = LOOKED) -> int:
        """Bytes on the disk of the station's folder, as they were so many seconds ago at most."""
        looked, free = self._disk
        if time.monotonic() - looked > looked_within:
            try:
                free = shutil.disk_usage(self.settings.data).free
            except OSError:
                free = 0
            self._disk = time.monotonic(), free
        return free

    @property
    def trouble(self) -> str | None:
        """Why pictures cannot be inspected and recorded at the moment; None where they can."""
        if not self.inspecting.alive:
            return "the station is closing"
        try:
            self.database.check()
        except Problem as problem:
            return str(problem)
        return None

    def reduced(self, file: Path, side: int) -> bytes:
        """A photograph as a JPEG of at most so many pixels a side; NotAnImage where it is none."""
        size = size_in_memory(file, file.name, most_pixels=self.settings.limits.pixels)
        with self._room.taken(size), self._decoding.taken():
            return reduced(file, file.name, side)

    def care(self) -> None:
        """Deletes what is old, from the database and from the folders of lessons."""
        now = self._clock.now()
        self.lessons.tidy(now)  # first: it needs no room
        aged, freed = self._retention.run(now)
        if aged or freed:
            log.info("retention took %d inspections and %d pictures", aged, freed)

    def close(self) -> None:
        """Answers what is in flight, interrupts a lesson, and lets go of the database."""
        self._closing.set()
        self.inspecting.close()
        self.lessons.close()
        for thread in self._looking:
            thread.join()
        self.database.close()
        self._alone.release()

    def _parts(self, uploads: Sequence[Upload]) -> list[list[tuple[Upload, int | Problem]]]:
        """Uploads with what they take in memory, in parts of which each fits by itself."""
        most = self.settings.limits.memory // 4
        parts: list[list[tuple[Upload, int | Problem]]] = []
        held = most
        for upload in uploads:
            try:
                size: int | Problem = size_in_memory(
                    upload.data, upload.source, most_pixels=self.settings.limits.pixels
                )
            except Problem as problem:
                size = problem
            taken = size if isinstance(size, int) else 0
            if not parts or held + taken > most:
                parts.append([])
                held = 0
            parts[-1].append((upload, size))
            held += taken
        return parts

    def _answered(self, uploads: Sequence[Upload]) -> list[dict[str, Any] | Problem | None]:
        """What was said before of those whose keys are known; None of the others."""
        known = first_of(self.inspections, [upload.key for upload in uploads if upload.key])
        return [
            answer_of(known[upload.key], hashlib.sha256(upload.data).hexdigest())
            if upload.key in known
            else None
            for upload in uploads
        ]

    def _inspect(
        self, uploads: Sequence[Upload], task: str | None, since: float
    ) -> list[dict[str, Any] | Problem]:
        self.inspecting.check_room(len(uploads))
        task = None if task is None else self.products.check(task)
        answers: list[dict[str, Any] | Problem] = []
        for part in self._parts(uploads):
            try:
                answers += self._inspect_part(part, task, since)
            except Unready as problem:  # no room for more: what was answered before is recorded, and counts
                return answers + [problem] * (len(uploads) - len(answers))
        return answers

    def _inspect_part(
        self, part: Sequence[tuple[Upload, int | Problem]], task: str | None, since: float
    ) -> list[dict[str, Any] | Problem]:
        """One part: memory is taken for all of it at once, so that two requests never wait for each other."""
        with self._room.taken(sum(size for _, size in part if isinstance(size, int))):
            asked = [
                size if isinstance(size, Problem) else self._asked(upload, task, since)
                for upload, size in part
            ]
            return [one if isinstance(one, Problem) else _answer(one) for one in asked]

    def _asked(self, upload: Upload, task: str | None, since: float) -> Future[Any] | Problem:
        try:
            with self._decoding.taken():
                shot = self._shot(upload)
            return self.inspecting.submit(shot, task, since=since)
        except Problem as problem:
            return problem

    def _shot(self, upload: Upload) -> Shot:
        inspector = self.line.now.inspector
        if inspector is None:
            raise Unready("this line knows no product yet: teach it one", "nothing_taught")
        return replace(take(upload.data, upload.source, intake=inspector.intake), key=upload.key)

    def _repeat(self, seconds: float, do: Callable[[], Any]) -> None:
        while not self._closing.wait(seconds):
            try:
                do()
            except MoleFlowError as error:
                log.error("%s", error)
            except Exception:
                log.exception("looking after the station failed")


def _answer(asked: Future[Any]) -> dict[str, Any] | Problem:
    try:
        answer: dict[str, Any] = asked.result(ANSWER_SECONDS)
    except Problem as problem:  # of this one: those beside it are recorded
        return problem
    except LateError:  # it is judged and recorded all the same, and found again by its key
        late = f"no verdict within {ANSWER_SECONDS:g} s; send it again with the same key"
        return Unready(late, "busy")
    return answer


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"{folder}: cannot hold the station's data: {error.strerror or error}") from error


def _held_alone(path: Path) -> filelock.BaseFileLock:
    """A lock that falls with the process: two stations would run each other's lessons."""
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise Problem(f"{path.parent}: another station uses this folder already") from error
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from error
    return lock


def _limit_threads(threads: int | None) -> None:
    if threads is not None:
        try:
            import torch
        except ModuleNotFoundError:
            return
        torch.set_num_threads(threads)
