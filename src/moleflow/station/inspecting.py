"""Pictures that wait are inspected together; what is said of them is written down before it is answered.

One thread computes, a second one writes. So the next batch is computed while the last one is synced to the
disk, and all verdicts that wait to be written share one transaction.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import MoleFlowError, TaskError
from ..results import Failure, Prediction
from .current import Loaded
from .pictures import Shot
from .problems import Missing, Problem, Unready, Unusable

log = logging.getLogger("moleflow.station")

BEHIND = 2  # batches that may wait to be written
PASS = 8  # pictures of a pass of the backbone
LONGEST_WAIT = 30.0  # seconds for room in memory, and for a processor that decodes


@dataclass(frozen=True, eq=False)
class Said:
    """What was said of a picture, by which version of the product, and how long it took in seconds."""

    shot: Shot
    prediction: Prediction
    version: str | None
    seconds: float


Write = Callable[[Sequence[Said]], Sequence[Any]]


@dataclass(eq=False)
class _Waiting:
    shot: Shot
    task: str | None
    since: float
    answer: Future[Any] = field(default_factory=Future)


class Inspecting:
    """Answers pictures with what `write` makes of the verdicts.

    Args:
        line: the line as it is now; asked once a batch.
        write: records a batch, and returns an answer or a problem for each; what it raises is raised for all.
        batch: pictures that are inspected together at most.
        wait: seconds that the first of them waits for others.
        most: pictures that may wait.
    """

    def __init__(
        self, line: Callable[[], Loaded], write: Write, *, batch: int, wait: float, most: int
    ) -> None:
        self._line, self._write = line, write
        self._batch, self._wait, self._most = batch, wait, most
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue()
        self._written: queue.Queue[list[tuple[_Waiting, Said]] | None] = queue.Queue(BEHIND)
        self._open, self._door = True, threading.Lock()
        self._threads = [
            threading.Thread(target=self._inspect_all, name="inspecting", daemon=True),
            threading.Thread(target=self._write_all, name="recording", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return self._waiting.qsize()

    @property
    def alive(self) -> bool:
        """Whether pictures are answered."""
        return self._open and all(thread.is_alive() for thread in self._threads)

    def check_room(self, count: int) -> None:
        """Unready where so many more pictures would have to wait too long."""
        if self.waiting + count > self._most + self._batch:
            raise Unready("more pictures wait than can be inspected soon; try again", "busy")

    def submit(self, shot: Shot, task: str | None = None, *, since: float | None = None) -> Future[Any]:
        """What `write` will make of the picture, or a problem.

        Args:
            shot: the picture.
            task: the product, where it is known.
            since: `time.perf_counter()` when its request came.
        """
        with self._door:
            if not self._open:
                raise Unready("the station is closing", "closing")
            waiting = _Waiting(shot, task, time.perf_counter() if since is None else since)
            waiting.answer.set_running_or_notify_cancel()  # it is answered, whoever leaves
            self._waiting.put(waiting)
        return waiting.answer

    def close(self) -> None:
        """Answers what waits, and takes no more."""
        with self._door:
            if self._open:
                self._open = False
                self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _inspect_all(self) -> None:
        for batch in self._batches():
            line = self._line()
            said = []
            for task in dict.fromkeys(one.task for one in batch):
                said += self._said(line, [one for one in batch if one.task == task], task)
            if said:
                self._written.put(said)
        self._written.put(None)

    def _batches(self) -> Iterator[list[_Waiting]]:
        while (first := self._waiting.get()) is not None:
            batch, until = [first], time.perf_counter() + self._wait
            while len(batch) < self._batch:
                try:
                    another = self._waiting.get(timeout=max(0.0, until - time.perf_counter()))
                except queue.Empty:
                    break
                if another is None:
                    self._waiting.put(None)  # seen again behind this batch
                    break
                batch.append(another)
            yield batch

    def _said(self, line: Loaded, batch: Sequence[_Waiting], task: str | None) -> list[tuple[_Waiting, Said]]:
        """Verdicts of a batch; those of which nothing can be said are answered at once."""
        try:
            found = _predict(line, [one.shot for one in batch], task)
        except Exception as error:  # one picture must not take the others with it
            if len(batch) > 1:
                return [said for one in batch for said in self._said(line, [one], task)]
            batch[0].answer.set_exception(_as_problem(error))
            return []
        said = []
        for one, result in zip(batch, found, strict=True):
            if isinstance(result, Failure):
                one.answer.set_exception(Unusable(result.reason))
            else:
                seconds = time.perf_counter() - one.since
                said.append((one, Said(one.shot, result, line.version(result.task), seconds)))
        return said

    def _write_all(self) -> None:
        while (batch := self._written.get()) is not None:
            try:
                answers = self._write([said for _, said in batch])
            except Exception as error:
                problem = _as_problem(error)
                for waiting, _ in batch:
                    waiting.answer.set_exception(problem)
                continue
            for (waiting, _), answer in zip(batch, answers, strict=True):
                if isinstance(answer, Problem):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)


def _predict(line: Loaded, shots: Sequence[Shot], task: str | None) -> list[Prediction | Failure]:
    if line.inspector is None:
        raise Unready("this line knows no product yet: teach it one", "nothing_taught")
    if task is not None and task in line.damaged:
        raise Unready(f"{task!r} is damaged and cannot be inspected: {line.damaged[task]}", "quarantined")
    return line.inspector.predict([s.pixels for s in shots], task=task, batch_size=PASS, errors="yield")


def _as_problem(error: Exception) -> Problem:
    """What of an image cannot be used is a `Failure`; all that is raised is the station's own trouble."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TaskError):
        return Missing(str(error), "unknown_product")
    if isinstance(error, MoleFlowError):
        log.error("an inspection failed: %s", error)
        return Unready(str(error), "line")
    log.exception("an inspection failed", exc_info=error)
    return Unready("this picture could not be inspected; the station's log says why", "internal")


class Room:
    """So much of something, first come, first served: who finds too little waits, and all behind him too.

    Args:
        most: how much there is. Who wants more gets all of it.
        of: what it is, for the one who is sent away.
    """

    def __init__(self, most: int, of: str) -> None:
        self._most, self._of, self._taken = most, of, 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int = 1) -> Iterator[None]:
        """Around holding so much; Unready where there is too little for long."""
        size = min(size, self._most)
        with self._changed:
            self._wait_for(size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def _wait_for(self, size: int) -> None:
        me = object()
        self._queue.append(me)
        try:
            free = self._changed.wait_for(
                lambda: self._queue[0] is me and self._taken + size <= self._most, LONGEST_WAIT
            )
        finally:
            self._queue.remove(me)
            self._changed.notify_all()  # the next one may fit beside
        if not free:
            raise Unready(f"no {self._of} for more pictures at the moment; try again", "busy")
