"""What a new line says about the shape of its images, before it learns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .screen import amount, as_text

if TYPE_CHECKING:
    from ..data.shapes import Proposal
    from ..detector import Detector
    from ..features.extractor import Extractor

FITTED = {
    "squeeze": ("squeezed", "one of another shape is squeezed to it as well"),
    "letterbox": ("letterboxed", "one of another shape keeps it and gets a border"),
}


def settled_in_words(detector: Detector, proposal: Proposal) -> Iterator[str]:
    """Sentences on size, fit, smallest defect and cost; the backbone sees a blank image for the last."""
    extractor, intake = detector.extractor, detector.intake
    shape = "images" if proposal.alike else "images of several shapes, in the middle"
    fitted, others = FITTED[intake.fit]
    yield (
        f"{shape} {as_text(proposal.images)} (height x width) are brought to {as_text(intake.size)}, "
        f"{fitted}{_tiled(extractor)}; {others}"
    )
    if intake.smallest_defect is not None:
        yield _defect(extractor, proposal, intake.smallest_defect)
    features = 2 * extractor.grid[0] * extractor.grid[1] * extractor.dim
    yield (
        f"the backbone takes about {1000 * _seconds(extractor):.0f} ms an image on this machine; "
        f"learning holds {amount(features)} of features of each"
    )


def _tiled(extractor: Extractor) -> str:
    tiling = extractor.tiling
    return "" if tiling is None else f", seen in {as_text(tiling.counts)} tiles of {as_text(tiling.tile)}"


def _defect(extractor: Extractor, proposal: Proposal, smallest: float) -> str:
    sides = zip(extractor.image_size, proposal.images, strict=True)
    cells = min(smallest * side / own for side, own in sides) / extractor.cell
    said = f"a defect of {smallest:g} pixels covers {cells:.1f} cells of the map"
    if proposal.wanted is None:
        return said
    each = "" if extractor.tiling is None else " a tile"
    return (
        f"{said}: two of them would take {as_text(proposal.wanted)}{each}, more than four times the pixels "
        f"of the backbone's own size; more tiles, such as --tiles 2x2, see smaller ones"
    )


def _seconds(extractor: Extractor) -> float:
    import torch

    blank = torch.zeros(1, 3, *extractor.image_size, dtype=torch.uint8)
    extractor.features(blank)  # the first pass starts what computes the others
    started = time.perf_counter()
    extractor.features(blank).cpu()
    return time.perf_counter() - started
