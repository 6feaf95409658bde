"""Continual metrics: functions of the result matrix, and how often images find their product.

The result matrix ``a`` is (T, T): ``a[k, j]`` is the metric on product j after learning product k,
0-based. Only the entries on and below the diagonal are read (j <= k); above it, where the product
is not yet known, NaN is usual.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moleflow.errors import ConfigError
from moleflow.metrics.curve import Floats


@dataclass(frozen=True)
class RoutingAccuracy:
    """Share of one product's images that were sent to it, 0 to 1; NaN where there are no images."""

    good: float
    defective: float
    good_images: int
    defective_images: int


def average_accuracy(a: ArrayLike) -> float:
    """ACC = (1/T) sum_j a[T-1, j], the mean over all products after the last one was learned.

    ``a`` is (T, T). Raises ConfigError for another shape or a non-finite entry with j <= k.
    """
    return float(_checked(a)[-1].mean())


def backward_transfer(a: ArrayLike) -> float:
    """BWT = 1/(T-1) sum_{j<T-1} (a[T-1, j] - a[j, j]) (Lopez-Paz and Ranzato 2017).

    Negative when later products did harm. With one product nothing came later: 0.0.
    Errors as for :func:`average_accuracy`.
    """
    matrix = _checked(a)
    if len(matrix) == 1:
        return 0.0
    return float(np.mean(matrix[-1, :-1] - np.diagonal(matrix)[:-1]))


def forgetting(a: ArrayLike) -> float:
    """FM = 1/(T-1) sum_{j<T-1} (max_{j<=l<T-1} a[l, j] - a[T-1, j]) (Chaudhry et al. 2018).

    The best a product ever was before the last one was learned, less what it is in the end;
    positive when something was forgotten. With one product nothing can be forgotten: 0.0.
    Errors as for :func:`average_accuracy`.
    """
    matrix = _checked(a)
    last = len(matrix) - 1
    if last == 0:
        return 0.0
    return float(np.mean([matrix[j:last, j].max() - matrix[last, j] for j in range(last)]))


def router_gap(oracle: ArrayLike, routed: ArrayLike) -> float:
    """ACC of the oracle matrix less ACC of the routed one: what choosing the product costs.

    Both are (T, T). Errors as for :func:`average_accuracy`, and ConfigError for two different T.
    """
    if np.shape(oracle) != np.shape(routed):
        raise ConfigError(
            f"both matrices must cover the same products, not {np.shape(oracle)} and {np.shape(routed)}"
        )
    return average_accuracy(oracle) - average_accuracy(routed)


def routing_accuracy(
    true: Sequence[str], predicted: Sequence[Hashable], labels: Sequence[int]
) -> dict[str, RoutingAccuracy]:
    """How many images of each product were sent to it, separately for good and defective ones.

    N names, N answers and N labels (0 good, 1 defective); products in the order of appearance. An
    answer that is no product's name, such as None for "unknown", is a wrong one.
    Raises ConfigError for different lengths or another label.
    """
    if not len(true) == len(predicted) == len(labels):
        raise ConfigError(
            f"as many names, answers and labels are needed, not {len(true)}, {len(predicted)}, {len(labels)}"
        )
    right: dict[str, dict[int, list[bool]]] = {}
    for index, (name, answer, label) in enumerate(zip(true, predicted, labels, strict=True)):
        if label not in (0, 1):
            raise ConfigError(f"labels must be 0 (good) or 1 (defective), but index {index} is {label}")
        right.setdefault(name, {0: [], 1: []})[int(label)].append(bool(name == answer))
    return {name: _share_right(of[0], of[1]) for name, of in right.items()}


def _share_right(good: list[bool], defective: list[bool]) -> RoutingAccuracy:
    return RoutingAccuracy(
        good=sum(good) / len(good) if good else float("nan"),
        defective=sum(defective) / len(defective) if defective else float("nan"),
        good_images=len(good),
        defective_images=len(defective),
    )


def _checked(a: ArrayLike) -> Floats:
    matrix = np.asarray(a, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ConfigError(f"a result matrix must be (T, T) with T > 0, not {matrix.shape}")
    wrong = np.argwhere(np.tril(~np.isfinite(matrix)))
    if len(wrong):
        k, j = (int(i) for i in wrong[0])
        raise ConfigError(f"a result matrix must be finite on and below its diagonal; a[{k}, {j}] is not")
    return matrix
