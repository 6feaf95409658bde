"""Looking for what is wrong with a data set: every image and mask is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DatasetError, ImageError
from ..images import read_image
from .masks import load_mask
from .records import Dataset, Item, Product


@dataclass(frozen=True)
class Problem:
    """Something :func:`check_dataset` found; ``path`` is the file, or None if it is about a product."""

    product: str
    path: Path | None
    message: str

    def __str__(self) -> str:
        return f"{self.product}: {self.message}" if self.path is None else f"{self.path}: {self.message}"


def check_dataset(dataset: Dataset) -> list[Problem]:
    """Open every image and mask and list what is wrong; an empty list means nothing was found.

    Looks for products without training, good test or defective test images, for defective images
    without masks, for images and masks that cannot be read, are empty or differ in size, and for test
    images whose pixels also occur in training or validation, of whatever product.
    """
    problems: list[Problem] = []
    learned: dict[bytes, Path] = {}
    tested: list[tuple[Item, bytes]] = []
    for product in dataset.products.values():
        problems += _count_problems(product)
        for item in product.items:
            try:
                content, shape = _fingerprint(item.path)
            except ImageError as error:
                problems.append(_problem(item, item.path, str(error)))
                continue
            problems += _mask_problems(item, shape)
            if item.split == "test":
                tested.append((item, content))
            else:
                learned.setdefault(content, item.path)
    for item, content in tested:
        if content in learned:
            problems.append(_problem(item, item.path, f"the same image is learned from: {learned[content]}"))
    return problems


def _problem(item: Item, path: Path, message: str) -> Problem:
    """Errors begin with their path; a problem carries it beside the message."""
    return Problem(item.product, path, message.removeprefix(f"{path}: "))


def _count_problems(product: Product) -> Iterator[Problem]:
    defective = sum(item.label for item in product.test)
    counts = {
        "training images": len(product.train),
        "good test images": len(product.test) - defective,
        "defective test images": defective,
    }
    for what, count in counts.items():
        if count == 0:
            yield Problem(product.name, None, f"no {what}")
    if defective and not product.has_masks:
        yield Problem(product.name, None, "no masks: pixel metrics cannot be computed")


def _mask_problems(item: Item, shape: tuple[int, int]) -> Iterator[Problem]:
    if not item.masks:
        return
    try:
        mask = load_mask(item)
    except DatasetError as error:
        yield _problem(item, item.masks[0], str(error))
        return
    if mask.shape != shape:
        yield _problem(item, item.masks[0], f"mask of {mask.shape} for an image of {shape}")


def _fingerprint(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A digest of the decoded pixels, the same for the same picture in another file, and (H, W)."""
    image = read_image(path)
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest(), (image.shape[0], image.shape[1])
