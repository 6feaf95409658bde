"""A product whose photographs drift: ten steps of growing distortion of colour, sharpness or pose.

Lengths are those of a picture scaled to 256 x 256 pixels, whatever its own size and shape: distorting and
resizing can change places, and a mask moves with its image although it is larger.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..data.layouts import Item, Mask, Product
from ..errors import ConfigError
from .pictures import altered
from .streams import Stream, Task

Image = NDArray[np.uint8]
Strength = tuple[float, ...]

STEPS = 10
REFERENCE = 256
"""Side in pixels of the picture that lengths refer to."""

DRIFTS: dict[str, tuple[Strength, ...]] = {
    "colour": tuple((round(0.05 * i, 2), round(0.05 * i + 0.05, 2)) for i in range(STEPS)),
    "blur": tuple((2 * i + 1, 0.5 * (i + 1)) for i in range(STEPS)),
    "geometry": tuple((2 * i, i, round(0.01 * i, 2), i) for i in range(1, STEPS + 1)),
}
"""Strengths of the ten steps by kind. colour: least and largest change; blur: kernel and sigma in pixels;
geometry: largest rotation in degrees, shift in pixels, change of scale, shear in degrees."""


@dataclass(frozen=True)
class Distortion:
    """One step of a drift, applied to images and masks after they are read.

    What is drawn at random depends on the step and on the item (its split, kind and file name without
    ending), so a distorted image is the same in every run, wherever the data lie. Files of one name
    and kind are told apart by nothing else.

    Attributes:
        kind: of `DRIFTS`; step: 1 to 10. ConfigError for others.
    """

    kind: str
    step: int

    def __post_init__(self) -> None:
        _strength(self.kind, self.step)

    @property
    def name(self) -> str:
        """As in names of products: "colour-03"."""
        return f"{self.kind}-{self.step:02d}"

    @property
    def key(self) -> str:
        """For caches: changes with the strength."""
        return f"{self.name}({', '.join(f'{value:g}' for value in _strength(self.kind, self.step))})"

    @property
    def makes_defects(self) -> bool:
        """Never: it moves and colours what is there."""
        return False

    def image(self, image: Image, item: Item) -> Image:
        """The distorted image, uint8 (H, W, 3) of the same size."""
        return distort(image, self.kind, self.step, _seed(item))

    def mask(self, mask: Mask, item: Item) -> Mask:
        """The mask of the distorted image, bool (H, W) of the same size."""
        return distort_mask(mask, self.kind, self.step, _seed(item))


def distort(image: Image, kind: str, step: int, seed: int) -> Image:
    """An image, uint8 (H, W, 3), at a step (1 to 10) of a drift; equal seeds give equal changes.

    colour: brightness, contrast, saturation and hue change one after the other, each by its own amount
    from the step's window and either way (hue by that part of the circle). blur: Gaussian. geometry:
    rotation, shift, scale and shear about the middle, bilinear, the picture mirrored at its borders.
    Raises ConfigError for an unknown kind or step.
    """
    strength = _strength(kind, step)
    return _IMAGES[kind](image, strength, np.random.default_rng((seed, step)))


def distort_mask(mask: Mask, kind: str, step: int, seed: int) -> Mask:
    """The mask, bool (H, W), of the image that `distort` gives for the same arguments.

    Only geometry moves it, to the nearest pixel; a defect may leave the picture.
    """
    strength = _strength(kind, step)
    if kind != "geometry":
        return mask.copy()
    matrix, shift = _affine(strength, np.random.default_rng((seed, step)))
    return _warped(mask.astype(np.uint8), matrix, shift, order=0).astype(bool)


def drifted(product: Product, kind: str, step: int) -> Product:
    """The product at a step of a drift, named such as "product@colour-03".

    Its items keep their paths and are distorted when they are read.
    """
    distortion = Distortion(kind, step)
    return altered(product, f"{product.name}@{distortion.name}", distortion)


def drift(product: Product, kind: str) -> tuple[Stream, dict[str, Product]]:
    """The stream of a product that drifts, a task for every step, and its products by name.

    ConfigError for an unknown kind.
    """
    products = [drifted(product, kind, step) for step in range(1, STEPS + 1)]
    stream = Stream(f"drift-{kind}-{product.name}", tuple(Task((one.name,)) for one in products))
    return stream, {one.name: one for one in products}


def _strength(kind: str, step: int) -> Strength:
    if kind not in DRIFTS:
        raise ConfigError(f"unknown drift {kind!r}; known are {', '.join(DRIFTS)}")
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= STEPS:
        raise ConfigError(f"drift {kind!r}: expected a step from 1 to {STEPS}, got {step!r}")
    return DRIFTS[kind][step - 1]


def _seed(item: Item) -> int:
    # Neither folder nor product: the drifted product has another name than the one on disk.
    return zlib.crc32(f"{item.split}/{item.kind}/{item.path.stem}".encode())


def _rounded(values: NDArray[np.float32]) -> Image:
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


# Colour


def _recoloured(image: Image, strength: Strength, rng: np.random.Generator) -> Image:
    least, most = strength
    brightness, contrast, saturation, hue = rng.uniform(least, most, 4) * rng.choice((-1, 1), 4)
    values = image.astype(np.float32) * np.float32(1 + brightness)
    values = np.clip(values, 0, 255)
    values = _away_from(_grey(values).mean(dtype=np.float64), values, contrast)
    values = _away_from(_grey(values), values, saturation)
    return _rounded(_turned(values, hue))


def _grey(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Luma (H, W, 1) after ITU-R BT.601."""
    return values @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)


def _away_from(
    middle: NDArray[np.float32] | np.float64, values: NDArray[np.float32], change: float
) -> NDArray[np.float32]:
    moved = values + np.float32(change) * (values - np.float32(middle))
    return np.clip(moved, 0, 255).astype(np.float32, copy=False)


def _turned(values: NDArray[np.float32], part: float) -> NDArray[np.float32]:
    """The hue of the HSV model turned by a part of the circle; value and saturation stay."""
    red, green, blue = np.moveaxis(values, -1, 0)
    most, least = values.max(-1), values.min(-1)
    spread = most - least
    over = np.where(spread > 0, spread, 1)
    sixths = np.select(
        [most == red, most == green],
        [(green - blue) / over, 2 + (blue - red) / over],
        4 + (red - green) / over,
    )
    # Each channel is a plateau, a ramp, a valley and a ramp over the circle, a third of it apart.
    at = (np.array((5, 3, 1)) + sixths[..., None] + 6 * part) % 6
    share = np.clip(np.minimum(at, 4 - at), 0, 1)
    return (most[..., None] - spread[..., None] * share).astype(np.float32)


# Sharpness


def _blurred(image: Image, strength: Strength, rng: np.random.Generator) -> Image:
    kernel, sigma = strength
    values = image.astype(np.float32)
    for axis in (0, 1):
        scale = image.shape[axis] / REFERENCE
        reach = round((kernel - 1) / 2 * scale)
        weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / (sigma * scale)))
        values = ndimage.correlate1d(values, weights / weights.sum(), axis=axis, mode="reflect")
    return _rounded(values)


# Pose


def _moved(image: Image, strength: Strength, rng: np.random.Generator) -> Image:
    matrix, shift = _affine(strength, rng)
    channels = np.moveaxis(image.astype(np.float32), -1, 0)
    return _rounded(np.stack([_warped(channel, matrix, shift, order=1) for channel in channels], axis=-1))


def _affine(strength: Strength, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix (2, 2) and shift (2,) that move points (row, column) of a square of side 1 about 0."""
    degrees, pixels, change, shear = strength
    turn, down, right, growth, slant = rng.uniform(-1, 1, 5)
    angle = math.radians(turn * degrees)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    slope = np.array([[1, 0], [math.tan(math.radians(slant * shear)), 1]])
    shift = np.array([down, right]) * pixels / REFERENCE
    return (1 + growth * change) * rotation @ slope, shift


def _warped(
    values: NDArray[Any], matrix: NDArray[np.float64], shift: NDArray[np.float64], *, order: int
) -> NDArray[Any]:
    """An array (H, W) moved, by interpolation of the given order, and mirrored at its borders."""
    size = np.array(values.shape)
    back = np.linalg.inv(matrix)
    # Pixel i has its centre at (i + 0.5) / size - 0.5 of the square.
    first = back @ (0.5 / size - 0.5 - shift)
    return np.asarray(
        ndimage.affine_transform(
            values,
            size[:, None] * back / size,
            size * (first + 0.5) - 0.5,
            order=order,
            mode="reflect",
        )
    )


_IMAGES: dict[str, Callable[[Image, Strength, np.random.Generator], Image]] = {
    "colour": _recoloured,
    "blur": _blurred,
    "geometry": _moved,
}
