"""The processor shared: what learns lets what inspects beside it go first.

The threads of a computation wait for each other many thousand times in a lesson. GNU's OpenMP, which torch
comes with on Linux, has them wait awake for several milliseconds before they sleep, and meanwhile they hold
the processor that an inspection in another process needs to go on, or another lesson.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

TURNS = "100"  # of waiting awake, some microseconds; more is slower beside others, none is slower alone


def giving_way(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a process that is to learn; nothing where the user decided it.

    It has to be there before torch is imported.
    """
    decided = any(name in environment for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    return {} if decided else {"GOMP_SPINCOUNT": TURNS}


def give_way() -> None:
    """This process is to learn."""
    os.environ.update(giving_way(os.environ))
