"""Scores of more pixels than memory holds: kept as sorted runs on disk, counted and merged from there.

Arrays stay as exact as they came, 32-bit scores in 32 bits and all others in 64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moleflow.metrics.curve import Counts, Floats

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Stored:
    """An array (N,) in a raw file. Nothing stays open: what is mapped lives as long as its reader."""

    path: Path
    dtype: np.dtype[Any]
    size: int

    @classmethod
    def write(cls, path: Path, values: NDArray[Any]) -> Stored:
        """Writes `values` to a new file."""
        values.tofile(path)
        return cls(path, values.dtype, len(values))

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Up to `count` values from `start` on."""
        return np.fromfile(self.path, self.dtype, count=count, offset=start * self.dtype.itemsize)

    def mapped(self) -> NDArray[Any]:
        """All values, read as they are looked at."""
        return np.memmap(self.path, self.dtype, mode="r", shape=(self.size,))


class Tally:
    """Scores of which only counts are asked: how many lie above a threshold.

    A sorted run answers by bisection, so runs need not be merged and their scores carry nothing with them.
    """

    def __init__(self) -> None:
        self._stored: list[Stored] = []
        self._pending: list[Floats] = []  # after a question: one sorted array
        self._sorted = False

    def add(self, scores: Floats) -> None:
        """Takes scores (N,)."""
        self._pending.append(scores)
        self._sorted = False

    def spill(self, path: Path) -> None:
        """Moves what memory holds to a new file."""
        if self._pending:
            self._stored.append(Stored.write(path, self._in_memory()))
            self._pending = []

    def counts(self, thresholds: Floats) -> tuple[Counts, Counts]:
        """How many scores are at or above, and how many above, each threshold; all (N,)."""
        ascending = thresholds[::-1]  # in this order bisection is quickest, and thresholds come falling
        at_or_above, above = np.zeros((2, len(ascending)), dtype=np.int64)
        for run in self._runs():
            at_or_above += len(run) - np.searchsorted(run, ascending, side="left")
            above += len(run) - np.searchsorted(run, ascending, side="right")
        return at_or_above[::-1], above[::-1]

    def highest(self, count: int) -> Floats:
        """The `count` highest scores, or all, in no particular order."""
        best = np.concatenate([np.zeros(0), *(np.array(run[-count:]) for run in self._runs())])
        return np.partition(best, len(best) - count)[-count:] if 0 < count < len(best) else best

    def _runs(self) -> Iterator[Floats]:
        for stored in self._stored:
            yield stored.mapped()
        if self._pending:
            yield self._in_memory()

    def _in_memory(self) -> Floats:
        if not self._sorted:
            values = np.concatenate(self._pending)
            values.sort()
            self._pending, self._sorted = [values], True
        return self._pending[0]


class Ranking:
    """Scores, each with a code, that are asked for from the highest score down."""

    def __init__(self) -> None:
        self._stored: list[_Run] = []
        self._pending: list[tuple[Floats, Codes]] = []  # after a question: one sorted run
        self._sorted = False

    def add(self, scores: Floats, codes: Codes) -> None:
        """Takes scores and codes (N,)."""
        self._pending.append((scores, codes))
        self._sorted = False

    def spill(self, path: Path) -> None:
        """Moves what memory holds to new files named after `path`."""
        if self._pending:
            scores, codes = self._in_memory()
            run = _Run(
                Stored.write(path.with_suffix(".scores"), scores),
                Stored.write(path.with_suffix(".codes"), codes),
            )
            self._stored.append(run)
            self._pending = []

    def blocks(self, size: int) -> Iterator[tuple[Floats, Codes]]:
        """Everything in blocks of up to `size`, in no particular order."""
        for run in self._runs():
            for start in range(0, len(run), size):
                yield run.read(start, size)

    def falling(self, size: int) -> Iterator[tuple[Floats, Codes]]:
        """Sorted blocks, from the highest score down; a tie may span two.

        Each round takes the next block of every run, finds the highest of the blocks' last scores, and
        passes on everything at or above it: nothing that comes later can be higher. So memory holds about
        `size` scores, whatever their number.
        """
        runs = list(self._runs())
        cursors = [_Cursor(run, max(1, size // len(runs))) for run in runs]
        while cursors := [cursor for cursor in cursors if cursor.refill()]:
            bound = max(cursor.unseen_below() for cursor in cursors)
            parts = [cursor.take(bound) for cursor in cursors]
            scores = np.concatenate([part for part, _ in parts])
            codes = np.concatenate([part for _, part in parts])
            yield falling(scores, codes) if len(parts) > 1 else (scores, codes)

    def _runs(self) -> Iterator[_Run | _MemoryRun]:
        yield from self._stored
        if self._pending:
            yield _MemoryRun(*self._in_memory())

    def _in_memory(self) -> tuple[Floats, Codes]:
        if not self._sorted:
            scores = np.concatenate([part for part, _ in self._pending])
            codes = np.concatenate([part for _, part in self._pending])
            self._pending, self._sorted = [falling(scores, codes)], True
        return self._pending[0]


def falling(scores: Floats, codes: Codes) -> tuple[Floats, Codes]:
    """Both sorted by falling score; equal scores keep their order."""
    order = np.argsort(-scores, kind="stable")
    return scores[order], codes[order]


@dataclass(frozen=True)
class _MemoryRun:
    scores: Floats
    codes: Codes

    def __len__(self) -> int:
        return len(self.scores)

    def read(self, start: int, count: int) -> tuple[Floats, Codes]:
        return self.scores[start : start + count], self.codes[start : start + count]


@dataclass(frozen=True)
class _Run:
    scores: Stored
    codes: Stored

    def __len__(self) -> int:
        return self.scores.size

    def read(self, start: int, count: int) -> tuple[Floats, Codes]:
        return self.scores.read(start, count), self.codes.read(start, count)


class _Cursor:
    """A place in a run, with the block from there on in memory."""

    def __init__(self, run: _Run | _MemoryRun, block: int) -> None:
        self._run, self._block_size = run, block
        self._next = 0
        self._scores: Floats = np.zeros(0)
        self._codes: Codes = np.zeros(0, dtype=np.int32)

    def refill(self) -> bool:
        """Read the next block if none is left; False when the run is exhausted."""
        if len(self._scores) == 0 and self._next < len(self._run):
            self._scores, self._codes = self._run.read(self._next, self._block_size)
            self._next += len(self._scores)
        return len(self._scores) > 0

    def unseen_below(self) -> float:
        """No score of this run that is still unread is above this one."""
        return float(self._scores[-1]) if self._next < len(self._run) else -math.inf

    def take(self, bound: float) -> tuple[Floats, Codes]:
        """Remove and return the pixels at or above ``bound``."""
        count = int(np.searchsorted(-self._scores, -bound, side="right"))
        taken = self._scores[:count], self._codes[:count]
        self._scores, self._codes = self._scores[count:], self._codes[count:]
        return taken


class Scraps:
    """Arrays kept as they came, each with a number, to be looked through once more."""

    def __init__(self) -> None:
        self._stored: list[tuple[Stored, list[tuple[int, int]]]] = []
        self._pending: list[tuple[int, Floats]] = []

    def add(self, number: int, values: Floats) -> None:
        """Takes values (N,)."""
        self._pending.append((number, values))

    def spill(self, path: Path) -> None:
        """Moves what memory holds to a new file."""
        if self._pending:
            values = np.concatenate([values for _, values in self._pending])
            lengths = [(number, len(values)) for number, values in self._pending]
            self._stored.append((Stored.write(path, values), lengths))
            self._pending = []

    def __iter__(self) -> Iterator[tuple[int, Floats]]:
        for stored, lengths in self._stored:
            start = 0
            for number, length in lengths:
                yield number, stored.read(start, length)
                start += length
        yield from self._pending
