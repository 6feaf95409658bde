"""What threads share: how many compute, works done side by side, and torch's global generator."""

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


_seeding = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the processor's global generator while modules are constructed, and puts it back after.

    One thread at a time: the generator is that of all of them. So whatever constructs a module does it in
    here, also where a file replaces the numbers that are drawn.
    """
    with _seeding:
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(state)


class Beside:
    """Another thread of Python, for what the one that asks need not wait for."""

    def __init__(self, pool: ThreadPoolExecutor | None) -> None:
        self._pool = pool

    def begin(self, work: Callable[[], A]) -> Callable[[], A]:
        """Hands over work, and returns what says what came of it, as often as it is asked.

        Works are done in the order in which they are handed over. One that the other thread has not come to
        by the time it is asked about, or cannot as there is none, is done by the one that asks.

        Args:
            work: must not depend on what is done meanwhile, nor change what that reads. It may ask about what
                was handed over before it.
        """
        own = _once(work)
        if self._pool is None:
            return own
        begun = self._pool.submit(one_thread()(work))
        return lambda: own() if begun.cancel() else begun.result()


def _once(work: Callable[[], A]) -> Callable[[], A]:
    """The same work, done by the first that asks; who asks meanwhile waits."""
    doing, done = threading.Lock(), list[A]()

    def own() -> A:
        with doing:
            if not done:
                done.append(work())
            return done[0]

    return own


@contextmanager
def beside(at_once: bool) -> Iterator[Beside]:
    """Another thread, both computing on one; none where there are no threads for both, or it is not wished.

    At its end what the other thread is at has come to its end, and what it has not come to is forgotten.

    Args:
        at_once: worth it where several threads would mostly wait for each other within each work; large
            products of matrices use all threads better in turn.
    """
    if not at_once or usual() == 1:
        yield Beside(None)
        return
    pool = ThreadPoolExecutor(1, "beside")
    with one_thread():
        try:
            yield Beside(pool)
        finally:
            pool.shutdown(cancel_futures=True)


def side_by_side(first: Callable[[], A], second: Callable[[], B], *, at_once: bool) -> tuple[A, B]:
    """What both compute: at the same time, each on one thread, or in turn; the same either way.

    Args:
        first: in the thread of Python that asks. What it raises comes before what `second` raises, and after
            `second` has come to its end where it had begun.
        second, at_once: as of `Beside.begin` and `beside`.
    """
    with beside(at_once) as other:
        asked = other.begin(second)
        own = first()
        return own, asked()
