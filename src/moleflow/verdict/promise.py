"""What the images at hand can promise: which false-alarm rate, at what cost, and what more would help."""

from __future__ import annotations

from dataclasses import dataclass

from .calibration import Calibration

ENOUGH = 200  # photographs, beyond which another lowers the threshold by next to nothing
OUT_OF_REACH = 1e6  # spreads of good images: no image scores so high
WORTH_MORE = 0.97  # of today's threshold: what does not get below it is not worth another photograph


@dataclass(frozen=True)
class Promise:
    """What a product's good images support.

    Attributes:
        images: independent good images behind the threshold.
        rate: the false-alarm rate asked for; None where the threshold was set by hand.
        least_rate: the lowest rate that so many images can show by themselves, 1 / (images + 1): with n good
            images the next one is the strangest of all with that probability. The threshold rests on a model
            of how good scores spread at any rate.
        threshold: the score that follows from the rate.
        later: how many images in all, and the threshold that these would give if they spread as today's do.
    """

    images: int
    rate: float | None
    least_rate: float
    threshold: float
    later: tuple[tuple[int, float], ...]

    def sentences(self) -> tuple[str, ...]:
        """The same in plain words."""
        counted = f"{self.images} independent photographs show by themselves"
        shown = "1 photograph shows by itself" if self.images == 1 else counted
        told = [f"{shown} a false-alarm rate of {as_percent(self.least_rate, 2)} at the least"]
        if self.rate is None:
            return tuple(told)
        told.append(f"{as_percent(self.rate, 2)} follows from a model of how good scores spread")
        if self.images < 2:
            told.append("one photograph does not show how good ones vary: hardly anything alarms")
        for images, threshold in self.later[:1]:
            gain = (
                f"it would be {threshold:.1f}, and what lies between is missed today"
                if threshold < WORTH_MORE * self.threshold
                else "it would hardly be lower"
            )
            told.append(
                f"a defect must score {self.threshold:.1f} to be found; with {images - self.images} more "
                f"photographs like these {gain}"
            )
        return tuple(told)


def as_percent(share: float, decimals: int) -> str:
    """A share in per cent, with more decimals where it would be written as zero."""
    written = f"{share:.{decimals}%}"
    return written if share == 0 or float(written[:-1]) else f"{100 * share:.1g}%"


def promise(calibration: Calibration, rate: float | None, threshold: float) -> Promise:
    """What a calibration supports at a false-alarm rate; None where the threshold was set by hand."""
    count = calibration.images
    later: tuple[tuple[int, float], ...] = ()
    if rate is not None and 1 < count < ENOUGH:
        wanted = sorted({min(ENOUGH, max(2 * count, 20)), ENOUGH})
        later = tuple((images, calibration.threshold(rate, images=images)) for images in wanted)
    return Promise(count, rate, 1 / (count + 1), threshold, later)
