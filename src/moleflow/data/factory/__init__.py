"""Procedural products: photographs of seven made-up parts, good and faulty, without files or network."""

from __future__ import annotations

import colorsys
import operator
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ...errors import ConfigError
from . import blister_pack, bottle_cap, circuit_board, defects, gear, textures
from .canvas import Colour, FloatArray, Scene, grid, noise, tinted

__all__ = ["PRODUCTS", "Sample", "defect_kinds", "look_alikes", "make_sample", "varieties", "write_product"]

_SIZES = (64, 512)
_VISIBLE = 6 / 255  # a change smaller than this drowns in the sensor's noise
_ATTEMPTS = 24
_SPLIT_SPAN = 100_000  # images a split can hold before its seeds would run into the next split's

_Paint = Callable[[Scene, np.random.Generator, float], FloatArray]
_Edit = Callable[[Any, np.random.Generator, float], Any]


@dataclass(frozen=True)
class Sample:
    """One photograph, (H, W, 3) uint8, the exact mask of its fault, (H, W) bool, and the fault's kind."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    kind: str


@dataclass(frozen=True)
class _Maker:
    """How a product comes about: a random design, its drawing, and its faults.

    A fault either edits the design before it is drawn (a lost tooth) or paints on the drawing (a scratch).
    """

    design: Callable[[np.random.Generator], Any]
    draw: Callable[[Any, int], Scene]
    edits: Mapping[str, _Edit]
    paints: Mapping[str, _Paint]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted((*self.edits, *self.paints)))


_fibre = partial(defects.contamination, colour=(0.16, 0.15, 0.18))
_bare_metal = partial(defects.scratch, colour=(0.88, 0.88, 0.87))

_MAKERS: dict[str, _Maker] = {
    "woven_cloth": _Maker(
        textures.design_cloth,
        textures.draw_cloth,
        {"broken_thread": textures.break_thread, "foreign_yarn": textures.swap_yarn},
        {
            "contamination": partial(defects.contamination, colour=(0.20, 0.18, 0.24)),
            "hole": partial(defects.hole, below=(0.07, 0.06, 0.06), rim=(0.80, 0.75, 0.66)),
            "stain": partial(defects.stain, colour=(0.50, 0.38, 0.28)),
        },
    ),
    "wood": _Maker(
        textures.design_wood,
        textures.draw_wood,
        {"knot": textures.grow_knot},
        {
            "crack": partial(defects.crack, colour=(0.16, 0.09, 0.05), grain=np.pi / 2),
            "hole": partial(defects.hole, below=(0.09, 0.05, 0.03), rim=(0.46, 0.31, 0.18)),
            "scratch": partial(defects.scratch, colour=(0.93, 0.80, 0.60)),
            "stain": partial(defects.stain, colour=(0.46, 0.36, 0.32)),
        },
    ),
    "brushed_metal": _Maker(
        textures.design_metal,
        textures.draw_metal,
        {},
        {
            "dent": defects.dent,
            "rust": defects.rust,
            "scratch": partial(defects.scratch, colour=(0.90, 0.91, 0.92), depth=0.9),
            "stain": partial(defects.stain, colour=(0.62, 0.58, 0.50)),
        },
    ),
    "gear": _Maker(
        gear.design_gear,
        gear.draw_gear,
        {
            "missing_hole": gear.leave_hole_undrilled,
            "missing_tooth": gear.lose_tooth,
            "worn_tooth": gear.wear_tooth,
        },
        {
            "crack": partial(defects.crack, colour=(0.10, 0.10, 0.11)),
            "rust": defects.rust,
            "scratch": _bare_metal,
        },
    ),
    "bottle_cap": _Maker(
        bottle_cap.design_cap,
        bottle_cap.draw_cap,
        {"bent_rim": bottle_cap.bend_rim, "misprint": bottle_cap.shift_print},
        {"contamination": _fibre, "dent": defects.dent, "scratch": _bare_metal},
    ),
    "circuit_board": _Maker(
        circuit_board.design_board,
        circuit_board.draw_board,
        {
            "misplaced_component": circuit_board.misplace_component,
            "missing_component": circuit_board.lose_component,
            "solder_bridge": circuit_board.bridge_pins,
        },
        {
            "contamination": partial(defects.contamination, colour=(0.72, 0.68, 0.60)),
            "scratch": partial(defects.scratch, colour=(0.76, 0.60, 0.36)),
        },
    ),
    "blister_pack": _Maker(
        blister_pack.design_blister,
        blister_pack.draw_blister,
        {
            "broken_capsule": blister_pack.break_capsule,
            "missing_capsule": blister_pack.lose_capsule,
            "wrong_capsule": blister_pack.swap_capsule,
        },
        {"contamination": _fibre, "scratch": partial(defects.scratch, colour=(0.95, 0.95, 0.95))},
    ),
}

PRODUCTS: tuple[str, ...] = tuple(_MAKERS)

_DETAILS = {
    "woven_cloth": "foreign_yarn",
    "wood": "knot",
    "gear": "missing_hole",
    "bottle_cap": "misprint",
    "circuit_board": "missing_component",
    "blister_pack": "wrong_capsule",
}
"""The one detail in which a look-alike differs: a fault of the original, at one place, there by design."""
_PAINTED = ("woven_cloth", "bottle_cap", "circuit_board", "blister_pack")
"""Products that come in any colour; the others are of metal or wood, and are stained."""
_STAINS = (
    (1.0, 1.0, 1.0),
    (1.0, 0.85, 0.58),
    (0.72, 0.84, 1.0),
    (1.0, 0.72, 0.62),
    (0.58, 0.58, 0.60),
    (0.80, 1.0, 0.78),
)
VARIETIES = 12
"""Of a product, as many as no two look the same."""


def look_alikes() -> tuple[tuple[str, str], ...]:
    """Pairs of products that differ in one detail, such as ("gear", "gear-missing_hole").

    Both names go wherever a product is asked for. A detail that is a fault of the first is how every good
    image of the second looks, always at the same place.
    """
    return tuple((product, f"{product}-{detail}") for product, detail in _DETAILS.items())


def varieties(count: int) -> tuple[str, ...]:
    """Names of ``count`` different products, such as "gear-03": the seven in turn, each time another variety.

    A variety may lie mirrored or turned by quarters, be of another colour, and have a detail of its own.
    Number 0 is drawn as the product itself is. ConfigError for less than one or more than there are.
    """
    number = _whole("count", count, 1, len(PRODUCTS) * VARIETIES)
    return tuple(f"{PRODUCTS[i % len(PRODUCTS)]}-{i // len(PRODUCTS):02d}" for i in range(number))


def defect_kinds(product: str) -> tuple[str, ...]:
    """The kinds of fault that ``product`` can have, sorted; ConfigError for an unknown product."""
    return _maker(product).kinds


def make_sample(product: str, seed: int, *, kind: str = "good", size: int = 256) -> Sample:
    """One photograph of ``product``, ``size`` pixels wide and high (64 to 512).

    Equal arguments give equal bytes (with the same numpy). A faulty sample is the good sample of the same
    seed with the fault in it: outside its mask their pixels are equal.
    ConfigError for an unknown product or kind, a negative seed, or a size out of range.
    """
    maker = _maker(product)
    if kind != "good" and kind not in maker.kinds:
        raise ConfigError(f"expected a kind of {product} among good, {', '.join(maker.kinds)}; got {kind!r}")
    seed, size = _whole("seed", seed, 0), _whole("size", size, *_SIZES)
    camera = _Camera(_generator(product, seed, "camera"), size)
    design = maker.design(_generator(product, seed, "design"))
    scene = maker.draw(design, camera.drawn_size)
    photo = camera.expose(scene.image)
    mask = np.zeros((size, size), np.bool_)
    if kind != "good":
        faulty, mask = _with_fault(
            maker, design, scene, camera=camera, photo=photo, stem=(product, seed, kind)
        )
        photo = np.where(mask[..., None], faulty, photo)
    return Sample(camera.develop(photo), mask, kind)


def write_product(
    product: str,
    root: str | Path,
    *,
    train: int = 40,
    test_good: int = 10,
    test_defective: int = 12,
    seed: int = 0,
    size: int = 256,
) -> Path:
    """Write ``product`` below ``root`` as PNG in MVTec AD's layout; returns the product's folder.

    Faulty images are spread evenly over the kinds. No two files share a seed, and a file's content depends on
    its name, ``seed`` and ``size`` alone, so writing again with other numbers mixes nothing up.
    ConfigError as for ``make_sample``, and for a negative or absurd number of images.
    """
    kinds = defect_kinds(product)
    seed = _whole("seed", seed, 0)
    counts = [_whole("train", train, 0, _SPLIT_SPAN), _whole("test_good", test_good, 0, _SPLIT_SPAN)]
    share, rest = divmod(_whole("test_defective", test_defective, 0, _SPLIT_SPAN), len(kinds))
    counts += [share + (i < rest) for i in range(len(kinds))]
    splits = [("train", "good"), ("test", "good"), *(("test", kind) for kind in kinds)]
    folder = Path(root) / product
    first = seed * len(splits) * _SPLIT_SPAN
    for number, ((split, kind), count) in enumerate(zip(splits, counts, strict=True)):
        for i in range(count):
            sample = make_sample(product, first + number * _SPLIT_SPAN + i, kind=kind, size=size)
            _write(sample, folder, split, f"{i:03d}")
    return folder


def _write(sample: Sample, folder: Path, split: str, name: str) -> None:
    _save(sample.image, folder / split / sample.kind / f"{name}.png")
    if sample.kind != "good":
        mask = sample.mask.astype(np.uint8) * np.uint8(255)
        _save(mask, folder / "ground_truth" / sample.kind / f"{name}_mask.png")


def _save(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def _maker(product: str) -> _Maker:
    original, _, variety = product.partition("-")
    maker = _MAKERS.get(original)
    if maker is not None and product == original:
        return maker
    if maker is not None and variety == _DETAILS.get(original):
        return _with_detail(maker, original, variety)
    if maker is not None and variety in (f"{number:02d}" for number in range(VARIETIES)):
        return _variety(maker, original, int(variety))
    raise ConfigError(
        f"expected a product among {', '.join(PRODUCTS)}, a look-alike or a variety of one; got {product!r}"
    )


def _with_detail(maker: _Maker, product: str, detail: str, number: int = 0) -> _Maker:
    """Every design has the same detail at the same place."""

    def design(rng: np.random.Generator) -> Any:
        return maker.edits[detail](maker.design(rng), _generator(product, number, detail), 1.0)

    return replace(maker, design=design)


def _variety(maker: _Maker, product: str, number: int) -> _Maker:
    """How a variety lies, its colour, and its detail; number 0 changes nothing."""
    if number == 0:
        return maker
    turns, mirrored, step = number % 4, number // 4 % 2 == 1, number // 2
    hue = 0.37 * step if product in _PAINTED else 0.0  # of the circle; no two of six alike
    stain = _STAINS[0 if product in _PAINTED else step % len(_STAINS)]
    detail = _DETAILS.get(product)
    if detail is not None and number % 3:
        maker = _with_detail(maker, product, detail, number)

    def draw(design: Any, size: int) -> Scene:
        scene = maker.draw(design, size)
        image, region = np.rot90(scene.image, turns), np.rot90(scene.region, turns)
        if mirrored:
            image, region = image[:, ::-1], region[:, ::-1]
        return Scene(_repainted(np.ascontiguousarray(image), hue, stain), np.ascontiguousarray(region))

    return replace(maker, draw=draw)


def _repainted(image: FloatArray, hue: float, stain: Colour) -> FloatArray:
    """The picture in 0..1 with all hues turned by a part of the circle, seen through a stain."""
    # A turn about the grey axis, as the matrix that takes pure red to the turned pure red and so on.
    primaries = [colorsys.hsv_to_rgb((i / 3 + hue) % 1, 1, 1) for i in range(3)]
    grey = np.full((3, 3), 1 / 3)
    turned_hues = np.asarray(primaries) - np.mean(primaries, axis=1, keepdims=True) + grey
    return np.clip(image @ np.asarray(turned_hues, np.float32) * np.asarray(stain, np.float32), 0, 1)


def _whole(name: str, value: int, low: int, high: int | None = None) -> int:
    expected = f"expected {name} to be a whole number, {low} {'or more' if high is None else f'to {high}'}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{expected}; got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ConfigError(f"{expected}; got {number}")
    return number


def _generator(product: str, seed: int, purpose: str, attempt: int = 0) -> np.random.Generator:
    # Names go in by a checksum: Python's own hash of a string differs from one process to the next.
    names = [zlib.crc32(name.encode()) for name in (product, purpose)]
    return np.random.default_rng(np.random.SeedSequence([*names, attempt, seed]))


class _Camera:
    """Light, lens and sensor of one photograph: the same for the good and the faulty rendering."""

    def __init__(self, rng: np.random.Generator, size: int):
        # A small picture of a fine texture would alias: draw it larger and average.
        self._factor = 2 if size < 128 else 1
        self._rng = rng
        x, y = grid(size)
        way, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.10)
        ramp = 1 + np.float32(slope * np.cos(way)) * x + np.float32(slope * np.sin(way)) * y
        fall_off = 1 - np.float32(rng.uniform(0.02, 0.07)) * (x * x + y * y)
        lamp = 1 + 0.02 * noise(rng, size, 3)
        tint = rng.uniform(0.90, 1.08) * (1 + rng.normal(0, 0.006, 3))
        self._light = tinted((tint[0], tint[1], tint[2]), ramp * fall_off * lamp)
        self._grain = np.float32(rng.uniform(0.008, 0.014))
        self._size = size

    @property
    def drawn_size(self) -> int:
        """Size at which scenes are drawn for this camera."""
        return self._factor * self._size

    def expose(self, image: FloatArray) -> FloatArray:
        """The noise-free photograph of a scene."""
        if self._factor > 1:
            corners = [
                image[i :: self._factor, j :: self._factor] for i, j in np.ndindex(self._factor, self._factor)
            ]
            image = sum(corners[1:], corners[0]) / np.float32(len(corners))
        return np.clip(image * self._light, 0, 1)

    def develop(self, photo: FloatArray) -> npt.NDArray[np.uint8]:
        """The photograph as pixels, with the sensor's noise; call once."""
        sensor = np.moveaxis(self._rng.standard_normal((3, *photo.shape[:2]), dtype=np.float32), 0, 2)
        noisy = photo + self._grain * (np.float32(0.5) + photo) * sensor
        return np.clip(noisy * 255 + np.float32(0.5), 0, 255).astype(np.uint8, order="C")


def _joined(changed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Changed pixels and the slits between them, where a fault happens to have the good product's colour."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not len(rows):
        return changed
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    reach = max(1, changed.shape[0] // 128)
    mask = changed.copy()
    mask[part] |= ndimage.binary_closing(changed[part], ndimage.generate_binary_structure(2, 2), reach)
    return mask


def _with_fault(
    maker: _Maker,
    design: Any,
    scene: Scene,
    *,
    camera: _Camera,
    photo: FloatArray,
    stem: tuple[str, int, str],
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """The noise-free photograph of the faulty product, and where it visibly differs from the good one's."""
    kind = stem[2]
    least = max(5, round(photo.shape[0] ** 2 / 2500))
    for attempt in range(_ATTEMPTS):
        rng = _generator(*stem, attempt)
        # What could not be seen is drawn again elsewhere, and plainer.
        severity = float(rng.uniform(0.15, 1.0)) + 0.1 * attempt
        if kind in maker.edits:
            image = maker.draw(maker.edits[kind](design, rng, severity), scene.size).image
        else:
            image = np.clip(maker.paints[kind](scene, rng, severity), 0, 1)
        faulty = camera.expose(image)
        mask = _joined(np.abs(faulty - photo).max(axis=2) > _VISIBLE)
        if np.count_nonzero(mask) >= least:
            return faulty, mask
    raise AssertionError(f"no visible {kind} of {stem[0]} in {_ATTEMPTS} attempts")
