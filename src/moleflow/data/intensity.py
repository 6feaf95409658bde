"""Which of a camera's numbers is black and which white: one range for all images of a line, never per image.

`choose_intensity` looks at a sample of a line's first images, `Intensity.apply` maps every image after them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError, DepthError, ImageError

Depth = Literal["8-bit", "integer", "float", "any"]

BITS = (8, 10, 12, 14, 16)
SAMPLE = 64  # images that the choice looks at, spread evenly over the first product's

_TAIL = (
    0.001  # share of an image's pixels, at either end, that the band is not drawn for: dead and hot pixels
)
_STRAY = 0.05  # share of the images, at either end, that it is not drawn for: a lens cap, a flash
_HEADROOM = 0.5  # beyond either end of the good numbers, as a share of their span
_LEAST_COUNTS = 255.0  # of a band of whole numbers: one count is never more than one grey level
_LOOKED_AT = 1 << 16  # pixels per image that quantiles are taken of
_ROUNDING = 1e-6  # as in images.py: floats may leave [0, 1] by the rounding of their own arithmetic
_LARGEST = float(np.finfo(np.float32).max)
_ROWS = 256  # mapped at a time, so that a large image needs no copy in wide numbers


@dataclass(frozen=True)
class Intensity:
    """The range of numbers that becomes black to white; the same for every image of a line.

    Attributes:
        low, high: numbers that become 0 and 255; those beyond become 0 and 255 as well.
        depth: the numbers it is for: "8-bit", "integer" (of more than 8 bits), "float"; other images are
            refused. "any" maps each by its type's full range, as `as_image` does, whatever low and high.
        source: "auto" where it was chosen from images, "given" where somebody said so.
    """

    low: float
    high: float
    depth: Depth
    source: Literal["auto", "given"] = "given"

    def __post_init__(self) -> None:
        numbers = all(isinstance(v, int | float) and abs(v) <= _LARGEST for v in (self.low, self.high))
        if not numbers or self.low >= self.high:
            raise ConfigError(f"expected an intensity range LOW < HIGH, got {self.low!r} and {self.high!r}")
        if self.depth not in ("8-bit", "integer", "float", "any") or self.source not in ("auto", "given"):
            raise ConfigError(f"expected a known kind of intensity, got {self.depth!r}, {self.source!r}")

    @property
    def wish(self) -> str:
        """What one would write to ask for it: "full", "12", "6800:7600"."""
        return "full" if self.depth == "any" else _as_wish(self.low, self.high)

    @property
    def plain(self) -> bool:
        """Whether images pass as `as_image` makes them: 8-bit ones to the bit, floats in [0, 1] as well."""
        return self.depth == "any" or (self.depth == "8-bit" and (self.low, self.high) == (0, 255))

    def __str__(self) -> str:
        if self.depth == "any":
            return "every depth by its full range"
        span = f"{self.low:.10g}..{self.high:.10g}"
        name = f"{self.wish}-bit" if self.wish.isdigit() else f"{self.depth} band"
        return f"{name}, {span}"

    def apply(self, raw: np.ndarray, *, where: str = "image") -> np.ndarray:
        """An image's numbers (H, W) or (H, W, 3) as (H, W, 3) uint8; a larger number is never darker.

        Raises DepthError for numbers of another kind than the line's.
        """
        self.check(raw, where=where)
        if raw.dtype == np.uint8 and self.plain:
            return raw
        low, high = (0, _FULL_RANGES[depth_of(raw)]) if self.depth == "any" else (self.low, self.high)
        levels = np.empty(raw.shape, np.uint8)
        table = _table(low, high) if raw.dtype in (np.uint8, np.uint16) else None
        for rows in _blocks(raw):
            levels[rows] = _levels(raw[rows], low, high) if table is None else table[raw[rows]]
        return levels if levels.ndim == 3 else np.repeat(levels[:, :, None], 3, axis=2)

    def clipped(self, raw: np.ndarray) -> float:
        """Share of the pixels of which a number lies beyond the range; 0 for plain 8-bit images."""
        if self.plain:
            return 0.0
        count = 0
        for rows in _blocks(raw):
            beyond = (raw[rows] < self.low) | (raw[rows] > self.high)
            count += int(np.count_nonzero(beyond.any(axis=2) if beyond.ndim == 3 else beyond))
        return count / (raw.shape[0] * raw.shape[1])

    def check(self, raw: np.ndarray, *, where: str = "image") -> None:
        """Raises DepthError for numbers of another kind than the line's."""
        found = depth_of(raw)
        if self.depth not in (found, "any"):
            raise DepthError(
                f"{where}: expected {_NUMBERS[self.depth]} ({self}) as in this line's first images, "
                f"got {_NUMBERS[found]} ({raw.min():.10g}..{raw.max():.10g})"
            )


FULL = Intensity(0, 1, "any")
"""Every depth by its full range: 8 bits 0..255, 16 bits 0..65535, floats 0..1; of lines that keep none."""

EIGHT_BITS = Intensity(0, 255, "8-bit", "auto")

_FULL_RANGES = {"8-bit": 255, "integer": 65535, "float": 1}

_NUMBERS = {
    "8-bit": "8-bit values",
    "integer": "whole numbers of more than 8 bits",
    "float": "float values in counts",
    "any": "values of any kind",
}


def depth_of(raw: np.ndarray) -> Depth:
    """The kind of an image's numbers."""
    if raw.dtype == np.uint8:
        return "8-bit"
    return "float" if np.issubdtype(raw.dtype, np.floating) else "integer"


def _levels(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # an infinite level is a white one
        levels = (numbers.astype(np.float64) - low) * 255 / (high - low)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _table(low: float, high: float) -> np.ndarray:
    """The levels of all 16-bit numbers."""
    return _levels(np.arange(1 << 16), low, high)


def _blocks(raw: np.ndarray) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, len(raw), _ROWS))


# What is asked for


def parse_intensity(asked: Any) -> str:
    """ "auto", "full", a number of bits or LOW:HIGH, as text or as number and pair, in one way of writing.

    Raises ConfigError for all else.
    """
    text = ":".join(map(str, asked)) if isinstance(asked, tuple) else str(asked).strip().lower()
    if text in ("auto", "full") or text in map(str, BITS):
        return text
    low, colon, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (0.0, 0.0)
    if not colon or max(map(abs, ends)) > _LARGEST or not ends[0] < ends[1]:
        bits = ", ".join(map(str, BITS))
        raise ConfigError(f"expected an intensity of auto, full, {bits} (bits) or LOW:HIGH, got {asked!r}")
    return _as_wish(*ends)


def _as_wish(low: float, high: float) -> str:
    bits = [str(b) for b in BITS if (low, high) == (0, 2**b - 1)]
    return bits[0] if bits else f"{low:.10g}:{high:.10g}"


def _ends(wish: str) -> tuple[float, float]:
    low, colon, high = wish.partition(":")
    return (float(low), float(high)) if colon else (0.0, 2.0 ** int(wish) - 1)


# What images hold


@dataclass(frozen=True)
class Levels:
    """What the choice needs to know of one image.

    Attributes:
        name: of the image, for errors.
        depth: the kind of its numbers.
        least, low, high, most: smallest, 0.1 %, 99.9 % and largest of them.
    """

    name: str
    depth: Depth
    least: float
    low: float
    high: float
    most: float

    @property
    def unit(self) -> bool:
        """Whether these are floats from 0 to 1."""
        return self.depth == "float" and self.least >= -_ROUNDING and self.most <= 1 + _ROUNDING


def levels_of(raw: np.ndarray, name: str) -> Levels:
    """The levels of one image; all its numbers count for the extremes, an even grid of them for the rest."""
    step = math.ceil(math.sqrt(raw.shape[0] * raw.shape[1] / _LOOKED_AT))
    low, high = np.quantile(raw[::step, ::step], (_TAIL, 1 - _TAIL))
    return Levels(name, depth_of(raw), float(raw.min()), float(low), float(high), float(raw.max()))


def levels_of_8_bits(name: str) -> Levels:
    """The levels of an image that need not be looked at, because 8 bits are always taken as they are."""
    return Levels(name, "8-bit", 0, 0, 255, 255)


# The choice


def choose_intensity(wish: str, images: Iterable[Levels]) -> Intensity:
    """The range for a line that begins with these images.

    Args:
        wish: as `parse_intensity` writes it.
        images: levels of a sample of them, at least one.

    Raises:
        ImageError: images of different kinds.
        ConfigError: a range that these images have nothing in, or that is not for their kind of numbers.
    """
    if wish == "full":
        return FULL
    sample = list(images)
    depth = _common_depth(sample, as_8_bits=wish in ("auto", "8"))
    if wish != "auto":
        return _given(wish, sample, depth)
    if depth == "8-bit":
        return EIGHT_BITS
    return _for_integers(sample) if depth == "integer" else _for_floats(sample)


def _common_depth(sample: list[Levels], *, as_8_bits: bool) -> Depth:
    """The one kind of numbers in all images; floats that are all from 0 to 1 may pass as 8 bits."""
    unit = as_8_bits and all(image.unit for image in sample if image.depth == "float")
    kinds: dict[Depth, Levels] = {}
    for image in sample:
        kinds.setdefault("8-bit" if unit and image.depth == "float" else image.depth, image)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise ImageError(
            f"expected one kind of numbers in a line's first images, got {_NUMBERS[one]} in {first.name} and "
            f"{_NUMBERS[other]} in {second.name}; save them alike, or ask for the intensity full"
        )
    return next(iter(kinds))


def _given(wish: str, sample: list[Levels], depth: Depth) -> Intensity:
    low, high = _ends(wish)
    asked = Intensity(low, high, depth)
    least, most = min(image.least for image in sample), max(image.most for image in sample)
    held = f"the images ({sample[0].name}, ...) hold {_NUMBERS[depth]}, {least:.10g}..{most:.10g}"
    if ":" not in wish and (depth == "float" or (depth == "8-bit" and wish != "8")):
        raise ConfigError(f"expected images for the intensity {asked}, but {held}")
    if most < low or least > high:
        raise ConfigError(f"expected images with numbers within the intensity {asked}, but {held}")
    return asked


def _for_integers(sample: list[Levels]) -> Intensity:
    """The smallest depth that holds all numbers where the good ones fill half of it, else a band around them.

    With half of the depth or more between them, a band with its head-room would be wider than the depth. In
    either case the good numbers get 128 grey levels or more, where they are as many.
    """
    least, most = min(image.least for image in sample), max(image.most for image in sample)
    low, high = _good(sample)
    tops = [2.0**bits - 1 for bits in BITS if least >= 0 and most < 2**bits]
    if not tops:
        return Intensity(*_band(low, high, least=_LEAST_COUNTS), "integer", "auto")
    if (high - low) * (1 + 2 * _HEADROOM) >= tops[0]:
        return Intensity(0.0, tops[0], "integer", "auto")
    begin, end = _band(low, high, least=_LEAST_COUNTS)
    begin, end = max(0.0, begin), min(tops[0], end)
    if end - begin < _LEAST_COUNTS:  # cut by an end of the depth
        begin = max(0.0, min(begin, tops[0] - _LEAST_COUNTS))
        end = begin + _LEAST_COUNTS
    return Intensity(begin, end, "integer", "auto")


def _for_floats(sample: list[Levels]) -> Intensity:
    low, high = _good(sample)
    return Intensity(*_band(low, high, least=0.0), "float", "auto")


def _band(low: float, high: float, *, least: float) -> tuple[float, float]:
    """The good numbers with head-room on both sides, at least so wide, to ends that one can read."""
    width = max((high - low) * (1 + 2 * _HEADROOM), least) or 0.02 * max(abs(low), 1.0)
    middle = (low + high) / 2
    digits = 0 if least else 2 - math.floor(math.log10(width))  # of a float: a hundredth of the width or less
    step = 10.0**-digits
    begin, end = math.floor((middle - width / 2) / step), math.ceil((middle + width / 2) / step)
    return round(begin * step, digits), round(end * step, digits)


def _good(sample: list[Levels]) -> tuple[float, float]:
    """Where the good numbers begin and end, a few pixels of an image and a few images left aside."""
    low = np.quantile([image.low for image in sample], _STRAY)
    high = np.quantile([image.high for image in sample], 1 - _STRAY)
    return float(low), float(high)
