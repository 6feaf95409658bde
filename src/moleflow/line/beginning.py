"""What a line takes from its first images, for good: their size, how they are brought to it, its light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ..config import Cells
from ..data.shapes import Proposal, Size, one_shape, propose
from ..data.sources import Source, evenly
from ..errors import ConfigError, ImageError
from ..features.extractor import Extractor, Features
from ..flow.cells import CellGaussians
from ..intake import FITS, Fit, Intake, Picture, sizes_of, without_border

FitWish = Literal["auto", "squeeze", "letterbox"]

LOOKED_AT = 32  # images that squeezing and letterboxing are compared on, half of them left out
CLEARLY = 0.9  # of what squeezing leaves unexplained: letterboxing must leave less, or images are squeezed
BATCH = 4


@dataclass(frozen=True)
class Wishes:
    """What was asked for; None and "auto" leave it to the images.

    Raises:
        ConfigError: an unknown fit, a defect of no size, or a size and a defect that it should follow from.
    """

    image_size: int | Size | None = None
    smallest_defect: float | None = None
    fit: FitWish = "auto"
    intensity: str = "auto"

    def __post_init__(self) -> None:
        if self.fit not in ("auto", *FITS):
            raise ConfigError(f"expected fit auto, {' or '.join(FITS)}, got {self.fit!r}")
        defect = self.smallest_defect
        if defect is None:
            return
        if isinstance(defect, bool) or not isinstance(defect, int | float) or not 1 <= defect < float("inf"):
            raise ConfigError(f"expected a smallest defect of at least 1 pixel, got {defect!r}")
        if self.image_size is not None:
            raise ConfigError("expected an image size, or a smallest defect that it follows from, got both")


@dataclass(frozen=True, eq=False)
class Beginning:
    """What was settled.

    Attributes:
        extractor: the backbone at the size.
        intake: from an image to what it sees.
        proposal: the first images' shape, and the size that follows from it.
    """

    extractor: Extractor
    intake: Intake
    proposal: Proposal


def begin(
    extractor: Extractor,
    wishes: Wishes,
    sources: Sequence[tuple[Source, Any]],
    *,
    at_size: Callable[[Size], Extractor],
) -> Beginning:
    """Settles size, fit and light by an even sample of the first product's images.

    Args:
        extractor: the backbone at the size that was asked for, or at its own.
        wishes: what was asked for.
        sources: the images.
        at_size: makes the backbone anew for another size.

    Raises:
        ImageError: no image of the sample is readable, or they hold different kinds of numbers.
        ConfigError: an intensity that is not for such images.
    """
    sizes = sizes_of(sources) or [extractor.image_size]
    seen_at_once = extractor.image_size if extractor.tiling is None else extractor.tiling.tile
    proposal = propose(
        sizes,
        seen_at_once,
        step=extractor.step,
        cell=extractor.cell,
        parts=(extractor.image_size[0] / seen_at_once[0], extractor.image_size[1] / seen_at_once[1]),
        smallest_defect=wishes.smallest_defect,
    )
    if wishes.image_size is not None:
        proposal = replace(proposal, size=seen_at_once)
    elif proposal.size != seen_at_once:
        extractor = at_size(proposal.size)
    intake = intake_of(extractor).settled(wishes.intensity, sources)
    intake = replace(intake, smallest_defect=wishes.smallest_defect)
    if wishes.fit != "auto":
        return Beginning(extractor, replace(intake, fit=wishes.fit), proposal)
    fit: Fit = "squeeze" if one_shape(sizes) else better_fit(extractor, intake, sources)
    return Beginning(extractor, replace(intake, fit=fit), proposal)


def intake_of(extractor: Extractor, settings: dict[str, Any] | None = None) -> Intake:
    """The intake before a backbone, with the settings of a saved line."""
    return Intake.from_settings(extractor.image_size, settings, cell=extractor.cell)


def better_fit(extractor: Extractor, intake: Intake, sources: Sequence[tuple[Source, Any]]) -> Fit:
    """Under which fit left-out good images hold less that their places do not explain; else "squeeze".

    Each way, the Gaussians of the cells learn from every second of at most 32 images, and meet the others.
    Fewer than eight images say too little.
    """
    chosen = evenly(sources, LOOKED_AT)
    left: dict[Fit, float] = {}
    for fit in FITS:
        pictures = _readable(replace(intake, fit=fit), chosen)
        if len(pictures) < 8:
            return "squeeze"
        left[fit] = unexplained(extractor, pictures)
    return "letterbox" if left["letterbox"] < CLEARLY * left["squeeze"] else "squeeze"


@torch.no_grad()
def unexplained(extractor: Extractor, pictures: Sequence[Picture]) -> float:
    """Share of the variance of left-out images' patches that Gaussians of the places do not account for."""
    seen = [see(extractor, pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)]
    features = Features.of(seen).patches
    cells = CellGaussians.of(features[::2], Cells(bits=16))
    rest, all_patches = [], []
    for picture, image in zip(pictures[1::2], features[1::2], strict=True):
        own = picture.cells(extractor.grid)
        rest.append(cells(image[None])[0][own].flatten().square() * cells.noise)
        all_patches.append(image[own].flatten(0, 1))
    variance = torch.cat(all_patches).var(0).sum()
    return float(torch.cat(rest).mean() / variance)


def see(extractor: Extractor, pictures: Sequence[Picture]) -> Features:
    """What the backbone sees of a batch of pictures, in one pass, as every step of a line takes it."""
    seen = extractor.see(extractor.stack([picture.pixels for picture in pictures]))
    return replace(seen, patches=without_border(seen.patches, pictures))


def see_each(extractor: Extractor, pictures: Sequence[Picture]) -> list[Features]:
    """The same picture by picture."""
    return see(extractor, pictures).split()


def _readable(intake: Intake, sources: Sequence[tuple[Source, Any]]) -> list[Picture]:
    found = []
    for source, value in sources:
        try:
            found.append(intake.read(source, value))
        except ImageError:  # learning reads the same file again, and is where it is dealt with
            continue
    return found
