"""What a camera and a codec alone do to a photograph: the least by which good images differ."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SENSOR_ALTERATIONS = 6
_QUALITY = 95  # of full colour resolution: half of it at a line's small size would be no codec's doing


def sensor_floor(pixels: np.ndarray) -> list[np.ndarray]:
    """The same photograph as it might have come another time, always the same six.

    Saved once more as JPEG of quality 95; shifted by a pixel to the right, and downwards, its border
    repeated; one grey level lighter, and darker; and all but darker at once, which none of the others shows.

    Args:
        pixels: (h, w, 3) uint8, at the line's size.

    Returns:
        Six arrays of (h, w, 3) uint8.
    """
    right, down = _shifted(pixels, axis=1), _shifted(pixels, axis=0)
    lighter = _lit(pixels, 1)
    together = _encoded(_lit(_shifted(right, axis=0), 1))
    return [_encoded(pixels), right, down, lighter, _lit(pixels, -1), together]


def _encoded(pixels: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=_QUALITY, subsampling=0)
    with Image.open(stream) as image:
        return np.array(image.convert("RGB"))


def _shifted(pixels: np.ndarray, *, axis: int) -> np.ndarray:
    first = np.take(pixels, [0], axis=axis)
    rest = np.delete(pixels, -1, axis=axis)
    return np.concatenate([first, rest], axis=axis)


def _lit(pixels: np.ndarray, levels: int) -> np.ndarray:
    return np.clip(pixels.astype(np.int16) + levels, 0, 255).astype(np.uint8)
