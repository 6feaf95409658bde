"""Photographs that may not belong among the good ones, found when a product is learned."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from PIL import Image

from ..spreads import robust_spread
from .copies import grain_of, grey_thumbnail

Kind = Literal["one colour", "camera", "size", "defect", "light", "sharpness", "copies"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Kinds of suspicion, the gravest first; all but "copies" speak against the photograph."""

MARK = 8  # letters of a photograph's mark: two of a thousand share one with a chance of one in ten thousand
_FEWEST = 5  # photographs from which on the rest says what is usual
# Robust spreads from the median, with many photographs. On three real products, 1291 good photographs, light
# goes up to 3.8 (5.6 by less than two grey levels), sharpness to 4.2; scores of closed-form cells on 200 of
# each, left out in blocks, go up to 7.8.
_CLEAR_LIGHT, _CLEAR_SHARPNESS, _CLEAR_SCORE = 4.5, 6.0, 10.0
_LIGHT_STEP = 16.0  # grey levels by which a mean must differ at least
_SHARPNESS_STEP = 1.5  # factor by which sharpness must differ at least
_FLAT = 1.0  # spread of a picture that shows nothing, in grey levels
_FLAT_SHARE = 0.2  # of the usual spread; a product may be plain
_GREY, _COLOURED = 1.0, 4.0  # colourfulness of a grey picture at most, of a coloured one at least
_MAJORITY = 0.8  # share that must agree on size or colour before the others are odd
_SHAPE = 0.03  # difference of aspect ratios that counts


@dataclass(frozen=True, eq=False)
class Photo:
    """What is known of one photograph before any model has seen it.

    Attributes:
        source: its path or position, as text.
        size: (H, W) as it came, in pixels.
        light: mean grey level, 0..255.
        sharpness: mean difference of neighbouring pixels at the line's size, in per cent of the picture's
            contrast, the standard deviation of its grey levels: less light does not change it, blur does.
        colourfulness: mean difference of the strongest and the weakest of R, G, B; 0 for a grey picture.
        spread: standard deviation of the thumbnail in grey levels; noise hardly counts.
        thumbnail: see `copies.thumbnail`.
        camera: what its file says it was taken with; None where it says nothing.
        mark: of its pixels at the line's size, `MARK` letters, by which it is known again.
        grain: see `copies.grain_of`; None where the thumbnail is enough to find near-copies by.
    """

    source: str
    size: tuple[int, int]
    light: float
    sharpness: float
    colourfulness: float
    spread: float
    thumbnail: np.ndarray = field(repr=False)
    camera: str | None = None
    mark: str = ""
    grain: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Suspect:
    """One photograph that may not belong among the good ones, and why.

    Attributes:
        source: its path or position, as text.
        kind: one of `KINDS`.
        reason: one sentence in words.
        score: how clear it is, in the kind's own unit: spreads for light, sharpness and defect, photographs
            for copies; None where there is nothing to measure.
    """

    source: str
    kind: Kind
    reason: str
    score: float | None

    @property
    def fault(self) -> bool:
        """True when it speaks against the photograph: `drop_suspicious` then leaves it out."""
        return self.kind != "copies"


def facts_of(source: str, pixels: np.ndarray, size: tuple[int, int], *, camera: str | None = None) -> Photo:
    """Looks at (h, w, 3) uint8 pixels at the line's size, of an image that came as `size` = (H, W)."""
    picture = Image.fromarray(pixels)
    shades = picture.convert("L")
    grey = np.asarray(shades)
    light, contrast = _moments(shades.histogram())
    seen = grey_thumbnail(grey)
    small = np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).astype(np.int16)
    return Photo(
        source=source,
        size=size,
        light=light,
        sharpness=50 * (_steps(grey, 0) + _steps(grey, 1)) / max(contrast, 1.0),
        colourfulness=float((small.max(2) - small.min(2)).mean()),
        spread=float(seen.std()),
        thumbnail=seen,
        camera=camera,
        mark=hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()[:MARK],
        grain=grain_of(grey, seen),
    )


def find_suspects(
    photos: Sequence[Photo], copies: Sequence[int], scores: Sequence[float] | np.ndarray | None = None
) -> tuple[Suspect, ...]:
    """Photographs that stand out of their folder, the gravest first; a photograph may be listed twice.

    Args:
        photos: of `facts_of`.
        copies: of `find_copies`, a group for every photograph.
        scores: score of each photograph by a model that did not learn it, in spreads of good ones that are no
            smaller than what the sensor makes of one; NaN where there is none.
    """
    flat = _one_coloured(photos)
    out = {suspect.source for suspect in flat}
    rest = [photo for photo in photos if photo.source not in out]  # nothing shows how sharp a black one is
    found = [*flat, *_other_camera(rest), *_other_size(photos)]
    if scores is not None:
        # That a black one is strange has been said.
        found += [s for s in _strange(photos, np.asarray(scores, np.float64)) if s.source not in out]
    found += [*_other_light(rest), *_other_sharpness(rest), *_copied(photos, copies)]
    return tuple(sorted(found, key=lambda s: (KINDS.index(s.kind), -(s.score or 0.0))))


# One kind each


def _one_coloured(photos: Sequence[Photo]) -> list[Suspect]:
    usual = float(np.median([photo.spread for photo in photos])) if photos else 0.0
    found = []
    for photo in photos:
        empty = photo.sharpness == 0
        if not empty and not (photo.spread < _FLAT and photo.spread < _FLAT_SHARE * usual):
            continue
        shade = "black" if photo.light < 16 else "white" if photo.light > 239 else "of one colour"
        reason = f"it is {'' if empty else 'nearly '}{shade} all over and shows no product"
        found.append(Suspect(photo.source, "one colour", reason, None))
    return found


def _other_camera(photos: Sequence[Photo]) -> list[Suspect]:
    """By what the files say; and by grey among colour, where they say nothing."""
    named = _other_name(photos)
    out = {suspect.source for suspect in named}
    return named + [suspect for suspect in _other_colour(photos) if suspect.source not in out]


def _other_name(photos: Sequence[Photo]) -> list[Suspect]:
    names = Counter(photo.camera for photo in photos if photo.camera is not None)
    if len(photos) < _FEWEST or not names:
        return []
    usual, count = names.most_common(1)[0]
    if count < _MAJORITY * len(photos):
        return []
    return [
        Suspect(photo.source, "camera", f"it was taken with {photo.camera}, the others with {usual}", None)
        for photo in photos
        if photo.camera not in (None, usual)
    ]


def _other_colour(photos: Sequence[Photo]) -> list[Suspect]:
    grey = [photo for photo in photos if photo.colourfulness < _GREY]
    coloured = [photo for photo in photos if photo.colourfulness > _COLOURED]
    for few, many, reason in (
        (grey, coloured, "it is grey and the others are in colour, as from another camera"),
        (coloured, grey, "it is in colour and the others are grey, as from another camera"),
    ):
        if len(photos) >= _FEWEST and len(many) >= _MAJORITY * len(photos):
            return [Suspect(photo.source, "camera", reason, None) for photo in few]
    return []


def _other_size(photos: Sequence[Photo]) -> list[Suspect]:
    if len(photos) < _FEWEST:
        return []
    usual = np.log([photo.size[1] / photo.size[0] for photo in photos])
    middle = float(np.median(usual))
    shaped = np.abs(usual - middle) <= _SHAPE
    (height, width), agreeing = Counter(photo.size for photo in photos).most_common(1)[0]
    found = []
    for photo, fits in zip(photos, shaped, strict=True):
        its = f"it has {photo.size[1]} x {photo.size[0]} pixels"
        if not fits and shaped.mean() >= _MAJORITY:
            score = abs(float(np.log(photo.size[1] / photo.size[0])) - middle)
            reason = f"{its}, the others another shape, such as {width} x {height}: it is squeezed otherwise"
            found.append(Suspect(photo.source, "size", reason, score))
        elif photo.size != (height, width) and agreeing >= _MAJORITY * len(photos):
            reason = f"{its}, the others {width} x {height}"
            found.append(Suspect(photo.source, "size", reason, abs(float(np.log(photo.size[0] / height)))))
    return found


def _strange(photos: Sequence[Photo], scores: np.ndarray) -> list[Suspect]:
    given = np.isfinite(scores)
    if given.sum() < _FEWEST:
        return []
    away = _spreads(scores, scores[given], least=1.0)
    return [
        Suspect(
            photo.source,
            "defect",
            f"it may be defective: a model of the other photographs finds it {z:.0f} spreads stranger than "
            "a good one is as a rule",
            float(z),
        )
        for photo, z, known in zip(photos, away, given, strict=True)
        if known and _tamed(z) > _tamed(_CLEAR_SCORE) * _caution(int(given.sum()))
    ]


def _other_light(photos: Sequence[Photo]) -> list[Suspect]:
    values = np.array([photo.light for photo in photos])
    return _outliers(
        photos,
        values,
        kind="light",
        least=2.0,
        clear=_CLEAR_LIGHT,
        step=_LIGHT_STEP,
        reason=lambda value, usual: (
            f"it is {'lighter' if value > usual else 'darker'} than the others: mean grey level {value:.0f}, "
            f"theirs about {usual:.0f}"
        ),
    )


def _other_sharpness(photos: Sequence[Photo]) -> list[Suspect]:
    values = np.log([max(photo.sharpness, 1e-3) for photo in photos])
    return _outliers(
        photos,
        values,
        kind="sharpness",
        least=0.03,
        clear=_CLEAR_SHARPNESS,
        step=float(np.log(_SHARPNESS_STEP)),
        reason=lambda value, usual: (
            f"it is {np.exp(abs(value - usual)):.1f} times {_sharper(value > usual)} than the others"
        ),
    )


def _copied(photos: Sequence[Photo], copies: Sequence[int]) -> list[Suspect]:
    groups: dict[int, list[Photo]] = {}
    for photo, group in zip(photos, copies, strict=True):
        groups.setdefault(group, []).append(photo)
    found = []
    for first, *others in groups.values():
        if others:
            named = ", ".join(photo.source for photo in others[:3]) + (", ..." if len(others) > 3 else "")
            more = "one more shows" if len(others) == 1 else f"{len(others)} more show"
            reason = f"{more} the same again, and they count as one: {named}"
            found.append(Suspect(first.source, "copies", reason, float(len(others))))
    return found


# Numbers


def _outliers(
    photos: Sequence[Photo],
    values: np.ndarray,
    *,
    kind: Kind,
    least: float,
    clear: float,
    step: float,
    reason: Callable[[float, float], str],
) -> list[Suspect]:
    """Those farther than `clear` spreads, of at least `least`, and than `step` from the median."""
    if len(photos) < _FEWEST:
        return []
    usual = float(np.median(values))
    away = np.abs(_spreads(values, values, least=least))
    return [
        Suspect(photo.source, kind, reason(float(value), usual), float(z))
        for photo, value, z in zip(photos, values, away, strict=True)
        if z > clear * _caution(len(photos)) and abs(value - usual) > step
    ]


def _spreads(values: np.ndarray, usual: np.ndarray, *, least: float) -> np.ndarray:
    """How many robust spreads values lie above the median."""
    return np.asarray((values - np.median(usual)) / max(robust_spread(usual), least))


def _moments(histogram: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of grey levels, from how often each comes."""
    counts, levels = np.array(histogram, np.float64), np.arange(256)
    mean = float((counts * levels).sum() / counts.sum())
    return mean, float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))


def _tamed(spreads: float) -> float:
    """Good scores have a long upper tail: linear near the typical one, logarithmic far above it."""
    return 4 * float(np.log1p(max(spreads, 0.0) / 4))


def _caution(count: int) -> float:
    """How much farther out counts as clear with few values, whose median deviation is sometimes tiny.

    Simulated with 5 to 40 normal values: one folder in a hundred has one beyond 4.5 spreads times this.
    """
    return 1 + 3 / (count - _FEWEST + 1)


def _steps(grey: np.ndarray, axis: int) -> float:
    if grey.shape[axis] < 2:
        return 0.0
    return float(np.abs(np.diff(grey.astype(np.int16), axis=axis)).mean())


def _sharper(more: bool) -> str:
    return "sharper or noisier" if more else "less sharp"
