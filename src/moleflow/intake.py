"""How a picture becomes what the backbone sees; chosen with a line and the same for every image after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data.images import as_image, resize
from .data.sources import Source, name_of


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the line takes it in.

    Attributes:
        source: where it came from.
        pixels: uint8 (h, w, 3) RGB at the line's size.
        size: (H, W) of the image as it came, in pixels.
    """

    source: Source
    pixels: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Intake:
    """From a file or an array to the pixels that the backbone sees.

    Attributes:
        size: (h, w) that images are brought to.
    """

    size: tuple[int, int]

    def read(self, source: Source, value: Any) -> Picture:
        """Decodes and resizes one image; ImageError, with its source, where that cannot be done."""
        pixels = as_image(value, where=name_of(source))
        return Picture(source, resize(pixels, self.size), (pixels.shape[0], pixels.shape[1]))

    def read_all(self, sources: Sequence[tuple[Source, Any]]) -> list[Picture]:
        """One after the other."""
        return [self.read(source, value) for source, value in sources]
