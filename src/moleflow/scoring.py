"""From patch scores to a map, a score, a p-value and a verdict; all of it learned from good images only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, stats
from torch import Tensor

from .config import ScoringConfig
from .errors import CalibrationError

LEAST_SPREAD = 2.0**-13  # of calibrated positions; a power of two, so that 16 bits hold it
POSITION_SIGMA = 2.0  # patches over which the spread of good scores is smoothed


@dataclass(frozen=True, eq=False)
class PositionCalibration:
    """Makes one density's patch scores comparable over the image: (score - level) / spread(position).

    The level is one number for the whole map; the spread is the standard deviation of good images'
    scores at each place, smoothed over its neighbours and drawn half-way to the map's average, because
    a dozen good images say little about a single place.
    """

    level: float
    spread: Tensor  # (h, w)

    @classmethod
    def fit(cls, scores: Tensor, config: ScoringConfig) -> PositionCalibration:
        """From patch scores (n, h, w) of good images that were not learned from."""
        level = float(scores.mean())
        overall = max(float(scores.double().std(unbiased=False)), 1e-9)
        if not config.position_calibration or len(scores) < 2:
            return cls(*_halved(level, torch.full(scores.shape[1:], overall)))
        variance = scores.double().var(0).cpu().numpy()
        smooth = ndimage.gaussian_filter(variance, POSITION_SIGMA) + variance.mean()
        spread = torch.from_numpy(np.sqrt(np.maximum(smooth, 1e-18))).float()
        # One common factor, so that densities weigh alike before they are added.
        scaled = float(((scores.cpu() - level) / spread).std(unbiased=False))
        return cls(*_halved(level, spread * max(scaled, 1e-9)))

    def __call__(self, scores: Tensor) -> Tensor:
        """Calibrated scores (B, h, w)."""
        return (scores - self.level) / self.spread.to(scores.device)


def _halved(level: float, spread: Tensor) -> tuple[float, Tensor]:
    """Rounded to what is stored, so that a loaded product is the very same; the spread never underflows."""
    return float(np.float32(level)), spread.half().float().clamp_min(LEAST_SPREAD)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian over patch maps (B, h, w) with reflected borders."""
    if sigma <= 0:
        return maps
    radius = max(1, math.ceil(3 * sigma))
    radius = min(radius, maps.shape[1] - 1, maps.shape[2] - 1)
    if radius < 1:
        return maps
    at = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    grid = F.pad(maps[:, None], (radius,) * 4, mode="reflect")
    grid = F.conv2d(F.conv2d(grid, kernel[None, None, None]), kernel[None, None, :, None])
    return grid[:, 0]


def image_scores(maps: Tensor, config: ScoringConfig) -> Tensor:
    """Mean of the highest patches of every map (B, h, w), (B,)."""
    flat = maps.flatten(1)
    k = min(flat.shape[1], max(config.top_least, round(config.top_share * flat.shape[1])))
    return flat.topk(k, dim=1).values.mean(1)


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

    def standardise(self, raw: Tensor) -> Tensor:
        """Raw scores or maps in spreads above the typical good image: the unit of `pred_score`."""
        return (raw - self.level) / self.spread

    def p_value(self, score: float) -> float:
        """Chance that one more good image scores at least `score`, in the unit of `pred_score`."""
        centre, width, freedom = self._predictive
        return float(stats.t.sf((_log_shift(score) - centre) / width, freedom))

    def threshold(self, false_alarm_rate: float) -> float:
        """Score that a good image exceeds with this probability."""
        if not 0 < false_alarm_rate < 1:
            raise CalibrationError(f"a false-alarm rate lies between 0 and 1, got {false_alarm_rate}")
        centre, width, freedom = self._predictive
        return _unshift(float(stats.t.isf(false_alarm_rate, freedom)) * width + centre)

    def verdict(self, overrides: Mapping[str, Any], rate: float) -> tuple[float | None, float]:
        """The false-alarm rate that counts (None: set by hand) and the threshold.

        Args:
            overrides: what was changed for this product: "threshold", or "false_alarm_rate".
            rate: the line's own, where nothing was.
        """
        if "threshold" in overrides:
            return None, float(overrides["threshold"])
        rate = float(overrides.get("false_alarm_rate", rate))
        return rate, self.threshold(rate)

    @cached_property
    def _predictive(self) -> tuple[float, float, float]:
        logs = np.array([_log_shift((s - self.level) / self.spread) for s in self.scores])
        count = len(logs)
        if count < 2:
            return 0.0, 0.5, 1.0  # one image: nothing is known but that its own score is no defect
        width = max(float(logs.std(ddof=1)), 1e-3) * math.sqrt(1 + 1 / count)
        return float(logs.mean()), width, float(count - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"kind": self.kind, "scores": list(self.scores)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ScoreCalibration:
        """The inverse of `to_dict`."""
        return cls(values["kind"], tuple(float(s) for s in values["scores"]))


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
    return float(np.mean(values)) + float(stats.t.isf(rate, len(values) - 1)) * width
