"""A lacquered crown cork with a printed mark."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .bench import Pose, draw_pose, on_bench
from .canvas import (
    Colour,
    FloatArray,
    Point,
    Scene,
    blend,
    coverage,
    noise,
    polar,
    relief,
    smoothstep,
    tinted,
    turned,
    varied,
)

_FLUTES = 21


@dataclass(frozen=True)
class BottleCap:
    """A crown cork from above. The print may sit off centre; ``bend`` is (angle, depth) of a crushed rim."""

    pose: Pose
    paint: Colour
    bench: Colour
    print_shift: Point
    print_strength: float
    bend: tuple[float, float] = (0.0, 0.0)


def design_cap(rng: np.random.Generator) -> BottleCap:
    """A cap whose print sits within tolerance."""
    return BottleCap(
        draw_pose(rng, 6.0, 0.05),
        varied(rng, (0.72, 0.10, 0.11), 0.07),
        varied(rng, (0.68, 0.69, 0.68), 0.06),
        (float(rng.normal(0, 0.006)), float(rng.normal(0, 0.006))),
        float(rng.uniform(0.86, 0.97)),
    )


def _star(x: FloatArray, y: FloatArray, outer: float) -> FloatArray:
    """Signed distance, near enough, to a five-pointed star."""
    radius, angle = polar(x, y)
    fifth = np.float32(2 * np.pi / 5)
    folded = np.abs((angle + np.float32(np.pi / 2) + 3 * fifth) % fifth - fifth / 2)
    # The edge from a tip (folded == fifth / 2) to a notch is a straight line: n . p = c.
    tip, notch = np.asarray((outer, 0.0)), 0.42 * outer * np.asarray((np.cos(np.pi / 5), np.sin(np.pi / 5)))
    edge = notch - tip
    normal = np.asarray((-edge[1], edge[0])) / np.hypot(*edge)
    normal = normal * np.sign(normal @ tip)
    from_tip = fifth / 2 - folded
    return radius * (
        np.float32(normal[0]) * np.cos(from_tip) + np.float32(normal[1]) * np.sin(from_tip)
    ) - np.float32(normal @ tip)


def _print_cover(cap: BottleCap, x: FloatArray, y: FloatArray) -> FloatArray:
    """The printed mark: a ring, a star, and beads between them."""
    x, y = x - np.float32(cap.print_shift[0]), y - np.float32(cap.print_shift[1])
    radius, angle = polar(x, y)
    ring = np.abs(radius - 0.47) - 0.022
    at = (angle * np.float32(24 / (2 * np.pi))) % 1 - 0.5
    beads = np.hypot(radius - 0.40, at * np.float32(2 * np.pi / 24 * 0.40)) - 0.022
    return coverage(np.minimum(np.minimum(ring, beads), _star(x, y, 0.31)))


def draw_cap(cap: BottleCap, size: int) -> Scene:
    """Lacquered tin: a flat printed top, a shoulder, a fluted skirt."""
    rng = np.random.default_rng(cap.pose.grain)
    x, y = turned(size, cap.pose.angle, cap.pose.shift)
    radius, angle = polar(x, y)
    away = np.angle(np.exp(1j * (angle - cap.bend[0]))).astype(np.float32) if cap.bend[1] else angle
    crushed = np.float32(cap.bend[1]) * np.exp(-((away / 0.2) ** 2))
    flute = np.cos(np.float32(_FLUTES) * angle)
    skirt = smoothstep(0.58, 0.74, radius)
    outline = radius - (0.775 - crushed + 0.028 * flute)
    shape = coverage(outline)
    drop = -0.17 * smoothstep(0.54, 0.80, radius + 1.3 * crushed * skirt) * (1 + 0.35 * flute * skirt)
    height = drop + 0.012 * smoothstep(0.535, 0.515, radius) - 0.03 * radius * radius
    facing = relief(height)
    lacquer = blend(
        tinted(cap.paint, np.ones((size, size), np.float32)),
        (0.93, 0.90, 0.84),
        np.float32(cap.print_strength) * _print_cover(cap, x, y),
    )
    shade = 0.88 + 0.42 * facing + 0.012 * noise(rng, size, 60) + 0.02 * noise(rng, size, 5)
    gloss = 0.55 * np.clip(facing - 0.22, 0, 0.6) + 0.10 * np.exp(
        -(((x + 0.22) ** 2 + (y + 0.3) ** 2) / 0.07)
    )
    body = lacquer * shade[..., None] + gloss[..., None]
    bench = tinted(cap.bench, 1 + 0.02 * noise(rng, size, 100) + 0.03 * noise(rng, size, 5, 2))
    return on_bench(body, shape, bench)


def shift_print(cap: BottleCap, rng: np.random.Generator, severity: float) -> BottleCap:
    """The mark was printed off centre."""
    angle, far = rng.uniform(0, 2 * np.pi), 0.012 + 0.1 * min(1.2, severity)
    x, y = cap.print_shift
    return replace(cap, print_shift=(float(x + far * np.cos(angle)), float(y + far * np.sin(angle))))


def bend_rim(cap: BottleCap, rng: np.random.Generator, severity: float) -> BottleCap:
    """The skirt is pressed in at one place."""
    return replace(cap, bend=(float(rng.uniform(-np.pi, np.pi)), 0.03 + 0.08 * min(1.5, severity)))
