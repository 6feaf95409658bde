"""Lessons, one after another, each in a process of its own; what comes out waits for a person's yes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import MoleFlowError
from ..store.files import sync_path
from ..waiting import waiting_asleep
from .history.inspections import moment
from .history.jobs import CANCELLED, FAILED, LEARNING, OPEN, QUEUED, RESUMABLE, REVIEW, Jobs
from .history.models import Job
from .lesson import DRAFT, Wish
from .problems import Conflict, Missing, Unready

log = logging.getLogger("moleflow.station")

PHOTOS, PAST, SAID = "photos", "past", "said.txt"
LOOK = 1.0  # seconds between two looks at what waits
PATIENCE = 5.0  # seconds between two attempts to record what the database does not take
SECRETS = ("MOLEFLOW_TOKENS", "MOLEFLOW_DATABASE")  # of the environment, that a lesson need not know
SURE = 0.05  # share of a lesson from which on it is said how long the rest will take


@dataclass(eq=False)
class _Running:
    """The lesson that is learned now."""

    number: int
    process: subprocess.Popen[str]
    began: float
    stage: str = "reading"
    progress: float = 0.0
    ended: bool = False  # by a person or with the station: what it says no longer counts


class Teaching:
    """Runs the lessons that wait.

    Args:
        jobs: as they stand in the database.
        folder: where each has a folder of its own.
        prepare: the wish of a lesson, made when its turn has come; what it raises fails the lesson.
    """

    def __init__(self, jobs: Jobs, folder: Path, prepare: Callable[[Job, Path], Wish]) -> None:
        self.jobs, self._folder, self._prepare = jobs, folder, prepare
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._running: _Running | None = None
        self._guard = threading.RLock()
        self._deciding: dict[int, threading.RLock] = {}
        self._closing, self._woken = threading.Event(), threading.Event()
        count = jobs.interrupted()
        if count:
            log.warning("%d lessons were interrupted; they can be resumed", count)
        self._thread = threading.Thread(target=self._run, name="teaching", daemon=True)
        self._thread.start()

    @property
    def learning(self) -> bool:
        """Whether a lesson is learned now."""
        return self._running is not None

    def folder(self, number: int) -> Path:
        """Of one lesson."""
        return self._folder / str(number)

    def add(self, kind: str, name: str, photos: Sequence[tuple[str, Path]], base_version: str | None) -> Job:
        """A new lesson; its photographs, a name and a file each, are moved into its folder.

        They are on the disk before it is. Their content is synced while nobody waits for the database.
        """
        for _, file in photos:
            sync_path(file)

        def place(number: int) -> None:
            home = self.folder(number)
            shutil.rmtree(home, ignore_errors=True)
            (home / PHOTOS).mkdir(mode=0o700, parents=True)
            for index, (_, file) in enumerate(photos):
                os.replace(file, home / PHOTOS / f"{index:05d}")
            for folder in (home / PHOTOS, home, self._folder):
                sync_path(folder)

        sources = [called for called, _ in photos]
        job = self.jobs.add(kind, name, sources=sources, base_version=base_version, place=place)
        self._woken.set()
        return job

    @contextmanager
    def deciding(self, number: int) -> Iterator[Job]:
        """Around what a person decides on a lesson; who comes second finds what became of it."""
        self.jobs.get(number)  # there is a lock only for what there is
        with self._deciding.setdefault(number, threading.RLock()):
            yield self.jobs.get(number)

    def again(self, number: int, *, drop: Sequence[int] = (), among: tuple[str, ...] = RESUMABLE) -> Job:
        """Learns once more, without the photographs at these indices."""
        with self.deciding(number) as job:
            return self._again(job, drop, among)

    def _again(self, job: Job, drop: Sequence[int], among: tuple[str, ...]) -> Job:
        number = job.id
        wrong = [index for index in drop if not 0 <= index < len(job.sources)]
        if wrong:
            raise Missing(f"job {number} has no photograph {wrong[0]}")
        dropped = sorted({*job.dropped, *drop})
        if len(dropped) == len(job.sources):
            raise Conflict("no photograph would be left to learn from", "nothing_left")
        if not (self.folder(number) / PHOTOS).is_dir():
            raise Conflict(f"the photographs of job {number} are no longer kept", "gone")
        fresh: dict[str, Any] = {"error": None, "unreadable": [], "review": None}
        fresh |= {"stage": "", "progress": 0.0, "finished": None}
        job = self.jobs.move(number, QUEUED, among=among, dropped=dropped, **fresh)
        self._woken.set()
        return job

    def cancel(self, number: int) -> Job:
        """Ends a lesson, whatever it is doing."""
        with self.deciding(number), self._guard:
            job = self.jobs.move(number, CANCELLED, among=OPEN, finished=time.time())
            if self._running is not None and self._running.number == number:
                self._end(self._running)
        return job

    def photo(self, number: int, index: int) -> Path:
        """The file of a photograph; Missing where it is not kept."""
        job = self.jobs.get(number)
        file = self.folder(number) / PHOTOS / f"{index:05d}"
        if not 0 <= index < len(job.sources) or not file.is_file():
            raise Missing(f"job {number} has no photograph {index}")
        return file

    def draft(self, number: int) -> Path:
        """The line that holds what was learned; Missing where there is none."""
        folder = self.folder(number) / DRAFT
        if not folder.is_dir():
            raise Missing(f"job {number} has no draft any more")
        return folder

    def forget(self, number: int) -> None:
        """Deletes the folder of a lesson that is done."""
        shutil.rmtree(self.folder(number), ignore_errors=True)

    def as_json(self, job: Job) -> dict[str, Any]:
        """A lesson as a station tells it."""
        running, left = self._running, None
        stage, progress = job.stage, job.progress
        if running is not None and running.number == job.id and job.state == LEARNING:
            stage, progress = running.stage, running.progress
            if progress > SURE:
                left = round((time.monotonic() - running.began) * (1 - progress) / progress, 1)
        return {
            "id": job.id,
            "kind": job.kind,
            "name": job.name,
            "state": job.state,
            "stage": stage,
            "progress": progress,
            "seconds_left": left,
            "images": len(job.sources) - len(job.dropped),
            "dropped": job.dropped,
            "unreadable": job.unreadable,
            "error": job.error,
            "created": moment(job.created),
            "finished": None if job.finished is None else moment(job.finished),
            "review": job.review,
        }

    def close(self) -> None:
        """Ends the lesson that is learned; it is interrupted and can be resumed."""
        self._closing.set()
        self._woken.set()
        with self._guard:
            if self._running is not None:
                self._end(self._running)
        self._thread.join()
        self.jobs.interrupted()

    @staticmethod
    def _end(running: _Running) -> None:
        running.ended = True
        running.process.kill()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                job = self.jobs.next()
                if job is not None:
                    self._learn(job)
                    continue
            except Unready as error:
                log.warning("lessons wait: %s", error)
            except Exception:
                log.exception("lessons cannot be run")
            self._woken.wait(LOOK)
            self._woken.clear()

    def _learn(self, job: Job) -> None:
        home = self.folder(job.id)
        try:
            shutil.rmtree(home / DRAFT, ignore_errors=True)
            self._prepare(job, home).write(home)
            with self._guard:
                if self._closing.is_set():
                    return
                self.jobs.move(job.id, LEARNING, among=(QUEUED,), stage="reading", progress=0.0)
                running = self._running = _Running(job.id, _start(home), time.monotonic())
            said = self._follow(running)
            if running.ended:
                return
        except Conflict:
            return  # cancelled before it began
        except Exception as error:
            said = {"error": str(error)}
            if not isinstance(error, MoleFlowError | OSError):
                log.exception("a lesson failed")
        finally:
            self._running = None
        self._settle(job, said)

    def _follow(self, running: _Running) -> dict[str, Any]:
        """What a lesson said last; its progress is kept until then."""
        last: dict[str, Any] = {}
        out: IO[str] = running.process.stdout  # type: ignore[assignment]
        try:
            for line in out:
                said = _parsed(line)
                if "stage" in said:
                    running.stage, running.progress = said["stage"], said["progress"]
                elif said:
                    last = said
        except BaseException:
            running.process.kill()
            raise
        finally:
            code = running.process.wait()
            if running.process.stdin is not None:
                running.process.stdin.close()
        return last or {
            "error": f"the lesson ended by itself (code {code}): {self._last_words(running.number)}"
        }

    def _last_words(self, number: int) -> str:
        """What it wrote to stderr goes to the log; people are told its last line."""
        try:
            text = (self.folder(number) / SAID).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return "nothing was said"
        if text:
            log.error("lesson %d: %s", number, text[-4000:])
        return text.splitlines()[-1][:300] if text else "nothing was said"

    def _settle(self, job: Job, said: dict[str, Any]) -> None:
        """From learning to review, or to failed; one that was cancelled stays so.

        A database that has no room, or is away, is waited for: what became of a lesson is not lost by it.
        """
        values: dict[str, Any] = {"finished": time.time()}
        among: tuple[str, ...]
        if "review" in said:
            review = dict(said["review"])
            to, among = REVIEW, (LEARNING,)
            values |= {"base_version": review.pop("base_version"), "progress": 1.0, "stage": "done"}
            values["review"] = review
        else:
            to, among = FAILED, (QUEUED, LEARNING)
            values |= {"error": said["error"], "unreadable": said.get("unreadable", [])}
        while not self._closing.is_set():
            try:
                self.jobs.move(job.id, to, among=among, **values)
                return
            except Conflict:
                return
            except Unready as error:
                log.warning("what became of lesson %d cannot be recorded yet: %s", job.id, error)
                self._closing.wait(PATIENCE)


def _parsed(line: str) -> dict[str, Any]:
    """What a lesson said; nothing where it was killed before the end of the line."""
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return said


def _start(home: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key not in SECRETS}
    with open(home / SAID, "w", encoding="utf-8") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "moleflow.station.lesson", str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment | waiting_asleep(environment),
            text=True,
            encoding="utf-8",
            start_new_session=True,  # a signal to the station is not one to the lesson: it is interrupted
        )
