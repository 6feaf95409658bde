"""What router and product say of one image, before the line makes a verdict of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .calibration import ScoreCalibration, TwoVoices

LEAST_RATE = 1e-12  # that a threshold set by hand is taken to mean


@dataclass(frozen=True, eq=False)
class Decision:
    """For one image: the nearest product, its distance in typical ones, and the plain distances to all."""

    task: str
    distance: float
    margin: float
    distances: dict[str, float]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a product says of one image.

    Attributes:
        patch_map: (h, w) float32, in spreads of good images' map scores above the typical one.
        score: of the image, in the unit of `Prediction.pred_score`.
        place: the map's own score, in the map's unit.
        whole: the picture's own score, in spreads above the typical good image; None without that voice.
        strangeness: how foreign the most ordinary places look.
    """

    patch_map: np.ndarray
    score: float
    place: float
    whole: float | None
    strangeness: float


def nearest(
    names: list[str], distances: list[float], order: list[int], typical: dict[str, float]
) -> Decision:
    """The decision that follows from an image's distances to the products of these names.

    Args:
        names: of the products.
        distances: to each of them.
        order: their positions, the one that is meant first.
        typical: distance of a good image, by name.
    """
    best, margin = order[0], float("inf")
    if len(order) > 1:
        margin = distances[order[1]] / max(distances[best], 1e-12)
    name = names[best]
    return Decision(name, distances[best] / typical[name], margin, dict(zip(names, distances, strict=True)))


def judged(
    calibration: ScoreCalibration | TwoVoices,
    patch_map: np.ndarray,
    place: float,
    whole: float | None,
    strangeness: float,
) -> Judgement:
    """The judgement that follows from raw scores.

    Args:
        calibration: of the product.
        patch_map: raw scores of the map, (h, w).
        place: of the map, the mean of its highest patches.
        whole: of the picture as a whole; None without that voice.
        strangeness: how foreign the most ordinary places look.
    """
    if isinstance(calibration, ScoreCalibration):  # of a line's first format
        score = float(calibration.standardise(place))
        return Judgement(calibration.standardise(patch_map), score, score, None, strangeness)
    voice = calibration.place
    silent = whole is None or calibration.whole is None
    return Judgement(
        patch_map=(patch_map - np.float32(voice.level)) / np.float32(voice.spread),
        score=calibration.score(place, whole),
        place=voice.units(place),
        whole=None if silent else calibration.whole.units(whole),  # type: ignore[union-attr, arg-type]
        strangeness=strangeness,
    )


def map_threshold(calibration: ScoreCalibration | TwoVoices, rate: float | None, threshold: float) -> float:
    """Score of the map, in its unit, above which a place is conspicuous.

    Args:
        calibration: of the product.
        rate: the false-alarm rate that the image's threshold follows from; None where it was set by hand.
        threshold: of the image's score; one set by hand means the rate that it comes to.
    """
    if isinstance(calibration, ScoreCalibration):
        return threshold
    if rate is None:
        rate = min(max(calibration.p_value(threshold), LEAST_RATE), 1 - LEAST_RATE)
    return calibration.place_threshold(rate)
