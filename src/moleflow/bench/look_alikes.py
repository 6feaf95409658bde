"""Products that look alike: the same photographs, mirrored or under another cast, as a second product.

A router that tells a gear from a plank has shown little. These twins differ from their original in one
thing only, and what that does to patches and pooled features is as small as it gets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.layouts import Item, Mask, Product
from ..errors import ConfigError
from .pictures import altered

TWINS = ("mirrored", "cast")
"""Ways to make a second product of one: left and right change places, or another white balance."""

CAST = (1.06, 1.0, 0.94)
"""Gains of red, green and blue under the cast: a lamp some hundred kelvin warmer."""


@dataclass(frozen=True)
class Twin:
    """What turns the photographs of a product into those of its twin; an `Alteration`.

    Attributes:
        kind: of `TWINS`. ConfigError for others.
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in TWINS:
            raise ConfigError(f"unknown twin {self.kind!r}; known are {', '.join(TWINS)}")

    @property
    def key(self) -> str:
        """For caches: changes with what is done."""
        return f"{self.kind}{CAST}" if self.kind == "cast" else self.kind

    @property
    def makes_defects(self) -> bool:
        """Never."""
        return False

    def image(self, image: np.ndarray, item: Item) -> np.ndarray:
        """The twin's image, uint8 (H, W, 3) of the same size."""
        if self.kind == "mirrored":
            return np.ascontiguousarray(image[:, ::-1])
        lit = image.astype(np.float32) * np.asarray(CAST, np.float32)
        return np.clip(lit + np.float32(0.5), 0, 255).astype(np.uint8)

    def mask(self, mask: Mask, item: Item) -> Mask:
        """The mask of the twin's image, bool (H, W)."""
        return np.ascontiguousarray(mask[:, ::-1]) if self.kind == "mirrored" else mask.copy()


def twin_name(product: str, kind: str) -> str:
    """As in names of products: "cable@mirrored"."""
    return f"{product}@{kind}"


def twin_of(product: Product, kind: str) -> Product:
    """The product's twin, named such as "cable@mirrored".

    Its items keep their paths and are changed when they are read. ConfigError for an unknown kind.
    """
    return altered(product, twin_name(product.name, kind), Twin(kind))


def with_twins(products: dict[str, Product], wanted: str) -> Product:
    """The product of that name: one of `products`, or the twin of one. KeyError where it is neither."""
    if wanted in products:
        return products[wanted]
    original, sign, kind = wanted.rpartition("@")
    if not sign or kind not in TWINS:
        raise KeyError(wanted)
    return twin_of(products[original], kind)
