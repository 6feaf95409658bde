"""Which size a line's images are brought to: by the shapes of its first ones, and the smallest defect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Size = tuple[int, int]

OBLONG = 1.5  # from this ratio of sides on, a square squeezes more than a new size costs
ALIKE = 1.2  # aspect ratios within this factor of the middle one are one shape
ALIKE_SHARE = 0.9  # of the images, for a folder to have one shape
SHORTEST = 6  # steps of the backbone that a proposed side has at least
DEFECT_CELLS = 2  # of the patch grid, across the smallest defect
MOST_TIMES = 4  # the pixels of the backbone's own size; more takes tiles


@dataclass(frozen=True)
class Proposal:
    """A size for a line, and what it follows from.

    Attributes:
        size: (h, w) that the backbone sees at once.
        images: (H, W), the middle of the first images' sides.
        alike: whether they have one shape.
        wanted: (h, w) that the smallest defect would need, where that is more than is proposed.
    """

    size: Size
    images: Size
    alike: bool
    wanted: Size | None = None


def propose(
    sizes: Sequence[Size],
    own: Size,
    *,
    step: int,
    cell: int,
    parts: tuple[float, float] = (1.0, 1.0),
    smallest_defect: float | None = None,
) -> Proposal:
    """The size for images of these sizes.

    Images of one oblong shape get an oblong size of about as many pixels as the backbone's own; others
    that one. The sides are multiples of the backbone's step, the shorter one has at least six of them.
    Where the smallest defect would then cover less than two cells of the grid, the side concerned grows
    until it does, as far as four times the pixels of the backbone's own size allow.

    Args:
        sizes: (H, W) of the first images.
        own: the backbone's own size.
        step: pixels that sides are multiples of.
        cell: pixels of a cell of the patch grid.
        parts: how many times a tile goes into an image, down and across; the size is a tile's.
        smallest_defect: in pixels of the images.
    """
    heights, widths = np.array(sizes, np.float64).T
    images, alike = (float(np.median(heights)), float(np.median(widths))), one_shape(sizes)
    size = own
    seen = images[0] / parts[0], images[1] / parts[1]
    ratio = seen[1] / seen[0]
    if alike and max(ratio, 1 / ratio) > OBLONG:
        size = _oblong(ratio, own[0] * own[1], step)
    wanted = None
    if smallest_defect is not None:
        needed = [DEFECT_CELLS * cell * side / smallest_defect for side in seen]
        grown = _fitting((max(size[0], needed[0]), max(size[1], needed[1])), step, math.ceil)
        size = _bounded(grown, MOST_TIMES * own[0] * own[1], step)
        wanted = grown if size != grown else None
    return Proposal(size, (round(images[0]), round(images[1])), alike, wanted)


def one_shape(sizes: Sequence[Size]) -> bool:
    """Whether nearly all images have about the same ratio of sides."""
    logs = np.log([width / height for height, width in sizes])
    near = np.abs(logs - np.median(logs)) <= math.log(ALIKE)
    return bool(near.mean() >= ALIKE_SHARE)


def squeezed_by(sizes: Sequence[Size], size: Size) -> float:
    """By how much images of one shape are squeezed to `size`, one side against the other; 1 for not at all.

    Images of several shapes have no such number, and count as 1.
    """
    if not sizes or not one_shape(sizes):
        return 1.0
    ratio = float(np.median([width / height for height, width in sizes])) * size[0] / size[1]
    return max(ratio, 1 / ratio)


def _oblong(ratio: float, pixels: int, step: int) -> Size:
    """Sides of about this ratio, width to height, and this many pixels."""
    short = max(SHORTEST * step, round(math.sqrt(pixels / max(ratio, 1 / ratio)) / step) * step)
    long = max(short, round(pixels / short / step) * step)
    return (short, long) if ratio > 1 else (long, short)


def _bounded(size: Size, pixels: int, step: int) -> Size:
    """The size itself, or one of at most so many pixels and about the same shape."""
    share = math.sqrt(pixels / (size[0] * size[1]))
    return size if share >= 1 else _fitting((size[0] * share, size[1] * share), step, math.floor)


def _fitting(sides: tuple[float, float], step: int, rounded: Callable[[float], int]) -> Size:
    height, width = (max(step, rounded(side / step) * step) for side in sides)
    return height, width
