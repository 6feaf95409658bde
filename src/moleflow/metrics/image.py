"""Image metrics: one score and one label per image, of one product, on raw float64 scores.

Scores are taken as they are: neither normalised nor clipped, and a non-finite one is an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moleflow.errors import ConfigError
from moleflow.metrics.curve import (
    Counts,
    F1Max,
    Floats,
    PrecisionRecall,
    RocArea,
    Steps,
    check_finite,
    need_both_classes,
    starts_of_ties,
)


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve, 0 to 1; a tie of a good and a defective image counts one half.

    ``scores`` (N,) rise with the suspicion; ``labels`` (N,) are 0 for good and 1 for defective.
    Raises ConfigError for a non-finite score, another label, or only one class.
    """
    checked, marks = _checked(scores, labels)
    area = RocArea(negatives=int((marks == 0).sum()), positives=int(marks.sum()))
    area.update(_steps(checked, marks))
    return area.result()


def image_ap(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision, 0 to 1: the sum over thresholds of (recall gained) x precision.

    Arguments and errors as for :func:`image_auroc`.
    """
    return _precision_recall(scores, labels).average_precision()


def image_f1_max(scores: ArrayLike, labels: ArrayLike) -> F1Max:
    """The best F1 over all thresholds: an oracle, since it looks at the test labels.

    Arguments and errors as for :func:`image_auroc`.
    """
    return _precision_recall(scores, labels).best


def _precision_recall(scores: ArrayLike, labels: ArrayLike) -> PrecisionRecall:
    checked, marks = _checked(scores, labels)
    curve = PrecisionRecall(positives=int(marks.sum()))
    curve.update(_steps(checked, marks))
    return curve


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Counts]:
    values = np.asarray(scores, dtype=np.float64)
    given = np.asarray(labels)
    if values.ndim != 1 or values.shape != given.shape:
        raise ConfigError(
            f"scores and labels must be two vectors of one length, not {values.shape} and {given.shape}"
        )
    check_finite(values, "image scores")
    wrong = np.flatnonzero((given != 0) & (given != 1))
    if len(wrong):
        raise ConfigError(
            f"labels must be 0 (good) or 1 (defective), but index {wrong[0]} is {given[wrong[0]]}"
        )
    marks = given.astype(np.int64)
    need_both_classes(int((marks == 0).sum()), int(marks.sum()), "images")
    return values, marks


def _steps(scores: Floats, labels: Counts) -> Steps:
    order = np.argsort(-scores, kind="stable")
    ordered, marks = scores[order], labels[order]
    starts = starts_of_ties(ordered)
    positives = np.add.reduceat(marks, starts)
    negatives = np.diff(starts, append=len(ordered)) - positives
    return Steps(ordered[starts], negatives, positives, overlap=np.zeros(len(starts)))
