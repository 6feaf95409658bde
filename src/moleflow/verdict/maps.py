"""Patch scores over an image: made comparable from place to place, smoothed, and read as one number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..codes import LEAST_SPREAD
from ..config import ScoringConfig
from ..packing import levels, pack, packed, unpack, unpacked

POSITION_SIGMA = 2.0  # patches over which the spread of good scores is smoothed


@dataclass(frozen=True, eq=False)
class PositionCalibration:
    """Makes one density's patch scores comparable over the image: (score - level) / spread(position).

    The level is one number for the whole map; the spread is the standard deviation of good images'
    scores at each place, smoothed over its neighbours and drawn half-way to the map's average, because
    a dozen good images say little about a single place.

    Attributes:
        level: of the whole map.
        spread: (h, w), in as many bits as a file keeps.
        bits: 8, a step for every row; 16 in lines of earlier libraries.
    """

    level: float
    spread: Tensor
    bits: int = 8

    @classmethod
    def fit(cls, scores: Tensor, config: ScoringConfig) -> PositionCalibration:
        """From patch scores (n, h, w) of good images that were not learned from."""
        level = float(scores.mean())
        overall = max(float(scores.double().std(unbiased=False)), 1e-9)
        if not config.position_calibration or len(scores) < 2:
            return cls(*_rounded(level, torch.full(scores.shape[1:], overall)))
        variance = scores.double().var(0).cpu().numpy()
        smooth = ndimage.gaussian_filter(variance, POSITION_SIGMA) + variance.mean()
        spread = torch.from_numpy(np.sqrt(np.maximum(smooth, 1e-18))).float()
        # One common factor, so that densities weigh alike before they are added.
        scaled = float(((scores.cpu() - level) / spread).std(unbiased=False))
        return cls(*_rounded(level, spread * max(scaled, 1e-9)))

    def moved(self, level: float, ratio: float) -> PositionCalibration:
        """The same with a level so much higher and every spread so many times as wide."""
        return PositionCalibration(*_rounded(self.level + level, self.spread * ratio))

    def kept(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        spread = {"spread": self.spread.half()} if self.bits == 16 else packed("spread", self.spread)
        return {"level": torch.tensor([self.level]), **spread}

    @classmethod
    def from_kept(cls, kept: Mapping[str, Tensor]) -> PositionCalibration:
        """The inverse of `kept`, to the bit."""
        wide = unpacked(kept)
        bits = 16 if "spread" in kept else 8
        return cls(float(wide["level"][0]), wide["spread"].clamp_min(LEAST_SPREAD), bits)

    def __call__(self, scores: Tensor) -> Tensor:
        """Calibrated scores (B, h, w)."""
        return (scores - self.level) / self.spread.to(scores.device)


def _rounded(level: float, spread: Tensor) -> tuple[float, Tensor]:
    """Rounded to what is stored, so that a loaded product is the very same; the spread never underflows."""
    least = (spread.amax(-1, keepdim=True) / levels(8)).clamp_min(LEAST_SPREAD)
    return float(np.float32(level)), unpack(*pack(spread.maximum(least))).clamp_min(LEAST_SPREAD)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian over patch maps (B, h, w) with reflected borders."""
    if sigma <= 0:
        return maps
    radius = max(1, math.ceil(3 * sigma))
    radius = min(radius, int(maps.shape[1]) - 1, int(maps.shape[2]) - 1)  # a number where it is traced, too
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
    return flat.topk(_top(flat.shape[1], config), dim=1).values.mean(1)


def strongest(maps: Tensor, config: ScoringConfig) -> Tensor:
    """The patches of every map (B, h, w) that `image_scores` is the mean of, (B, h, w) bool."""
    flat = maps.flatten(1)
    top = flat.topk(_top(flat.shape[1], config), dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top, True).view_as(maps)


def _top(patches: int, config: ScoringConfig) -> int:
    return min(patches, max(config.top_least, round(config.top_share * patches)))
