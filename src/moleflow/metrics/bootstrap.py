"""Intervals around means over products, and gaps between methods.

For the products at hand by a paired bootstrap: of every product its images are drawn (`metrics.resampling`),
and where there are several seeds these as well; all methods are seen through the same draws, and many
comparisons at once are corrected for by the distribution of the largest of them (Romano and Wolf 2005). For
products of which these are a draw by Student's t, product by product: a bootstrap of two or three products
knows as many values, and is far too sure of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from moleflow.errors import ConfigError
from moleflow.metrics.curve import Floats

LEVEL = 0.95
_NOTHING = 1e-12


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
    """Which seeds and replicates of images each of R draws takes; all products are always there.

    Of n seeds n - 1 are drawn, as of images; where there is but one it is always taken.

    Attributes:
        seeds: (R, s).
        images: (R, p), numbers of replicates, by product.
    """

    seeds: NDArray[np.intp]
    images: NDArray[np.intp]

    @classmethod
    def make(cls, seeds: int, products: int, replicates: int) -> Draws:
        """Draws for so many seeds, products and replicates."""
        generator = np.random.default_rng(0)
        at = np.arange(replicates)
        chosen = generator.integers(seeds, size=(replicates, max(1, seeds - 1)))
        orders = [(at + product * (replicates // products)) % replicates for product in range(products)]
        return cls(chosen, np.stack(orders, axis=1))

    def means(self, replicates: Floats) -> Floats:
        """Means (R,) of one figure's replicates (seeds, products, R)."""
        products = np.arange(self.images.shape[1])
        taken = replicates[self.seeds[:, :, None], products[None, None, :], self.images[:, None, :]]
        return np.asarray(taken.mean((1, 2)))


def interval(estimate: float, replicates: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Percentiles of replicates (R,), moved so that their middle is the estimate."""
    shift = estimate - float(np.mean(replicates))
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low + shift), float(high + shift)


def interval_of_products(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Where the mean of all such products lies, by Student's t: values (P > 1,), one of each product."""
    half = _student(values, (1 - level) / 2)
    mean = float(np.mean(values))
    return mean - half, mean + half


def compare_products(gaps: Sequence[Floats], level: float = LEVEL) -> tuple[Comparison, ...]:
    """A family of gaps judged together for all such products: of each (P > 1,), one of every product.

    Student's t, with bounds that hold together (Bonferroni) and p by Holm's step-down (1979). What has no
    spread over products is either certain (p = 0) or no gap (p = 1).
    """
    found, chances = [], np.empty(len(gaps))
    for i, own in enumerate(gaps):
        gap, error = float(np.mean(own)), _error(own)
        half = _student(own, (1 - level) / 2 / len(gaps))
        if error > 0:
            chances[i] = 2 * stdtr(len(own) - 1, -abs(gap) / error)
        else:
            chances[i] = 0.0 if abs(gap) > _NOTHING else 1.0
        found.append((gap, error, gap - half, gap + half))
    order = np.argsort(chances, kind="stable")
    chances[order] = np.maximum.accumulate(np.minimum(1.0, chances[order] * np.arange(len(gaps), 0, -1)))
    return tuple(Comparison(*one, float(p)) for one, p in zip(found, chances, strict=True))


def _student(values: Floats, tail: float) -> float:
    """Half the width of an interval around a mean, with the chance `tail` on either side."""
    return float(-stdtrit(len(values) - 1, tail)) * _error(values)


def _error(values: Floats) -> float:
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return error if error > _NOTHING else 0.0


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
    sure = errors <= _NOTHING
    scale = np.where(sure, 1.0, errors)[:, None]
    strayed = np.abs(replicates - replicates.mean(1, keepdims=True)) / scale
    strayed[sure] = 0.0
    bound = float(np.quantile(strayed.max(0), level)) if len(strayed) else 0.0
    sizes = np.where(sure, np.where(np.abs(measured) > _NOTHING, np.inf, 0.0), np.abs(measured) / scale[:, 0])
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
