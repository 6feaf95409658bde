"""Building blocks of a report: one HTML file that opens anywhere, offline, in light and in dark.

Every block is a function from plain values to `Html`. Whatever is not `Html` already is escaped, so a
product's name can never become markup. Pictures stand in the file itself, as data URIs.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .maps.legend import draw_bar
from .maps.scale import Scale

Pixels = NDArray[np.uint8]

_TONES = ("good", "bad", "plain")


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


@dataclass(frozen=True)
class Picture:
    """One image of a card: a data URI and what stands below it."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Card:
    """One row of a gallery: a verdict, a remark, and pictures side by side; `tone` is good, bad or plain."""

    verdict: str
    remark: str
    pictures: tuple[Picture, ...]
    tone: str = "plain"


# Text


def escaped(value: object) -> Html:
    """`value` as markup: `Html` as it is, anything else as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def joined(blocks: Iterable[object]) -> Html:
    """Blocks one after another."""
    return Html("\n".join(escaped(block) for block in blocks))


def page(title: str, *blocks: object) -> str:
    """The whole document; `title` is its heading too."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escaped(title)}</h1>\n{joined(blocks)}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *blocks: object) -> Html:
    """A heading and what belongs under it."""
    return Html(f"<section>\n<h2>{escaped(title)}</h2>\n{joined(blocks)}\n</section>")


def subsection(title: str, *blocks: object) -> Html:
    """A smaller heading within a section, and what belongs under it."""
    return Html(f"<h3>{escaped(title)}</h3>\n{joined(blocks)}")


def paragraph(text: object) -> Html:
    """Running text."""
    return Html(f"<p>{escaped(text)}</p>")


def notice(text: object) -> Html:
    """Text the reader must not miss."""
    return Html(f'<p class="notice">{escaped(text)}</p>')


def columns(*blocks: object) -> Html:
    """Blocks side by side where the window is wide enough."""
    return Html(
        '<div class="columns">' + "".join(f"<div>{escaped(block)}</div>" for block in blocks) + "</div>"
    )


def folded(title: str, *blocks: object) -> Html:
    """Blocks that show when their title is clicked."""
    return Html(f"<details><summary>{escaped(title)}</summary>\n{joined(blocks)}\n</details>")


# Numbers


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def amount(bytes_: int) -> str:
    """A number of bytes in the unit people use: 1 kB is 1000 bytes."""
    value = float(bytes_)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def key_figures(figures: Iterable[tuple[str, str, str]]) -> Html:
    """Headline figures, each as (value, what it is, remark)."""
    tiles = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd><dd>{escaped(remark)}</dd></div>"
        for value, name, remark in figures
    )
    return Html(f'<dl class="figures">{tiles}</dl>')


def table(headers: Sequence[object], rows: Iterable[Sequence[object]], *, caption: object = "") -> Html:
    """A table whose first column names the rows; the other cells are set to the right."""
    head = "".join(f'<th scope="col">{escaped(header)}</th>' for header in headers)
    body = "".join(f"<tr>{_row_cells(row)}</tr>\n" for row in rows)
    return _framed(caption, f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>")


def settings(values: Iterable[tuple[object, object]], *, caption: object = "") -> Html:
    """Names and their values, set to the left."""
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td class="text">{escaped(value)}</td></tr>\n'
        for name, value in values
    )
    return _framed(caption, f"<tbody>\n{body}</tbody>")


def matrix(
    values: ArrayLike,
    rows: Sequence[str],
    names: Sequence[str],
    *,
    low: float = 0.5,
    caption: object = "",
) -> Html:
    """A (rows, names) matrix with cells coloured from `low` (bare) to 1 (full); NaN stays empty."""
    numbers = np.asarray(values, dtype=np.float64)
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in ("", *names))
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        + "".join(_heat_cell(float(value), low) for value in row)
        + "</tr>\n"
        for name, row in zip(rows, numbers, strict=True)
    )
    return _framed(caption, f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>")


def _row_cells(row: Sequence[object]) -> str:
    first, *rest = row
    return f'<th scope="row">{escaped(first)}</th>' + "".join(f"<td>{escaped(cell)}</td>" for cell in rest)


def _heat_cell(value: float, low: float) -> str:
    if math.isnan(value):
        return "<td></td>"
    share = min(1.0, max(0.0, (value - low) / (1 - low)))
    return f'<td style="background:rgb(60 130 220 / {0.04 + 0.5 * share:.3f})">{number(value)}</td>'


def _framed(caption: object, content: str) -> Html:
    # Not a <caption>: that would be as narrow as a narrow table.
    below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return Html(f'<figure class="table"><div class="wide"><table>\n{content}\n</table></div>{below}</figure>')


# Pictures


def gallery(cards: Iterable[Card]) -> Html:
    """Cards in a grid."""
    return Html(f'<div class="gallery">{"".join(_card(card) for card in cards)}</div>')


def photo_uri(image: Pixels, *, side: int = 256) -> str:
    """(H, W, 3) or (H, W) uint8 as a JPEG data URI, its longer side at most `side` pixels."""
    return _uri(_shrunk(Image.fromarray(image), side, Image.Resampling.LANCZOS), "jpeg", quality=82)


def mask_uri(mask: NDArray[np.bool_], *, side: int = 256) -> str:
    """(H, W) bool as a black and white PNG data URI."""
    drawn = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    return _uri(_shrunk(drawn, side, Image.Resampling.BOX).convert("1"), "png", optimize=True)


def greyed(image: Pixels) -> Pixels:
    """The photograph (H, W, 3) without its colours, so that all colour over it is a score's."""
    return np.rint(image.mean(axis=2, keepdims=True, dtype=np.float32)).astype(np.uint8).repeat(3, axis=2)


def heat_scale() -> Html:
    """What the colours of all heat maps of a page mean."""
    bar = _uri(Image.fromarray(draw_bar(Scale(1.0), 480, 24)), "png", optimize=True)
    ends = "<span>typical good image</span><span>threshold</span><span>twice that or more</span>"
    return Html(
        f'<figure class="scale"><img src="{bar}" alt="colour scale of the heat maps"><div>{ends}</div>'
        "<figcaption>The scale of all heat maps, over light and dark parts. It is the same for all images of "
        "a product; a line surrounds what exceeds the threshold.</figcaption></figure>"
    )


def _card(card: Card) -> str:
    tone = card.tone if card.tone in _TONES else "plain"
    layout = " single" if len(card.pictures) == 1 else ""
    pictures = "".join(
        f'<figure><img src="{html.escape(picture.uri)}" alt="{html.escape(picture.caption)}" loading="lazy">'
        f"<figcaption>{escaped(picture.caption)}</figcaption></figure>"
        for picture in card.pictures
    )
    return (
        f'<article class="{tone}{layout}"><div class="pictures">{pictures}</div>'
        f"<p><b>{escaped(card.verdict)}</b> {escaped(card.remark)}</p></article>"
    )


def _shrunk(image: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    factor = side / max(image.size)
    if factor >= 1:
        return image
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), how)


def _uri(image: Image.Image, kind: str, **options: object) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #ffffff; --panel: #f4f6f9;
  --line: #d9dfe7; --good: #1f7a4d; --bad: #b4371f; --note: #fff6dd; --note-line: #d8ad3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa6b5; --paper: #14181e;
  --panel: #1d232b; --line: #343d49; --good: #5fc795; --bad: #f08a70; --note: #2e2813;
  --note-line: #a88832; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 30px; line-height: 1.25; margin: 0 0 12px; }
h2 { font-size: 21px; margin: 0 0 10px; }
h3 { font-size: 17px; margin: 28px 0 10px; }
section { margin-top: 52px; }
p { max-width: 78ch; margin: 0 0 14px; }
.notice { background: var(--note); border-left: 4px solid var(--note-line); padding: 12px 16px;
  border-radius: 4px; margin: 18px 0 26px; }
.figures { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 14px; margin: 0; }
.figures > div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px; }
.figures dt { color: var(--soft); font-size: 14px; }
.figures dd { margin: 0; color: var(--soft); font-size: 13.5px; line-height: 1.4; }
.figures dt + dd { color: var(--ink); font-size: 27px; font-weight: 650; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
.columns { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 8px 36px; }
.columns > div { min-width: 0; }
figure { margin: 0; }
.table { margin: 14px 0 24px; }
.wide { overflow-x: auto; }
.table figcaption { font-size: 13.5px; padding-top: 8px; max-width: 90ch; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child { text-align: left; white-space: nowrap; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: 13.5px; vertical-align: bottom; }
td.text { text-align: left; overflow-wrap: anywhere; }
.gallery { display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); gap: 16px; }
article { background: var(--panel); border: 1px solid var(--line); border-left: 4px solid var(--line);
  border-radius: 8px; padding: 12px; min-width: 0; }
article.good { border-left-color: var(--good); }
article.bad { border-left-color: var(--bad); }
article.good b { color: var(--good); }
article.bad b { color: var(--bad); }
article p { margin: 8px 0 0; font-size: 14px; line-height: 1.45; }
.pictures { display: flex; gap: 8px; }
article.single { display: flex; gap: 16px; }
.single .pictures { flex: 0 1 200px; }
.single p { flex: 1 1 0; }
.pictures figure { flex: 1 1 0; min-width: 0; max-width: 256px; }
img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--line); }
figcaption { color: var(--soft); font-size: 12.5px; margin-top: 3px; }
.scale { max-width: 540px; margin: 14px 0 20px; }
.scale div { display: grid; grid-template-columns: 1fr auto 1fr; font-size: 13.5px; }
.scale span:last-child { text-align: right; }
details { margin: 16px 0; }
summary { cursor: pointer; color: var(--soft); }
code { font-size: 0.92em; }
@media print { section { break-inside: avoid-page; } details > * { display: block; } }
"""
