"""How many threads compute: one where a computation is many small ones, and two such ones side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


@contextmanager
def one_thread(only: bool = True) -> Iterator[None]:
    """Where `only` says so torch computes on one thread meanwhile, in the thread of Python that asks.

    In those that begin meanwhile as well; those that there are keep what they have. Threads may overlap.

    Products of small matrices have threads mostly wait for each other. Where these wait asleep, as those of
    the command line do, two took three to four times as long as one; awake a fifth less, and the processor of
    whatever else was computed.
    """
    if not only:
        yield
        return
    before = _begin()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _end()
        torch.set_num_threads(before)


# torch counts for every thread of Python and, for those that begin later, for the process. A thread that
# comes in while another one computes so would take the 1 that it meets for what there was before.
_counting = threading.Lock()
_inside = 0  # how many compute so
_usual = 1  # what there was before the first of them
_own = threading.local()


def usual() -> int:
    """How many threads compute where nobody asked for one."""
    with _counting:
        return _usual if _inside else torch.get_num_threads()


def _begin() -> int:
    """What this thread goes back to at the end."""
    global _inside, _usual
    own, _own.depth = getattr(_own, "depth", 0), getattr(_own, "depth", 0) + 1
    with _counting:
        before = torch.get_num_threads()  # asked in any case: a thread takes its count when it first asks
        before = _usual if _inside and not own else before
        if not _inside:
            _usual = before
        _inside += 1
    return before


def _end() -> None:
    global _inside
    _own.depth -= 1
    with _counting:
        _inside -= 1


def side_by_side(first: Callable[[], A], second: Callable[[], B], *, at_once: bool) -> tuple[A, B]:
    """What both compute: at the same time, each on one thread, or in turn; the same either way.

    Args:
        first: in the thread of Python that asks. What it raises comes before what `second` raises, and after
            `second` has come to its end.
        second: must not depend on the first, nor change what that one reads.
        at_once: where there are threads for both. Worth it where several would mostly wait for each other
            within each of them; large products of matrices use all threads better in turn.
    """
    if not at_once or usual() == 1:
        return first(), second()
    with one_thread(), ThreadPoolExecutor(1, "beside") as beside:
        other = beside.submit(one_thread()(second))
        own = first()
        return own, other.result()
