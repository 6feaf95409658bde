"""How an object lies on its bench: its pose and its shadow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import FloatArray, Point, Scene, blend, softened


@dataclass(frozen=True)
class Pose:
    """How a product lies: turned by ``angle`` (radians), moved by ``shift``; ``grain`` seeds its texture."""

    grain: int
    angle: float
    shift: Point


def draw_pose(rng: np.random.Generator, degrees: float = 3.0, reach: float = 0.04) -> Pose:
    """Turned by at most ``degrees`` and moved by at most ``reach``."""
    angle = float(np.deg2rad(rng.uniform(-degrees, degrees)))
    shift = float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach))
    return Pose(int(rng.integers(2**31)), angle, shift)


def on_bench(body: FloatArray, shape: FloatArray, bench: FloatArray) -> Scene:
    """The product over its bench, with the shadow that it casts."""
    shadow = softened(shape, 0.04, (0.035, 0.05))
    image = blend(bench * (1 - 0.55 * shadow[..., None]), body, shape)
    return Scene(np.clip(image, 0, 1), shape)
