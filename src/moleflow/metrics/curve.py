"""From sorted scores to ranking metrics: what the image and the pixel metrics have in common.

Scores are reduced to *steps*, one per distinct value, in descending order. A metric walks over the
steps, which may come in several blocks, and so treats ties in one way only: all equal scores cross
the threshold together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moleflow.errors import ConfigError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class F1Max:
    """The best F1 over all thresholds, and the threshold that reaches it.

    An oracle: the threshold is chosen with the test labels in hand, so it bounds what a threshold
    fixed beforehand can reach and must be labelled as such wherever it is shown. A score counts as
    defective when it is at or above ``threshold``; of equally good thresholds the highest is given.
    """

    f1: float
    threshold: float


@dataclass(frozen=True)
class Steps:
    """Distinct scores in descending order, with what crosses the threshold at each of them.

    All arrays have shape (S,). ``overlap`` is a weighted count that only pixel metrics need: the sum of
    1/(pixels of the region) over defective pixels.
    """

    scores: Floats
    negatives: Counts
    positives: Counts
    overlap: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, chosen: NDArray[np.bool_]) -> Steps:
        """Some of the steps."""
        return Steps(
            self.scores[chosen], self.negatives[chosen], self.positives[chosen], overlap=self.overlap[chosen]
        )


def check_finite(scores: Floats, what: str) -> None:
    """Raise ConfigError naming the first non-finite value and where it stands."""
    finite = np.isfinite(scores)
    if finite.all():
        return
    index = tuple(int(i) for i in np.argwhere(~finite)[0])
    place = index[0] if len(index) == 1 else index
    raise ConfigError(f"{what} must be finite, but the value at index {place} is {scores[index]}")


def need_both_classes(negatives: int, positives: int, what: str) -> None:
    """Raise ConfigError unless there is something to tell apart."""
    missing = [name for name, count in (("good", negatives), ("defective", positives)) if count == 0]
    if missing:
        raise ConfigError(f"this metric needs good and defective {what}; there are no {missing[0]} ones")


def starts_of_ties(ordered: Floats) -> NDArray[np.intp]:
    """Index at which each run of equal values begins; ``ordered`` (N,) is sorted and not empty."""
    changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return np.concatenate([np.zeros(1, dtype=np.intp), changes])


class RocArea:
    """Area under the ROC curve by trapezoids: P(defective > good) + P(equal) / 2."""

    def __init__(self, negatives: int, positives: int) -> None:
        self._negatives, self._positives = negatives, positives
        self._hits = 0
        self._area = 0.0

    def update(self, steps: Steps) -> None:
        """Take the next steps, all lower than those before."""
        hits = self._hits + np.cumsum(steps.positives)
        mean_height = hits - steps.positives / 2
        self._area += float(np.sum(steps.negatives * mean_height))
        self._hits = int(hits[-1])

    def result(self) -> float:
        """The area, 0 to 1, once all steps have been taken."""
        return self._area / self._negatives / self._positives


class PrecisionRecall:
    """Average precision (recall gained x precision, not interpolated) and F1-max."""

    def __init__(self, positives: int) -> None:
        self._positives = positives
        self._hits = 0
        self._alarms = 0
        self._gained = 0.0
        self.best = F1Max(f1=-1.0, threshold=np.inf)

    def update(self, steps: Steps) -> None:
        """Take the next steps, all lower than those before."""
        hits = self._hits + np.cumsum(steps.positives)
        alarms = self._alarms + np.cumsum(steps.positives + steps.negatives)
        self._gained += float(np.sum(steps.positives * (hits / alarms)))
        f1 = 2 * hits / (alarms + self._positives)
        top = int(np.argmax(f1))
        if f1[top] > self.best.f1:
            self.best = F1Max(f1=float(f1[top]), threshold=float(steps.scores[top]))
        self._hits, self._alarms = int(hits[-1]), int(alarms[-1])

    def average_precision(self) -> float:
        """The area, 0 to 1, once all steps have been taken."""
        return self._gained / self._positives
