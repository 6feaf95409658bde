"""A spur gear of turned steel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .bench import Pose, draw_pose, on_bench
from .canvas import (
    Colour,
    FloatArray,
    Scene,
    coverage,
    noise,
    polar,
    relief,
    smoothstep,
    tinted,
    turned,
    varied,
)

_TEETH = 24
_TIP, _ROOT = 0.84, 0.70
_WEB_HOLES = 6


@dataclass(frozen=True)
class Gear:
    """A spur gear. ``teeth`` are heights, 1 for a whole one; ``open_holes`` tells which holes are drilled."""

    pose: Pose
    tone: Colour
    bench: Colour
    sheen: float  # direction of the turned surface's bright sector
    teeth: tuple[float, ...] = (1.0,) * _TEETH
    open_holes: tuple[bool, ...] = (True,) * _WEB_HOLES


def design_gear(rng: np.random.Generator) -> Gear:
    """A gear lying a few degrees off."""
    return Gear(
        draw_pose(rng, 4.0),
        varied(rng, (0.66, 0.66, 0.65), 0.06),
        varied(rng, (0.20, 0.23, 0.27), 0.12),
        float(rng.uniform(0.5, 1.1)),
    )


def _toothed(radius: FloatArray, angle: FloatArray, teeth: tuple[float, ...]) -> FloatArray:
    """Signed distance to the outline of a toothed wheel: a disc and teeth that narrow outwards."""
    phase = angle * np.float32(_TEETH / (2 * np.pi)) + np.float32(_TEETH)
    index = np.floor(phase)
    heights = np.asarray(teeth, np.float32)[index.astype(np.intp) % _TEETH]
    off = 2 * np.abs(phase - index - 0.5)  # 0 in the middle of a tooth, 1 between two
    rise = (radius - _ROOT) / np.float32(_TIP - _ROOT)  # 0 at a tooth's root, 1 at its tip
    flank = (off - 0.74 + 0.34 * rise) * radius * np.float32(np.pi / _TEETH)
    tip = (rise - heights) * np.float32(_TIP - _ROOT)
    return np.minimum(radius - np.float32(_ROOT), np.maximum(flank, tip))


def _gear_openings(gear: Gear, x: FloatArray, y: FloatArray) -> FloatArray:
    """Signed distance to bore, keyway and the holes in the web."""
    keyway = np.maximum(np.abs(x) - 0.035, np.abs(y + 0.13) - 0.06)
    distance = np.minimum(np.hypot(x, y) - 0.13, keyway)
    for number, is_open in enumerate(gear.open_holes):
        if is_open:
            at = 2 * np.pi * (number + 0.5) / _WEB_HOLES
            hole = np.hypot(x - np.float32(0.38 * np.cos(at)), y - np.float32(0.38 * np.sin(at))) - 0.075
            distance = np.minimum(distance, hole)
    return distance


def draw_gear(gear: Gear, size: int) -> Scene:
    """Turned steel: concentric tool marks, two bright sectors, a recessed web."""
    rng = np.random.default_rng(gear.pose.grain)
    x, y = turned(size, gear.pose.angle, gear.pose.shift)
    radius, angle = polar(x, y)
    outline = np.maximum(_toothed(radius, angle, gear.teeth), -_gear_openings(gear, x, y))
    shape = coverage(outline)
    web = smoothstep(0.235, 0.27, radius) * smoothstep(0.55, 0.515, radius)
    bevel = smoothstep(0.0, -0.03, outline)
    height = np.float32(0.02) * bevel - np.float32(0.045) * web
    marks = 0.028 * rng.standard_normal(256, dtype=np.float32)
    tool = np.interp(radius, np.linspace(0, 1.5, 256), marks).astype(np.float32)
    sheen = np.cos(angle + np.float32(gear.pose.angle - gear.sheen)) ** 2
    shade = 0.72 + 0.30 * sheen * sheen + tool - 0.16 * web + 0.02 * noise(rng, size, 90)
    shade = shade + 0.45 * relief(height)
    bench = tinted(gear.bench, 1 + 0.07 * noise(rng, size, 120) + 0.06 * noise(rng, size, 6))
    return on_bench(tinted(gear.tone, shade), shape, bench)


def lose_tooth(gear: Gear, rng: np.random.Generator, severity: float) -> Gear:
    """One tooth is gone."""
    lost = int(rng.integers(_TEETH))
    return replace(gear, teeth=tuple(0.0 if i == lost else h for i, h in enumerate(gear.teeth)))


def wear_tooth(gear: Gear, rng: np.random.Generator, severity: float) -> Gear:
    """One tooth, or two neighbours, are shorter than they should be."""
    first, number = int(rng.integers(_TEETH)), int(rng.integers(1, 3))
    worn = {(first + i) % _TEETH for i in range(number)}
    left = float(np.clip(0.82 - 0.4 * severity, 0.15, 0.8))
    return replace(gear, teeth=tuple(left if i in worn else h for i, h in enumerate(gear.teeth)))


def leave_hole_undrilled(gear: Gear, rng: np.random.Generator, severity: float) -> Gear:
    """One hole in the web was never drilled."""
    blind = int(rng.integers(_WEB_HOLES))
    return replace(gear, open_holes=tuple(i != blind for i in range(_WEB_HOLES)))
