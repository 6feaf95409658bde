"""Continual metrics: functions of the result matrix, and how often images find their product.

The result matrix ``a`` is (T, P): ``a[k, j]`` is the metric on product j after task k, 0-based, and
``learned[j]`` the task that product j was learned in. Left out, every task is a product of its own:
T = P and learned[j] = j. Only entries with k >= learned[j] are read; above them, where the product is
not yet known, NaN is usual.
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
    """Shares of one product's images, 0 to 1; NaN where there are no images.

    What is neither right nor unknown was taken for another product.

    Attributes:
        good, defective: sent to their own product and known as one of its own.
        unknown_good, unknown_defective: called unknown, and so sent to no product.
        good_images, defective_images: how many there are.
    """

    good: float
    defective: float
    unknown_good: float
    unknown_defective: float
    good_images: int
    defective_images: int


def average_accuracy(a: ArrayLike, learned: Sequence[int] | None = None) -> float:
    """ACC = (1/P) sum_j a[T-1, j], the mean over all products after the last task.

    ``a`` is (T, P), ``learned`` (P,). Raises ConfigError for other shapes, for tasks that there are not,
    or for a non-finite entry of a known product.
    """
    matrix, _ = _checked(a, learned)
    return float(matrix[-1].mean())


def backward_transfer(a: ArrayLike, learned: Sequence[int] | None = None) -> float:
    """BWT: the mean of a[T-1, j] - a[learned[j], j] over products not of the last task (Lopez-Paz and
    Ranzato 2017).

    Negative when later tasks did harm. Where nothing came later: 0.0. Errors as for
    :func:`average_accuracy`.
    """
    matrix, tasks = _checked(a, learned)
    earlier = [j for j, task in enumerate(tasks) if task < len(matrix) - 1]
    return float(np.mean([matrix[-1, j] - matrix[tasks[j], j] for j in earlier])) if earlier else 0.0


def forgetting(a: ArrayLike, learned: Sequence[int] | None = None) -> float:
    """FM: the mean of max_{learned[j] <= l < T-1} a[l, j] - a[T-1, j] over products not of the last task
    (Chaudhry et al. 2018).

    The best a product ever was before the last task, less what it is in the end; positive when something
    was forgotten. Where nothing came later: 0.0. Errors as for :func:`average_accuracy`.
    """
    matrix, tasks = _checked(a, learned)
    earlier = [j for j, task in enumerate(tasks) if task < len(matrix) - 1]
    lost = [matrix[tasks[j] : -1, j].max() - matrix[-1, j] for j in earlier]
    return float(np.mean(lost)) if lost else 0.0


def router_gap(oracle: ArrayLike, routed: ArrayLike, learned: Sequence[int] | None = None) -> float:
    """ACC of the oracle matrix less ACC of the routed one: what choosing the product costs.

    Both are (T, P). Errors as for :func:`average_accuracy`, and ConfigError for two different shapes.
    """
    if np.shape(oracle) != np.shape(routed):
        raise ConfigError(
            f"both matrices must cover the same products, not {np.shape(oracle)} and {np.shape(routed)}"
        )
    return average_accuracy(oracle, learned) - average_accuracy(routed, learned)


def answer_of(task: str | None, known: bool | None) -> str | None:
    """What counts as the answer to "which product is this?": None for an image that is called unknown.

    `task` is the nearest product and `known` whether the image is taken for one of it; None where a method
    never rejects an image, whose nearest product is then always its answer.
    """
    return None if known is False else task


def routing_accuracy(
    true: Sequence[str], predicted: Sequence[Hashable], labels: Sequence[int]
) -> dict[str, RoutingAccuracy]:
    """How many images of each product were sent to it, separately for good and defective ones.

    N names, N answers (see `answer_of`) and N labels (0 good, 1 defective); products in the order of
    appearance. The answer None means "unknown", which is a wrong one and counted by itself as well.
    Raises ConfigError for different lengths or another label.
    """
    if not len(true) == len(predicted) == len(labels):
        raise ConfigError(
            f"as many names, answers and labels are needed, not {len(true)}, {len(predicted)}, {len(labels)}"
        )
    answers: dict[str, dict[int, list[Hashable]]] = {}
    for index, (name, answer, label) in enumerate(zip(true, predicted, labels, strict=True)):
        if label not in (0, 1):
            raise ConfigError(f"labels must be 0 (good) or 1 (defective), but index {index} is {label}")
        answers.setdefault(name, {0: [], 1: []})[int(label)].append(answer)
    return {name: _shares(name, of[0], of[1]) for name, of in answers.items()}


def routing_shares(name: str, answers: Sequence[Hashable], labels: Sequence[int]) -> dict[str, float | None]:
    """`routing_accuracy` of the N images of one product as named shares, None where there are no images.

    Evaluation of a line and benchmark both report these: routing_good, routing_defective, unknown_good and
    unknown_defective.
    """
    of = routing_accuracy([name] * len(answers), answers, labels).get(name)
    good, defective = (of.good_images, of.defective_images) if of else (0, 0)
    return {
        "routing_good": of.good if of and good else None,
        "routing_defective": of.defective if of and defective else None,
        "unknown_good": of.unknown_good if of and good else None,
        "unknown_defective": of.unknown_defective if of and defective else None,
    }


def _shares(name: str, good: list[Hashable], defective: list[Hashable]) -> RoutingAccuracy:
    def share(answers: list[Hashable], wanted: str | None) -> float:
        return sum(answer == wanted for answer in answers) / len(answers) if answers else float("nan")

    return RoutingAccuracy(
        good=share(good, name),
        defective=share(defective, name),
        unknown_good=share(good, None),
        unknown_defective=share(defective, None),
        good_images=len(good),
        defective_images=len(defective),
    )


def _checked(a: ArrayLike, learned: Sequence[int] | None) -> tuple[Floats, list[int]]:
    matrix = np.asarray(a, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ConfigError(f"a result matrix must be (T, P) with T, P > 0, not {matrix.shape}")
    steps, products = matrix.shape
    tasks = list(range(products)) if learned is None else [int(task) for task in learned]
    if (learned is None and steps != products) or len(tasks) != products:
        raise ConfigError(f"a result matrix of {matrix.shape} does not fit {len(tasks)} products' tasks")
    if any(not 0 <= task < steps for task in tasks):
        raise ConfigError(f"expected every product's task among 0 to {steps - 1}, got {tasks}")
    known = np.arange(steps)[:, None] >= np.array(tasks)
    wrong = np.argwhere(known & ~np.isfinite(matrix))
    if len(wrong):
        k, j = (int(i) for i in wrong[0])
        raise ConfigError(f"a result matrix must be finite once a product is known; a[{k}, {j}] is not")
    return matrix, tasks
