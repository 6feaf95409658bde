"""Small inline SVG charts for reports: lines and points, bars. No script, no font, no file of their own.

Text and frame take the colours of the page (`moleflow.report`), so a chart reads in light and in dark; series
have a colour of Okabe and Ito's colour-blind safe palette, and a mark and a dash besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...report import Html, escaped, number

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "var(--ink)")
DASHES = ("none", "7 4", "2 3", "9 3 2 3")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 560, 62, 16, 14, 44
SIZE = 11.5  # of text; a character is about 0.6 of it wide
NEAR = 52  # pixels up or down from its point within which a name is rather put than on a span
DOWN = (0, *(way * 13 * step for step in range(1, 13) for way in (-1, 1)))  # where else it may stand


@dataclass(frozen=True)
class Point:
    """A value over `x`, with an interval or a standard deviation and a name where it has them."""

    x: float
    y: float
    sd: float | None = None
    name: str = ""
    interval: tuple[float, float] | None = None

    @property
    def span(self) -> tuple[float, float] | None:
        """What its bar reaches from and to."""
        if self.interval is not None:
            return self.interval
        return (self.y - self.sd, self.y + self.sd) if self.sd else None


@dataclass(frozen=True)
class Series:
    """Points of one colour; `style` picks colour, mark and dash, `joined` draws a line through them."""

    name: str
    points: tuple[Point, ...]
    style: int = 0
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis with its title; `places` fixes its ticks and what they say, `log` needs values above 0."""

    title: str
    log: bool = False
    places: tuple[tuple[float, str], ...] = ()
    write: Callable[[float], str] = "{:g}".format


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float  # in pixels, of `low`
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        a, b, v = (math.log10(t) if self.log else t for t in (self.low, self.high, value))
        return self.start + (v - a) / (b - a) * (self.end - self.start)


def plot(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, caption: object = "", height: int = 320
) -> Html:
    """Series over an axis: joined points as a line, points with a name labelled, their spans as bars.

    Of several series those whose points have no names stand in a legend below. No point gives no chart.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return Html("")
    unnamed = [one for one in series if not any(point.name for point in one.points)]
    keys = _legend(unnamed if len(series) > 1 else [], height)
    across = _scale(x, [p.x for p in points], LEFT, WIDTH - RIGHT)
    tops = [at for p in points for at in p.span or (p.y,)]
    up = _scale(y, tops, height - BOTTOM, TOP)
    parts = [*_frame(x, y, across, up, height)]
    for one in series:
        parts += _drawn(one, across, up)
    spans = [(across(p.x) - 2, up(p.span[1]), across(p.x) + 2, up(p.span[0])) for p in points if p.span]
    parts += _labels([(across(p.x), up(p.y), p.name) for p in points], spans, height)
    return _figure(title, [*parts, *keys[0]], height + keys[1], caption)


def bars(title: str, values: Sequence[tuple[str, float]], unit: str) -> Html:
    """A horizontal bar for each name, to the right above 0 and to the left below, with its value."""
    if not values:
        return Html("")
    left = min(190.0, max(_width(name) for name, _ in values) + 12)
    far = max(abs(value) for _, value in values) or 1.0
    low, high = min(0.0, *(v for _, v in values)), max(0.0, *(v for _, v in values))
    place = _Scale(low, high if high > low else far, left + (56 if low < 0 else 6), WIDTH - 60, False)
    height, zero, parts = 22 * len(values) + 34, place(0.0), []
    for i, (name, value) in enumerate(values):
        at, top, right = place(value), 22 * i + 6, round(value, 3) >= 0
        colour = PALETTE[0] if right else PALETTE[1]
        parts.append(
            f'<rect x="{min(at, zero):.1f}" y="{top}" width="{abs(at - zero):.1f}" height="15" '
            f'fill="{colour}"><title>{escaped(name)}: {signed(value)}</title></rect>'
        )
        parts.append(_text(left - 6, top + 12, name, "end", ink=True))
        parts.append(_text(at + (4 if right else -4), top + 12, signed(value), "start" if right else "end"))
    parts.append(_line(zero, 0, zero, height - 28, "var(--soft)"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 8, unit, "middle"))
    return _figure(title, parts, height)


def signed(value: float | None) -> str:
    """A difference with its sign, a true minus; a dash where there is none."""
    if value is None:
        return number(None)
    rounded = round(value, 3) + 0.0  # no minus before a zero
    return ("+" if rounded > 0 else "−" if rounded < 0 else "±") + f"{abs(rounded):.3f}"


def _figure(title: str, parts: Sequence[str], height: float, caption: object = "") -> Html:
    below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return Html(
        f'<figure class="chart" style="margin:14px 0 24px"><svg role="img" aria-label="{escaped(title)}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" style="width:100%;max-width:680px;height:auto;display:block" '
        f'font-size="{SIZE}"><title>{escaped(title)}</title>{"".join(parts)}</svg>{below}</figure>'
    )


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    every = [*values, *(place for place, _ in axis.places)]
    low, high = min(every), max(every)
    if axis.log:
        room = 1.6 if high > 3 * low else 2.3  # so that at least two ticks are seen
        return _Scale(low / room, high * room, start, end, True)
    edge = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return _Scale(low - edge, high + edge, start, end, False)


def _ticks(axis: Axis, scale: _Scale) -> list[tuple[float, str]]:
    if axis.places:
        keep = math.ceil(len(axis.places) / 16)  # more would run into each other
        return [*axis.places[::keep]]
    if scale.log:
        powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        steps = (1, 2, 5) if scale.high / scale.low < 300 else (1,)
        found = [m * 10.0**p for p in powers for m in steps]
    else:
        rough = (scale.high - scale.low) / 7
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        found = [i * step for i in range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1)]
    return [(at, axis.write(round(at, 12))) for at in found if scale.low <= at <= scale.high]


def _frame(x: Axis, y: Axis, across: _Scale, up: _Scale, height: int) -> list[str]:
    parts = []
    for at, name in _ticks(y, up):
        parts.append(_line(LEFT, up(at), WIDTH - RIGHT, up(at), "var(--line)"))
        parts.append(_text(LEFT - 6, up(at) + 4, name, "end"))
    for at, name in _ticks(x, across):
        parts.append(_line(across(at), height - BOTTOM, across(at), height - BOTTOM + 4, "var(--soft)"))
        parts.append(_text(across(at), height - BOTTOM + 17, name, "middle"))
    parts.append(_line(LEFT, height - BOTTOM, WIDTH - RIGHT, height - BOTTOM, "var(--soft)"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, x.title, "middle"))
    middle = (TOP + height - BOTTOM) / 2
    turned = f' transform="rotate(-90 14 {middle:.1f})"'
    return [*parts, _text(14, middle, y.title, "middle", turned)]


def _drawn(one: Series, across: _Scale, up: _Scale) -> list[str]:
    colour, parts = PALETTE[one.style % len(PALETTE)], []
    places = [(across(p.x), up(p.y)) for p in one.points]
    if one.joined and len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{DASHES[one.style // len(PALETTE) % len(DASHES)]}"/>'
        )
    for (x, y), p in zip(places, one.points, strict=True):
        if p.span:
            parts.append(_line(x, up(p.span[0]), x, up(p.span[1]), colour))
        parts.append(_mark(x, y, one.style, f"{p.name or one.name}: {p.y:.3f}"))
    return parts


def _mark(x: float, y: float, style: int, said: str) -> str:
    kind, shape = (
        ("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="4"'),
        ("rect", f'x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"'),
        ("polygon", f'points="{x:.1f},{y - 5:.1f} {x + 4.6:.1f},{y + 3.6:.1f} {x - 4.6:.1f},{y + 3.6:.1f}"'),
        (
            "polygon",
            f'points="{x:.1f},{y - 5:.1f} {x + 5:.1f},{y:.1f} {x:.1f},{y + 5:.1f} {x - 5:.1f},{y:.1f}"',
        ),
    )[style % 4]
    return f'<{kind} {shape} fill="{PALETTE[style % len(PALETTE)]}"><title>{escaped(said)}</title></{kind}>'


def _legend(series: Sequence[Series], top: float) -> tuple[list[str], float]:
    """Marks and names in as many rows as they need, and the height they take."""
    parts, x, y = [], float(LEFT), top + 10
    for one in series:
        needed = _width(one.name) + 30
        if x > LEFT and x + needed > WIDTH:
            x, y = float(LEFT), y + 19
        parts += [_mark(x + 5, y, one.style, one.name), _text(x + 15, y + 4, one.name, "start", ink=True)]
        x += needed
    return parts, (y + 12 - top) if series else 0.0


def _labels(
    points: Sequence[tuple[float, float, str]], spans: Sequence[Sequence[float]], height: int
) -> list[str]:
    """The names of points beside them, each at the first place that is free of others, points and spans.

    Among many a name may lie on a span, and one far from its point is tied to it by a line.
    """
    taken: list[Sequence[float]] = [(x - 5, y - 5, x + 5, y + 5) for x, y, _ in points]
    parts = []
    for x, y, name in (point for point in points if point[2]):
        wide = _width(name)
        places = [
            (left, y + 4 + down, left, y - 7 + down, left + wide, y + 6 + down)
            for down in DOWN
            for left in (x + 8, x - 8 - wide, x - wide / 2)
            if left >= LEFT and left + wide <= WIDTH and TOP - 8 <= y + down <= height - BOTTOM
        ]
        free = [p for p in places if not any(_meet(p[2:], other) for other in taken)]
        clear = [p for p in free if not any(_meet(p[2:], span) for span in spans)]
        near = [p for p in clear if abs(p[1] - y - 4) <= NEAR]
        chosen = (near or free or places or [(x + 8, y + 4, x + 8, y - 7, x + 8 + wide, y + 6)])[0]
        taken.append(chosen[2:])
        if abs(chosen[1] - y - 4) > NEAR / 2:
            parts.append(_line(x, y, min(max(x, chosen[2]), chosen[4]), chosen[1] - 4, "var(--line)"))
        parts.append(_text(chosen[0], chosen[1], name, "start", ink=True))
    return parts


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: object, anchor: str, more: str = "", *, ink: bool = False) -> str:
    colour = "var(--ink)" if ink else "var(--soft)"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{escaped(text)}</text>'
    )


def _width(text: str) -> float:
    return 0.6 * SIZE * len(text)
