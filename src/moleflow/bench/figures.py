"""What is measured on one product, or on all of them pooled, from a method's inspections."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..data.layouts import Item, Product
from ..metrics import PixelMetrics, PixelScores, image_ap, image_auroc, image_f1_max
from ..metrics.resampling import (
    PixelCounts,
    Sample,
    edges_of,
    image_replicates,
    image_weights,
    mean_replicates,
)
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


@dataclass(frozen=True)
class Examined:
    """Figures, and AUPIMO of every defective image whose mask has a pixel at the size of comparison."""

    figures: Figures
    aupimo: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"figures": self.figures.to_dict(), "aupimo": list(self.aupimo)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Examined:
        """The inverse of `to_dict`."""
        return cls(Figures(**values["figures"]), tuple(values["aupimo"]))


def examine(
    products: Sequence[Product],
    inspections: Sequence[Sequence[Inspection]],
    eval_size: tuple[int, int] | None,
    *,
    spill: Path | None = None,
) -> Examined:
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
        return Examined(Figures())
    scores = [found.score for _, found in pairs]
    figures = {
        "image_auroc": image_auroc(scores, labels),
        "image_ap": image_ap(scores, labels),
        "image_f1_max": image_f1_max(scores, labels).f1,
    }
    summary = _of_pixels(pairs, eval_size, spill) if _localised(products, pairs) else None
    if summary is None:
        return Examined(Figures(**figures))
    figures |= {
        "pixel_auroc": summary.auroc,
        "pixel_ap": summary.ap,
        "aupro_30": summary.aupro[AUPRO_LIMITS[0]],
        "aupro_05": summary.aupro[AUPRO_LIMITS[1]],
    }
    if summary.aupimo is None:
        return Examined(Figures(**figures))
    return Examined(Figures(**figures, aupimo=summary.aupimo.mean), summary.aupimo.per_image)


def _localised(products: Sequence[Product], pairs: Sequence[tuple[Item, Inspection]]) -> bool:
    """Whether there are maps and masks to compare."""
    return all(found.patch_map is not None for _, found in pairs) and all(has_masks(p) for p in products)


def _compared(
    item: Item, found: Inspection, eval_size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Map and mask of an image at the size at which they are compared."""
    size = eval_size or _own_size(item_image(item))
    assert found.patch_map is not None
    return enlarged(found.patch_map, size), item_mask(item, size)


def _of_pixels(
    pairs: Sequence[tuple[Item, Inspection]], eval_size: tuple[int, int] | None, spill: Path | None
) -> PixelMetrics | None:
    marked = 0
    with PixelScores(spill_dir=spill) as pixels:
        for item, found in pairs:
            anomaly_map, mask = _compared(item, found, eval_size)
            marked += int(np.count_nonzero(mask))
            pixels.add(anomaly_map, mask, defective=bool(item.label))
        return pixels.summary(limits=AUPRO_LIMITS) if marked else None


def resample(
    product: Product,
    inspections: Sequence[Inspection],
    eval_size: tuple[int, int] | None,
    examined: Examined,
) -> dict[str, np.ndarray]:
    """What is kept of every image, and every figure again under other draws of the images.

    Pixel figures are counted in bins and moved by what that is off with every image once.

    Args:
        product: whose test images were inspected.
        inspections: of its test images, in their order.
        eval_size: as for `examine`.
        examined: what that found.

    Returns:
        "score" and "label" (N,), "aupimo" of defective images with a mask; for every figure there is
        "figure.<name>" (), "again.<name>" (R,), and "bins.<name>" (), by how much its bins were off.
    """
    labels = [item.label for item in product.test]
    scores = np.array([found.score for found in inspections])
    kept = {"score": scores, "label": np.array(labels), "aupimo": np.array(examined.aupimo)}
    figures = {name: value for name, value in examined.figures.to_dict().items() if value is not None}
    if not figures:
        return kept
    # The first row has every image once: what bins are off is measured by it.
    weights = np.concatenate([np.ones((1, len(labels))), image_weights(product.name, labels)])
    again = image_replicates(scores, labels, weights)
    if "pixel_ap" in figures:
        again |= _pixels_again(product, inspections, eval_size, examined, weights)
    for name, value in figures.items():
        draws, off = again[name][1:], again[name][0] - value
        kept[f"again.{name}"] = np.where(np.isfinite(draws), draws - off, value)
        kept[f"figure.{name}"] = np.array(value)
        kept[f"bins.{name}"] = np.array(abs(off))
    return kept


def _pixels_again(
    product: Product,
    inspections: Sequence[Inspection],
    eval_size: tuple[int, int] | None,
    examined: Examined,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """Pixel figures under weights (R, N), by their names."""
    pairs = list(zip(product.test, inspections, strict=True))
    # Maps are made twice rather than kept: there may be more than memory holds.
    samples = [Sample.of(*_compared(item, found, eval_size)) for item, found in pairs if item.label]
    counts, masked = PixelCounts(edges_of(samples)), []
    for item, found in pairs:
        anomaly_map, mask = _compared(item, found, eval_size)
        counts.add(anomaly_map, mask)
        masked.append(bool(mask.any()))
    found_again = counts.replicates(weights, AUPRO_LIMITS)
    again = {name: found_again[name] for name in ("pixel_auroc", "pixel_ap")}
    again |= {"aupro_30": found_again["aupro 0.3"], "aupro_05": found_again["aupro 0.05"]}
    if examined.aupimo:
        again["aupimo"] = mean_replicates(examined.aupimo, weights[:, masked])
    return again


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
