"""A table of timings, taken in rounds, so that what else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.factory import PRODUCTS, make_sample


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head, the first `words` columns of them words; `note` stands below."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    words: int = 1

    def markdown(self) -> str:
        """As a section of a document."""
        line = [*["---"] * self.words, *["---:"] * (len(self.head) - self.words)]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in (self.head, line, *self.rows))
        return "\n\n".join(part for part in (f"## {self.title}", lines, self.note) if part)


def in_turns(works: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each, in so many rounds after one that warms up."""
    taken: dict[Any, list[float]] = {key: [] for key in works}
    for number in range(rounds + 1):
        for key, work in works.items():
            seconds = timed(work)
            if number:
                taken[key].append(seconds)
    return taken


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median of what one takes against the other in the same round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def milliseconds(seconds: Sequence[float], images: int = 1) -> str:
    """The median, an image."""
    return f"{1e3 * statistics.median(seconds) / images:.1f}"


def drawn(count: int, size: int, *, first: int = 0, product: str = PRODUCTS[0]) -> list[np.ndarray]:
    """Good images of a drawn product."""
    return [make_sample(product, seed, size=size).image for seed in range(first, first + count)]
