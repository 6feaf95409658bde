"""What learning more of a product changes in what was said of images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flip:
    """An image of which the version before and the new one say different things.

    Attributes:
        source: its path or position.
        before, after: "good", "defective", "unknown", "drifting", or "taken for" another product.
    """

    source: str
    before: str
    after: str


@dataclass(frozen=True)
class Changes:
    """What an update changed.

    Attributes:
        taught: images the update was given.
        swallowed: those among them that the version before did not call good: they are good from now on.
            A defect among them would be learned.
        checked: remembered images that were still there and inspected with both versions.
        flipped: those among them whose verdict is another now.
    """

    taught: int
    swallowed: tuple[Flip, ...] = ()
    checked: int = 0
    flipped: tuple[Flip, ...] = ()
