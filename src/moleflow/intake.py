"""How a picture becomes what the backbone sees; chosen with a line and the same for every image after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from .config import from_dict
from .data.images import as_image, as_raw, has_8_bits, resize, size_of
from .data.intensity import (
    FULL,
    SAMPLE,
    Intensity,
    Levels,
    choose_intensity,
    levels_of,
    levels_of_8_bits,
)
from .data.sources import Errors, Source, evenly, name_of
from .errors import ConfigError, ImageError
from .results import Failure

if TYPE_CHECKING:  # torch takes a second, and an exported line is read without it
    from .pose import Placement

Fit = Literal["squeeze", "letterbox"]
FITS: tuple[Fit, ...] = ("squeeze", "letterbox")

A = TypeVar("A", bound=Any)  # an array or a tensor

MOST_UNREADABLE = 0.05  # share of a lesson's images that may be left out because they cannot be read
NAMED_UNREADABLE = 3  # of them are named where there are more


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the line takes it in.

    Attributes:
        source: where it came from.
        pixels: uint8 (h, w, 3) RGB at the line's size.
        size: (H, W) of the image as it came, in pixels.
        clipped: share of its pixels of which a number lies beyond the line's range; 0 for 8-bit images.
        area: (top, left, height, width) of `pixels` that shows the image; the rest is border.
    """

    source: Source
    pixels: np.ndarray
    size: tuple[int, int]
    clipped: float = 0.0
    area: tuple[int, int, int, int] | None = None  # None: all of it

    @property
    def own(self) -> np.ndarray:
        """Those of its pixels that show the image."""
        top, left, height, width = self.area or (0, 0, *self.pixels.shape[:2])
        return self.pixels[top : top + height, left : left + width]

    def cells(self, grid: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of a patch grid (h', w') over `pixels` that show the image."""
        top, left, height, width = self.area or (0, 0, *self.pixels.shape[:2])
        rows, columns = (cells / side for cells, side in zip(grid, self.pixels.shape, strict=False))
        return (
            slice(round(top * rows), round((top + height) * rows)),
            slice(round(left * columns), round((left + width) * columns)),
        )

    def aligned(self, placement: Placement | None, window: np.ndarray | None) -> Picture:
        """The picture with its object lying as the product's mean does; the same one without a placement."""
        if placement is None:
            return self
        own = placement.aligned(self.own, self.size, window=window)
        if self.area is None:
            return replace(self, pixels=own)
        return replace(self, pixels=_bordered(own, self.area, self.pixels.shape[:2]))


@dataclass(frozen=True)
class Intake:
    """From a file or an array to the pixels that the backbone sees.

    Attributes:
        size: (h, w) that images are brought to.
        intensity: which numbers become black and white.
        fit: what becomes of an image of another shape. "squeeze" brings it to the size, whatever its sides;
            "letterbox" keeps their ratio, to within half a cell, and continues its outermost pixels over
            the rest.
        cell: pixels of a cell of the patch grid: the image ends where a cell does.
        smallest_defect: what the size was chosen for, in pixels of the first images; None where nothing
            was said.
    """

    size: tuple[int, int]
    intensity: Intensity = FULL
    fit: Fit = "squeeze"
    cell: int = 1
    smallest_defect: float | None = None

    @classmethod
    def from_settings(
        cls, size: tuple[int, int], settings: dict[str, Any] | None, *, cell: int = 1
    ) -> Intake:
        """What `settings` of a saved line say.

        A line from before them maps every depth by its full range, and squeezes.
        """
        if settings is None:
            return cls(size, cell=cell)
        fit = settings.get("fit", "squeeze")
        if fit not in FITS:
            raise ConfigError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
        intensity = from_dict(Intensity, settings["intensity"])
        return cls(size, intensity, fit, cell, smallest_defect=settings.get("smallest_defect"))

    def settings(self) -> dict[str, Any]:
        """What a saved line keeps, as plain JSON-able values; the size stands with the backbone."""
        return {
            "intensity": asdict(self.intensity),
            "fit": self.fit,
            "smallest_defect": self.smallest_defect,
        }

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
        size = pixels.shape[0], pixels.shape[1]
        if self.fit == "squeeze":
            return Picture(source, resize(pixels, self.size), size, clipped)
        area = self._area(size)
        return Picture(source, _bordered(resize(pixels, area[2:]), area, self.size), size, clipped, area)

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

    def _area(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Where an image of this size lies: as large as it fits, in the middle, from cell to cell."""
        share = min(side / own for side, own in zip(self.size, size, strict=True))
        cells = [side // self.cell for side in self.size]
        taken = [
            min(most, max(1, round(own * share / self.cell))) for most, own in zip(cells, size, strict=True)
        ]
        top, left = ((most - own) // 2 * self.cell for most, own in zip(cells, taken, strict=True))
        return top, left, taken[0] * self.cell, taken[1] * self.cell

    def shown(self, source: Source, value: Any) -> np.ndarray:
        """One image in its own size as this line sees its light, (H, W, 3) uint8; errors as from `read`."""
        return self._decoded(source, value)[0]

    def beyond(self, sources: Sequence[tuple[Source, Any]]) -> float:
        """Share of the pixels of an even sample of these images that lies beyond the range, on average."""
        if self.intensity.plain:
            return 0.0
        shares = []
        for source, value in evenly(sources, SAMPLE):
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

    def _read_or_fail(self, source: Source, value: Any) -> Picture | Failure:
        try:
            return self.read(source, value)
        except ImageError as error:
            return Failure(source, str(error))


def pictures_in(batch: Sequence[Picture | Failure]) -> list[Picture]:
    """Those of a batch that could be read."""
    return [one for one in batch if isinstance(one, Picture)]


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


def _bordered(image: np.ndarray, area: tuple[int, int, int, int], size: tuple[int, ...]) -> np.ndarray:
    """The image at its place in a picture of `size`, its outermost pixels continued to the borders."""
    top, left, height, width = area
    down, across = (top, size[0] - top - height), (left, size[1] - left - width)
    return np.pad(image, (down, across, (0, 0)), mode="edge")


def without_border(features: A, pictures: Sequence[Picture]) -> A:
    """Features (B, h', w', D) in which a border's cells hold the mean of the image's own.

    So a border tells the router nothing, and a mean is never as strange as the patches it is of. Where no
    picture has a border these are the features themselves.
    """
    if all(picture.area is None for picture in pictures):
        return features
    found = deepcopy(features)
    for image, own, picture in zip(found, features, pictures, strict=True):
        cells = picture.cells((own.shape[0], own.shape[1]))
        image[:] = own[cells].mean((0, 1))
        image[cells] = own[cells]
    return found


def _sampled(sources: Sequence[tuple[Source, Any]]) -> list[Levels]:
    """Levels of an even sample of the images, one in memory at a time."""
    found, unreadable = [], None
    for source, value in evenly(sources, SAMPLE):
        try:
            found.append(_levels(source, value))
        except ImageError as error:  # learning reads the same file again, and is where it is dealt with
            unreadable = error
    if unreadable is not None and not found:
        raise unreadable
    return found


def sizes_of(sources: Sequence[tuple[Source, Any]]) -> list[tuple[int, int]]:
    """(H, W) of an even sample of the images; those that cannot be read are left out."""
    found = []
    for source, value in evenly(sources, SAMPLE):
        with suppress(ImageError):  # learning reads the same file again, and is where it is dealt with
            found.append(size_of(value, where=name_of(source)))
    return found


def _levels(source: Source, value: Any) -> Levels:
    name = name_of(source)
    if isinstance(value, str | Path) and has_8_bits(value):
        return levels_of_8_bits(name)
    raw = as_raw(value, where=name)
    return levels_of_8_bits(name) if raw.dtype == np.uint8 else levels_of(raw, name)
