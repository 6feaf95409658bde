"""What a few known defects teach a product: one direction in which patches like theirs are stranger.

A density knows nothing of defects. Where some were missed, the white patches of a product (those of
`flow/cells.py`) differ from its good ones along the direction that parts the two best if both spread alike
(Fisher 1936). It is added to the map at up to half weight, and everything behind the map is calibrated with
it on left-out good images: the promised rate of false alarms is that of the corrected product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.sources import evenly
from ..flow.cells import CellGaussians

WEIGHT = 0.5  # of a correction by many images in the map, where densities and coreset together have 1
RIDGE = 0.1  # added to the covariance of good patches, as a share of its average variance
GOOD_IMAGES = 64  # that good patches are taken from


@dataclass(frozen=True, eq=False)
class Defects:
    """Defective images of one product, as the backbone saw them.

    Attributes:
        patches: raw patch features (n, h, w, D).
        marks: which patches show the defect, (n, h, w) bool; None where nobody says.
    """

    patches: Tensor
    marks: Tensor | None = None

    def mean(self, gaussians: CellGaussians) -> Tensor:
        """Of the marked patches, white behind these cells, (D,)."""
        assert self.marks is not None
        both = zip(self.patches.float().split(1), self.marks, strict=True)
        return torch.cat([gaussians.whiten(image)[0][0][marked] for image, marked in both]).mean(0)


@dataclass(frozen=True, eq=False)
class Correction:
    """Patches along a direction, in spreads of good ones.

    Attributes:
        direction: (D,), of white patches; 16 bits hold it.
        level: of good patches along it.
        images: how many defective images it was learned from.
    """

    direction: Tensor
    level: float
    images: int

    @property
    def weight(self) -> float:
        """Of what it says in the map: half of the most for one image, which may be like no other defect."""
        return WEIGHT * self.images / (self.images + 1)

    @classmethod
    def fit(cls, gaussians: CellGaussians, good: Tensor, defects: Defects) -> Correction:
        """From raw features (N, h, w, D) of good images, and marked defects."""
        mean, covariance = _moments(gaussians, good)
        channels = len(mean)
        ridge = RIDGE * covariance.trace() / channels * torch.eye(channels, device=mean.device)
        way = torch.linalg.solve((covariance + ridge).double(), (defects.mean(gaussians) - mean).double())
        return cls(way.float(), 0.0, len(defects.patches))._scaled(mean, covariance)

    def measured(self, gaussians: CellGaussians, good: Tensor) -> Correction:
        """The same direction in the spread of these good images, behind these cells."""
        return self._scaled(*_moments(gaussians, good))

    def _scaled(self, mean: Tensor, covariance: Tensor) -> Correction:
        spread = (self.direction @ covariance @ self.direction).clamp_min(1e-12).sqrt()
        direction = (self.direction / spread).half().float()
        return Correction(direction, float(direction @ mean), self.images)

    def __call__(self, gaussians: CellGaussians, features: Tensor) -> Tensor:
        """How far every patch lies along it, (B, h, w), for raw features (B, h, w, D) of whole grids."""
        return gaussians.whiten(features)[0] @ self.direction - self.level

    def to(self, device: torch.device | str) -> Correction:
        """On another device."""
        return Correction(self.direction.to(device), self.level, self.images)

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        return {
            "direction": self.direction.half(),
            "level": torch.tensor([self.level]),
            "images": torch.tensor([self.images]),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Correction:
        """The inverse of `tensors`, to the bit."""
        level, images = float(tensors["level"][0]), int(tensors["images"][0])
        return cls(tensors["direction"].float(), level, images)


@torch.no_grad()
def _moments(gaussians: CellGaussians, good: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of white patches of an even sample of good images."""
    white = [
        gaussians.whiten(good[i : i + 1])[0].flatten(0, 2)
        for i in evenly(list(range(len(good))), GOOD_IMAGES)
    ]
    count = sum(map(len, white))
    mean = torch.stack([own.sum(0) for own in white]).sum(0) / count
    covariance = torch.stack([(own - mean).T @ (own - mean) for own in white]).sum(0) / count
    return mean, covariance
