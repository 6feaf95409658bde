"""Which good images are left out together, so that a verdict holds on the next session too."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..config import ScoringConfig
from ..verdict.calibration import BLOCKS, LEAST_BLOCKS


@dataclass(frozen=True)
class Blocks:
    """A product's good images in parts.

    Images of one session, lot or hour are alike beyond what makes them good. Left out one by one they vouch
    for each other, and the threshold that follows is kept today and broken tomorrow.

    Attributes:
        left_out: of every image the block it is left out with, 0, 1, ...; near-copies share one.
        first: positions of the images that count, one of each group of near-copies.
        sessions: of each of those the session it belongs to.
    """

    left_out: tuple[int, ...]
    first: tuple[int, ...]
    sessions: tuple[int, ...]

    def images_of(self, block: int) -> list[int]:
        """Positions of a block's images."""
        return [i for i, own in enumerate(self.left_out) if own == block]

    def half(self, parity: int) -> list[int]:
        """Positions of the images in every second block."""
        return [i for i, own in enumerate(self.left_out) if own % 2 == parity]

    @property
    def count(self) -> int:
        """How many blocks are left out in turn."""
        return max(self.left_out) + 1

    @classmethod
    def together(cls, parts: Sequence[Blocks]) -> Blocks:
        """Of the images of several products, one product after the other.

        Every image keeps the number of its block, so that each half leaves out that half of every product.
        """
        left_out: list[int] = []
        first: list[int] = []
        sessions: list[int] = []
        for part in parts:
            before = max(sessions, default=-1) + 1
            sessions += [before + session for session in part.sessions]
            first += [len(left_out) + i for i in part.first]
            left_out += part.left_out
        return cls(tuple(left_out), tuple(first), tuple(sessions))


def make_blocks(
    count: int,
    config: ScoringConfig,
    *,
    groups: Sequence[Hashable] | None = None,
    copies: Sequence[int] | None = None,
) -> Blocks:
    """Blocks of `count` images.

    Args:
        count: images, in the order in which they were taken as far as anybody knows.
        config: how many blocks, and up to how many images each is one by itself.
        groups: session or lot of every image; at least three different ones replace the order of the images.
        copies: of every image the number of its group of near-copies, which are never parted.
    """
    units = _numbered(copies if copies is not None else range(count))
    first = tuple(units.index(unit) for unit in range(max(units) + 1))
    named = _numbered([groups[i] for i in first]) if groups is not None else []
    if named and max(named) + 1 >= LEAST_BLOCKS:
        blocks = sessions = _merged(named, config.blocks)
    else:
        sessions = _runs(len(first), min(BLOCKS, max(len(first) // 3, 1)))
        single = len(first) <= config.single_up_to
        blocks = list(range(len(first))) if single else _runs(len(first), config.blocks)
    return Blocks(tuple(blocks[unit] for unit in units), first, tuple(sessions))


def _numbered(labels: Sequence[Hashable]) -> list[int]:
    """Labels as 0, 1, ... in the order in which they first appear."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]


def _runs(count: int, parts: int) -> list[int]:
    """`count` things in runs of about equal length."""
    parts = min(parts, count)
    return [i * parts // count for i in range(count)]


def _merged(labels: list[int], most: int) -> list[int]:
    """Groups numbered in order, neighbours made one where there are too many, the largest kept small."""
    sizes = [labels.count(group) for group in range(max(labels) + 1)]
    if len(sizes) <= most:
        return labels
    largest = bisect_left(
        range(len(labels) + 1), True, lo=max(sizes), key=lambda size: len(_packed(sizes, size)) <= most
    )
    parts = _packed(sizes, largest)
    while len(parts) < most:
        widest = max((part for part in parts if len(part) > 1), key=lambda part: sum(sizes[g] for g in part))
        at, middle = parts.index(widest), len(widest) // 2
        parts[at : at + 1] = [widest[:middle], widest[middle:]]
    merged = {group: number for number, part in enumerate(parts) for group in part}
    return [merged[group] for group in labels]


def _packed(sizes: Sequence[int], largest: int) -> list[list[int]]:
    """Neighbours put together as long as they hold no more than `largest`."""
    parts: list[list[int]] = []
    held = largest
    for group, size in enumerate(sizes):
        if held + size > largest:
            parts.append([])
            held = 0
        parts[-1].append(group)
        held += size
    return parts
