"""Which images of an unlabelled task show the same product, found in their descriptors alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import ward
from torch import Tensor

LARGEST_OVERLAP = 0.8
"""Davies and Bouldin's ratio of two groups' radii to their distance, up to which they are two products.
Measured on seven drawn and three real products (efficientnet_lite0): 0.95 and more within one product, 0.88
and more with half of its photographs at half the exposure, 0.70 and less between two."""

LEAST_RADIUS = 0.15
"""Smallest believable radius of a product, as a share of its descriptors' size. Photographs from a fixed rig
differ by next to nothing, and a change of lamp would tear them apart."""

LEAST_IMAGES = 5
"""Fewer images are no product of their own but strays of the nearest one."""


def find_products(descriptors: Tensor) -> list[list[int]]:
    """Groups of images, one for each product that the descriptors (N, D) of good images tell apart.

    Ward's (1963) tree joins the nearest images first. It is read from its leaves up: groups that meet in
    a node stay apart if their overlap (r_a + r_b) / d is at most `LARGEST_OVERLAP` (Davies and Bouldin,
    A Cluster Separation Measure, 1979), and become one otherwise. d is the distance of the means, less
    what chance alone would put between them, and r the root mean square distance from the mean. A node
    is judged by the parts that were found below it, so any number of products can come out.

    Against splitting one product the radius counts all directions, light and pose included, rather than
    the one that separates the groups best, and is never less than `LEAST_RADIUS`. Variants that differ
    no more than by another light are therefore one product.

    Every image is in one group. Groups are ordered by their first image; the order of the images decides
    nothing else, and nothing is random.
    """
    rows = descriptors.cpu().double().numpy()
    if len(rows) < 2 * LEAST_IMAGES:
        return [list(range(len(rows)))] if len(rows) else []
    nodes = [[_Group.of(i, row)] for i, row in enumerate(rows)]
    for left, right, *_ in ward(rows):
        found = nodes[int(left)] + nodes[int(right)]
        nodes.append(_joined(_without_strays(found)))
    return sorted(sorted(group.images) for group in nodes[-1])


@dataclass(frozen=True, eq=False)
class _Group:
    """Images with the moments of their descriptors.

    Attributes:
        images: positions.
        mean: (D,).
        scatter: sum of squared distances from the mean.
        energy: sum over the images of the squared deviation of their channels from the image's own level.
    """

    images: tuple[int, ...]
    mean: NDArray[np.float64]
    scatter: float
    energy: float

    @classmethod
    def of(cls, image: int, descriptor: NDArray[np.float64]) -> _Group:
        return cls((image,), descriptor, 0.0, float(np.square(descriptor - descriptor.mean()).sum()))

    def __add__(self, other: _Group) -> _Group:
        a, b = self.count(), other.count()
        return _Group(
            self.images + other.images,
            (a * self.mean + b * other.mean) / (a + b),
            self.scatter + other.scatter + a * b / (a + b) * self.squared_distance(other),
            self.energy + other.energy,
        )

    def count(self) -> int:
        return len(self.images)

    def squared_distance(self, other: _Group) -> float:
        return float(np.square(self.mean - other.mean).sum())

    @property
    def variance(self) -> float:
        """Summed over channels, without bias."""
        return self.scatter / (self.count() - 1) if self.count() > 1 else 0.0

    @property
    def radius(self) -> float:
        return float(np.sqrt(self.variance + LEAST_RADIUS**2 * self.energy / self.count()))

    def overlap(self, other: _Group) -> float:
        """Sum of the radii over the distance; infinite where chance explains the distance."""
        chance = self.variance / self.count() + other.variance / other.count()
        distance = self.squared_distance(other) - chance
        return (self.radius + other.radius) / float(np.sqrt(distance)) if distance > 0 else np.inf


def _without_strays(groups: list[_Group]) -> list[_Group]:
    """Every group that is too small goes to the nearest one."""
    groups = sorted(groups, key=_Group.count)
    while len(groups) > 1 and groups[0].count() < LEAST_IMAGES:
        stray, *others = groups
        nearest = min(others, key=stray.squared_distance)
        groups = sorted([*(g for g in others if g is not nearest), nearest + stray], key=_Group.count)
    return groups


def _joined(groups: list[_Group]) -> list[_Group]:
    """The two that overlap most become one, until none overlap too much."""
    while len(groups) > 1:
        a, b = max(combinations(groups, 2), key=lambda pair: pair[0].overlap(pair[1]))
        if a.overlap(b) <= LARGEST_OVERLAP:
            break
        groups = [*(g for g in groups if g is not a and g is not b), a + b]
    return groups
