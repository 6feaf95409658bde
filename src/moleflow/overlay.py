"""Where an image is suspicious: its anomaly map in colour over it, and a line around what is too high."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .data.images import as_image, resize
from .errors import MoleFlowError
from .results import Prediction

Pixels = NDArray[np.uint8]

_STOPS = ((20, 11, 70), (120, 28, 110), (205, 60, 75), (245, 140, 30), (250, 225, 100))
_OPACITY = 0.65  # of the hottest colour: the part stays visible below it
_LINE = (0, 255, 255)
_ROWS = 512  # blended at a time, so that a large photograph needs no second copy in wider numbers


def overlay(image: Pixels, anomaly_map: NDArray[np.float32], threshold: float) -> Pixels:
    """`image` (H, W, 3) with `anomaly_map` (H, W) in colour over it, and a line around all above `threshold`.

    Colours mean the same in every image of a product: nothing is drawn at the score of a typical good
    image (0), half of the scale at the threshold, all of it from twice the threshold on.
    """
    if image.shape[:2] != anomaly_map.shape:
        raise MoleFlowError(f"expected a map of the image's size {image.shape[:2]}, got {anomaly_map.shape}")
    colours, opacity = _scale()
    line = _contour(anomaly_map > threshold, width=max(1, round(min(image.shape[:2]) / 200)))
    drawn = np.empty_like(image)
    for start in range(0, len(image), _ROWS):
        rows = slice(start, start + _ROWS)
        level = _levels(anomaly_map[rows], threshold)
        share = opacity[level][..., None]
        blended = image[rows] * (1 - share) + colours[level] * share
        drawn[rows] = np.rint(blended).astype(np.uint8)
    drawn[line] = _LINE
    return drawn


def draw_prediction(prediction: Prediction, image: Any = None) -> Pixels:
    """The overlay of one prediction; `image` is needed where it was not predicted from a file."""
    pixels = as_image(prediction.source if image is None else image, where=f"image {prediction.source}")
    return overlay(resize(pixels, prediction.image_size), prediction.anomaly_map, prediction.threshold)


def save_overlay(prediction: Prediction, path: str | Path, *, image: Any = None) -> None:
    """Write the overlay of one prediction as PNG."""
    drawn = Image.fromarray(draw_prediction(prediction, image))
    try:
        drawn.save(path, format="PNG", compress_level=3)
    except OSError as error:
        raise MoleFlowError(f"{path}: cannot be written: {error.strerror or error}") from error


def _levels(scores: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Scores as 0..255 with the threshold in the middle."""
    # A threshold set by hand may lie below the typical image; then the scale begins a spread below it.
    low = 0.0 if threshold > 0 else threshold - 1.0
    share = (scores - low) / (2 * (threshold - low))
    return np.asarray(np.clip(share, 0, 1) * 255, dtype=np.uint8)


def _scale() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour (256, 3) and opacity (256,) of each level."""
    at = np.linspace(0, 1, 256)
    stops = np.linspace(0, 1, len(_STOPS))
    channels = [np.interp(at, stops, [stop[i] for stop in _STOPS]) for i in range(3)]
    return np.stack(channels, axis=1).astype(np.float32), (_OPACITY * at).astype(np.float32)


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
