"""A blister pack of capsules."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .bench import Pose, draw_pose, on_bench
from .canvas import (
    Colour,
    FloatArray,
    Scene,
    blend,
    coverage,
    noise,
    relief,
    smoothstep,
    softened,
    tinted,
    turned,
    varied,
)

_ROWS, _COLUMNS = 4, 3
_PITCH_X, _PITCH_Y = 0.50, 0.40


@dataclass(frozen=True)
class Blister:
    """Capsules behind clear domes on foil. Arrays are (rows, columns); ``left`` is the share still there."""

    pose: Pose
    caps: Colour
    bench: Colour
    place: npt.NDArray[np.float32]  # (2, rows, columns): x and y in the pocket
    turn: npt.NDArray[np.float32]
    left: npt.NDArray[np.float32]
    strange: tuple[int, int] | None = None
    strange_colour: Colour = (0.0, 0.0, 0.0)


def design_blister(rng: np.random.Generator) -> Blister:
    """A full pack; each capsule rolls about in its pocket."""
    shape = (_ROWS, _COLUMNS)
    return Blister(
        draw_pose(rng, 2.5, 0.035),
        varied(rng, (0.82, 0.42, 0.12), 0.07),
        varied(rng, (0.30, 0.36, 0.44), 0.08),
        rng.normal(0, 0.008, (2, *shape)).astype(np.float32),
        rng.normal(0, 0.07, shape).astype(np.float32),
        np.ones(shape, np.float32),
    )


def _pockets(
    x: FloatArray, y: FloatArray
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray, FloatArray]:
    """Row and column of the nearest pocket, and the place (x, y) in it."""
    column = np.clip(np.floor(x / _PITCH_X + _COLUMNS / 2), 0, _COLUMNS - 1)
    row = np.clip(np.floor(y / _PITCH_Y + _ROWS / 2), 0, _ROWS - 1)
    u = x - np.float32(_PITCH_X) * (column - (_COLUMNS - 1) / 2)
    v = y - np.float32(_PITCH_Y) * (row - (_ROWS - 1) / 2)
    return row.astype(np.intp), column.astype(np.intp), u, v


def _pill(u: FloatArray, v: FloatArray, half: float, radius: float) -> FloatArray:
    """Signed distance to a lying capsule."""
    return np.hypot((np.abs(u) - np.float32(half)).clip(0), v) - np.float32(radius)


def _in_capsule(
    pack: Blister, cell: npt.NDArray[np.intp], u: FloatArray, v: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Places in a pocket as seen from its capsule, along and across it, and the share of it that is left."""
    x, y, turn, left = (np.take(values, cell) for values in (*pack.place, pack.turn, pack.left))
    u, v, c, s = u - x, v - y, np.cos(turn), np.sin(turn)
    return c * u + s * v, c * v - s * u, left


def draw_blister(pack: Blister, size: int) -> Scene:
    """Embossed foil, two-coloured capsules, and the lamp's reflection on every dome."""
    rng = np.random.default_rng(pack.pose.grain)
    x, y = turned(size, pack.pose.angle, pack.pose.shift)
    row, column, u, v = _pockets(x, y)
    emboss = np.cos(np.float32(np.pi * 26) * (x + y)) * np.cos(np.float32(np.pi * 26) * (x - y))
    foil = 0.70 + 0.05 * emboss + 0.05 * noise(rng, size, 3, 7) + 0.02 * noise(rng, size, 80)
    dome = _pill(u, v, 0.085, 0.135)
    foil = foil - 0.22 * smoothstep(0.02, -0.02, dome) + 0.5 * relief(0.03 * smoothstep(0.01, -0.035, dome))
    body = tinted((0.97, 0.98, 1.0), foil)

    a, b, left = _in_capsule(pack, row * _COLUMNS + column, u, v)
    pill = _pill(a, b, 0.075, 0.0)
    # A broken capsule ends early, in a ragged edge.
    cut = a - (0.36 * left - 0.18) + 0.012 * noise(rng, size, 70)
    cover = coverage(np.maximum(pill - np.float32(0.088), np.where(left < 1, cut, np.float32(-1))))
    round_off = np.sqrt((1 - (pill / np.float32(0.09)) ** 2).clip(0.02))
    shade = 0.45 + 0.58 * round_off + 0.25 * relief(0.06 * round_off)
    shell = tinted(pack.caps, shade)
    if pack.strange is not None:
        at = (row == pack.strange[0]) & (column == pack.strange[1])
        shell = blend(shell, tinted(pack.strange_colour, shade), at.astype(np.float32))
    shell = blend(shell, tinted((0.90, 0.88, 0.83), shade), coverage(np.float32(0.01) - a))
    shadow = softened(cover, 0.02, (0.02, 0.03))
    body = blend(body * (1 - 0.35 * shadow[..., None]), shell, cover)
    glint = np.exp(-(((u + 0.045) / 0.07) ** 2) - ((v + 0.065) / 0.018) ** 2)
    body = body + 0.42 * (glint * smoothstep(0.0, -0.02, dome))[..., None]
    edge = np.hypot((np.abs(x) - 0.77).clip(0), (np.abs(y) - 0.83).clip(0)) - 0.05
    bench = tinted(pack.bench, 1 + 0.03 * noise(rng, size, 110) + 0.04 * noise(rng, size, 4))
    return on_bench(body, coverage(edge), bench)


def _draw_pocket(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(_ROWS)), int(rng.integers(_COLUMNS))


def _leave(pack: Blister, pocket: tuple[int, int], share: float) -> Blister:
    left = pack.left.copy()
    left[pocket] = share
    return replace(pack, left=left)


def lose_capsule(pack: Blister, rng: np.random.Generator, severity: float) -> Blister:
    """One pocket is empty."""
    return _leave(pack, _draw_pocket(rng), -1.0)


def break_capsule(pack: Blister, rng: np.random.Generator, severity: float) -> Blister:
    """One capsule has lost an end."""
    return _leave(pack, _draw_pocket(rng), float(np.clip(0.92 - 0.4 * severity, 0.3, 0.9)))


def swap_capsule(pack: Blister, rng: np.random.Generator, severity: float) -> Blister:
    """One capsule is of another product, from nearly the same hue to quite another."""
    other = np.asarray([(0.18, 0.42, 0.66), (0.30, 0.55, 0.22), (0.66, 0.12, 0.16)][rng.integers(3)])
    share = min(1.0, 0.15 + 0.8 * severity)
    r, g, b = ((1 - share) * np.asarray(pack.caps) + share * other).tolist()
    return replace(pack, strange=_draw_pocket(rng), strange_colour=(r, g, b))
