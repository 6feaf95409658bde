"""What a backbone saw of a drawn picture, by which a machine that computes something else is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import BackboneError

TOLERANCE = 1e-2  # spreads by which a drawn picture's mean features may differ from a line's


class Witness(NamedTuple):
    """What was seen.

    Attributes:
        runtime: what computed it, with its version.
        patches: mean of every channel.
    """

    runtime: str
    patches: list[float]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in an index."""
        return self._asdict()

    @classmethod
    def from_dict(cls, told: Mapping[str, Any], dim: int) -> Witness:
        """Raises ValueError, KeyError or TypeError for what is no witness of a backbone of `dim` channels."""
        patches = np.array(told["patches"], dtype=float)
        if patches.shape != (dim,) or not np.isfinite(patches).all():
            raise ValueError(f"expected a witness of {dim} numbers, got {patches.shape}")
        return cls(str(told["runtime"]), patches.tolist())

    def check(self, found: list[float]) -> None:
        """BackboneError where the picture looks different now."""
        theirs = np.array(self.patches)
        apart = float(np.abs(np.array(found) - theirs).max() / max(theirs.std(), 1e-12))
        if not apart <= TOLERANCE:
            raise BackboneError(
                f"features here differ by {apart:.2g} spreads from those that the line was learned with "
                f"({self.runtime}), expected at most {TOLERANCE:g}"
            )


def rounded(means: list[float]) -> list[float]:
    """Means of channels as a witness has them: in digits that every runtime agrees on."""
    return [float(f"{value:.5g}") for value in means]


def drawn(size: tuple[int, int], count: int) -> np.ndarray:
    """Pictures, uint8 (count, 3, h, w), the same numbers with every version of every library."""
    chance = np.random.Generator(np.random.PCG64(0))
    coarse = chance.integers(0, 256, (count, 3, 8, 8))
    rows, columns = (np.arange(side) * 8 // side for side in size)
    stripes = (np.arange(size[0])[:, None] * 7 + np.arange(size[1]) * 13) % 64
    pictures = coarse[:, :, rows[:, None], columns] * 3 // 4 + stripes
    return pictures.astype(np.uint8)
