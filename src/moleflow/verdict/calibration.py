"""What good images of a product score, and what follows for one that was not seen: p-values, thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from ..errors import CalibrationError
from ..spreads import robust_spread

A = TypeVar("A", bound=Any)  # an array, a tensor or a number

PRIOR_SPREAD = 0.3
"""Standard deviation of bent good scores (`_log_shift` of robust units) in products that vary much: 0.20 to
0.34 on three real ones, taught with 12 to 200 photographs. A borrowed tail should err on the wide side."""

PRIOR_IMAGES = 20.0
"""How many images' worth of belief that gets, where at least 16 give a unit to measure in; none up to 8.
Believed before its unit is known, it narrows the tail: of skewed scores 3 to 4 in a hundred good images would
exceed the limit of 1 % that five to eight of them gave."""

LEAST_BLOCKS = 3  # that say how blocks differ
BLOCKS = 8  # into which images are parted to ask how sessions differ
OUTLIER = (
    5.0  # robust spreads beyond which a good score counts as lying just there: it sets no threshold alone
)


class Calibration(Protocol):
    """What all calibrations can say."""

    @property
    def kind(self) -> str:
        """How good images came to calibrate."""

    @property
    def images(self) -> int:
        """Independent good images that calibrated."""

    def p_value(self, score: float) -> float:
        """Chance that one more good image scores at least `score`, in the unit of `pred_score`."""

    def threshold(self, false_alarm_rate: float, *, images: int | None = None) -> float:
        """Score that a good image exceeds with this probability; with so many images that spread as these."""

    def scores_of_good(self) -> list[float]:
        """`pred_score` of the good images that calibrated."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""


def calibration_from_dict(values: dict[str, Any]) -> ScoreCalibration | TwoVoices:
    """The inverse of every calibration's `to_dict`."""
    kind = TwoVoices if values["kind"] == LEFT_OUT else ScoreCalibration
    return kind.from_dict(values)


def verdict_of(
    calibration: Calibration, overrides: Mapping[str, Any], rate: float
) -> tuple[float | None, float]:
    """The false-alarm rate that counts (None: set by hand) and the threshold.

    Args:
        calibration: the product's.
        overrides: what was changed for this product: "threshold", or "false_alarm_rate".
        rate: the line's own, where nothing was.
    """
    if "threshold" in overrides:
        return None, float(overrides["threshold"])
    rate = float(overrides.get("false_alarm_rate", rate))
    return rate, calibration.threshold(rate)


@dataclass(frozen=True)
class ScoreCalibration:
    """What good images of one product score, and what follows for an image that was not seen.

    A p-value is the chance that one more good image scores at least this high when stretched good scores
    (`_log_shift`, which tames their long upper tail) are normal: Student's t predictive distribution,
    exact in n, so a dozen images give a wider, honest threshold than a hundred (Geisser 1993).

    Attributes:
        kind: "held-out", "cross-fitted", or "in-sample" where a single image leaves no other way.
        scores: raw image scores of the good images, ascending.
    """

    kind: str
    scores: tuple[float, ...]

    @property
    def images(self) -> int:
        """Good images that calibrated."""
        return len(self.scores)

    @cached_property
    def level(self) -> float:
        """Typical raw score of a good image."""
        return float(np.median(self.scores))

    @cached_property
    def spread(self) -> float:
        """Standard deviation of raw good scores; a tenth of the level's size where there is one image."""
        if len(self.scores) < 2:
            return max(0.1 * abs(self.level), 0.1)
        return max(float(np.std(self.scores, ddof=1)), 1e-3)

    def standardise(self, raw: A) -> A:
        """Raw scores or maps in spreads above the typical good image: the unit of `pred_score`."""
        return (raw - self.level) / self.spread

    def p_value(self, score: float) -> float:
        """Chance that one more good image scores at least `score`, in the unit of `pred_score`."""
        centre, width, freedom = self._predictive
        return student_above((_log_shift(score) - centre) / width, freedom)

    def threshold(self, false_alarm_rate: float, *, images: int | None = None) -> float:
        """Score that a good image exceeds with this probability; with so many images that spread as these."""
        _check_rate(false_alarm_rate)
        centre, width, freedom = self._predictive
        if images is not None and self.images > 1:
            width *= math.sqrt((1 + 1 / images) / (1 + 1 / self.images))
            freedom = images - 1.0
        return _unshift(student_limit(false_alarm_rate, freedom) * width + centre)

    @cached_property
    def _predictive(self) -> tuple[float, float, float]:
        logs = np.array([_log_shift((s - self.level) / self.spread) for s in self.scores])
        count = len(logs)
        if count < 2:
            return 0.0, 0.5, 1.0  # one image: nothing is known but that its own score is no defect
        width = max(float(logs.std(ddof=1)), 1e-3) * math.sqrt(1 + 1 / count)
        return float(logs.mean()), width, float(count - 1)

    def scores_of_good(self) -> list[float]:
        """`pred_score` of the good images that calibrated, ascending."""
        return [(score - self.level) / self.spread for score in self.scores]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"kind": self.kind, "scores": list(self.scores)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ScoreCalibration:
        """The inverse of `to_dict`."""
        return cls(values["kind"], tuple(float(s) for s in values["scores"]))


LEFT_OUT = "left-out"


@dataclass(frozen=True)
class Predictive:
    """Where one more good image will score: Student's t over bent scores, with the spread between blocks.

    Scores in robust units are bent (`_log_shift`), images are parted into blocks, and the next image is taken
    to come from another block: its variance is that between blocks plus that within them, each with its own
    degrees of freedom (a balanced one-way random-effects model; Satterthwaite 1946). Both are drawn towards
    `PRIOR_SPREAD`, so that a dozen images borrow the shape of their tail from other products. Images of a few
    sessions that differ are worth no more there than the sessions are.

    Attributes:
        centre, width, freedom: of the t distribution.
        independent: how many independent images these are worth.
    """

    centre: float
    width: float
    freedom: float
    independent: float

    @classmethod
    def fit(cls, scores: Sequence[float], blocks: Sequence[int], *, floor: float = 0.0) -> Predictive:
        """From good images' scores in robust units, and the block of each.

        Args:
            floor: how far the sensor alone moves a score; the width is never below that.
        """
        bent = np.array([_log_shift(score) for score in scores])
        count = len(bent)
        if count < 2:
            # nothing is known but that its own score is no defect
            return cls(0.0, 0.5 * math.sqrt(2), 1.0, float(count))
        middle, reach = float(np.median(bent)), OUTLIER * max(robust_spread(bent), 1e-3)
        bent = np.clip(bent, middle - reach, middle + reach)
        centre, variance, freedom = _next_of_blocks(bent, np.asarray(blocks))
        independent = min(float(count), 1 + freedom)
        belief = _belief(independent)
        pooled = (freedom * variance + belief * PRIOR_SPREAD**2) / (freedom + belief)
        least = max(_log_shift(floor), 1e-3)
        return cls(centre, max(math.sqrt(pooled), least), freedom + belief, independent)

    def grown(self, images: int, to: int) -> Predictive:
        """The same from more images that spread as these do, in as many more blocks."""
        width = self.width * math.sqrt((1 + 1 / to) / (1 + 1 / images))
        own, independent = self.freedom - _belief(self.independent), self.independent * to / images
        return Predictive(self.centre, width, own * to / images + _belief(independent), independent)

    def p_value(self, score: float) -> float:
        """Chance that one more good image scores at least `score`."""
        return student_above((_log_shift(score) - self.centre) / self.width, self.freedom)

    def limit(self, rate: float) -> float:
        """Score that one more good image exceeds at this rate."""
        return _unshift(student_limit(rate, self.freedom) * self.width + self.centre)


def _belief(images: float) -> float:
    return PRIOR_IMAGES * min(max((images - 8) / 8, 0.0), 1.0)


def _next_of_blocks(bent: NDArray[np.float64], blocks: NDArray[np.int_]) -> tuple[float, float, float]:
    """Centre, variance and degrees of freedom of the next image, which belongs to another block."""
    count = len(bent)
    groups = [bent[blocks == block] for block in np.unique(blocks)]
    if len(groups) < LEAST_BLOCKS or count - len(groups) < len(groups):
        return float(bent.mean()), float(bent.var(ddof=1)) * (1 + 1 / count), count - 1.0
    means = np.array([group.mean() for group in groups])
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / (count - len(groups))
    each = 1 / float(np.mean([1 / len(group) for group in groups]))
    of_means = max(
        float(means.var(ddof=1)), within / each
    )  # blocks cannot differ less than chance makes them
    if of_means == 0:  # all say the same
        return float(means.mean()), 0.0, count - 1.0
    outer, inner = of_means * (1 + 1 / len(groups)), within * (1 - 1 / each)
    freedom = (outer + inner) ** 2 / (outer**2 / (len(groups) - 1) + inner**2 / (count - len(groups)))
    return float(means.mean()), outer + inner, freedom


@dataclass(frozen=True)
class Voice:
    """One way to look at an image, and what good images that it did not learn from score there.

    Attributes:
        scores: raw scores of the good images, one of each group of near-copies, in their order.
        floor: how far decoding and the sensor alone move a score; no spread is smaller.
    """

    scores: tuple[float, ...]
    floor: float = 0.0

    @cached_property
    def level(self) -> float:
        """Typical raw score of a good image."""
        return float(np.median(self.scores))

    @cached_property
    def spread(self) -> float:
        """Robust standard deviation of raw good scores (1.4826 MAD); a tenth of the level for one image."""
        if len(self.scores) < 2:
            return max(0.1 * abs(self.level), self.floor, 1e-6)
        return max(robust_spread(np.array(self.scores)), self.floor, 1e-6 * abs(self.level), 1e-9)

    def units(self, raw: float) -> float:
        """A raw score in spreads above the typical good image."""
        return (raw - self.level) / self.spread

    def predictive(self, blocks: Sequence[int]) -> Predictive:
        """Where it will score one more good image, in its units, from the block of each of these."""
        units = [self.units(raw) for raw in self.scores]
        return Predictive.fit(units, blocks, floor=self.floor / self.spread)


@dataclass(frozen=True)
class TwoVoices:
    """A verdict of two voices, calibrated together: this place, and the picture as a whole.

    An image's score is the mean of both voices' scores in their own units, again in units of good images. All
    of it comes from good images left out block by block, and assumes that tomorrow's images differ from
    the taught ones as the taught blocks differ from each other: blocks, not images, are exchangeable.

    Attributes:
        place: the map's highest patches.
        whole: the picture's pooled features; None where the line has no such density.
        blocks: block of every image that calibrated.
    """

    place: Voice
    whole: Voice | None
    blocks: tuple[int, ...]

    @property
    def kind(self) -> str:
        """How good images came to calibrate."""
        return LEFT_OUT if self.images > 1 else "in-sample"

    @property
    def images(self) -> int:
        """Independent good images that calibrated."""
        return len(self.place.scores)

    def score(self, place: float, whole: float | None) -> float:
        """`pred_score` of raw scores of both voices."""
        return self._both.units(self._mean(place, whole))

    def p_value(self, score: float) -> float:
        """Chance that one more good image scores at least `score`, in the unit of `pred_score`."""
        return self._predictive.p_value(score)

    def threshold(self, false_alarm_rate: float, *, images: int | None = None) -> float:
        """Score that a good image exceeds with this probability; with so many images that spread as these."""
        predictive = self._predictive
        if images is not None and self.images > 1:
            predictive = predictive.grown(self.images, images)
        return predictive.limit(_check_rate(false_alarm_rate))

    def place_threshold(self, false_alarm_rate: float) -> float:
        """Score of the map alone, in units of `place`, that a good image exceeds with this probability."""
        return self._place_predictive.limit(_check_rate(false_alarm_rate))

    def scores_of_good(self) -> list[float]:
        """`pred_score` of the good images that calibrated, in their order."""
        return [self._both.units(raw) for raw in self._both.scores]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "kind": LEFT_OUT,
            "place": asdict(self.place),
            "whole": None if self.whole is None else asdict(self.whole),
            "blocks": list(self.blocks),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TwoVoices:
        """The inverse of `to_dict`."""
        whole = values["whole"]
        return cls(
            _voice(values["place"]),
            None if whole is None else _voice(whole),
            tuple(int(block) for block in values["blocks"]),
        )

    def _mean(self, place: float, whole: float | None) -> float:
        units = self.place.units(place)
        return units if self.whole is None or whole is None else (units + self.whole.units(whole)) / 2

    @cached_property
    def _both(self) -> Voice:
        """The mean of both voices as a voice of its own; nothing moves it less than the sensor moves each."""
        wholes = self.whole.scores if self.whole is not None else (None,) * self.images
        scores = tuple(self._mean(p, w) for p, w in zip(self.place.scores, wholes, strict=True))
        if self.images < 2:
            return Voice(scores, 1.0)
        voices = [self.place] if self.whole is None else [self.place, self.whole]
        floor = float(np.mean([voice.floor / voice.spread for voice in voices]))
        return Voice(scores, floor)

    @cached_property
    def _predictive(self) -> Predictive:
        return self._both.predictive(self.blocks)

    @cached_property
    def _place_predictive(self) -> Predictive:
        return self.place.predictive(self.blocks)


def _voice(values: dict[str, Any]) -> Voice:
    return Voice(tuple(float(score) for score in values["scores"]), float(values["floor"]))


def _check_rate(rate: float) -> float:
    if not 0 < rate < 1:
        raise CalibrationError(f"a false-alarm rate lies between 0 and 1, got {rate}")
    return rate


# By `scipy.special` and not `scipy.stats`: the same functions, a tenth of the time, half the import.


def student_above(value: float, freedom: float) -> float:
    """Chance that Student's t with these degrees of freedom exceeds a value."""
    return float(stdtr(freedom, -value))


def student_limit(rate: float, freedom: float) -> float:
    """Value that Student's t with these degrees of freedom exceeds with this chance."""
    return -float(stdtrit(freedom, rate))


SHIFT = 4.0  # spreads above the typical score over which the stretch turns from linear to logarithmic


def _log_shift(score: float) -> float:
    """Monotone stretch: linear below the typical score, logarithmic above it."""
    return math.log1p(score / SHIFT) if score > 0 else score / SHIFT


def _unshift(value: float) -> float:
    return SHIFT * math.expm1(min(value, 50.0)) if value > 0 else SHIFT * value


def upper_limit(values: list[float], rate: float) -> float:
    """Value that one more good image exceeds with probability `rate`; infinite for fewer than two values."""
    if len(values) < 2:
        return float("inf")
    width = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values))
    return float(np.mean(values)) + student_limit(rate, len(values) - 1) * width
