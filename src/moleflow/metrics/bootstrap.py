"""Intervals around means over products, and gaps between methods, by a paired hierarchical bootstrap.

Products are drawn, and within every drawn product its images (`metrics.resampling`); where there are several
seeds they are drawn as well. All methods are seen through the same draws. Many comparisons at once are
corrected for by the distribution of the largest of them (Romano and Wolf 2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moleflow.errors import ConfigError
from moleflow.metrics.curve import Floats

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A gap between two methods.

    Attributes:
        gap: as measured.
        error: its standard error.
        low, high: bounds that hold for all comparisons of the family together, with the chance asked for.
        p: chance of a largest gap of the family as large as this if there were none, step-down.
    """

    gap: float
    error: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Draws:
    """Which seeds, products and replicates of images each of R draws takes.

    Of n seeds or products n - 1 are drawn, as of images; where there is but one it is always taken. A
    product that is drawn twice comes with other images the second time.

    Attributes:
        seeds: (R, s).
        products: (R, p).
        images: (R, p), numbers of replicates.
    """

    seeds: NDArray[np.intp]
    products: NDArray[np.intp]
    images: NDArray[np.intp]

    @classmethod
    def make(cls, seeds: int, products: int, replicates: int, *, draw_products: bool) -> Draws:
        """Draws for so many seeds, products and replicates; without `draw_products` all are always there."""
        generator = np.random.default_rng(0)
        at = np.arange(replicates)

        def drawn(n: int, slots: int) -> NDArray[np.intp]:
            return generator.integers(n, size=(replicates, slots))

        chosen = drawn(seeds, max(1, seeds - 1))
        slots = max(1, products - 1) if draw_products else products
        orders = np.stack([(at + slot * (replicates // slots)) % replicates for slot in range(slots)], axis=1)
        if draw_products:
            return cls(chosen, drawn(products, slots), orders)
        return cls(chosen, np.tile(np.arange(products), (replicates, 1)), orders)

    def means(self, replicates: Floats) -> Floats:
        """Means (R,) of one figure's replicates (seeds, products, R)."""
        taken = replicates[self.seeds[:, :, None], self.products[:, None, :], self.images[:, None, :]]
        return np.asarray(taken.mean((1, 2)))


def interval(estimate: float, replicates: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Percentiles of replicates (R,), moved so that their middle is the estimate."""
    shift = estimate - float(np.mean(replicates))
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low + shift), float(high + shift)


def compare(gaps: Sequence[float], replicates: Floats, level: float = LEVEL) -> tuple[Comparison, ...]:
    """A family of gaps (K,) judged together by their replicates (K, R).

    Bounds are gap +- c error, where c is so large that with the chance `level` no replicate of the family
    lies further from its mean, in errors. p follows Romano and Wolf's step-down from the largest gap in
    errors to the smallest; a gap without any error is either certain (p = 1 / (R + 1)) or none (p = 1).

    Raises ConfigError for another shape.
    """
    measured = np.asarray(gaps, dtype=np.float64)
    if replicates.ndim != 2 or len(measured) != len(replicates) or replicates.shape[1] < 2:
        raise ConfigError(f"expected replicates ({len(measured)}, R > 1) of the gaps, got {replicates.shape}")
    errors = replicates.std(axis=1, ddof=1)
    sure = errors <= 1e-12
    scale = np.where(sure, 1.0, errors)[:, None]
    strayed = np.abs(replicates - replicates.mean(1, keepdims=True)) / scale
    strayed[sure] = 0.0
    bound = float(np.quantile(strayed.max(0), level)) if len(strayed) else 0.0
    sizes = np.where(sure, np.where(np.abs(measured) > 1e-12, np.inf, 0.0), np.abs(measured) / scale[:, 0])
    chances = _step_down(sizes, strayed)
    return tuple(
        Comparison(float(g), float(e), float(g - bound * e), float(g + bound * e), float(p))
        for g, e, p in zip(measured, np.where(sure, 0.0, errors), chances, strict=True)
    )


def _step_down(sizes: Floats, strayed: Floats) -> Floats:
    """Adjusted p of every gap, from the largest down: each against the largest of those that are left."""
    order = np.argsort(-sizes, kind="stable")
    # largest[i] is over the gaps from the i-th on, (K, R).
    largest = np.maximum.accumulate(strayed[order][::-1], axis=0)[::-1]
    exceeded = (largest >= sizes[order][:, None]).sum(1)
    found = np.empty(len(sizes))
    found[order] = np.maximum.accumulate((exceeded + 1) / (strayed.shape[1] + 1))
    return found
