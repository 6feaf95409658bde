"""How many threads compute: one where a computation is many small ones, and two such ones side by side."""

from __future__ import annotations

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

    In those that begin meanwhile as well; those that there are keep what they have.

    Products of small matrices have threads mostly wait for each other. Where these wait asleep, as those of
    the command line do, two took three to four times as long as one; awake a fifth less, and the processor of
    whatever else was computed.
    """
    before = torch.get_num_threads()
    if only:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(first: Callable[[], A], second: Callable[[], B], *, at_once: bool) -> tuple[A, B]:
    """What both compute: at the same time, each on one thread, or in turn; the same either way.

    Args:
        first: in the thread of Python that asks. What it raises comes before what `second` raises, and after
            `second` has come to its end.
        second: must not depend on the first, nor change what that one reads.
        at_once: where there are threads for both. Worth it where several would mostly wait for each other
            within each of them; large products of matrices use all threads better in turn.
    """
    if not at_once or torch.get_num_threads() == 1:
        return first(), second()
    with one_thread(), ThreadPoolExecutor(1, "beside") as beside:
        other = beside.submit(second)
        own = first()
        return own, other.result()
