"""A populated circuit board."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .bench import Pose, draw_pose, on_bench
from .canvas import (
    Colour,
    FloatArray,
    Pen,
    Point,
    Scene,
    coverage,
    noise,
    relief,
    softened,
    tinted,
    turned,
    varied,
)


@dataclass(frozen=True)
class Part:
    """A component on the board: its kind, centre, (length, width), angle, and whether it is there."""

    kind: str
    at: Point
    extent: Point
    angle: float = 0.0
    fitted: bool = True


_PARTS = (
    Part("chip", (-0.30, -0.28), (0.52, 0.40)),
    Part("chip", (0.50, 0.34), (0.34, 0.30)),
    Part("can", (0.52, -0.52), (0.30, 0.30)),
    Part("can", (-0.66, 0.58), (0.22, 0.22)),
    *(Part("resistor", (x, 0.18), (0.13, 0.07), np.pi / 2) for x in (-0.62, -0.48, -0.34, -0.20)),
    *(Part("capacitor", (x, 0.64), (0.14, 0.085)) for x in (-0.34, -0.12, 0.10)),
    Part("resistor", (0.12, -0.62), (0.13, 0.07)),
    Part("resistor", (0.12, -0.46), (0.13, 0.07)),
    Part("capacitor", (0.16, -0.20), (0.14, 0.085), np.pi / 2),
    Part("resistor", (0.72, -0.12), (0.13, 0.07)),
    Part("capacitor", (0.42, -0.12), (0.14, 0.085)),
    Part("resistor", (0.14, 0.28), (0.13, 0.07), np.pi / 2),
)
_TRACES: tuple[tuple[Point, ...], ...] = (
    *(((-0.62 + 0.14 * i, 0.26), (-0.62 + 0.14 * i, 0.40), (-0.50 + 0.12 * i, 0.52)) for i in range(4)),
    *(((-0.48 + 0.12 * i, -0.52), (-0.48 + 0.12 * i, -0.66), (-0.58 + 0.14 * i, -0.78)) for i in range(4)),
    *(((-0.02, -0.40 + 0.08 * i), (0.06, -0.40 + 0.08 * i), (0.14, -0.46 + 0.08 * i)) for i in range(4)),
    ((0.20, -0.62), (0.34, -0.62), (0.40, -0.56)),
    ((0.20, -0.46), (0.30, -0.46), (0.38, -0.50)),
    *(((0.38 + 0.08 * i, 0.17), (0.38 + 0.08 * i, 0.02), (0.44 + 0.09 * i, -0.06)) for i in range(4)),
    *(
        ((0.69, 0.24 + 0.07 * i), (0.78, 0.24 + 0.07 * i), (0.82, 0.28 + 0.08 * i), (0.82, 0.70))
        for i in range(3)
    ),
    ((0.14, 0.36), (0.14, 0.46), (0.32, 0.64), (0.60, 0.64), (0.66, 0.70)),
    ((-0.55, 0.62), (-0.44, 0.64)),
    ((-0.04, 0.64), (0.02, 0.64)),
)
_PINS = tuple((-0.58 + 0.145 * i, 0.83) for i in range(9))
_VIAS = (
    *((-0.58 + 0.14 * i, -0.78) for i in range(5)),
    *((-0.78, -0.55), (-0.78, -0.1), (0.0, 0.08), (0.3, 0.48), (0.8, -0.3), (-0.05, 0.45)),
)


@dataclass(frozen=True)
class Board:
    """A populated circuit board. ``bridge`` is where solder joins two pins."""

    pose: Pose
    mask: Colour
    bench: Colour
    parts: tuple[Part, ...]
    solder: float
    bridge: tuple[Point, float] | None = None


def design_board(rng: np.random.Generator) -> Board:
    """A board whose parts all sit within tolerance."""
    parts = tuple(
        replace(
            part,
            at=(part.at[0] + float(rng.normal(0, 0.004)), part.at[1] + float(rng.normal(0, 0.004))),
            angle=part.angle + float(rng.normal(0, 0.015)),
        )
        for part in _PARTS
    )
    return Board(
        draw_pose(rng, 2.0, 0.03),
        varied(rng, (0.08, 0.36, 0.21), 0.10),
        varied(rng, (0.58, 0.57, 0.55), 0.08),
        parts,
        float(rng.uniform(0.68, 0.80)),
    )


def _offset(part: Part, along: float, across: float) -> Point:
    c, s = float(np.cos(part.angle)), float(np.sin(part.angle))
    return part.at[0] + c * along - s * across, part.at[1] + s * along + c * across


def _chip_pins(part: Part) -> list[Point]:
    length, width = part.extent
    number = round(length / 0.08)
    places = (np.arange(number) - (number - 1) / 2) * length / number
    return [_offset(part, float(a), side * width * 0.56) for a in places for side in (-1, 1)]


def _draw_lands(pen: Pen, part: Part, tin: Colour) -> None:
    """Solder lands: they stay on the board when the part is missing."""
    length, width = part.extent
    if part.kind == "chip":
        for pin in _chip_pins(part):
            pen.box(pin, 0.040, width * 0.17, tin, part.angle)
    elif part.kind == "can":
        pen.box(part.at, length * 1.16, 0.07, tin, part.angle)
    else:
        for side in (-0.5, 0.5):
            pen.box(_offset(part, side * length, 0.0), length * 0.42, width * 1.2, tin, part.angle)


def _draw_part(colour: Pen, height: Pen, part: Part) -> None:
    length, width = part.extent
    if part.kind == "can":
        colour.disc(part.at, length / 2, (0.70, 0.71, 0.73))
        colour.disc(part.at, length * 0.43, (0.80, 0.81, 0.82))
        colour.box(
            _offset(part, -length * 0.29, 0.0), length * 0.17, width * 0.6, (0.13, 0.13, 0.16), part.angle
        )
        height.disc(part.at, length / 2, 1.0)
        return
    body = {"chip": (0.13, 0.13, 0.14), "resistor": (0.10, 0.10, 0.11), "capacitor": (0.66, 0.50, 0.33)}[
        part.kind
    ]
    colour.box(part.at, length, width, body, part.angle)
    height.box(part.at, length, width, 0.6 if part.kind == "chip" else 0.4, part.angle)
    if part.kind == "chip":
        colour.disc(_offset(part, -length * 0.40, width * 0.34), 0.020, (0.30, 0.30, 0.31))
        for row, reach in ((-0.12, 0.5), (0.08, 0.36)):
            colour.box(_offset(part, 0.0, row * width), length * reach, 0.022, (0.42, 0.42, 0.42), part.angle)
        return
    for side in (-0.39, 0.39):
        colour.box(_offset(part, side * length, 0.0), length * 0.24, width, (0.78, 0.78, 0.78), part.angle)
    if part.kind == "resistor":
        colour.box(part.at, length * 0.2, width * 0.5, (0.75, 0.75, 0.75), part.angle)


def _draw_copper(pen: Pen, board: Board) -> None:
    r, g, b = board.mask
    trace = (min(1.0, r * 1.5 + 0.02), min(1.0, g * 1.28), min(1.0, b * 1.2))
    gold: Colour = (0.80, 0.66, 0.32)
    for points in _TRACES:
        pen.line(list(points), 0.022, trace)
    for at in _VIAS:
        pen.disc(at, 0.026, gold)
        pen.disc(at, 0.012, (0.06, 0.07, 0.06))
    for at in _PINS:
        pen.box(at, 0.085, 0.085, gold)
        pen.disc(at, 0.026, (0.10, 0.10, 0.09))
    for part in board.parts:
        _draw_lands(pen, part, (board.solder, board.solder, board.solder * 1.01))


def _draw_silkscreen(pen: Pen) -> None:
    """Printed outlines stand where the design has its parts, not where a part landed."""
    white: Colour = (0.82, 0.84, 0.80)
    for part in _PARTS:
        length, width = part.extent
        if part.kind == "can":
            pen.disc(part.at, length * 0.60, white)
            pen.disc(part.at, length * 0.60 - 0.014, (0.08, 0.30, 0.18))
        elif part.kind != "chip":
            for side in (-1, 1):
                pen.box(_offset(part, 0.0, side * width * 0.85), length * 0.9, 0.012, white, part.angle)
    pen.box((0.02, 0.735), 1.42, 0.012, white)


def _board_corners(x: FloatArray, y: FloatArray) -> FloatArray:
    """Signed distance to the board: a rounded square with four mounting holes."""
    a, b = np.abs(x) - 0.86, np.abs(y) - 0.86
    square = np.hypot(a.clip(0), b.clip(0)) - 0.06
    mounting = np.hypot(np.abs(x) - 0.83, np.abs(y) - 0.83) - 0.045
    return np.maximum(square, -mounting)


def draw_board(board: Board, size: int) -> Scene:
    """Copper under green mask, white print, and parts with bevels and shadows."""
    rng = np.random.default_rng(board.pose.grain)
    angle, shift = board.pose.angle, board.pose.shift
    colour, height = Pen(size, "RGB", angle=angle, shift=shift), Pen(size, angle=angle, shift=shift)
    colour.box((0, 0), 4, 4, board.mask)
    _draw_silkscreen(colour)
    _draw_copper(colour, board)
    if board.bridge is not None:
        at, radius = board.bridge
        colour.disc(at, radius, (board.solder, board.solder, board.solder))
        height.disc(at, radius, 0.25)
    for part in board.parts:
        if part.fitted:
            _draw_part(colour, height, part)
    rise = height.finished()
    shadow = (softened(rise, 0.012, (0.018, 0.026)) - rise).clip(0)
    shade = (1 - 0.55 * shadow) * (1 + 0.025 * noise(rng, size, 110) + 0.03 * noise(rng, size, 5))
    edges = 0.11 * relief(rise * np.float32(0.05)).clip(-0.6, 1.2)
    body = np.asarray(colour.finished() * shade[..., None] + edges[..., None], np.float32)
    shape = coverage(_board_corners(*turned(size, angle, shift)))
    bench = tinted(board.bench, 1 + 0.03 * noise(rng, size, 100) + 0.03 * noise(rng, size, 4))
    return on_bench(body, shape, bench)


def _change_part(board: Board, number: int, part: Part) -> Board:
    return replace(board, parts=(*board.parts[:number], part, *board.parts[number + 1 :]))


def lose_component(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """A part was never placed, or fell off: its lands are bare. Large parts only in severe cases."""
    number = int(rng.integers(0 if severity > 0.6 else 4, len(board.parts)))
    return _change_part(board, number, replace(board.parts[number], fitted=False))


def misplace_component(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """A small part sits turned and off its lands."""
    number = int(rng.integers(4, len(board.parts)))
    part = board.parts[number]
    turn = float(rng.choice([-1, 1]) * (0.2 + 0.6 * severity))
    far, way = 0.02 + 0.03 * severity, rng.uniform(0, 2 * np.pi)
    at = (part.at[0] + float(far * np.cos(way)), part.at[1] + float(far * np.sin(way)))
    return _change_part(board, number, replace(part, at=at, angle=part.angle + turn))


def bridge_pins(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """Solder joins two neighbouring pins of a chip."""
    chip = board.parts[int(rng.integers(2))]
    pins = _chip_pins(chip)
    number = int(rng.integers(len(pins) - 2))
    a, b = pins[number], pins[number + 2]
    return replace(board, bridge=(((a[0] + b[0]) / 2, (a[1] + b[1]) / 2), 0.022 + 0.02 * min(1.3, severity)))
