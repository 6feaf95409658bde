"""How many threads compute: one where a computation is many small ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(only: bool = True) -> Iterator[None]:
    """Where `only` says so torch computes on one thread meanwhile, in the thread of Python that asks.

    In those that begin meanwhile as well; those that there are keep what they have.

    Products of small matrices have threads mostly wait for each other. Where these wait asleep, as those of
    the command line do, two took two to six times as long as one; awake a fifth less, and the processor of
    whatever else was computed.
    """
    before = torch.get_num_threads()
    if only:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
