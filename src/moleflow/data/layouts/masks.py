"""Masks as arrays: which pixels of an image are defective."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DatasetError, ImageError
from ..images import read_image, read_values
from .records import Item, Mask


def load_mask(item: Item, *, shape: tuple[int, int] | None = None) -> Mask:
    """The defect of one image as (H, W) bool: the union of its masks, all False for a good image.

    ``shape`` (H, W) resizes to the nearest pixel; left out, masks keep their size and a good image
    gives its own. Shrinking may lose a thin defect, so the result can be empty although the mask is
    not. Raises DatasetError, with the path, for a defective image without masks, and for masks that
    cannot be read, differ in size or hold no defect at all.
    """
    if item.label == 0:
        return np.zeros(shape if shape is not None else _image_shape(item), dtype=bool)
    if not item.masks:
        raise DatasetError(f"{item.path}: this defective image has no mask")
    union = _read_mask(item.masks[0], item.mask_above)
    for path in item.masks[1:]:
        mask = _read_mask(path, item.mask_above)
        if mask.shape != union.shape:
            raise DatasetError(f"{path}: mask of {mask.shape}, but another of this image is {union.shape}")
        union |= mask
    if not union.any():
        names = ", ".join(str(path) for path in item.masks)
        raise DatasetError(f"{names}: the mask of a defective image ({item.path}) is empty")
    return union if shape is None else nearest(union, shape)


def nearest(mask: Mask, shape: tuple[int, int]) -> Mask:
    """A mask (H, W) at another size: each new pixel is the old one under its centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def _image_shape(item: Item) -> tuple[int, int]:
    try:
        height, width = read_image(item.path).shape[:2]
    except ImageError as error:
        raise DatasetError(str(error)) from error
    return height, width


def _read_mask(path: Path, above: int) -> Mask:
    try:
        values = read_values(path)
    except ImageError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DatasetError(f"{path}: cannot be read as a mask: {reason}") from error
    marked = values if values.dtype == bool else np.greater(values, above)
    return np.asarray(marked.any(axis=2) if marked.ndim == 3 else marked)
