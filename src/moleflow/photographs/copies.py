"""Which photographs are one photograph again: duplicates, frames of a video, bursts.

Photographs are compared as small blurred thumbnails. What decoding and the sensor do (another JPEG quality,
a pixel of shift, a level of light, noise) hardly shows in those; another part on the same rig does. Where a
picture shows nothing of that size, its grain is compared as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from ..errors import ImageError

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

# Fine grain and noise average out in a cell: thumbnails of a sheet, foil or glass show the lamp and next to
# nothing else, and any two agree to within `_NOISE`. That says something only where there is more to agree
# on. Elsewhere the grain, which another part does not share, has to be the same as well. What remains in
# doubt counts as two: with too many photographs a threshold alarms a little early, with too few never.
_PLAIN = 4 * _NOISE  # structure up to which a thumbnail cannot tell, in grey levels
_LAMP = 4  # degree of the surface that light falls off by; it is in all photographs, so it tells nothing
# Correlation from which on two grains are the same: with less, most of what is seen is noise. Chance makes
# 0.03, hardly ever 0.15, but dirt on the lens and the sensor's own pattern are in all photographs.
_GRAIN = 0.5
_GRAIN_SIDE = 64  # cells of the whole picture's grain
_GRAIN_BLUR = 1.5  # in subcells of `_FINE`; less, and a shift by a pixel makes it another grain
_GRAIN_EDGE = 6  # cells at the border, which the wide blur distorts
_GRAIN_LEAST = 0.01  # grey levels; what is weaker is rounding


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """What (h, w, 3) uint8 pixels look like from afar: (SIDE, SIDE) float32, blurred grey levels 0..255."""
    return grey_thumbnail(np.asarray(Image.fromarray(pixels).convert("L")))


def grey_thumbnail(grey: np.ndarray) -> np.ndarray:
    """As `thumbnail`, for (h, w) uint8 pixels that are grey already."""
    return _cells(_blurred(_fine(grey), _BLUR * _FINE), SIDE)


def grain_of(grey: np.ndarray, thumbnail: np.ndarray) -> np.ndarray | None:
    """What is finer than the thumbnail in (h, w) uint8 pixels; None where the thumbnail alone can tell.

    Returns:
        (52, 52) float16 grey levels: the picture but its border.
    """
    if not _plain(thumbnail[None])[0]:
        return None
    fine = _fine(grey)
    band = _cells(_blurred(fine, _GRAIN_BLUR) - _blurred(fine, _BLUR * _FINE), _GRAIN_SIDE)
    inner = band[None, _GRAIN_EDGE:-_GRAIN_EDGE, _GRAIN_EDGE:-_GRAIN_EDGE]
    return _without_lamp(inner)[0].astype(np.float16)


def find_copies(
    thumbnails: Sequence[np.ndarray] | np.ndarray, grains: Sequence[np.ndarray | None] | None = None
) -> list[int]:
    """For every image the number of its group of near-copies; numbers rise from 0 by first appearance.

    Two images are near-copies when what is left of their difference is no more than decoding and sensor
    make, on average and in the worst place. Taken out of the difference first: a common gain and offset of
    the light (up to twofold) and a shift of a fraction of a cell. Copies of copies are in one group, so
    that no two near-copies are ever in different groups. Pictures without structure are near-copies only if
    their grain agrees as well, or their thumbnails to the bit, as those of the same file do.

    Args:
        thumbnails: (n, SIDE, SIDE), of `thumbnail`; of pictures at one size.
        grains: of `grain_of`, for every image; without, no grain agrees.

    Raises:
        ImageError: the thumbnails have another shape.
    """
    stack = np.asarray(thumbnails, np.float32)
    if len(stack) == 0:
        return []
    if stack.shape[1:] != (SIDE, SIDE):
        raise ImageError(f"expected thumbnails of (n, {SIDE}, {SIDE}), got {stack.shape}")
    views = _Views(stack)
    plain_ones = _PlainOnes(stack, grains)
    groups = np.arange(len(stack))
    for start in range(0, len(stack), _BLOCK):
        near = views.near(start, min(start + _BLOCK, len(stack)))
        plain_ones.set_apart(near, start)
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


class _PlainOnes:
    """Pictures whose thumbnails show too little to be told by, and their grains as rows of unit length."""

    def __init__(self, thumbnails: np.ndarray, grains: Sequence[np.ndarray | None] | None) -> None:
        self._at = np.flatnonzero(_plain(thumbnails))
        numbers: dict[bytes, int] = {}
        self._seen = np.array(
            [numbers.setdefault(seen.tobytes(), len(numbers)) for seen in thumbnails[self._at]]
        )
        side = _GRAIN_SIDE - 2 * _GRAIN_EDGE
        self._grains = np.zeros((len(self._at), side * side), np.float32)
        for row, i in enumerate(self._at.tolist()):
            grain = grains[i] if grains is not None else None
            if grain is not None:
                values = grain.astype(np.float32).ravel()
                self._grains[row] = values / max(float(np.linalg.norm(values)), _GRAIN_LEAST * side)

    def set_apart(self, near: np.ndarray, start: int) -> None:
        """Takes out of (b, n) `near`, of images from `start` on, plain ones whose grain does not agree."""
        first, last = np.searchsorted(self._at, (start, start + len(near)))
        if first == last:
            return
        agree = self._grains[first:last] @ self._grains.T >= _GRAIN
        agree |= self._seen[first:last, None] == self._seen[None]
        near[np.ix_(self._at[first:last] - start, self._at)] &= agree


def _plain(thumbnails: np.ndarray) -> np.ndarray:
    """(n,) bool: whose structure, light that falls off slowly left aside, is no more than `_PLAIN`."""
    inner = thumbnails[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
    return _without_lamp(inner).std((1, 2)) <= _PLAIN


def _without_lamp(stack: np.ndarray) -> np.ndarray:
    """(n, s, s) less the surface of degree `_LAMP` that is nearest to each."""
    basis = _lamp(stack.shape[1])
    values = stack.reshape(len(stack), -1).astype(np.float64)
    return (values - values @ basis @ basis.T).reshape(stack.shape)


@cache
def _lamp(side: int) -> np.ndarray:
    """Orthonormal columns (side * side, k) of the polynomials up to degree `_LAMP`."""
    powers = np.linspace(-1, 1, side) ** np.arange(_LAMP + 1)[:, None]
    degrees = [(i, j) for i in range(_LAMP + 1) for j in range(_LAMP + 1 - i)]
    surfaces = [np.outer(powers[i], powers[j]).ravel() for i, j in degrees]
    return np.linalg.qr(np.stack(surfaces, 1))[0]


def _fine(grey: np.ndarray) -> np.ndarray:
    """(h, w) pixels as subcells of a thumbnail, float32."""
    picture = Image.fromarray(grey).convert("F")
    return np.asarray(picture.resize((SIDE * _FINE,) * 2, Image.Resampling.BOX))


def _blurred(fine: np.ndarray, by: float) -> np.ndarray:
    return ndimage.gaussian_filter(fine, by, mode="nearest", truncate=3.0)


def _cells(fine: np.ndarray, side: int) -> np.ndarray:
    """Means of (side, side) cells, float32."""
    each = len(fine) // side
    return fine.reshape(side, each, side, each).mean((1, 3), dtype=np.float32)


def _slope(stack: np.ndarray, axis: int) -> np.ndarray:
    """Derivative along an axis, to fourth order: the change that a small shift makes."""
    padded = np.pad(stack, [(0, 0), (2, 2), (2, 2)], mode="edge")

    def moved(by: int) -> np.ndarray:
        window = [slice(None), slice(2, -2), slice(2, -2)]
        window[axis] = slice(2 + by, 2 + by + stack.shape[axis])
        return padded[tuple(window)]

    return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / 12
