"""From a data set's items to what methods and metrics work on: cached features, pixels, masks.

An item may carry an alteration, applied after its image is read: a drift of light or pose, or a synthetic
defect. Everything behind this file sees the altered image and mask alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..data.images import read_image, resize
from ..data.layouts import Item, Mask, Product, load_mask, nearest
from ..data.sources import evenly
from ..features.cache import FeatureCache
from ..learning.lesson import ALTERED_IMAGES
from ..learning.product import Altered
from ..photographs.sensor import SENSOR_ALTERATIONS, sensor_floor
from .methods.base import Pictures

Part = Literal["train", "test"]
Told = Callable[[str, int, int], None]  # product and part, images done, images in all


class Alteration(Protocol):
    """A change of an image and its mask that depends on the item alone."""

    @property
    def key(self) -> str:
        """Names the change, for caches."""
        ...

    @property
    def makes_defects(self) -> bool:
        """Whether it puts a defect into a good image, so that its mask needs none on disk."""
        ...

    def image(self, image: np.ndarray, item: Item) -> np.ndarray:
        """The changed image, uint8 (H, W, 3) of the same size."""
        ...

    def mask(self, mask: Mask, item: Item) -> Mask:
        """The changed mask, bool (H, W) of the same size."""
        ...


@dataclass(frozen=True)
class AlteredItem(Item):
    """An item that is changed after reading."""

    alteration: Alteration | None = None


def altered(product: Product, name: str, alteration: Alteration) -> Product:
    """The product under another name, with items that keep their paths and are changed when they are read."""

    def seen(items: tuple[Item, ...]) -> tuple[Item, ...]:
        renamed = (replace(item, product=name) for item in items)
        return tuple(AlteredItem(**vars(item), alteration=alteration) for item in renamed)

    return Product(name, seen(product.train), seen(product.validation), seen(product.test))


def item_image(item: Item) -> np.ndarray:
    """The image of an item, uint8 (H, W, 3) at its own size."""
    image = read_image(item.path)
    alteration = _alteration(item)
    return image if alteration is None else alteration.image(image, item)


def item_mask(item: Item, shape: tuple[int, int] | None) -> Mask:
    """Where an item is defective, bool (H, W), at its own size or resized to the nearest pixel.

    An alteration may move a defect out of the picture: its mask is then empty, and the image counts as
    defective all the same. Raises DatasetError for a defective image without a mask.
    """
    alteration = _alteration(item)
    if alteration is None:
        return load_mask(item, shape=shape)
    mask = load_mask(item) if item.masks else np.zeros(read_image(item.path).shape[:2], dtype=bool)
    mask = alteration.mask(mask, item)
    return mask if shape is None else nearest(mask, shape)


def has_masks(product: Product) -> bool:
    """Whether every defective test image says where its defect is."""
    defective = [item for item in product.test if item.label]
    return bool(defective) and all(_has_mask(item) for item in defective)


def _has_mask(item: Item) -> bool:
    alteration = _alteration(item)
    return bool(item.masks) or (alteration is not None and alteration.makes_defects)


class Shelf:
    """Pictures of products, their features taken from the cache or put there, on the extractor's device."""

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache

    def pictures(self, product: Product, part: Part, *, told: Told | None = None) -> Pictures:
        """Training or test images of a product. Errors of reading name the path."""
        items = product.train if part == "train" else product.test
        size = self.cache.extractor.image_size
        seen = self.cache.features(
            _sources(items),
            lambda i: resize(item_image(items[i]), size),
            progress=None
            if told is None
            else lambda done, count: told(f"{product.name} {part}", done, count),
        ).to(self.cache.extractor.device)
        file_bytes = tuple(item.path.stat().st_size for item in items)
        altered = self._altered(items) if part == "train" and items else None
        return Pictures(
            product.name,
            seen.patches,
            lambda i, at: resize(item_image(items[i]), at),
            file_bytes,
            seen.pooled,
            altered,
            f"{product.name} {part}",
        )

    def _altered(self, items: Sequence[Item]) -> Altered:
        """A few images as decoding and the sensor alone might have changed them, as the line sees to it."""
        size, chosen = self.cache.extractor.image_size, evenly(range(len(items)), ALTERED_IMAGES)
        originals = [i for i in chosen for _ in range(SENSOR_ALTERATIONS)]
        seen = self.cache.features(
            [
                (path, f"{told} sensor {k % SENSOR_ALTERATIONS}")
                for k, (path, told) in enumerate(_sources([items[i] for i in originals]))
            ],
            lambda k: sensor_floor(resize(item_image(items[originals[k]]), size))[k % SENSOR_ALTERATIONS],
        )
        return Altered(tuple(originals), seen.to(self.cache.extractor.device))


def mark(products: Mapping[str, Product]) -> str:
    """A hash over the names and sizes of images, the content of masks, and which are changed how."""
    told = hashlib.sha256()
    for name, product in products.items():
        told.update(f"{name}\n".encode())
        for item in (*product.train, *product.test):
            alteration = _alteration(item)
            change = "" if alteration is None else alteration.key
            files = [(path.name, path.stat().st_size) for path in (item.path, *item.masks)]
            for mask in item.masks:  # one that is corrected may keep its size
                told.update(hashlib.sha256(mask.read_bytes()).digest())
            told.update(f"{item.split} {files} {item.kind} {change}\n".encode())
    return told.hexdigest()[:12]


def _alteration(item: Item) -> Alteration | None:
    return item.alteration if isinstance(item, AlteredItem) else None


def _sources(items: Sequence[Item]) -> list[tuple[Path, str]]:
    changes = (_alteration(item) for item in items)
    return [
        (item.path, "" if change is None else f"{change.key} {item.split} {item.kind}")
        for item, change in zip(items, changes, strict=True)
    ]
