"""The processor shared with other programs, and with other processes of this one.

The threads of a computation wait for each other many thousand times in a lesson, and some hundred times in an
inspection. GNU's OpenMP, which torch comes with on Linux, has them wait awake for several milliseconds before
they sleep. Meanwhile they hold the very processor that the thread they wait for needs, where anything else is
computed beside: a lesson and an inspection on two processors keep each other from getting anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

TURNS = "100"  # of waiting awake, some microseconds


def waiting_asleep(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a process's environment; nothing where the user decided it.

    It has to be there before torch is imported.
    """
    decided = any(name in environment for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    return {} if decided else {"GOMP_SPINCOUNT": TURNS}


def wait_asleep() -> None:
    """In this process, and in those that it begins."""
    os.environ.update(waiting_asleep(os.environ))
