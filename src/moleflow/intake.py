"""How a picture becomes what the backbone sees; chosen with a line and the same for every image after."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .config import from_dict
from .data.images import as_image, as_raw, has_8_bits, resize
from .data.intensity import (
    FULL,
    SAMPLE,
    Intensity,
    Levels,
    choose_intensity,
    levels_of,
    levels_of_8_bits,
)
from .data.sources import Source, name_of
from .errors import ImageError
from .pose import Placement


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the line takes it in.

    Attributes:
        source: where it came from.
        pixels: uint8 (h, w, 3) RGB at the line's size.
        size: (H, W) of the image as it came, in pixels.
        clipped: share of its pixels of which a number lies beyond the line's range; 0 for 8-bit images.
    """

    source: Source
    pixels: np.ndarray
    size: tuple[int, int]
    clipped: float = 0.0

    def aligned(self, placement: Placement | None, window: Tensor | None) -> Picture:
        """The picture with its object lying as the product's mean does; the same one without a placement."""
        if placement is None:
            return self
        return replace(self, pixels=placement.aligned(self.pixels, self.size, window=window))


@dataclass(frozen=True)
class Intake:
    """From a file or an array to the pixels that the backbone sees.

    Attributes:
        size: (h, w) that images are brought to.
        intensity: which numbers become black and white.
    """

    size: tuple[int, int]
    intensity: Intensity = FULL

    @classmethod
    def from_settings(cls, size: tuple[int, int], settings: dict[str, Any] | None) -> Intake:
        """What `settings` of a saved line say; a line from before them maps every depth by its full range."""
        return cls(size) if settings is None else cls(size, from_dict(Intensity, settings["intensity"]))

    def settings(self) -> dict[str, Any]:
        """What a saved line keeps, as plain JSON-able values; the size stands with the backbone."""
        return {"intensity": asdict(self.intensity)}

    def settled(self, wish: str, sources: Sequence[tuple[Source, Any]]) -> Intake:
        """The intake of a line that begins with these images.

        Args:
            wish: "auto", "full", a number of bits or a range, as `parse_intensity` writes it.
            sources: the first product's images, of which an even sample is looked at.

        Raises:
            ImageError: no image of the sample is readable, or they hold different kinds of numbers.
            ConfigError: the wish is not for such images.
        """
        return replace(self, intensity=choose_intensity(wish, _sampled(sources)))

    def read(self, source: Source, value: Any) -> Picture:
        """Decodes and resizes one image; ImageError, with its source, where that cannot be done."""
        pixels, clipped = self._decoded(source, value)
        return Picture(source, resize(pixels, self.size), (pixels.shape[0], pixels.shape[1]), clipped)

    def read_all(self, sources: Sequence[tuple[Source, Any]]) -> list[Picture]:
        """One after the other."""
        return [self.read(source, value) for source, value in sources]

    def shown(self, source: Source, value: Any) -> np.ndarray:
        """One image in its own size as this line sees its light, (H, W, 3) uint8; errors as from `read`."""
        return self._decoded(source, value)[0]

    def beyond(self, sources: Sequence[tuple[Source, Any]]) -> float:
        """Share of the pixels of an even sample of these images that lies beyond the range, on average."""
        if self.intensity.plain:
            return 0.0
        shares = []
        for source, value in _spread(sources):
            with suppress(ImageError):  # learning and inspection are where such a file is dealt with
                shares.append(self._decoded(source, value)[1])
        return float(np.mean(shares)) if shares else 0.0

    def _decoded(self, source: Source, value: Any) -> tuple[np.ndarray, float]:
        where, intensity = name_of(source), self.intensity
        if intensity.depth == "any":
            return as_image(value, where=where), 0.0
        raw = as_raw(value, where=where)
        if intensity.plain and np.issubdtype(raw.dtype, np.floating):
            return as_image(value, where=where), 0.0  # from 0 to 1, as an 8-bit line has always taken floats
        return intensity.apply(raw, where=where), intensity.clipped(raw)


def _sampled(sources: Sequence[tuple[Source, Any]]) -> list[Levels]:
    """Levels of an even sample of the images, one in memory at a time."""
    found, unreadable = [], None
    for source, value in _spread(sources):
        try:
            found.append(_levels(source, value))
        except ImageError as error:  # learning reads the same file again, and is where it is dealt with
            unreadable = error
    if unreadable is not None and not found:
        raise unreadable
    return found


def _spread(sources: Sequence[tuple[Source, Any]]) -> list[tuple[Source, Any]]:
    places = np.linspace(0, len(sources) - 1, min(len(sources), SAMPLE)).round().astype(int)
    return [sources[place] for place in places]


def _levels(source: Source, value: Any) -> Levels:
    name = name_of(source)
    if isinstance(value, str | Path) and has_8_bits(value):
        return levels_of_8_bits(name)
    raw = as_raw(value, where=name)
    return levels_of_8_bits(name) if raw.dtype == np.uint8 else levels_of(raw, name)
