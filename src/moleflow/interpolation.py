"""A coarse grid of numbers at another size."""

from __future__ import annotations

import numpy as np


def bilinear(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grid (h, w, …) at `size` (H, W), float32; it goes on beyond the middles of its outermost cells.

    As torch interpolates with `align_corners=False`, without smoothing where the size is smaller.
    """
    found = grid.astype(np.float32, copy=False)
    for axis, length in enumerate(size):
        low, high, share = _between(grid.shape[axis], length)
        share = share.reshape([-1 if i == axis else 1 for i in range(grid.ndim)])
        first = found.take(low, axis)
        found = first + share * (found.take(high, axis) - first)
    return found


def _between(own: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each wanted cell the two own ones it lies between, and how far it is from the first, in 0..1."""
    at = np.clip((np.arange(wanted) + 0.5) * own / wanted - 0.5, 0, own - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, own - 1), (at - low).astype(np.float32)
