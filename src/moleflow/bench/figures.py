"""What is measured on one product, or on all of them pooled, from a method's inspections."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..data.layouts import Item, Product
from ..metrics import PixelScores, image_ap, image_auroc, image_f1_max
from .methods.base import Inspection
from .pictures import has_masks, item_image, item_mask

AUPRO_LIMITS = (0.3, 0.05)


@dataclass(frozen=True)
class Figures:
    """Detection and localisation, each 0 to 1; None where it cannot be measured.

    Pixel figures need masks and a method that localises. F1-max picks its threshold by the labels.
    AUPRO is up to a false-positive rate of 0.3 and of 0.05, AUPIMO between 1e-5 and 1e-4.
    """

    image_auroc: float | None = None
    image_ap: float | None = None
    image_f1_max: float | None = None
    pixel_auroc: float | None = None
    pixel_ap: float | None = None
    aupro_30: float | None = None
    aupro_05: float | None = None
    aupimo: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON."""
        return asdict(self)


NAMES = tuple(field.name for field in fields(Figures))


def measure(
    products: Sequence[Product],
    inspections: Sequence[Sequence[Inspection]],
    eval_size: tuple[int, int] | None,
    *,
    spill: Path | None = None,
) -> Figures:
    """Figures over the test images of products, pooled where there are several.

    None for pixels where no mask has one left at `eval_size`.

    Args:
        products: whose test images were inspected.
        inspections: of each product's test images, in their order.
        eval_size: (H, W) at which maps and masks are compared; None for every image's own size.
        spill: folder for pixels that memory does not hold; the system's temporary one by default.
    """
    pairs = [
        (item, found)
        for product, results in zip(products, inspections, strict=True)
        for item, found in zip(product.test, results, strict=True)
    ]
    labels = [item.label for item, _ in pairs]
    if len(set(labels)) < 2:
        return Figures()
    scores = [found.score for _, found in pairs]
    figures = {
        "image_auroc": image_auroc(scores, labels),
        "image_ap": image_ap(scores, labels),
        "image_f1_max": image_f1_max(scores, labels).f1,
    }
    if all(found.patch_map is not None for _, found in pairs) and all(has_masks(p) for p in products):
        figures |= _of_pixels(pairs, eval_size, spill)
    return Figures(**figures)


def _of_pixels(
    pairs: Sequence[tuple[Item, Inspection]], eval_size: tuple[int, int] | None, spill: Path | None
) -> dict[str, float]:
    marked = 0
    with PixelScores(spill_dir=spill) as pixels:
        for item, found in pairs:
            size = eval_size or _own_size(item_image(item))
            mask = item_mask(item, size)
            marked += int(np.count_nonzero(mask))
            assert found.patch_map is not None
            pixels.add(enlarged(found.patch_map, size), mask, defective=bool(item.label))
        if not marked:
            return {}
        summary = pixels.summary(limits=AUPRO_LIMITS)
    return {
        "pixel_auroc": summary.auroc,
        "pixel_ap": summary.ap,
        "aupro_30": summary.aupro[AUPRO_LIMITS[0]],
        "aupro_05": summary.aupro[AUPRO_LIMITS[1]],
        **({} if summary.aupimo is None else {"aupimo": summary.aupimo.mean}),
    }


def enlarged(patch_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A patch map (h, w) at image size (H, W), bilinear, float32: the map a station shows."""
    grid = torch.from_numpy(np.asarray(patch_map, np.float32))[None, None]
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def digest(inspections: Sequence[Inspection]) -> str:
    """A hash over all scores and maps: equal digests mean bit-identical results."""
    told = hashlib.sha256()
    for found in inspections:
        told.update(np.float64(found.score).tobytes())
        if found.patch_map is not None:
            told.update(np.ascontiguousarray(found.patch_map, np.float32).tobytes())
    return told.hexdigest()


def _own_size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
