"""Which photographs are one photograph again: duplicates, frames of a video, bursts.

Photographs are compared as small blurred thumbnails. What decoding and the sensor do (another JPEG quality,
a pixel of shift, a level of light, noise) hardly shows in those; another part on the same rig does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from .errors import ImageError

SIDE = 32  # of a thumbnail, in cells
_FINE = 4  # subcells a cell's side is blurred on
_BLUR = 0.9  # in cells; less, and a shift by a pixel no longer looks like one
_EDGE = 2  # cells at the border that are not compared: a shift brings other content in there

# Measured on seven procedural and three real products at 384 pixels, in units of the limit these make:
# re-encoding at JPEG quality 70, noise, light and a diagonal shift leave up to 0.8, all at once as well. The
# two most alike of 412 solar cells are 1.6 apart, of 210 tires 2.8, parts of other products 6 and more.
_NOISE = 0.25  # grey levels of re-encoding and sensor, whatever the picture shows
_EDGES = 0.01  # what a shift leaves, as a share of the picture's spread
_PEAK = 5.0  # how much more the worst cell may differ than a cell does on average: a fault is in one place
_LIGHT = 2.0  # by which factor the same photograph may be lighter
_BLOCK = 128


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """What (h, w, 3) uint8 pixels look like from afar: (SIDE, SIDE) float32, blurred grey levels 0..255."""
    return grey_thumbnail(np.asarray(Image.fromarray(pixels).convert("L")))


def grey_thumbnail(grey: np.ndarray) -> np.ndarray:
    """As `thumbnail`, for (h, w) uint8 pixels that are grey already."""
    fine = Image.fromarray(grey).convert("F").resize((SIDE * _FINE,) * 2, Image.Resampling.BOX)
    blurred = ndimage.gaussian_filter(np.asarray(fine), _BLUR * _FINE, mode="nearest", truncate=3.0)
    return blurred.reshape(SIDE, _FINE, SIDE, _FINE).mean((1, 3), dtype=np.float32)


def find_copies(thumbnails: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """For every image the number of its group of near-copies; numbers rise from 0 by first appearance.

    Two images are near-copies when what is left of their difference is no more than decoding and sensor
    make, on average and in the worst place. Taken out of the difference first: a common gain and offset of
    the light (up to twofold) and a shift of a fraction of a cell. Copies of copies are in one group, so
    that no two near-copies are ever in different groups.

    Args:
        thumbnails: (n, SIDE, SIDE), of `thumbnail`; of pictures at one size.

    Raises:
        ImageError: the thumbnails have another shape.
    """
    stack = np.asarray(thumbnails, np.float32)
    if len(stack) == 0:
        return []
    if stack.shape[1:] != (SIDE, SIDE):
        raise ImageError(f"expected thumbnails of (n, {SIDE}, {SIDE}), got {stack.shape}")
    views = _Views(stack)
    groups = np.arange(len(stack))
    for start in range(0, len(stack), _BLOCK):
        near = views.near(start, min(start + _BLOCK, len(stack)))
        for i, row in enumerate(near, start):
            # Who is in the group already need not be compared: a folder of one photograph stays cheap.
            others = np.flatnonzero(row & (groups != groups[i]))
            for j in others[views.same(i, others)]:
                groups[groups == groups[j]] = groups[i]
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].tolist()


class _Views:
    """Thumbnails (n, p) less their mean, and for each an orthonormal basis (n, p, 3) of what may differ:
    gain, and shift along both sides."""

    def __init__(self, thumbnails: np.ndarray) -> None:
        inner = np.s_[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
        count = len(thumbnails)
        parts = (thumbnails, _slope(thumbnails, 1), _slope(thumbnails, 2))
        columns = np.stack([part[inner].reshape(count, -1) for part in parts], axis=2)
        self._mean = columns[:, :, 0].mean(1)
        columns -= columns.mean(1, keepdims=True)
        self._values = np.ascontiguousarray(columns[:, :, 0])
        self._basis = np.linalg.qr(columns)[0]
        self._energy = np.einsum("np,np->n", self._values, self._values)
        self._limit = np.hypot(_NOISE, _EDGES * self._values.std(1))

    def near(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, n) bool: which later images may be copies of these, by one product of matrices."""
        cells = self._values.shape[1]
        basis = self._basis[start:stop].transpose(0, 2, 1).reshape(-1, cells)
        explained = (basis @ self._values.T).reshape(stop - start, 3, -1)
        rest = self._energy[None] - np.einsum("bkn,bkn->bn", explained, explained)
        # The difference of two large numbers is off by their rounding.
        limits = np.maximum(self._limit[start:stop, None], self._limit[None])
        near = rest <= cells * limits**2 + 1e-5 * self._energy[None]
        lighter = (self._mean[start:stop, None] + 8) / (self._mean[None] + 8)  # a black level counts little
        near &= np.maximum(lighter, 1 / lighter) <= _LIGHT
        return near & (np.arange(len(self._values))[None] > np.arange(start, stop)[:, None])

    def same(self, one: int, others: np.ndarray) -> np.ndarray:
        """(m,) bool: which of the `others` are near-copies of `one`, seen from either of the two."""
        there = self._left(self._basis[one : one + 1], self._values[others])
        back = self._left(self._basis[others], self._values[one : one + 1])
        limits = np.maximum(self._limit[one], self._limit[others])
        average = np.sqrt(np.maximum((there**2).mean(1), (back**2).mean(1)))
        worst = np.maximum(np.abs(there).max(1), np.abs(back).max(1))
        return (average <= limits) & (worst <= _PEAK * limits)

    @staticmethod
    def _left(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
        weights = values[:, None, :] @ basis
        return values - (weights @ basis.transpose(0, 2, 1))[:, 0]


def _slope(stack: np.ndarray, axis: int) -> np.ndarray:
    """Derivative along an axis, to fourth order: the change that a small shift makes."""
    padded = np.pad(stack, [(0, 0), (2, 2), (2, 2)], mode="edge")

    def moved(by: int) -> np.ndarray:
        window = [slice(None), slice(2, -2), slice(2, -2)]
        window[axis] = slice(2 + by, 2 + by + stack.shape[axis])
        return padded[tuple(window)]

    return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / 12
