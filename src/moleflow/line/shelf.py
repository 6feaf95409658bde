"""The products of a line by name: those learned here, and saved ones, made ready when they are needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ..routing.gaussian import DescriptorStatistics
from .product import Product

MEMORY = 2**30
"""Bytes that products of a saved line may fill, by default: some three hundred of the usual ones."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A product of a saved line.

    Attributes:
        read: the product, to the bit.
        statistics: what the router keeps of it, without the rest.
    """

    read: Callable[[], Product]
    statistics: Callable[[], DescriptorStatistics]


Place = Product | Stored


class Memory:
    """Products that were needed lately, as many as fit; safe to use from several threads.

    Args:
        most: bytes. The one that was needed last stays even where it alone is larger.
    """

    def __init__(self, most: int = MEMORY) -> None:
        self._most, self._filled = most, 0
        self._held: OrderedDict[Stored, tuple[Product, int]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, stored: Stored) -> Product:
        """The product, made ready if it is not held."""
        with self._lock:
            if stored in self._held:
                self._held.move_to_end(stored)
                return self._held[stored][0]
        product = stored.read()  # two threads that want the same one make it twice, to the same bits
        self._hold(stored, product)
        return product

    def _hold(self, stored: Stored, product: Product) -> None:
        size = product.memory()
        with self._lock:
            self._filled += size - self._held.pop(stored, (product, 0))[1]
            self._held[stored] = product, size
            while self._filled > self._most and len(self._held) > 1:
                self._filled -= self._held.popitem(last=False)[1][1]


class Shelf(Mapping[str, Product]):
    """Products by name, in the order they were added; never changed, only replaced by another shelf.

    Args:
        places: for each name the product, or where it stands.
        memory: for the stored ones; shared by the shelves that follow from this one.
    """

    def __init__(self, places: Mapping[str, Place] | None = None, memory: Memory | None = None) -> None:
        self._places, self._memory = dict(places or {}), memory or Memory()

    def __getitem__(self, name: str) -> Product:
        place = self._places[name]
        return place if isinstance(place, Product) else self._memory.of(place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the product
        return name in self._places

    def place(self, name: str) -> Place:
        """What stands for a product: the same object as long as it is the same product."""
        return self._places[name]

    def statistics(self) -> dict[str, DescriptorStatistics]:
        """What the router keeps of every product."""
        return {
            name: place.descriptors if isinstance(place, Product) else place.statistics()
            for name, place in self._places.items()
        }

    def with_product(self, name: str, product: Product) -> Shelf:
        """With one more product, or another one in its place."""
        return Shelf(self._places | {name: product}, self._memory)

    def only(self, names: Collection[str]) -> Shelf:
        """With no products but these."""
        return Shelf({key: place for key, place in self._places.items() if key in names}, self._memory)
