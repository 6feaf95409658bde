"""What a score looks like: one rule for every image of a product, whoever draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

OUTLINE = (0, 255, 255)  # around what exceeds the threshold; the colour no score has
STOPS: tuple[tuple[int, int, int], ...] = (
    (20, 11, 70),
    (120, 28, 110),
    (205, 60, 75),
    (245, 140, 30),
    (250, 225, 100),
)
_OPACITY = 0.65  # of the hottest colour: the part stays visible below it


@dataclass(frozen=True)
class Scale:
    """Scores on a scale from 0 to 1: 0 at a typical good image, half at the threshold, 1 at twice as far.

    It depends on the product alone, never on the image. A threshold set by hand may lie at or below the
    typical good image; then the scale begins one spread below the threshold.

    Attributes:
        threshold: score above which an image is called defective.
        typical: score of a typical good image; 0 in the units of `Prediction.pred_score`.
    """

    threshold: float
    typical: float = 0.0

    @property
    def low(self) -> float:
        """Score up to which nothing is drawn."""
        return self.typical if self.threshold > self.typical else self.threshold - 1.0

    @property
    def high(self) -> float:
        """Score from which on the colour is full."""
        return 2 * self.threshold - self.low

    def levels(self, scores: NDArray[np.floating]) -> Pixels:
        """Scores as 0..255, the threshold in the middle."""
        share = (scores - self.low) / (2 * (self.threshold - self.low))
        return np.asarray(np.clip(share, 0, 1) * 255, dtype=np.uint8)


def painted(image: Pixels, levels: Pixels) -> Pixels:
    """`image` (H, W, 3) with the colours of `levels` (H, W) over it; level 0 leaves it as it is."""
    share = _OPACITIES[levels][..., None]
    blended = image * (1 - share) + _COLOURS[levels] * share
    return np.asarray(np.rint(blended), dtype=np.uint8)


def layer(levels: Pixels) -> Pixels:
    """The colours of `levels` (H, W) alone, (H, W, 4) RGBA: clear at level 0, opaque at the highest one."""
    return np.dstack([np.rint(_COLOURS[levels]).astype(np.uint8), levels])


def _colours() -> NDArray[np.float32]:
    """Colour (256, 3) of each level."""
    at, stops = np.linspace(0, 1, 256), np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(at, stops, channel) for channel in zip(*STOPS, strict=True)], 1).astype("f4")


_COLOURS = _colours()
_OPACITIES = (_OPACITY * np.linspace(0, 1, 256)).astype(np.float32)
