"""Anomaly maps as files for other programs: 16-bit TIFF, NPY, and a mask; see also `overlay`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MoleFlowError, reason_of
from ..results import Prediction

_DESCRIPTION = 270  # the TIFF tag ImageDescription
_TYPICAL = 16384  # the value of a typical good image: a quarter of the range lies below it
_FINEST = 2.0**-6  # spreads of good scores; far below what two images of one part differ by


@dataclass(frozen=True)
class Counts:
    """Scores as 16-bit values: score = offset + value * scale, one rule for all images of a product.

    Value 16384 is always a typical good image. A step is 1/64 of a spread of good scores, so that values
    reach from -256 to 768; it is doubled until they reach eight times the threshold. What lies outside is
    cut off at 0 and 65535.
    """

    scale: float

    @classmethod
    def of(cls, threshold: float) -> Counts:
        """The rule for a product with this threshold."""
        scale = _FINEST
        while scale * (65535 - _TYPICAL) < 8 * threshold:
            scale *= 2
        return cls(scale)

    @property
    def offset(self) -> float:
        """Score of value 0."""
        return -_TYPICAL * self.scale

    def encode(self, scores: NDArray[np.floating]) -> NDArray[np.uint16]:
        """The nearest values, uint16."""
        values = np.rint(scores / self.scale) + _TYPICAL
        return np.clip(values, 0, 65535).astype(np.uint16)

    def decode(self, values: NDArray[np.uint16]) -> NDArray[np.float64]:
        """Scores, to within half a step."""
        return self.offset + values.astype(np.float64) * self.scale


def save_tiff(prediction: Prediction, path: str | Path) -> None:
    """Write the scores as a TIFF of 16-bit grey at image size; its ImageDescription says how to read them.

    The tag holds a JSON object with `offset` and `scale` (score = offset + value * scale), `threshold`,
    `pred_score` and `task`.

    Raises:
        MoleFlowError: `path` cannot be written.
    """
    counts = Counts.of(prediction.map_threshold)
    described = {
        "offset": counts.offset,
        "scale": counts.scale,
        "threshold": prediction.map_threshold,
        "pred_score": prediction.pred_score,
        "task": prediction.task,
    }
    tags = {_DESCRIPTION: json.dumps(described)}
    grey = Image.fromarray(counts.encode(prediction.anomaly_map))
    save_image(grey, path, format="TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)


def save_npy(prediction: Prediction, path: str | Path) -> None:
    """Write the scores themselves, (H, W) float32, as NPY.

    Raises:
        MoleFlowError: `path` cannot be written.
    """
    try:
        with open(path, "wb") as file:
            np.save(file, prediction.anomaly_map, allow_pickle=False)
    except OSError as error:
        raise MoleFlowError(f"{path}: cannot be written: {reason_of(error)}") from error


def save_mask(prediction: Prediction, path: str | Path) -> None:
    """Write the mask as 8-bit PNG: 255 where the score exceeds the threshold, else 0.

    Raises:
        MoleFlowError: `path` cannot be written.
    """
    mask = Image.fromarray(prediction.pred_mask.astype(np.uint8) * np.uint8(255))
    save_image(mask, path, format="PNG", compress_level=3)


def save_image(image: Image.Image, path: str | Path, **options: Any) -> None:
    """Write a picture, with options as of Pillow. Raises MoleFlowError where `path` cannot be written."""
    try:
        image.save(path, **options)
    except OSError as error:
        raise MoleFlowError(f"{path}: cannot be written: {reason_of(error)}") from error
