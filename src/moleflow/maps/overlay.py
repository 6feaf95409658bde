"""Where an image is suspicious: its anomaly map in colour over it, and a line around what is too high."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import as_image, resize
from ..errors import MoleFlowError
from ..results import Prediction
from .files import save_image
from .legend import Entry, with_legend
from .scale import OUTLINE, Pixels, Scale, painted

_ROWS = 512  # blended at a time, so that a large photograph needs no second copy in wider numbers


def overlay(
    image: Pixels, anomaly_map: NDArray[np.floating], threshold: float, *, typical: float = 0.0
) -> Pixels:
    """`image` (H, W, 3) with `anomaly_map` (H, W) in colour over it, and a line around all above `threshold`.

    Colours mean the same in every image of a product, see `Scale`: nothing is drawn at the score of a
    `typical` good image, half of the scale at the threshold, all of it from twice as far on.

    Raises:
        MoleFlowError: a map of another size than the image.
    """
    if image.shape[:2] != anomaly_map.shape:
        raise MoleFlowError(f"expected a map of the image's size {image.shape[:2]}, got {anomaly_map.shape}")
    scale = Scale(threshold, typical)
    line = _contour(anomaly_map > threshold, width=max(1, round(min(image.shape[:2]) / 200)))
    drawn = np.empty_like(image)
    for start in range(0, len(image), _ROWS):
        rows = slice(start, start + _ROWS)
        drawn[rows] = painted(image[rows], scale.levels(anomaly_map[rows]))
    drawn[line] = OUTLINE
    return drawn


def draw_prediction(prediction: Prediction, image: Any = None, *, legend: bool = False) -> Pixels:
    """The overlay of one prediction; `image` is needed where it was not predicted from a file.

    With `legend` the picture becomes taller, and wider where it is a narrow one: below the photograph, which
    stays at the upper left and is never covered, stand product, score, verdict and the scale.
    """
    pixels = as_image(prediction.source if image is None else image, where=f"image {prediction.source}")
    pixels = resize(pixels, prediction.image_size)
    drawn = overlay(pixels, prediction.anomaly_map, prediction.map_threshold)
    if not legend:
        return drawn
    entry = Entry(
        product=prediction.task if prediction.known else f"unknown, nearest {prediction.task}",
        score=prediction.place_score,
        verdict=f"{prediction.status}, {prediction.pred_score:.2f} of {prediction.threshold:.2f}",
    )
    return with_legend(drawn, Scale(prediction.map_threshold), entry)


def save_overlay(prediction: Prediction, path: str | Path, *, image: Any = None, legend: bool = True) -> None:
    """Write the overlay of one prediction as PNG, with its legend below.

    Raises:
        ImageError: the photograph cannot be read.
        MoleFlowError: `path` cannot be written.
    """
    drawn = Image.fromarray(draw_prediction(prediction, image, legend=legend))
    save_image(drawn, path, format="PNG", compress_level=3)


def _contour(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of `mask` within `width` steps of its edge; the image's own border is no edge."""
    inner = mask
    for _ in range(width):
        inner = _eroded(inner)
    return mask & ~inner


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    kept = mask.copy()
    kept[1:] &= mask[:-1]
    kept[:-1] &= mask[1:]
    kept[:, 1:] &= mask[:, :-1]
    kept[:, :-1] &= mask[:, 1:]
    return kept
