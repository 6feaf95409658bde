"""The report of one lesson: what was taught, and which photographs one should look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import report
from ..data.images import as_image
from ..errors import ImageError, MoleFlowError, reason_of
from ..photographs.review import Lesson
from ..photographs.suspects import Suspect

MOST = 200  # pictures a report shows; a page of a thousand opens nowhere
_BARS = 24
_WIDTH, _HEIGHT, _FOOT = 640, 180, 34  # of the histogram, in its own units

_NAMES = {
    "one colour": "Shows nothing.",
    "camera": "Another camera.",
    "size": "Another size.",
    "defect": "Perhaps defective.",
    "light": "Another light.",
    "sharpness": "Another sharpness.",
    "copies": "The same again.",
}


def write_teaching_report(
    path: str | Path,
    *,
    product: str,
    lesson: Lesson,
    shown: Callable[[str], Any] = Path,
    unreadable: Sequence[str] = (),
    scores: Sequence[float] = (),
    threshold: float | None = None,
) -> None:
    """Writes one HTML file that opens offline; an earlier one is replaced.

    Args:
        path: of the file.
        product: its name.
        lesson: what was found in its photographs.
        shown: from the source of a suspect to its path or pixels; a source is a path by default.
        unreadable: images that could not be read or taught it before, each with the reason.
        scores: of good photographs by a model that did not learn them.
        threshold: the score above which an image is called defective, in the same unit.

    Raises:
        MoleFlowError: the file cannot be written.
    """
    text = report.page(
        f"What {product} was taught from",
        report.key_figures(_headline(lesson, unreadable)),
        _left_out_section(lesson),
        _suspicious_section(lesson, shown),
        _copies_section(lesson, shown),
        *([_unreadable_section(unreadable)] if unreadable else []),
        *([_scores_section(scores, threshold)] if len(scores) else []),
        _looks_section(lesson),
    )
    try:
        # A file's name may hold bytes that are no text in any encoding.
        Path(path).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise MoleFlowError(f"{path}: cannot be written: {reason_of(error)}") from error


def _headline(lesson: Lesson, unreadable: Sequence[str]) -> list[tuple[str, str, str]]:
    return [
        (str(lesson.images), "photographs taught it", f"{len(lesson.dropped)} were left out"),
        (str(lesson.independent), "of them independent", "the others are near-copies of one another"),
        (str(len(lesson.suspicious)), "suspicious", "something speaks against them, see below"),
        (
            str(len(unreadable)),
            "left out unasked",
            "no photograph, a damaged file, or one that taught it before",
        ),
    ]


def _left_out_section(lesson: Lesson) -> report.Html:
    if lesson.dropped:
        said = f"Left out, because --drop-suspicious was given: {len(lesson.dropped)} photographs."
    elif lesson.suspicious:
        said = (
            f"Nothing was left out. --drop-suspicious would leave out {len(lesson.suspicious)} photographs; "
            "look at them first. If they are good, they belong in the lesson: the line should know them."
        )
    else:
        said = "Nothing was left out, and nothing speaks against any photograph."
    names = lesson.dropped or lesson.suspicious
    listed = report.folded("Their names", *(report.paragraph(name) for name in names))
    return report.section("What was left out", report.notice(said), *([listed] if names else []))


def _suspicious_section(lesson: Lesson, shown: Callable[[str], Any]) -> report.Html:
    suspects = [suspect for suspect in lesson.suspects if suspect.fault]
    if not suspects:
        return report.section("Suspicious photographs", report.paragraph("None."))
    return report.section(
        "Suspicious photographs",
        report.paragraph("The gravest first. A photograph may stand here for more than one reason."),
        _cards(suspects, shown, tone="bad"),
    )


def _copies_section(lesson: Lesson, shown: Callable[[str], Any]) -> report.Html:
    suspects = [suspect for suspect in lesson.suspects if not suspect.fault]
    if not suspects:
        return report.section("The same photograph again", report.paragraph("Never."))
    return report.section(
        "The same photograph again",
        report.paragraph(
            "Frames of a video, bursts and duplicates say how one part looks, not how parts differ. They do "
            "no harm, but each group counts as one photograph."
        ),
        _cards(suspects, shown, tone="plain"),
    )


def _cards(suspects: Sequence[Suspect], shown: Callable[[str], Any], *, tone: str) -> report.Html:
    cards = report.gallery(_card(suspect, shown, tone) for suspect in suspects[:MOST])
    if len(suspects) <= MOST:
        return cards
    rest = (report.paragraph(f"{s.source}: {s.reason}") for s in suspects[MOST:])
    return report.joined([cards, report.folded(f"{len(suspects) - MOST} more", *rest)])


def _card(suspect: Suspect, shown: Callable[[str], Any], tone: str) -> report.Card:
    name = Path(suspect.source).name
    drawn: tuple[report.Picture, ...] = ()
    try:
        image = as_image(shown(suspect.source), where=suspect.source, at_least=256)
        drawn = (report.Picture(report.photo_uri(image), name),)
        remark = suspect.reason
    except ImageError:  # moved or deleted since; what was found in it stands
        remark = f"{name}: {suspect.reason} (the picture is no longer there)"
    return report.Card(_NAMES[suspect.kind], remark, drawn, tone)


def _unreadable_section(unreadable: Sequence[str]) -> report.Html:
    return report.section("What was left out unasked", *(report.paragraph(said) for said in unreadable))


def _scores_section(scores: Sequence[float], threshold: float | None) -> report.Html:
    above = "" if threshold is None else f" {sum(s > threshold for s in scores)} of them lie above it."
    return report.section(
        "How good photographs score",
        report.paragraph(
            f"Scores of {len(scores)} good photographs, each by a model that did not learn it."
            + ("" if threshold is None else f" From {threshold:.2f} on an image is called defective.{above}")
        ),
        histogram(scores, threshold),
    )


def histogram(scores: Sequence[float], threshold: float | None = None) -> report.Html:
    """How often scores come, as a drawing; the threshold is a dashed line with its value."""
    values = np.asarray(scores, np.float64)
    low, high = float(values.min()), float(values.max())
    if threshold is not None and np.isfinite(threshold):
        # A threshold a thousand times farther out than any score would leave one bar.
        high = max(high, min(threshold, high + 3 * (high - low) + 1))
    pad = 0.04 * (high - low) or 0.5
    low, high = low - pad, high + pad
    counts, _ = np.histogram(values, _BARS, (low, high))
    place = _WIDTH / (high - low)
    bars = "".join(_bar(i, int(count), int(counts.max())) for i, count in enumerate(counts) if count)
    marks = "".join(
        _label((value - low) * place, f"{value:.1f}") for value in np.linspace(low, high, 5)[1:-1]
    )
    return report.Html(
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="scores of good photographs" '
        f'style="max-width:{_WIDTH}px;width:100%;font-size:12px">{bars}'
        f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT - _FOOT}" y2="{_HEIGHT - _FOOT}" stroke="var(--line)"/>'
        f"{marks}{_mark(threshold, low, high, place)}</svg></figure>"
    )


def _bar(index: int, count: int, most: int) -> str:
    width, height = _WIDTH / _BARS, (_HEIGHT - _FOOT - 26) * count / most
    top = _HEIGHT - _FOOT - height
    return (
        f'<rect x="{index * width + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{height:.1f}" '
        f'fill="var(--good)"><title>{count}</title></rect>'
    )


def _label(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - 14}" text-anchor="middle" fill="var(--soft)">{text}</text>'


def _mark(threshold: float | None, low: float, high: float, place: float) -> str:
    if threshold is None:
        return ""
    text, within = f"threshold {threshold:.2f}", threshold < high
    x = (min(max(threshold, low), high) - low) * place if within else _WIDTH - 2
    anchor = "start" if x < _WIDTH / 2 else "end"
    beside = x + 5 if anchor == "start" else x - 5
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{_HEIGHT - _FOOT}" stroke="var(--bad)" '
        f'stroke-width="2" stroke-dasharray="5 4"/><text x="{beside:.1f}" y="16" text-anchor="{anchor}" '
        f'fill="var(--bad)">{text}{"" if within else ", farther out"}</text>'
    )


def _looks_section(lesson: Lesson) -> report.Html:
    rows = [
        [name, *(report.number(value, 1) for value in spread)]
        for name, spread in (("light", lesson.light), ("sharpness", lesson.sharpness))
        if spread is not None
    ]
    return report.section(
        "Light and sharpness",
        report.table(
            ["", "least", "first quarter", "median", "third quarter", "most"],
            rows,
            caption="Of the photographs that taught, at the line's size. Light is the mean grey level, 0 to "
            "255; sharpness is by how many per cent of a picture's contrast neighbouring pixels differ. "
            "Tomorrow's photographs should lie within these, or the line takes the light for the part.",
        ),
    )
