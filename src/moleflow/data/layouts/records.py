"""What a data set is made of: images with their labels and masks, products, all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
Mask = NDArray[np.bool_]

GOOD = "good"


@dataclass(frozen=True)
class Item:
    """One image. ``kind`` is "good" or the defect's name; ``masks`` are empty where there are none.

    Where there are several masks the defect is their union; a pixel belongs to it when its value is
    above ``mask_above``.
    """

    path: Path
    product: str
    split: Split
    kind: str
    masks: tuple[Path, ...] = ()
    mask_above: int = 0

    @property
    def label(self) -> int:
        """0 for a good image, 1 for a defective one."""
        return int(self.kind != GOOD)


@dataclass(frozen=True)
class Product:
    """The images of one product, each tuple in natural order (2 before 10)."""

    name: str
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All images: training, validation, test."""
        return self.train + self.validation + self.test

    @property
    def has_masks(self) -> bool:
        """Whether pixel metrics can be computed: some defective image has a mask, and then all have."""
        return any(item.masks for item in self.test)


@dataclass(frozen=True)
class Dataset:
    """What was found under ``root``: products by name, in natural order, and the data's licence."""

    layout: str
    root: Path
    products: dict[str, Product]
    licence: str
