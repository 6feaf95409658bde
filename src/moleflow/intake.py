"""How a picture becomes what the backbone sees; chosen with a line and the same for every image after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data.images import as_image, resize
from .data.sources import Errors, Source, name_of
from .errors import ConfigError, ImageError
from .results import Failure

MOST_UNREADABLE = 0.05  # share of a lesson's images that may be left out because they cannot be read
NAMED_UNREADABLE = 3  # of them are named where there are more


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

    def batches(
        self, sources: Sequence[tuple[Source, Any]], size: int, *, errors: Errors
    ) -> Iterator[list[Picture | Failure]]:
        """All images in their order, in batches of `size` pictures and what could not be read among them.

        What cannot be read takes no place in a batch, so that the backbone sees the others in the same
        company as without it, and says the same of them to the bit.

        Raises:
            ImageError: an image cannot be read, where `errors` is "raise".
        """
        batch: list[Picture | Failure] = []
        pictures = 0
        for source, value in sources:
            one = self._read_or_fail(source, value) if errors == "yield" else self.read(source, value)
            batch.append(one)
            pictures += isinstance(one, Picture)
            if pictures in (0, size):
                yield batch
                batch, pictures = [], 0
        if batch:
            yield batch

    def _read_or_fail(self, source: Source, value: Any) -> Picture | Failure:
        try:
            return self.read(source, value)
        except ImageError as error:
            return Failure(source, str(error))


def check_errors(errors: str) -> None:
    """ConfigError for anything but "raise" and "yield"."""
    if errors not in ("raise", "yield"):
        raise ConfigError(f'expected errors to be "raise" or "yield", got {errors!r}')


def readable(failed: int, count: int) -> bool:
    """Whether a lesson may go on where `failed` of its `count` images could not be read."""
    return failed / count <= MOST_UNREADABLE


def check_readable(failures: Sequence[Failure], count: int) -> None:
    """ImageError, with the first failures and their share, where a lesson may not go on."""
    if readable(len(failures), count):
        return
    named = [failure.error for failure in failures[:NAMED_UNREADABLE]]
    named += ["..."] if len(failures) > NAMED_UNREADABLE else []
    raise ImageError(
        f"{len(failures)} of {count} images ({len(failures) / count:.1%}) cannot be read, "
        f"expected at most {MOST_UNREADABLE:.0%}: {'; '.join(named)}"
    )
