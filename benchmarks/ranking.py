"""Whether one figure ranks configurations as another does: rank correlations with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moleflow.bench.ranking import Floats, spearman
from moleflow.errors import ConfigError

Redrawn = Callable[[np.random.Generator], Floats]


@dataclass(frozen=True)
class Agreement:
    """Rank correlations over configurations, the mean over products, each with a 95 % interval.

    Attributes:
        spearman, kendall: -1 to 1; 0 where one side is constant.
        spearman_interval, kendall_interval: 2.5 % and 97.5 % of the bootstrap.
        by_product: Spearman's of each product.
    """

    spearman: float
    spearman_interval: tuple[float, float]
    kendall: float
    kendall_interval: tuple[float, float]
    by_product: tuple[float, ...]


def kendall(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """Kendall's tau-b; 0.0 where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.kendalltau(a, b).statistic)


def agreement(
    criterion: Floats, figure: Floats, *, redrawn: Redrawn | None = None, draws: int = 500
) -> Agreement:
    """How well a criterion ranks configurations by a figure, within each product.

    The bootstrap draws products, and configurations, with replacement; and a figure anew where `redrawn` can
    do that, so that what test images leave open about the figure is in the interval too.

    Args:
        criterion, figure: (products, configurations), higher is better for both.
        redrawn: the figure from test images drawn with replacement, of the same shape.
        draws: of the bootstrap.

    Raises:
        ConfigError: other shapes, fewer than three configurations, or values that are not finite.
    """
    if criterion.shape != figure.shape or criterion.ndim != 2 or criterion.shape[1] < 3:
        raise ConfigError(
            "expected criterion and figure of one shape (products, at least 3 configurations), "
            f"got {criterion.shape} and {figure.shape}"
        )
    if not (np.isfinite(criterion).all() and np.isfinite(figure).all()):
        raise ConfigError("expected finite criteria and figures")
    rng = np.random.default_rng(0)
    found: list[tuple[float, float]] = []
    for _ in range(draws):
        products = rng.integers(len(criterion), size=len(criterion))
        chosen = rng.integers(criterion.shape[1], size=criterion.shape[1])
        again = figure if redrawn is None else redrawn(rng)
        pairs = [(criterion[i][chosen], again[i][chosen]) for i in products]
        found.append((_mean(spearman, pairs), _mean(kendall, pairs)))
    pairs = list(zip(criterion, figure, strict=True))
    low, high = (np.quantile(np.array(found), q, axis=0) for q in (0.025, 0.975))
    return Agreement(
        _mean(spearman, pairs),
        (float(low[0]), float(high[0])),
        _mean(kendall, pairs),
        (float(low[1]), float(high[1])),
        tuple(spearman(a, b) for a, b in pairs),
    )


def ranks(values: Floats) -> Floats:
    """Each product's values (products, configurations) as ranks from 0, the lowest, to 1, the highest."""
    return (stats.rankdata(values, axis=1) - 1) / max(values.shape[1] - 1, 1)


def chosen_on_others(ranked: Floats) -> NDArray[np.intp]:
    """For each product the configuration with the highest mean over the *other* products.

    The first of equals. `ranked` is (products, configurations), comparable between products, such as
    `ranks` gives. ConfigError for one product, which has no others.
    """
    if len(ranked) < 2:
        raise ConfigError(
            f"expected at least two products to choose on some and judge others, got {len(ranked)}"
        )
    return np.array([np.delete(ranked, i, axis=0).mean(0).argmax() for i in range(len(ranked))])


def difference(
    figure: Floats,
    chosen: NDArray[np.intp],
    reference: NDArray[np.intp],
    *,
    redrawn: Redrawn | None = None,
    draws: int = 500,
) -> tuple[float, tuple[float, float]]:
    """Mean over products of the figure as chosen less that of a reference, with a 95 % interval.

    The bootstrap draws products with replacement, and the figure anew where `redrawn` can do that; both sides
    see the same images. `figure` is (products, configurations), `chosen` and `reference` (products,).
    """
    rng, rows = np.random.default_rng(0), np.arange(len(figure))

    def gaps(values: Floats) -> Floats:
        return values[rows, chosen] - values[rows, reference]

    drawn = [
        gaps(figure if redrawn is None else redrawn(rng))[rng.integers(len(figure), size=len(figure))].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(gaps(figure).mean()), (float(low), float(high))


def areas(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """Image AUROC of every configuration, (configurations,), from scores (configurations, images)."""
    order, bad = stats.rankdata(scores, axis=1), labels == 1
    count, others = int(bad.sum()), int((~bad).sum())
    return (order[:, bad].sum(1) - count * (count + 1) / 2) / (count * others)


def drawn_again(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions of images drawn with replacement, good and defective ones apart."""
    parts = [np.flatnonzero(labels == label) for label in (0, 1)]
    return np.concatenate([rng.choice(part, len(part)) for part in parts])


def _mean(measure: Callable[[Floats, Floats], float], pairs: Sequence[tuple[Floats, Floats]]) -> float:
    return float(np.mean([measure(a, b) for a, b in pairs]))
