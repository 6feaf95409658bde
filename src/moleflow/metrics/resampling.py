"""Figures of a product's test images drawn again and again: what other images like them would have given.

The draws depend on nothing but the product's name and its labels, so two methods that inspect the same images
are seen through the same draws, and the differences between their replicates are paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from moleflow.errors import ConfigError
from moleflow.metrics.curve import Counts, Floats, starts_of_ties

REPLICATES = 1000
BINS = 512
SAMPLED = 2048  # defect pixels of an image that bins are made from

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def image_weights(name: str, labels: Sequence[int], replicates: int = REPLICATES) -> Floats:
    """How often every image counts in every replicate, (R, N).

    Good and defective images are drawn apart, so their share stays what it is. Of n images n - 1 are drawn
    with replacement and weigh n / (n - 1) each: that many give a mean the spread it has, where n give too
    little (Rao and Wu 1988). The only image of its kind is always there.

    Args:
        name: fixes the draws.
        labels: 0 for good and 1 for defective, (N,).
        replicates: R.
    """
    marks = np.asarray(labels)
    generator = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()[:16]))
    weights = np.ones((replicates, len(marks)))
    for label in (0, 1):
        own = np.flatnonzero(marks == label)
        n = len(own)
        if n > 1:
            drawn = generator.multinomial(n - 1, np.full(n, 1 / n), size=replicates)
            weights[:, own] = drawn * (n / (n - 1))
    return weights


def image_replicates(scores: ArrayLike, labels: ArrayLike, weights: Floats) -> dict[str, Floats]:
    """Image AUROC, AP and F1-max under every row of weights (R, N), each (R,); ties as in the metrics."""
    values, marks = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    order = np.argsort(-values, kind="stable")
    starts = starts_of_ties(values[order])
    ordered, defective = weights[:, order], marks[order] == 1
    positives = np.add.reduceat(ordered * defective, starts, axis=1)
    negatives = np.add.reduceat(ordered * ~defective, starts, axis=1)
    hits, alarms = positives.cumsum(1), (positives + negatives).cumsum(1)
    every = hits[:, -1:]
    precision = np.divide(hits, alarms, out=np.zeros_like(hits), where=alarms > 0)
    return {
        "image_auroc": _area(positives, negatives),
        "image_ap": (positives * precision).sum(1) / every[:, 0],
        "image_f1_max": (2 * hits / (alarms + every)).max(1),
    }


def mean_replicates(values: ArrayLike, weights: Floats) -> Floats:
    """Weighted means (R,) of one value per image (N,); the plain one where a replicate drew none of them."""
    given = np.asarray(values, dtype=np.float64)
    total = weights.sum(1)
    return np.divide(weights @ given, total, out=np.full(len(total), given.mean()), where=total > 0)


@dataclass(frozen=True)
class Sample:
    """Some of an image's defect pixels, to make bins from: scores (n,), and how many each stands for."""

    scores: Floats
    each: float

    @classmethod
    def of(cls, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> Sample:
        """Defect pixels (H, W) at equal distances, `SAMPLED` of them at most."""
        scores = np.asarray(anomaly_map[mask], dtype=np.float64)
        step = max(1, -(-len(scores) // SAMPLED))
        return cls(scores[::step], float(step))


def edges_of(samples: Sequence[Sample], bins: int = BINS) -> Floats:
    """Edges, rising and distinct, between bins that hold about as many defect pixels each.

    Half of them part the pixels of all images, half weigh every image the same, so that small defects, which
    count in AUPRO as much as large ones, are not all in one bin. A score that is an edge has a bin of its
    own, between it and the next number, so where defect pixels are few nothing is rounded.
    """
    there = [sample for sample in samples if len(sample.scores)]
    if not there:
        raise ConfigError("bins need defective pixels; there are none")
    scores = np.concatenate([sample.scores for sample in there])
    order = np.argsort(scores)
    found = []
    for weigh in (lambda sample: sample.each, lambda sample: 1 / len(sample.scores)):
        weights = np.concatenate([np.full(len(sample.scores), weigh(sample)) for sample in there])[order]
        reached = np.cumsum(weights) / weights.sum()
        at = np.searchsorted(reached, np.linspace(0, 1, bins // 2 + 1)[:-1])
        found.append(scores[order][np.minimum(at, len(scores) - 1)])
    chosen = np.unique(np.concatenate([*found, scores[order][-1:]]))
    return np.stack([chosen, np.nextafter(chosen, np.inf)], axis=1).ravel()


class PixelCounts:
    """Every image's pixels counted by bins of score, so that images can be weighed after they are gone.

    Within a bin background and defects are taken to be spread alike. What that does to a figure is the
    *bin error*: the figure with every image once, against the exact one.
    """

    def __init__(self, edges: Floats) -> None:
        self._edges = edges
        self._negatives: list[Counts] = []
        self._positives: list[Counts] = []
        self._overlap: list[Floats] = []
        self._regions: list[int] = []

    def add(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Takes one image, (H, W) both."""
        size = len(self._edges) + 1
        # From the highest scores down, as curves are.
        bins = len(self._edges) - np.searchsorted(self._edges, anomaly_map.ravel(), side="right")
        every = np.bincount(bins, minlength=size)
        regions, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
        of_pixel = regions.ravel()
        marked = of_pixel > 0
        defects = np.bincount(bins[marked], minlength=size)
        pixels = np.bincount(of_pixel, minlength=count + 1)
        share = 1 / pixels[of_pixel[marked]]
        self._negatives.append(every - defects)
        self._positives.append(defects)
        self._overlap.append(np.bincount(bins[marked], share, size).astype(np.float64))
        self._regions.append(count)

    def replicates(self, weights: Floats, limits: Sequence[float]) -> dict[str, Floats]:
        """Pixel AUROC, AP, and AUPRO by limit ("aupro 0.3"), under every row of weights (R, N), each (R,)."""
        negatives, positives, overlap = (
            weights @ np.asarray(part, dtype=np.float64)
            for part in (self._negatives, self._positives, self._overlap)
        )
        regions = weights @ np.asarray(self._regions, dtype=np.float64)
        hits, every = positives.cumsum(1), positives + negatives
        # At the middle one of a bin's defect pixels, itself included, as exact precision has it; every other
        # bin is a single score, whose pixels cross the threshold together.
        share = np.divide(positives + 1, 2 * positives, out=np.zeros_like(hits), where=positives > 0)
        share[:, 1::2] = 1.0
        right = hits - positives + share * positives
        precision = np.divide(
            right, every.cumsum(1) - every + share * every, out=np.zeros_like(hits), where=positives > 0
        )
        rate = _ratio(negatives.cumsum(1), negatives.sum(1, keepdims=True))
        found = {
            "pixel_auroc": _area(positives, negatives),
            "pixel_ap": _ratio((positives * precision).sum(1), hits[:, -1]),
        }
        for limit in limits:
            found[f"aupro {limit:g}"] = _area_up_to(limit, rate, _ratio(overlap.cumsum(1), regions[:, None]))
        return found


def _area(positives: Floats, negatives: Floats) -> Floats:
    """Areas under ROC curves of (R, S) counts, from the highest score down."""
    height = positives.cumsum(1) - positives / 2
    return _ratio((negatives * height).sum(1), positives.sum(1) * negatives.sum(1))


def _ratio(a: Floats, b: Floats) -> Floats:
    """a / b; NaN where a draw holds nothing to divide by, such as no image whose mask has a pixel left."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    return np.divide(a, b, out=np.full(shape, np.nan), where=np.broadcast_to(b, shape) > 0)


def _area_up_to(limit: float, x: Floats, y: Floats) -> Floats:
    """Mean heights (R,) of curves through (0, 0) and points (R, S), left of ``limit``; linear in between."""
    nothing = np.zeros((len(x), 1))
    x, y = np.concatenate([nothing, x], axis=1), np.concatenate([nothing, y], axis=1)
    width, rise = np.diff(x), np.diff(y)
    inside = np.diff(np.minimum(x, limit))
    share = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    return (inside * (y[:, :-1] + share * rise / 2)).sum(1) / limit
