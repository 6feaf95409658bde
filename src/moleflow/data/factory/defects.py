"""Faults painted on a finished surface. Each takes a scene, a generator and a severity (0 hard to see,
1 plain) and returns the faulty image (H, W, 3); faults stay on the product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .canvas import (
    Colour,
    FloatArray,
    Pen,
    Point,
    Scene,
    blend,
    grid,
    noise,
    relief,
    smoothstep,
    softened,
    tinted,
)


def _spot(scene: Scene, rng: np.random.Generator, margin: float = 0.1) -> Point:
    """Any place on the product, not at the picture's border."""
    x, y = grid(scene.size)
    allowed = (scene.region > 0.9) & (np.maximum(np.abs(x), np.abs(y)) < 1 - margin)
    places = np.flatnonzero(allowed)
    place = places[rng.integers(len(places))]
    return float(x.flat[place]), float(y.flat[place])


def _blob(
    scene: Scene, rng: np.random.Generator, radius: float, *, ragged: float, stretch: float = 1.4
) -> FloatArray:
    """Distance from a ragged spot's middle, (H, W): 1 at its edge."""
    cx, cy = _spot(scene, rng, margin=min(0.4, 0.05 + radius))
    x, y = grid(scene.size)
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(1, stretch)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = c * (x - cx) + s * (y - cy), c * (y - cy) - s * (x - cx)
    distance = np.hypot(u * np.float32(np.sqrt(aspect)), v / np.float32(np.sqrt(aspect))) / np.float32(radius)
    cells = int(np.clip(2.2 / radius, 4, 90))
    return np.asarray(distance + np.float32(ragged) * noise(rng, scene.size, cells), np.float32)


def _walk(start: Point, headings: npt.NDArray[np.float64], length: float) -> list[Point]:
    """Points of a line of equal steps in the given directions (radians)."""
    x = start[0] + np.cumsum(np.cos(headings)) * length / len(headings)
    y = start[1] + np.cumsum(np.sin(headings)) * length / len(headings)
    return [start, *zip(x.tolist(), y.tolist(), strict=True)]


def _curve(
    rng: np.random.Generator, start: Point, length: float, *, bend: float, steps: int = 12
) -> list[Point]:
    """A walk from ``start`` whose direction drifts by ``bend`` radians a step."""
    return _walk(start, rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps)), length)


def _stroke(size: int, points: list[Point], width: float) -> FloatArray:
    pen = Pen(size)
    pen.line(points, width, 1.0)
    return pen.finished()


def scratch(
    scene: Scene, rng: np.random.Generator, severity: float, *, colour: Colour, depth: float = 0.5
) -> FloatArray:
    """A thin curved line of the bared material, with one bright and one dark bank."""
    length = 0.18 + 0.75 * severity * rng.uniform(0.6, 1)
    points = _curve(rng, _spot(scene, rng), length, bend=0.07)
    line = _stroke(scene.size, points, 0.010 + 0.008 * min(severity, 1.0)) * scene.region
    banks = relief(line * np.float32(0.02)) * scene.region
    image = blend(scene.image, colour, line * np.float32(min(0.95, 0.22 + 0.65 * severity)))
    return image + np.float32(depth * (0.3 + 0.5 * severity)) * banks[..., None]


def crack(
    scene: Scene, rng: np.random.Generator, severity: float, *, colour: Colour, grain: float | None = None
) -> FloatArray:
    """A jagged dark line with a branch, along the ``grain`` (radians) if the material has one."""
    jag = 0.55 if grain is None else 0.22
    way = rng.uniform(0, 2 * np.pi) if grain is None else grain + np.pi * rng.integers(2)
    main = _walk(_spot(scene, rng), way + rng.normal(0, jag, 14), 0.22 + 0.5 * severity)
    branch = _walk(main[7], way + jag + rng.normal(0, jag, 6), 0.08 + 0.15 * severity)
    pen = Pen(scene.size)
    pen.line(main, 0.013, 1.0)
    pen.line(main[:7], 0.019, 1.0)
    pen.line(branch, 0.010, 1.0)
    line = pen.finished() * scene.region
    image = blend(scene.image, colour, line * np.float32(min(0.95, 0.45 + 0.5 * severity)))
    return image - np.float32(0.25) * relief(line * np.float32(0.02))[..., None] * scene.region[..., None]


def stain(scene: Scene, rng: np.random.Generator, severity: float, *, colour: Colour) -> FloatArray:
    """A spilt liquid that dries darkest at its rim and lets the material show through."""
    radius = rng.uniform(0.09, 0.16) + 0.1 * min(severity, 1.0)
    distance = _blob(scene, rng, radius, ragged=0.16, stretch=1.8)
    soaked = smoothstep(1.05, 0.85, distance)
    rim = np.exp(-(((distance - 0.93) / 0.09) ** 2))
    alpha = (soaked + 0.45 * rim) * np.float32(0.16 + 0.42 * severity) * scene.region
    return blend(scene.image, scene.image * np.asarray(colour, np.float32), alpha.clip(0, 1))


def hole(
    scene: Scene, rng: np.random.Generator, severity: float, *, below: Colour, rim: Colour
) -> FloatArray:
    """A puncture: the dark below, deeper on the lamp's side, and a torn rim."""
    distance = _blob(scene, rng, 0.028 + 0.075 * severity, ragged=0.2)
    open_part = smoothstep(1.0, 0.86, distance) * scene.region
    torn = np.exp(-(((distance - 1.08) / 0.13) ** 2)) * scene.region
    image = blend(scene.image, rim, 0.55 * torn)
    image = blend(image, below, 0.95 * open_part)
    wall = relief(np.float32(-0.05) * open_part) * open_part
    return np.asarray(image + np.float32(0.12) * wall[..., None], np.float32)


def dent(scene: Scene, rng: np.random.Generator, severity: float) -> FloatArray:
    """A smooth dimple, dark on the lamp's side and bright opposite."""
    radius = rng.uniform(0.07, 0.14) + 0.05 * min(severity, 1.0)
    distance = _blob(scene, rng, radius, ragged=0.05)
    bowl = -np.float32(radius) * np.exp(-(distance**2) * 1.3)
    shade = np.float32(0.16 + 0.34 * severity) * relief(bowl) * scene.region
    return scene.image * (1 + shade[..., None])


def contamination(scene: Scene, rng: np.random.Generator, severity: float, *, colour: Colour) -> FloatArray:
    """A fibre or a few grains that fell on the product, each with its shadow."""
    pen = Pen(scene.size)
    start = _spot(scene, rng, margin=0.2)
    if rng.random() < 0.5:
        points = _curve(rng, start, 0.25 + 0.4 * severity, bend=0.35, steps=22)
        pen.line(points, 0.012 + 0.006 * min(severity, 1.0), 1.0)
    else:
        for _ in range(rng.integers(2, 6)):
            x, y = (c + rng.normal(0, 0.05) for c in start)
            width, height = rng.uniform(0.018, 0.03 + 0.035 * severity, 2)
            pen.box((x, y), width, height, 1.0, rng.uniform(0, np.pi))
    body = pen.finished() * scene.region
    shadow = softened(body, 0.012, (0.012, 0.016)) * scene.region
    image = scene.image * (1 - 0.4 * shadow[..., None])
    lit = np.asarray(colour, np.float32) * (1 + 6 * relief(0.012 * body)[..., None]).clip(0.5, 1.6)
    return blend(image, lit, body * np.float32(min(0.95, 0.45 + 0.5 * severity)))


def rust(scene: Scene, rng: np.random.Generator, severity: float) -> FloatArray:
    """A field of orange-brown pits in a paler bloom."""
    distance = _blob(scene, rng, 0.07 + 0.13 * severity, ragged=0.2, stretch=2.0)
    texture = np.asarray(noise(rng, scene.size, 80) + 0.7 * noise(rng, scene.size, 24), np.float32)
    bloom = smoothstep(1.05, 0.3, distance + np.float32(0.12) * texture)
    pits = smoothstep(0.3, -0.3, distance - np.float32(0.75) + np.float32(0.35) * texture)
    tone = 0.8 + 0.14 * noise(rng, scene.size, 90) - 0.2 * pits
    alpha = (0.45 * bloom + 0.55 * pits) * scene.region
    return blend(
        scene.image, tinted((0.66, 0.38, 0.19), tone), alpha * np.float32(min(0.95, 0.35 + 0.55 * severity))
    )
