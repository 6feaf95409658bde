"""Defective images that a person shows, and what of them is the defect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.intensity import FULL
from ..data.layouts import Item, load_mask
from ..data.layouts.listing import images_in
from ..data.sources import Source, name_of
from ..densities.correction import Defects
from ..errors import DatasetError, ImageError
from ..features.extractor import Extractor, Features
from ..intake import Intake, Picture
from ..line.beginning import see
from ..pose import Pose

MARKED = 0.1  # share of a patch under the mask from which it is of the defect
SUFFIXES = ("", "_mask")  # of a mask's name behind that of its image


@dataclass(frozen=True)
class KnownDefects:
    """Images of missed defects.

    Attributes:
        sources: the images.
        masks: folder with a mask for each, named like the image or with `_mask` behind its name; None where
            the strongest patches stand in for it.
    """

    sources: Sequence[tuple[Source, Any]]
    masks: Path | None = None

    def seen(self, pose: Pose | None, intake: Intake, extractor: Extractor) -> Defects:
        """Their features as an inspection of the product sees them, and which patches are marked.

        Raises:
            ImageError: an image or a mask cannot be read, has no mask, or one of another size or without a
                defect in it.
        """
        look, parts, marks = partial(see, extractor), [], []
        for source, value in self.sources:
            picture = intake.read(source, value)
            placement = None if pose is None else pose.place(picture.own, picture.size)
            window = None if pose is None else pose.window
            parts.append(look([picture.aligned(placement, window)]))
            if self.masks is not None:
                mask = _mask_of(source, picture, self.masks, intake).aligned(placement, None)
                marked = _marked(mask, extractor.grid)
                if not marked.any():
                    raise ImageError(
                        f"{name_of(source)}: expected some of the masked defect where the product is looked "
                        "at, but all of it lies outside"
                    )
                marks.append(marked)
        return Defects(Features.of(parts).patches, torch.cat(marks) if marks else None)


def _mask_of(source: Source, picture: Picture, folder: Path, intake: Intake) -> Picture:
    """The mask of an image, brought to the line's size as the image was."""
    stem = Path(name_of(source)).stem
    named = [path for path in images_in(folder) if path.stem in [stem + end for end in SUFFIXES]]
    itself = Path(name_of(source)).resolve()  # masks may lie beside the images
    found = [path for path in named if path.resolve() != itself]
    if len(found) != 1:
        told = "found none" if not found else f"found {', '.join(path.name for path in found)}"
        raise ImageError(
            f"{folder}: expected one mask {stem}.png or {stem}_mask.png for {name_of(source)}, {told}"
        )
    try:
        mask = load_mask(Item(found[0], "", "test", "defective", (found[0],)))
    except DatasetError as error:
        raise ImageError(str(error)) from error
    if mask.shape != picture.size:
        raise ImageError(f"{found[0]}: mask of {mask.shape} for an image of {picture.size}")
    plain = Intake(intake.size, FULL, intake.fit, intake.cell)
    return plain.read(found[0], np.repeat(255 * mask[..., None].astype(np.uint8), 3, -1))


def _marked(mask: Picture, grid: tuple[int, int]) -> Tensor:
    """(1, h, w) bool: patches with enough of the defect, at least the one with most."""
    own = torch.from_numpy(np.ascontiguousarray(mask.pixels.max(-1) > 0)).float()
    share = F.adaptive_avg_pool2d(own[None, None], grid)[0]
    shown = torch.zeros(grid, dtype=torch.bool)
    shown[mask.cells(grid)] = True
    share = share * shown
    return (share >= min(MARKED, float(share.max()))) & (share > 0)
