"""Defects drawn into good training images: a validation set for choosing options without a test image.

Nothing but the image itself is needed: what is pasted or blended in comes from elsewhere in it, from its
other colour channels, or from noise. After cut-paste and its scar (Li et al., CutPaste, CVPR 2021), the
noise-masked blend of textures (Zavrtanik et al., DRAEM, ICCV 2021), and what a photograph of a bad part
shows besides: scratches, spots, smears, distorted shapes.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ..data.images import read_image
from ..data.layouts import Item, Mask, Product
from ..errors import ConfigError, DatasetError
from .pictures import Alteration, AlteredItem

FloatArray = npt.NDArray[np.float32]

VISIBLE = 6  # levels of 255; a smaller change drowns in a sensor's noise
DEFECTS_PER_IMAGE = 2
LEAST_TRAIN, LEAST_HELD = 3, 2  # images
_AREA = (0.0005, 0.02)  # of the image
_LEAST_AREA = 0.0002  # a smaller visible change is drawn again
_LARGEST_AREA = 0.04
_CONTRAST = (0.25, 0.8)
_ATTEMPTS = 16


@dataclass(frozen=True)
class SyntheticDefect:
    """One defect in one image, an `Alteration`; the same for equal images, file stems, kinds and seeds.

    The mask marks the pixels that visibly changed and the slits between them; all others stay as they were,
    to the bit. Where an image offers nothing to move or blur (one flat colour), a spot is drawn instead.

    Attributes:
        kind: one of `KINDS`.
        seed: of place, size, shape and contrast, together with the stem of the image's file.
        over: what is done to the image before.
    """

    kind: str
    seed: int
    over: Alteration | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"expected a synthetic defect among {', '.join(KINDS)}; got {self.kind!r}")
        if self.seed < 0:
            raise ConfigError(f"expected a seed of a synthetic defect of at least 0, got {self.seed}")

    @property
    def key(self) -> str:
        """Names the change, for caches."""
        before = "" if self.over is None else f"{self.over.key} "
        return f"{before}synthetic-{self.kind}-{self.seed}"

    @property
    def makes_defects(self) -> bool:
        """Always."""
        return True

    def image(self, image: np.ndarray, item: Item) -> np.ndarray:
        """The image, uint8 (H, W, 3), with the defect in it."""
        return self._drawn(image, item)[0]

    def mask(self, mask: Mask, item: Item) -> Mask:
        """The mask, bool (H, W), and where the defect is. Reads the item's image again."""
        before = mask if self.over is None else self.over.mask(mask, item)
        marked = before.copy()
        marked.flat[_places(self, item, item.path.stat().st_mtime_ns)] = True
        return marked

    def _drawn(self, image: np.ndarray, item: Item) -> tuple[np.ndarray, Mask]:
        before = image if self.over is None else self.over.image(image, item)
        # Names go in by a checksum: Python's own hash of a string differs from one process to the next.
        stem = (zlib.crc32(item.path.stem.encode()), zlib.crc32(self.kind.encode()), self.seed)
        return draw(before, self.kind, stem)


@lru_cache(maxsize=4096)
def _places(defect: SyntheticDefect, item: Item, changed: int) -> npt.NDArray[np.intp]:
    """Which pixels of a flattened mask are a defect's; kept, for every trial of a sweep asks again."""
    return np.flatnonzero(defect._drawn(read_image(item.path), item)[1])


def validation_of(product: Product, *, share: float = 0.25, seed: int = 0) -> Product:
    """A product to choose options on, made from the training images of another one and from nothing else.

    Some of the training images are held out. They are tested as they are, and each `DEFECTS_PER_IMAGE` times
    more with a synthetic defect, the kinds taking turns: equal image, with and without a defect. Which are
    held out follows from their stems and the seed, not from the order in which they are listed.

    Args:
        product: its training images are used, its validation and test images are not looked at.
        share: of the training images, held out for the test.
        seed: of the choice and of the defects.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DatasetError: too few training images.
    """
    if not 0 < share < 1:
        raise ConfigError(f"expected a share of training images between 0 and 1, got {share}")
    count = len(product.train)
    held_count = max(LEAST_HELD, round(share * count))
    if count - held_count < LEAST_TRAIN:
        raise DatasetError(
            f"{product.name}: expected at least {LEAST_TRAIN} training images beside {held_count} held out "
            f"for synthetic defects, found {count} in all"
        )
    order = sorted(range(count), key=lambda i: (_draw_of(product.train[i], seed), i))
    held = order[:held_count]
    good = [replace(product.train[i], split="test") for i in sorted(held)]
    kinds = [tuple(KINDS)[i % len(KINDS)] for i in range(DEFECTS_PER_IMAGE * held_count)]
    defective = [
        _with_defect(product.train[i], kind, seed)
        # One round over all images after the other: with few of them all kinds still have their turn.
        for i, kind in zip(held * DEFECTS_PER_IMAGE, kinds, strict=True)
    ]
    return Product(
        product.name,
        train=tuple(product.train[i] for i in sorted(set(order) - set(held))),
        validation=(),
        test=(*good, *defective),
    )


def _draw_of(item: Item, seed: int) -> str:
    return hashlib.sha256(f"{seed} {item.path.stem}".encode()).hexdigest()


def _with_defect(item: Item, kind: str, seed: int) -> AlteredItem:
    before = item.alteration if isinstance(item, AlteredItem) else None
    return AlteredItem(
        item.path,
        item.product,
        "test",
        f"synthetic-{kind}",
        alteration=SyntheticDefect(kind, seed, over=before),
    )


# Drawing


def draw(image: np.ndarray, kind: str, stem: Sequence[int]) -> tuple[np.ndarray, Mask]:
    """The image, uint8 (H, W, 3), with a defect of a kind, and its mask, bool (H, W).

    Everything random comes from `stem`, whole numbers of at least 0.
    """
    picture = image.astype(np.float32)
    for attempt in range(_ATTEMPTS + 1):
        rng = np.random.default_rng(np.random.SeedSequence([*stem, attempt]))
        # What could not be seen is drawn again elsewhere, and plainer; the last attempt always shows.
        contrast = min(1.0, rng.uniform(*_CONTRAST) + 0.06 * attempt)
        if attempt < _ATTEMPTS:
            window, after = KINDS[kind](picture, rng, contrast)
        else:
            window, after = _plain_spot(picture, rng)
        found = _kept(image, window, after)
        if found is not None:
            return found
    raise DatasetError(f"an image of {image.shape}: expected room for a visible {kind}, found none")


def _kept(image: np.ndarray, window: _Window, after: FloatArray) -> tuple[np.ndarray, Mask] | None:
    """Image and mask with what is visible of a change, or None where that is too little or too much."""
    part = window.rows, window.columns
    if (image == image[..., :1]).all():  # a grey camera sees no colours
        after = np.repeat(after.mean(axis=2, keepdims=True), 3, axis=2)
    drawn = np.clip(np.rint(after), 0, 255).astype(np.uint8)
    difference = np.abs(drawn.astype(np.int16) - image[part].astype(np.int16)).max(axis=2)
    changed = difference >= VISIBLE
    reach = max(1, round(window.unit / 256))
    marked = changed | ndimage.binary_closing(changed, ndimage.generate_binary_structure(2, 2), reach)
    count = np.count_nonzero(changed)
    if (
        count < max(4, _LEAST_AREA * window.unit**2)
        or np.count_nonzero(marked) > _LARGEST_AREA * window.unit**2
    ):
        return None
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[part] = marked
    result = image.copy()
    result[part] = np.where(marked[..., None], drawn, image[part])
    return result, mask


@dataclass(frozen=True, eq=False)
class _Window:
    """Part of a picture around a defect's middle.

    Attributes:
        picture: the whole, (H, W, 3) float32 in 0..255.
        rows, columns: the part.
        y, x: of the part's pixels, seen from the middle, (h, w), in units.
        unit: how many pixels are one unit: the square root of the picture's area, which is then 1.
    """

    picture: FloatArray
    rows: slice
    columns: slice
    y: FloatArray
    x: FloatArray
    unit: float

    @property
    def own(self) -> FloatArray:
        """The picture in this part, (h, w, 3)."""
        return self.picture[self.rows, self.columns]

    def turned(self, angle: float) -> tuple[FloatArray, FloatArray]:
        """Coordinates along and across a direction, radians."""
        c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        return c * self.x + s * self.y, c * self.y - s * self.x

    def elsewhere(self, rng: np.random.Generator) -> FloatArray:
        """A part of the picture of the same size at another place, (h, w, 3)."""
        height, width = self.own.shape[:2]
        rows, columns = (self.picture.shape[0] - height, self.picture.shape[1] - width)
        places = [(int(rng.integers(rows + 1)), int(rng.integers(columns + 1))) for _ in range(8)]
        # The farthest of a few: a neighbouring piece of an even surface would hardly differ.
        top, left = max(places, key=lambda p: abs(p[0] - self.rows.start) + abs(p[1] - self.columns.start))
        return self.picture[top : top + height, left : left + width]


_Drawn = tuple[_Window, FloatArray]
_Painter = Callable[[FloatArray, np.random.Generator, float], _Drawn]


def _around(picture: FloatArray, rng: np.random.Generator, reach: float) -> _Window:
    """A window of `reach` units to every side of a place, which lies rather in the picture's middle."""
    height, width = picture.shape[:2]
    unit = math.sqrt(height * width)
    # Rather there than at the border: that is where the part lies on pictures that show one.
    cy, cx = rng.beta(2, 2) * height, rng.beta(2, 2) * width
    pixels = reach * unit + 2
    rows = slice(max(0, math.floor(cy - pixels)), min(height, math.ceil(cy + pixels)))
    columns = slice(max(0, math.floor(cx - pixels)), min(width, math.ceil(cx + pixels)))
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - cy) / np.float32(unit)
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - cx) / np.float32(unit)
    yy, xx = (np.asarray(a, np.float32) for a in np.meshgrid(y, x, indexing="ij"))
    return _Window(picture, rows, columns, yy, xx, unit)


def _area(rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(_AREA[0]), math.log(_AREA[1])))


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> FloatArray:
    """Smooth noise of about unit spread in two octaves, (h, w); `cell` is its grain in pixels."""
    total = np.zeros(shape, np.float32)
    for octave, weight in ((cell, 0.9), (cell / 2, 0.45)):
        cells = [max(2, math.ceil(side / max(octave, 1.0)) + 1) for side in shape]
        values = Image.fromarray(rng.standard_normal(cells, dtype=np.float32))
        total += weight * np.asarray(values.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return total


def _step(distance: FloatArray, window: _Window, softness: float = 1.0) -> FloatArray:
    """How much of a pixel lies inside a shape, 0..1, from the distance to its edge in units (< 0 inside)."""
    return np.clip(np.float32(0.5) - distance * np.float32(window.unit / softness), 0, 1)


def _blob(window: _Window, rng: np.random.Generator, radius: float, *, ragged: float) -> FloatArray:
    """Distance from a ragged, stretched spot's middle in multiples of its radius: 1 at its edge, (h, w)."""
    stretch = math.sqrt(rng.uniform(1, 2))
    along, across = window.turned(rng.uniform(0, math.pi))
    distance = np.hypot(along / np.float32(stretch), across * np.float32(stretch)) / np.float32(radius)
    return distance + np.float32(ragged) * _noise(rng, distance.shape, radius * window.unit)


def _blended(window: _Window, other: FloatArray, alpha: FloatArray) -> FloatArray:
    own = window.own
    return own + (other - own) * alpha[..., None]


def _shifted(colours: FloatArray, rng: np.random.Generator, contrast: float) -> FloatArray:
    """Another exposure and tint of a piece of picture: the colour jitter of cut-paste."""
    gain = 1 + 0.25 * contrast * rng.uniform(-1, 1)
    shift = 40 * contrast * (rng.uniform(-1, 1) + 0.4 * rng.uniform(-1, 1, 3))
    return colours * np.float32(gain) + shift.astype(np.float32)


def _patch(
    picture: FloatArray,
    rng: np.random.Generator,
    contrast: float,
    *,
    length: float,
    width: float,
    angle: float,
) -> _Drawn:
    """A rectangle cut out elsewhere; its sides in units."""
    window = _around(picture, rng, 0.5 * math.hypot(length, width))
    along, across = window.turned(angle)
    edge = np.maximum(np.abs(along) - np.float32(length / 2), np.abs(across) - np.float32(width / 2))
    piece = _shifted(window.elsewhere(rng), rng, contrast)
    return window, _blended(window, piece, _step(edge, window) * np.float32(min(1, 0.5 + contrast)))


def _cut_paste(picture: FloatArray, rng: np.random.Generator, contrast: float) -> _Drawn:
    """An upright piece of the image, of an aspect ratio between 0.3 and 3.3, pasted at another place."""
    area, aspect = _area(rng), math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return _patch(picture, rng, contrast, length=sides[0], width=sides[1], angle=0.0)


def _scar(picture: FloatArray, rng: np.random.Generator, contrast: float) -> _Drawn:
    """A long thin piece of the image, turned by up to 45 degrees."""
    length, width = rng.uniform(0.05, 0.18), rng.uniform(0.008, 0.03)
    angle = rng.uniform(-math.pi / 4, math.pi / 4) + (math.pi / 2) * rng.integers(2)
    return _patch(picture, rng, contrast, length=length, width=width, angle=angle)


def _texture(picture: FloatArray, rng: np.random.Generator, contrast: float) -> _Drawn:
    """Another texture where noise is high: the image's own, shuffled, in other channels, or grain."""
    radius = math.sqrt(_area(rng) / math.pi)
    window = _around(picture, rng, 2 * radius)
    shape = window.y.shape
    source = window.elsewhere(rng)[:, :, rng.permutation(3)]
    if rng.random() < 0.5:
        source = source[::-1, ::-1]
    if rng.random() < 0.5:
        source = source[rng.permutation(shape[0])]
    grain = 60 * contrast * _noise(rng, shape, max(1.5, 0.01 * window.unit))
    inside = _step((_blob(window, rng, radius, ragged=0.1) - 1) * np.float32(radius), window, 2.0)
    torn = np.clip(_noise(rng, shape, max(2.0, 0.6 * radius * window.unit)) * 2 + 1.2, 0, 1)
    other = _shifted(source, rng, contrast) + grain[..., None]
    return window, _blended(window, other, inside * torn * np.float32(min(1, 0.2 + contrast)))


def _smear(picture: FloatArray, rng: np.random.Generator, contrast: float) -> _Drawn:
    """Wiped along a direction: details are lost, colours drawn out."""
    radius = math.sqrt(_area(rng) / math.pi)
    window = _around(picture, rng, 1.6 * radius)
    along = max(2.0, (0.4 + contrast) * radius * window.unit)
    across = max(0.8, 0.2 * along)
    turn = int(rng.integers(2))
    sigma = (along, across, 0) if turn else (across, along, 0)
    wiped = ndimage.gaussian_filter(window.own, sigma, mode="nearest") + np.float32(
        20 * contrast * rng.uniform(-1, 1)
    )
    alpha = _step((_blob(window, rng, radius, ragged=0.12) - 1) * np.float32(radius), window, 3.0)
    return window, _blended(window, wiped, alpha * np.float32(min(1, 0.45 + contrast)))


def _scratch(picture: FloatArray, rng: np.random.Generator, contrast: float) -> _Drawn:
    """One to three thin bent lines, bright or dark, some with a bank of the other tone."""
    length, width = math.exp(rng.uniform(math.log(0.08), math.log(0.45))), rng.uniform(0.004, 0.011)
    window = _around(picture, rng, 0.6 * length)
    tone = _tone(window, rng, contrast)
    after = window.own
    angle = rng.uniform(0, math.pi)
    for _ in range(int(rng.integers(1, 4))):
        along, across = window.turned(angle + rng.normal(0, 0.06))
        bend, offset = rng.normal(0, 0.5) / length, rng.normal(0, 2.5) * width
        across = across - np.float32(bend) * along**2 * np.float32(0.5) - np.float32(offset)
        start, stop = -length / 2 * rng.uniform(0.6, 1), length / 2 * rng.uniform(0.6, 1)
        ends = np.maximum(np.float32(start) - along, along - np.float32(stop))
        line = _step(np.maximum(np.abs(across) - np.float32(width / 2), ends), window)
        bank = _step(np.maximum(np.abs(across - np.float32(width)) - np.float32(width / 2), ends), window)
        after = after + tone * (line - np.float32(0.4 * rng.integers(2)) * bank)[..., None]
    return window, np.asarray(after, np.float32)


def _spots(picture: FloatArray, rng: np.random.Generator, contrast: float) -> _Drawn:
    """One to four dark or bright spots near each other."""
    count, area = int(rng.integers(1, 5)), _area(rng)
    radius = math.sqrt(area / count / math.pi)
    window = _around(picture, rng, 5 * radius)
    tone = _tone(window, rng, contrast)
    alpha = np.zeros_like(window.y)
    for number in range(count):
        dy, dx = (0.0, 0.0) if number == 0 else rng.normal(0, 1.6 * radius, 2).tolist()
        moved = replace(window, y=window.y - np.float32(dy), x=window.x - np.float32(dx))
        distance = (_blob(moved, rng, radius, ragged=0.15) - 1) * np.float32(radius)
        alpha = np.maximum(alpha, _step(distance, window, max(1.5, 0.6 * radius * window.unit)))
    return window, window.own + tone * alpha[..., None]


def _warp(picture: FloatArray, rng: np.random.Generator, contrast: float) -> _Drawn:
    """Swirled, and pushed to one side: bent, dented, out of shape."""
    radius = math.sqrt(2 * _area(rng) / math.pi)  # at its edge a warp moves next to nothing
    window = _around(picture, rng, radius)
    y, x = window.y, window.x
    fade = np.clip(1 - (y**2 + x**2) / np.float32(radius**2), 0, 1) ** 2
    turn = fade * np.float32((0.5 + 2 * contrast) * rng.choice((-1.0, 1.0)))
    way = rng.uniform(0, 2 * math.pi)
    push = fade * np.float32(0.6 * contrast * radius)
    c, s = np.cos(turn), np.sin(turn)
    from_y = (c * y + s * x - y + np.float32(math.sin(way)) * push) * np.float32(window.unit)
    from_x = (c * x - s * y - x + np.float32(math.cos(way)) * push) * np.float32(window.unit)
    rows, columns = (np.arange(s.start, s.stop, dtype=np.float32) for s in (window.rows, window.columns))
    places = np.stack([rows[:, None] + from_y, columns[None, :] + from_x])
    bands = [ndimage.map_coordinates(picture[..., k], places, order=1, mode="nearest") for k in range(3)]
    return window, np.stack(bands, axis=2)


def _tone(window: _Window, rng: np.random.Generator, contrast: float) -> FloatArray:
    """Darker or brighter, a little off in hue, (3,); towards where there is room."""
    level = float(window.own.mean())
    bright = rng.random() < np.clip((235 - level) / 215, 0, 1)
    amount = 25 + 75 * contrast
    return np.asarray((1 if bright else -1) * amount * rng.uniform(0.7, 1.1, 3), np.float32)


def _plain_spot(picture: FloatArray, rng: np.random.Generator) -> _Drawn:
    radius = math.sqrt(_AREA[1] / 4 / math.pi)
    window = _around(picture, rng, radius)
    tone = np.float32(128 if window.own.mean() < 128 else -128)
    inside = _step(np.hypot(window.y, window.x) - np.float32(radius), window)
    return window, window.own + tone * inside[..., None]


KINDS: dict[str, _Painter] = {
    "cut-paste": _cut_paste,
    "scar": _scar,
    "texture": _texture,
    "smear": _smear,
    "scratch": _scratch,
    "spots": _spots,
    "warp": _warp,
}
"""Kinds of synthetic defects by name."""
