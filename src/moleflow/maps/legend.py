"""The legend of a map: the colour scale with its threshold, and what is said of the image, below it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scale import OUTLINE, Pixels, Scale, painted

LEAST_TEXT = 12  # pixels
_PAPER, _INK, _SOFT = (24, 26, 30), (240, 240, 240), (176, 180, 186)
_UNDER = (225, 225, 225), (50, 50, 50)  # the scale is shown over a light part and over a dark one
_NOWHERE = "\uffff"  # a character no font has


@dataclass(frozen=True)
class Entry:
    """What stands above the scale: the product, its score, the verdict."""

    product: str
    score: float
    verdict: str


@dataclass(frozen=True)
class _Mark:
    """A place on the scale: its share of the bar, the letter Pillow aligns by, a value and what it means."""

    at: float
    align: str
    value: str
    meaning: str


def with_legend(picture: Pixels, scale: Scale, entry: Entry | None = None) -> Pixels:
    """`picture` (H, W, 3) at the upper left of a larger one, with the legend of its colours below it.

    The legend's text grows with the picture. A picture that is too narrow for it gets an empty margin to
    its right.
    """
    height, width = picture.shape[:2]
    text = max(LEAST_TEXT, round(min(width / 40, (width * height) ** 0.5 / 32)))
    below = draw_legend(scale, entry, width=width, text=text)
    page = np.empty((height + len(below), below.shape[1], 3), np.uint8)
    page[:height] = _PAPER
    page[:height, :width] = picture
    page[height:] = below
    return page


def draw_legend(
    scale: Scale, entry: Entry | None = None, *, width: int = 0, text: int = LEAST_TEXT
) -> Pixels:
    """The legend alone, (h, w, 3): at least `width` pixels wide, its letters of `text` pixels."""
    font = ImageFont.load_default(text)
    marks = _marks(scale)
    said = "" if entry is None else _sentence(scale, entry, font)
    left, middle, right = (max(font.getlength(mark.value), font.getlength(mark.meaning)) for mark in marks)
    # The middle one stands in the middle of the bar, with a gap to its neighbours.
    named = 2 * max(left, right) + middle + 2 * text
    width = max(width, round(max(font.getlength(said), named)) + 2 * text)
    top = round((2.7 if entry else 0.7) * text)  # of the bar
    long, high = width - 2 * text, round(1.5 * text)
    page = Image.new("RGB", (width, top + round(4.9 * text)), _PAPER)
    page.paste(Image.fromarray(draw_bar(scale, long, high)), (text, top))
    pen = ImageDraw.Draw(page)
    pen.text((text, 0.4 * text), said, font=font, fill=_INK)
    for mark in marks:
        place = text + mark.at * long
        for line, (words, colour) in enumerate([(mark.value, _INK), (mark.meaning, _SOFT)]):
            at = (place, top + high + (0.3 + 1.3 * line) * text)
            pen.text(at, words, font=font, fill=colour, anchor=f"{mark.align}a")
    if entry is not None:
        _point_at(pen, text + _share(scale, entry.score) * long, top, text / 2)
    return np.array(page)


def draw_bar(scale: Scale, width: int, height: int) -> Pixels:
    """The scale from its low end to its high one, (height, width, 3), with a line at the threshold."""
    under = np.empty((height, width, 3), np.uint8)
    under[: height // 2], under[height // 2 :] = _UNDER
    scores = np.linspace(scale.low, scale.high, width)
    bar = painted(under, np.broadcast_to(scale.levels(scores), (height, width)))
    line = max(1, height // 14)
    middle = width // 2
    bar[:, middle - line : middle + line] = OUTLINE
    return bar


def _marks(scale: Scale) -> tuple[_Mark, ...]:
    by_hand = scale.low != scale.typical  # a threshold at or below the typical good image
    low = "one below" if by_hand else "typical good image"
    high = "one above or more" if by_hand else "twice that or more"
    return (
        _Mark(0.0, "l", _figure(scale.low), low),
        _Mark(0.5, "m", _figure(scale.threshold), "threshold"),
        _Mark(1.0, "r", _figure(scale.high), high),
    )


def _sentence(scale: Scale, entry: Entry, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    figures = f"map {_figure(entry.score)}, its threshold {_figure(scale.threshold)}"
    return "".join(_drawable(c, font) for c in f"{entry.product}: {entry.verdict};  {figures}")


def _drawable(character: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The character, or where the font lacks it its plain letter or a question mark."""
    for tried in (character, unicodedata.normalize("NFKD", character)[:1], character.casefold()):
        if bytes(font.getmask(tried)) != bytes(font.getmask(_NOWHERE)):
            return tried
    return "?"


def _point_at(pen: ImageDraw.ImageDraw, x: float, y: float, size: float) -> None:
    """A triangle whose tip is at (x, y), from above."""
    pen.polygon([(x - size * 0.7, y - size), (x + size * 0.7, y - size), (x, y)], fill=_INK)


def _share(scale: Scale, score: float) -> float:
    return min(1.0, max(0.0, (score - scale.low) / (scale.high - scale.low)))


def _figure(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.3g}"
