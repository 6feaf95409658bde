"""How a product's file names what it keeps in 4 or 8 bits: what the library and an exported line read alike.

Without torch, for an exported line runs where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Kept = TypeVar("Kept")  # tensors or arrays

CODES, STEP = ".codes", ".step"
NIBBLES, ODD = ".nibbles", ".nibbles_odd"  # two codes a byte, of rows of even and of odd length
LEAST_SPREAD = 2.0**-13  # of calibrated positions; a power of two, so that 16 bits hold it


def part(kept: Mapping[str, Kept], prefix: str) -> dict[str, Kept]:
    """Those whose names begin so, without it."""
    return {name[len(prefix) :]: value for name, value in kept.items() if name.startswith(prefix)}
