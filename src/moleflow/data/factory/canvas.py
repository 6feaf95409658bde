"""Drawing in floating point: coordinates, smooth noise, antialiased shapes, relief and shadow.

Lengths are in half image widths (the picture spans -1..1), so a drawing scales with its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]

LIGHT: Point = (-0.6, -0.8)  # where the lamp stands, (x, y): the upper left


@dataclass(frozen=True)
class Scene:
    """A noise-free picture in even light, (H, W, 3) in 0..1, and where the product lies in it, (H, W)."""

    image: FloatArray
    region: FloatArray

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.image.shape[0]


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[FloatArray, FloatArray]:
    """x and y of every pixel centre, (size, size) each, read-only."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = (np.ascontiguousarray(a) for a in np.meshgrid(axis, axis))
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def turned(size: int, angle: float, shift: Point) -> tuple[FloatArray, FloatArray]:
    """x and y of every pixel in the frame of a product turned by ``angle`` (radians), moved by ``shift``."""
    x, y = grid(size)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = x - np.float32(shift[0]), y - np.float32(shift[1])
    return c * x + s * y, c * y - s * x


def polar(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distance from the origin and angle (radians) of every pixel."""
    return np.hypot(x, y), np.arctan2(y, x)


def resized(values: FloatArray, size: int) -> FloatArray:
    """A small (h, w) array spread smoothly over (size, size)."""
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC))


def noise(rng: np.random.Generator, size: int, *cells: int) -> FloatArray:
    """Smooth noise (size, size) of about unit spread, of ``cells`` (rows, columns) or one number for both."""
    rows, columns = cells[0], cells[-1]
    return resized(rng.standard_normal((rows, columns), dtype=np.float32), size)


def coverage(distance: FloatArray) -> FloatArray:
    """How much of each pixel a shape covers, 0..1, from its signed distance (negative inside)."""
    pixels = distance * np.float32(distance.shape[0] / 2)
    return np.clip(np.float32(0.5) - pixels, 0, 1)


def smoothstep(low: float, high: float, values: FloatArray) -> FloatArray:
    """0 below ``low``, 1 above ``high`` (or the reverse when high < low), smooth between."""
    t = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blend(image: FloatArray, colour: Colour | FloatArray, alpha: FloatArray) -> FloatArray:
    """``image`` (H, W, 3) covered by a colour, or by another image, as far as ``alpha`` (H, W) says."""
    return image + (np.asarray(colour, np.float32) - image) * alpha[..., None]


def tinted(colour: Colour, shade: FloatArray) -> FloatArray:
    """A colour under a shade (H, W), as (H, W, 3)."""
    # Channel by channel in memory: arithmetic of (H, W, 3) with (H, W) is several times as fast so.
    return np.moveaxis(np.multiply.outer(np.asarray(colour, np.float32), shade), 0, 2)


def varied(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """The colour as another batch of the material has it: a little lighter or darker, a little off in hue."""
    factor = 1 + amount * rng.uniform(-1, 1) + 0.2 * amount * rng.uniform(-1, 1, 3)
    r, g, b = np.clip(np.asarray(colour) * factor, 0, 1).tolist()
    return r, g, b


def relief(height: FloatArray) -> FloatArray:
    """How much a surface of this height turns to the light: positive is lit, negative in shade."""
    down, right = (np.asarray(d, np.float32) for d in np.gradient(height))
    scale = np.float32(-height.shape[0] / 2)
    return scale * (right * np.float32(LIGHT[0]) + down * np.float32(LIGHT[1]))


def softened(values: FloatArray, blur: float, shift: Point = (0.0, 0.0)) -> FloatArray:
    """``values`` (H, W) moved by ``shift`` and blurred by a wide ``blur``: a cast shadow."""
    size, step = values.shape[0], 4
    coarse = ndimage.gaussian_filter(values[::step, ::step], blur * size / 2 / step, mode="nearest")
    rows, columns = (round(s * size / 2 / step) for s in (shift[1], shift[0]))
    return resized(np.roll(coarse, (rows, columns), (0, 1)), size)


class Pen:
    """Flat antialiased shapes on a canvas drawn larger and then reduced."""

    SCALE = 3

    def __init__(self, size: int, mode: str = "L", *, angle: float = 0.0, shift: Point = (0.0, 0.0)):
        self._half = size * self.SCALE / 2
        self._picture = Image.new(mode, (size * self.SCALE, size * self.SCALE))
        self._draw = ImageDraw.Draw(self._picture)
        self._cos, self._sin, self._shift = float(np.cos(angle)), float(np.sin(angle)), shift

    def _pixel(self, point: Point) -> Point:
        x = self._cos * point[0] - self._sin * point[1] + self._shift[0]
        y = self._sin * point[0] + self._cos * point[1] + self._shift[1]
        return (x + 1) * self._half, (y + 1) * self._half

    def _ink(self, colour: Colour | float) -> int | tuple[int, ...]:
        if isinstance(colour, tuple):
            return tuple(round(255 * c) for c in colour)
        return round(255 * colour)

    def box(
        self, centre: Point, width: float, height: float, colour: Colour | float, angle: float = 0.0
    ) -> None:
        """A rectangle of full ``width`` and ``height``, turned about its centre."""
        c, s = float(np.cos(angle)), float(np.sin(angle))
        corners = [(a * width / 2, b * height / 2) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        turned_corners = [(centre[0] + c * x - s * y, centre[1] + s * x + c * y) for x, y in corners]
        self._draw.polygon([self._pixel(p) for p in turned_corners], fill=self._ink(colour))

    def disc(self, centre: Point, radius: float, colour: Colour | float) -> None:
        """A filled circle."""
        x, y = self._pixel(centre)
        r = radius * self._half
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=self._ink(colour))

    def line(self, points: list[Point], width: float, colour: Colour | float) -> None:
        """A polyline with rounded joints."""
        pixels = max(1, round(width * self._half))
        self._draw.line([self._pixel(p) for p in points], self._ink(colour), pixels, joint="curve")

    def finished(self) -> FloatArray:
        """The drawing in 0..1: (size, size), or (size, size, 3) for mode RGB."""
        bands = self._picture.reduce(self.SCALE).split()
        channels = [np.asarray(band, np.float32) / np.float32(255) for band in bands]
        return channels[0] if len(channels) == 1 else np.moveaxis(np.stack(channels), 0, 2)
