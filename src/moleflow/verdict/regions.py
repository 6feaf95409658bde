"""Where an image exceeds its threshold, as regions a machine can use: area, centre, box, peak, contours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import MoleFlowError

Point = tuple[float, float]
Polygon = tuple[Point, ...]

MOST_REGIONS = 20  # listed of one image, the highest ones
OUTER_POINTS = 60  # of a region's outer border
HOLES = 4  # the largest of a region
HOLE_POINTS = 10  # of each, so that a region has at most 100 points
DEPARTURE = 1.0  # pixels a simplified border may lie off the true one: the stairs of a slanted edge
MOST_PIXELS = 4_000_000  # a larger picture's regions are found on a map made this small

_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Region:
    """A connected part of an image whose scores exceed the threshold.

    Coordinates count pixels from the image's upper left corner, x to the right and y down: the pixel in
    column c and row r covers c to c + 1 and r to r + 1, and its middle is (c + 0.5, r + 0.5).

    Attributes:
        area: pixels.
        centre: (x, y), the mean of the pixels' middles; outside the region where that is bent.
        box: (left, top, width, height) of the smallest upright rectangle around it.
        peak: its highest score.
        peak_at: (column, row) of the pixel that has it.
        contours: closed polygons of (x, y), at most 100 points in all: the outer border, clockwise as
            seen, then up to four holes, the largest first and counter-clockwise, so that signed areas
            add up to the region's. They follow the edges of pixels to within one pixel.
    """

    area: int
    centre: Point
    box: tuple[int, int, int, int]
    peak: float
    peak_at: tuple[int, int]
    contours: tuple[Polygon, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return dataclasses.asdict(self)


def find_regions(
    anomaly_map: NDArray[np.floating],
    threshold: float,
    *,
    least_area: int = 1,
    most: int = MOST_REGIONS,
    size: tuple[int, int] | None = None,
) -> tuple[Region, ...]:
    """Regions of `anomaly_map` (H, W) above `threshold`; pixels that touch at a corner belong together.

    Args:
        anomaly_map: scores (H, W).
        threshold: score that a pixel must exceed.
        least_area: pixels a region must have to count.
        most: how many regions are returned at most.
        size: (H, W) of the picture where the map is a reduced one: all figures are in its pixels then, as
            exact as the map is fine.

    Returns:
        The regions, the highest peak first, the larger one where peaks are equal.

    Raises:
        MoleFlowError: a map that is not (H, W).
    """
    if anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise MoleFlowError(f"expected a map of (H, W) scores, got {anomaly_map.shape}")
    labels, count = ndimage.label(anomaly_map > threshold, structure=_EIGHT)
    if not count:
        return ()
    factors = _factors(anomaly_map.shape, size)
    above = labels > 0
    areas = np.bincount(labels[above], minlength=count + 1)[1:]
    peaks = np.asarray(ndimage.maximum(anomaly_map[above], labels[above], range(1, count + 1)))
    order = np.lexsort((-areas, -peaks))
    chosen = [int(i) for i in order if areas[i] * factors[0] * factors[1] >= least_area][:most]
    boxes = ndimage.find_objects(labels)
    return tuple(_region(anomaly_map[boxes[i]], labels[boxes[i]] == i + 1, boxes[i], factors) for i in chosen)


def reduced(size: tuple[int, int]) -> tuple[int, int]:
    """The (H, W) of the map on which regions of a picture of `size` are found: its own unless it is large."""
    share = min(1.0, (MOST_PIXELS / (size[0] * size[1])) ** 0.5)
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _factors(shape: tuple[int, ...], size: tuple[int, int] | None) -> tuple[float, float]:
    """Pixels of the picture to one of the map, across and down."""
    height, width = size or shape
    return width / shape[1], height / shape[0]


def _region(
    scores: NDArray[np.floating],
    mask: NDArray[np.bool_],
    box: tuple[slice, slice],
    factors: tuple[float, float],
) -> Region:
    """The region that `mask` shows in its box of a map, in pixels of the picture."""
    to_x, to_y = factors
    corner = np.array([box[1].start, box[0].start], np.float64)
    rows, columns = np.nonzero(mask)
    middle = np.array([columns.mean(), rows.mean()]) + 0.5
    highest = int(scores[rows, columns].argmax())
    left, top = np.floor(corner * factors + 1e-6).astype(int).tolist()
    right, bottom = np.ceil(np.array([box[1].stop, box[0].stop]) * factors - 1e-6).astype(int).tolist()
    return Region(
        area=max(1, round(len(rows) * to_x * to_y)),
        centre=_point((corner + middle) * factors),
        box=(left, top, right - left, bottom - top),
        peak=float(scores[rows[highest], columns[highest]]),
        peak_at=(
            int((corner[0] + columns[highest] + 0.5) * to_x),
            int((corner[1] + rows[highest] + 0.5) * to_y),
        ),
        contours=tuple(_polygon((corners + corner) * factors) for corners in _contours(mask)),
    )


def _point(xy: NDArray[np.floating]) -> Point:
    return round(float(xy[0]), 2), round(float(xy[1]), 2)


def _polygon(corners: NDArray[np.floating]) -> Polygon:
    return tuple(_point(corner) for corner in corners)


# Borders


def _contours(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outer border of a connected mask and its largest holes, simplified, each (n, 2) of (x, y)."""
    borders = sorted(_borders(mask), key=lambda corners: -abs(_signed_area(corners)))
    # The outer border encloses all holes, so it comes first.
    counts = [OUTER_POINTS, *[HOLE_POINTS] * HOLES]
    return [_simplified(corners, count) for corners, count in zip(borders, counts, strict=False)]


def _borders(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Closed walks along the edges of a mask's pixels, the mask to the right; only their corners, (n, 2)."""
    starts, directions, following = _edges(mask)
    next_edge, headed = following.tolist(), directions.tolist()
    walked = [False] * len(next_edge)
    for first in range(len(next_edge)):
        corners, edge = [], first
        while not walked[edge]:
            walked[edge] = True
            after = next_edge[edge]
            if headed[after] != headed[edge]:
                corners.append(after)
            edge = after
        if corners:
            yield starts[corners].astype(np.float64)


def _edges(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Edges between a mask and its outside: where each starts (n, 2), its direction, the edge after it.

    Directions are 0 to the right, 1 down, 2 to the left, 3 up.
    """
    around = np.pad(mask, 1)
    inside = around[1:-1, 1:-1]
    open_sides = (
        inside & ~around[:-2, 1:-1],
        inside & ~around[1:-1, 2:],
        inside & ~around[2:, 1:-1],
        inside & ~around[1:-1, :-2],
    )
    begin = ((0, 0), (1, 0), (1, 1), (0, 1))  # of a pixel's four edges, from its upper left corner
    found = [np.argwhere(side)[:, ::-1] + begin[d] for d, side in enumerate(open_sides)]
    starts = np.concatenate(found)
    directions = np.repeat(np.arange(4), [len(part) for part in found])
    ends = starts + np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])[directions]
    leaving = np.full((mask.shape[0] + 1, mask.shape[1] + 1, 4), -1, np.int32)
    leaving[starts[:, 1], starts[:, 0], directions] = np.arange(len(starts))
    at_end = leaving[ends[:, 1], ends[:, 0]]
    following = np.full(len(starts), -1)
    # To the left where there is a choice: at a corner where two pixels touch, that joins them.
    for turn in (1, 0, 3):
        edge = at_end[np.arange(len(starts)), (directions + turn) % 4]
        following = np.where(edge >= 0, edge, following)
    return starts, directions, following


def _signed_area(corners: NDArray[np.float64]) -> float:
    """Positive when clockwise as seen, y pointing down."""
    x, y = corners.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _simplified(corners: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """A closed polygon with at most `most` of its corners, as many as it takes to stay near.

    Douglas and Peucker's way, the worst place first: beginning with two far corners, the corner that lies
    farthest from the polygon so far is added until none lies farther than `DEPARTURE`, or half the mean
    thickness where that is thin.
    """
    near = _nearness(corners)
    opposite = int(((corners - corners[0]) ** 2).sum(1).argmax())
    ring = np.concatenate([corners, corners[:1]])
    spans = [_farthest(ring, 0, opposite), _farthest(ring, opposite, len(corners))]
    while len(spans) < most:
        worst = max(range(len(spans)), key=lambda i: spans[i][0])
        distance, start, middle, stop = spans[worst]
        if distance <= (near if len(spans) >= 4 else 0.0):
            break
        spans[worst : worst + 1] = [_farthest(ring, start, middle), _farthest(ring, middle, stop)]
    return ring[[start for _, start, _, _ in spans]]


def _nearness(corners: NDArray[np.float64]) -> float:
    length = float(np.abs(np.roll(corners, -1, axis=0) - corners).sum())
    return min(DEPARTURE, abs(_signed_area(corners)) / (2 * length))


def _farthest(ring: NDArray[np.float64], start: int, stop: int) -> tuple[float, int, int, int]:
    """How far a corner between two others lies from their chord at most, and start, that corner, stop."""
    if stop - start < 2:
        return 0.0, start, start, stop
    chord = ring[stop] - ring[start]
    between = ring[start + 1 : stop] - ring[start]
    length = max(float(np.hypot(*chord)), 1e-12)
    distances = np.abs(between[:, 0] * chord[1] - between[:, 1] * chord[0]) / length
    middle = int(distances.argmax())
    return float(distances[middle]), start, start + 1 + middle, stop
