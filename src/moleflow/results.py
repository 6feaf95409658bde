"""What the library hands back: frozen records with the field's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .pose import Placement, PoseReport
from .verdict.regions import Region, find_regions, reduced


@dataclass(frozen=True)
class Routing:
    """Why an image was taken for a product, or for none.

    `distance` is in units of the product's typical good image, `margin` is how many times farther the
    second nearest product is (1: undecided, infinite with one product), `distances` are the plain
    Mahalanobis distances per channel to every product; `strangeness` says how foreign most of the
    picture looks to the product's expert. An image is unknown when both `distance` and
    `strangeness` exceed their limits.
    """

    distance: float
    distance_limit: float
    strangeness: float
    strangeness_limit: float
    margin: float
    distances: dict[str, float]

    @property
    def known(self) -> bool:
        """False when the image looks like no product that was taught."""
        return self.distance <= self.distance_limit or self.strangeness <= self.strangeness_limit


@dataclass(frozen=True, eq=False)
class Prediction:
    """One inspected image.

    Attributes:
        source: the path, or the position in what was passed in.
        task: the product the image was judged as.
        known: False when it looks like none of the taught products; the scores are still given.
        pred_score: anomaly score in spreads above a typical good image of this product.
        p_value: share of good images expected to score at least this high.
        threshold: score above which the image is called defective.
        pred_label: True when the score exceeds the threshold.
        patch_map: scores on the patch grid (h, w), float32, in units of `pred_score`; the mean of its
            highest patches is `pred_score`.
        image_size: (H, W) of the image in pixels.
        routing: None when the product was given.
        placement: how the object lay, where the image was aligned before it was judged: `patch_map` shows it
            as aligned then, all other maps and the regions as it came.
    """

    source: Path | int
    task: str
    known: bool
    pred_score: float
    p_value: float
    threshold: float
    pred_label: bool
    patch_map: np.ndarray = field(repr=False)
    image_size: tuple[int, int]
    routing: Routing | None = None
    placement: Placement | None = None

    @property
    def anomaly_map(self) -> np.ndarray:
        """The patch map at image size, (H, W) float32, interpolated anew at every access."""
        return self.map_at(self.image_size)

    @property
    def pred_mask(self) -> np.ndarray:
        """Pixels whose score exceeds the image's threshold, (H, W) bool."""
        return self.anomaly_map > self.threshold

    @property
    def regions(self) -> tuple[Region, ...]:
        """Connected parts of `pred_mask`, the highest 20, found anew at every access; see `Region`.

        An image may be defective without a region above its threshold, where what is wrong is spread over
        it or is the picture as a whole, and a good one may have small ones. In an image of more than four
        million pixels they are found on a map reduced to that many, and scaled.
        """
        size = reduced(self.image_size)
        return find_regions(self.map_at(size), self.threshold, size=self.image_size)

    def map_at(self, size: tuple[int, int]) -> np.ndarray:
        """The patch map at `size` (H, W) of the whole image, float32, in the image's own coordinates."""
        if self.placement is not None:
            return self.placement.map_back(self.patch_map, size, image_size=self.image_size)
        grid = torch.from_numpy(self.patch_map)[None, None]
        return F.interpolate(grid, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps and regions as plain JSON-able values."""
        routing = None
        if self.routing is not None:
            routing = {
                "distance": self.routing.distance,
                "distance_limit": _finite(self.routing.distance_limit),
                "strangeness": self.routing.strangeness,
                "strangeness_limit": _finite(self.routing.strangeness_limit),
                "margin": _finite(self.routing.margin),
                "distances": self.routing.distances,
            }
        return {
            "source": str(self.source),
            "task": self.task,
            "known": self.known,
            "pred_score": self.pred_score,
            "p_value": self.p_value,
            "threshold": self.threshold,
            "pred_label": self.pred_label,
            "image_size": list(self.image_size),
            "routing": routing,
            "placement": None if self.placement is None else self.placement.to_dict(),
        }


@dataclass(frozen=True)
class TaskInfo:
    """One taught product.

    Attributes:
        name: the product.
        version: folder of the saved version, None while not saved.
        images: good images learned from, calibration included.
        calibration: "held-out", "cross-fitted" or "in-sample" (a single image), and on how many images.
        threshold: score above which an image is called defective.
        false_alarm_rate: rate the threshold was set for; None when it was set by hand.
        seconds: by stage: backbone, pose, base, learning, calibration.
        parameters: trained numbers the product owns.
        bytes: all it adds to a saved line, in bytes.
        rerouted: held-out good images of older products whose routing this product changed, by product.
        pose: whether its images are aligned, and why; None for a product that was learned without asking.
    """

    name: str
    version: str | None
    images: int
    calibration: str
    calibration_images: int
    threshold: float
    false_alarm_rate: float | None
    seconds: dict[str, float]
    parameters: int
    bytes: int
    rerouted: dict[str, int]
    pose: PoseReport | None = None


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if np.isfinite(value) else None
