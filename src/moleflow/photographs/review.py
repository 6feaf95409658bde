"""What a folder of good photographs is worth: how many are independent, and which are suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data.sources import text_of
from ..errors import ImageError
from .copies import find_copies
from .suspects import MARK, Photo, Suspect, find_suspects

Spread = tuple[float, float, float, float, float]
"""Least, first quartile, median, third quartile and largest."""

KEPT = 100  # suspects a saved line keeps of a lesson


@dataclass(frozen=True)
class Lesson:
    """What a product was last taught from.

    Attributes:
        images: photographs that taught it.
        independent: groups of near-copies among them; a video counts as few photographs, however long.
        suspects: the gravest first, those left out included.
        dropped: sources of photographs that were left out, on demand only.
        light: mean grey levels of the photographs that taught, 0..255; None where nobody looked.
        sharpness: the same for their sharpness, see `Photo`.
        marks: of all photographs that taught it, in this lesson and in those that it was updated from, one
            behind the other.
    """

    images: int
    independent: int
    suspects: tuple[Suspect, ...] = ()
    dropped: tuple[str, ...] = ()
    light: Spread | None = None
    sharpness: Spread | None = None
    marks: str = ""

    def taught_by(self, photos: Sequence[Photo]) -> list[bool]:
        """Of each photograph whether it, to the pixel, is one of those that taught."""
        known = {self.marks[at : at + MARK] for at in range(0, len(self.marks), MARK)}
        return [bool(photo.mark) and photo.mark in known for photo in photos]

    @property
    def suspicious(self) -> tuple[str, ...]:
        """Sources that something speaks against, each once; what `drop_suspicious` leaves out."""
        return tuple(dict.fromkeys(suspect.source for suspect in self.suspects if suspect.fault))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, of at most `KEPT` suspects and dropped sources, and how many there were."""
        return asdict(self) | {
            "suspects": [
                asdict(s) | {"source": text_of(s.source), "reason": text_of(s.reason)}
                for s in self.suspects[:KEPT]
            ],
            "suspects_found": len(self.suspects),
            "dropped": [text_of(source) for source in self.dropped[:KEPT]],
            "dropped_found": len(self.dropped),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Lesson:
        """The inverse of `to_dict`, up to the suspects that were too many to keep."""
        return cls(
            images=int(values["images"]),
            independent=int(values["independent"]),
            suspects=tuple(Suspect(**suspect) for suspect in values["suspects"]),
            dropped=tuple(map(str, values["dropped"])),
            light=_as_spread(values["light"]),
            sharpness=_as_spread(values["sharpness"]),
            marks=str(values.get("marks", "")),
        )


@dataclass(frozen=True)
class Review:
    """A lesson before it is learned.

    Attributes:
        lesson: what is kept of it.
        kept: positions of the photographs to learn from.
        groups: for each of those the number of its group of near-copies.
    """

    lesson: Lesson
    kept: list[int]
    groups: list[int]


def review(
    photos: Sequence[Photo],
    *,
    drop_suspicious: bool = False,
    scores: Sequence[float] | np.ndarray | None = None,
) -> Review:
    """Looks at a folder's photographs; leaves suspicious ones out only where that was asked for.

    Args:
        photos: all of them, in order.
        drop_suspicious: leave out whatever something speaks against.
        scores: see `find_suspects`.

    Raises:
        ImageError: none would be left.
    """
    copies = find_copies([photo.thumbnail for photo in photos], [photo.grain for photo in photos])
    suspects = find_suspects(photos, copies, scores)
    accused = {s.source for s in suspects if s.fault} if drop_suspicious else set()
    kept = [i for i, photo in enumerate(photos) if photo.source not in accused]
    if not kept:
        raise ImageError(
            f"all {len(photos)} images are suspicious and dropping them leaves none to learn from; "
            f"{suspects[0].source}: {suspects[0].reason}"
        )
    groups = [copies[i] for i in kept]
    if accused:  # what is left out is no longer the same again as anything
        left = find_suspects([photos[i] for i in kept], groups)
        suspects = (*(s for s in suspects if s.fault), *(s for s in left if not s.fault))
    lesson = Lesson(
        images=len(kept),
        independent=len(set(groups)),
        suspects=suspects,
        dropped=tuple(photo.source for photo in photos if photo.source in accused),
        light=_spread_of([photos[i].light for i in kept]),
        sharpness=_spread_of([photos[i].sharpness for i in kept]),
    )
    return Review(lesson, kept, groups)


def _spread_of(values: list[float]) -> Spread:
    return _five(np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist())


def _as_spread(values: list[float] | None) -> Spread | None:
    return None if values is None else _five(values)


def _five(values: list[float]) -> Spread:
    least, first, median, third, largest = map(float, values)
    return least, first, median, third, largest
