"""Products that fill the picture: woven cloth, wood, brushed metal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from .canvas import (
    Colour,
    FloatArray,
    Point,
    Scene,
    blend,
    noise,
    smoothstep,
    tinted,
    turned,
    varied,
)

_THREADS = 120  # more than ever fit the picture, whatever its shift


def _everywhere(image: FloatArray) -> Scene:
    return Scene(np.clip(image, 0, 1), np.ones(image.shape[:2], np.float32))


def _draw_shift(rng: np.random.Generator, reach: float) -> Point:
    return float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach))


@dataclass(frozen=True)
class Run:
    """A stretch of one thread, in threads: its number and where it begins and ends."""

    thread: int
    start: float
    stop: float


@dataclass(frozen=True)
class Cloth:
    """A plain weave. ``gap`` is a stretch of weft that is missing, ``foreign`` one of another yarn."""

    grain: int
    angle: float
    shift: Point
    density: float  # threads in half a picture
    warp: Colour
    weft: Colour
    gap: Run | None = None
    foreign: Run | None = None
    foreign_yarn: Colour = (0.0, 0.0, 0.0)


def design_cloth(rng: np.random.Generator) -> Cloth:
    """A piece of cloth: any shift, a few degrees askew, yarn of a slightly other thickness and dye."""
    return Cloth(
        grain=int(rng.integers(2**31)),
        angle=float(rng.normal(0, 0.025)),
        shift=_draw_shift(rng, 0.3),
        density=float(rng.uniform(12.5, 14.5)),
        warp=varied(rng, (0.80, 0.73, 0.62), 0.06),
        weft=varied(rng, (0.72, 0.64, 0.52), 0.06),
    )


def _thread_positions(rng: np.random.Generator, along: FloatArray) -> FloatArray:
    """Position in threads; each has a width of its own."""
    edges = np.cumsum(1 + 0.07 * rng.standard_normal(_THREADS))
    middle = edges[_THREADS // 2]
    return np.interp(along, edges - middle, np.arange(_THREADS)).astype(np.float32)


def _on_run(run: Run, thread: FloatArray, along: FloatArray) -> npt.NDArray[np.bool_]:
    return (thread == run.thread) & (along > run.start) & (along < run.stop)


def _yarn_shade(across: FloatArray, along: FloatArray) -> FloatArray:
    """A round yarn that dives at both ends of its cell, lit a little from one side, with its twist."""
    body = (1 - (1.85 * across) ** 2) * (1 - 0.55 * (2 * along) ** 2)
    twist = np.cos(np.float32(2 * np.pi) * (2 * along + 1.2 * across))
    return np.asarray(0.32 + 0.68 * body - 0.18 * across + 0.045 * twist, np.float32)


def draw_cloth(cloth: Cloth, size: int) -> Scene:
    """Threads over and under each other, by their positions."""
    rng = np.random.default_rng(cloth.grain)
    x, y = turned(size, cloth.angle, cloth.shift)
    density = np.float32(cloth.density)
    u = _thread_positions(rng, density * x + 0.14 * noise(rng, size, 5))
    v = _thread_positions(rng, density * y + 0.14 * noise(rng, size, 5))
    column, row = np.floor(u), np.floor(v)
    across, along = u - column - 0.5, v - row - 0.5
    warp_above = (column + row) % 2 < 1
    lightness = 1 + 0.07 * rng.standard_normal((2, _THREADS), dtype=np.float32)
    fibre = 1 + 0.05 * noise(rng, size, 110)
    warp = _yarn_shade(across, along) * lightness[0][column.astype(np.intp)] * fibre
    weft = _yarn_shade(along, across) * lightness[1][row.astype(np.intp)] * fibre
    weft_colour = tinted(cloth.weft, weft)
    if cloth.foreign is not None:
        dyed = _on_run(cloth.foreign, row, u)
        weft_colour = np.where(dyed[..., None], tinted(cloth.foreign_yarn, weft), weft_colour)
    if cloth.gap is not None:
        # Without its weft the warp lies loose and the dark below shows between the threads.
        empty = _on_run(cloth.gap, row, u)
        warp_above = warp_above | empty
        warp = np.where(empty, 0.72 * (1 - (2.3 * across) ** 2).clip(0.12), warp)
    return _everywhere(np.where(warp_above[..., None], tinted(cloth.warp, warp), weft_colour))


def _draw_run(cloth: Cloth, rng: np.random.Generator, length: float) -> Run:
    reach = 0.75 * cloth.density
    middle = _THREADS // 2
    thread = middle + round((rng.uniform(-reach, reach)) - cloth.density * cloth.shift[1])
    start = middle + rng.uniform(-reach, reach - length) - cloth.density * cloth.shift[0]
    return Run(thread, start, start + length)


def break_thread(cloth: Cloth, rng: np.random.Generator, severity: float) -> Cloth:
    """A weft thread is torn and missing over a stretch."""
    return replace(cloth, gap=_draw_run(cloth, rng, 1.5 + min(9.0, 7 * severity)))


def swap_yarn(cloth: Cloth, rng: np.random.Generator, severity: float) -> Cloth:
    """A weft thread is of another dye over a stretch, from nearly its own to quite another."""
    other = np.asarray([(0.25, 0.32, 0.52), (0.62, 0.25, 0.2), (0.3, 0.3, 0.28)][rng.integers(3)])
    share = min(1.0, 0.3 + 0.6 * severity)
    r, g, b = ((1 - share) * np.asarray(cloth.weft) + share * other).tolist()
    run = _draw_run(cloth, rng, 3.0 + 9 * min(1.0, severity))
    return replace(cloth, foreign=run, foreign_yarn=(r, g, b))


@dataclass(frozen=True)
class Wood:
    """A planed board. ``knot`` is (x, y, radius) of a branch that grew through it."""

    grain: int
    angle: float
    shift: Point
    heart: float  # where the tree's axis lies across the board
    depth: float
    taper: float
    rings: float
    tone: Colour
    knot: tuple[float, float, float] | None = None


def design_wood(rng: np.random.Generator) -> Wood:
    """A board cut anywhere from the log."""
    return Wood(
        grain=int(rng.integers(2**31)),
        angle=float(rng.normal(0, 0.04)),
        shift=_draw_shift(rng, 0.1),
        heart=float(rng.choice([-1, 1]) * rng.uniform(0.2, 2.2)),
        depth=float(rng.uniform(0.25, 0.7)),
        taper=float(rng.uniform(-0.22, 0.22)),
        rings=float(rng.uniform(7.0, 10.0)),
        tone=varied(rng, (0.80, 0.60, 0.40), 0.09),
    )


def draw_wood(wood: Wood, size: int) -> Scene:
    """Year rings are a distance from the tree's axis; pores are streaks along the grain."""
    rng = np.random.default_rng(wood.grain)
    x, y = turned(size, wood.angle, wood.shift)
    knot_distance = None
    if wood.knot is not None:
        kx, ky, radius = wood.knot
        knot_distance = np.hypot(x - kx, 0.8 * (y - ky)) / np.float32(radius)
        # The grain flows around a knot: what lies beside it is pressed outwards.
        flow = np.exp(-((np.hypot(x - kx, 0.6 * (y - ky)) / np.float32(1.5 * radius)) ** 2))
        x = x - np.float32(0.5 * radius) * np.tanh((x - kx) / np.float32(0.4 * radius)) * flow
    x = x + 0.035 * noise(rng, size, 3, 5) + 0.006 * noise(rng, size, 9, 26)
    ring = np.hypot(x - wood.heart, wood.depth + wood.taper * y) * np.float32(wood.rings)
    year = np.floor(ring)
    late = (ring - year) ** 3 * smoothstep(1.0, 0.9, ring - year)
    strength = rng.uniform(0.55, 1.15, 64).astype(np.float32)[year.astype(np.intp) % 64]
    pores = np.minimum(noise(rng, size, 26, 190), 0) * 0.045 + noise(rng, size, 5, 90) * 0.024
    shade = 1 - 0.26 * late * strength + pores + 0.03 * noise(rng, size, 2, 4)
    image = tinted(wood.tone, shade)
    image = image - (late * strength)[..., None] * np.asarray(
        (0.0, 0.035, 0.05), np.float32
    )  # late wood is redder
    if knot_distance is not None:
        image = _with_knot(image, knot_distance)
    return _everywhere(image)


def _with_knot(image: FloatArray, distance: FloatArray) -> FloatArray:
    rings = 0.85 + 0.15 * np.cos(np.float32(2 * np.pi * 3) * distance)
    heartwood = tinted((0.42, 0.25, 0.13), rings * (0.75 + 0.35 * distance.clip(0, 1)))
    image = blend(image, heartwood, 0.9 * smoothstep(1.08, 0.86, distance))
    bark = np.exp(-(((distance - 1) / 0.13) ** 2))
    return blend(image, (0.22, 0.12, 0.06), 0.6 * bark)


def grow_knot(wood: Wood, rng: np.random.Generator, severity: float) -> Wood:
    """A branch, and the grain that flows around it."""
    x, y = rng.uniform(-0.65, 0.65, 2)
    return replace(wood, knot=(float(x), float(y), 0.035 + 0.1 * severity))


@dataclass(frozen=True)
class BrushedMetal:
    """A sheet brushed in one direction."""

    grain: int
    angle: float
    tone: Colour
    coarseness: float
    band: float  # where the lamp's broad reflection lies


def design_metal(rng: np.random.Generator) -> BrushedMetal:
    """A sheet from any place of the coil."""
    return BrushedMetal(
        grain=int(rng.integers(2**31)),
        angle=float(rng.normal(0, 1.5)),
        tone=varied(rng, (0.63, 0.65, 0.67), 0.05),
        coarseness=float(rng.uniform(0.8, 1.25)),
        band=float(rng.uniform(-1.2, 1.2)),
    )


def draw_metal(metal: BrushedMetal, size: int) -> Scene:
    """Streaks of several lengths under a broad reflection."""
    rng = np.random.default_rng(metal.grain)
    large = int(1.2 * size)  # room for turning
    fine = min(large, 300)
    streaks = 0.020 * noise(rng, large, fine, 2) + 0.030 * noise(rng, large, fine, 9)
    streaks = streaks + 0.022 * noise(rng, large, fine, 40) + 0.014 * noise(rng, large, fine // 4, 4)
    picture = Image.fromarray(streaks).rotate(metal.angle, Image.Resampling.BILINEAR)
    margin = (large - size) // 2
    streaks = np.asarray(picture)[margin : margin + size, margin : margin + size]
    x, y = turned(size, 0.0, (metal.band, 0.0))
    reflection = 0.15 * np.exp(-((0.9 * x + 0.12 * y) ** 2))
    shade = 0.93 + metal.coarseness * streaks + reflection + 0.012 * noise(rng, size, 4)
    return _everywhere(tinted(metal.tone, shade))
