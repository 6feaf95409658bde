"""What runs all that follows the backbone: eager torch, or a network that was seen to say the same."""

from __future__ import annotations

import threading
import warnings
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from ..compiling import CopyError, Recipe, opened
from ..config import to_dict
from ..errors import BackboneError
from ..features.extractor import Features
from ..features.runtime import RuntimeName
from ..flow.expert import Base
from ..runtime.arrays import Arrays, apart
from ..runtime.engines import Run, installed
from ..store import fingerprint
from ..verdict.judgement import Judgement
from .network import COUNTED, PATCHES, density_network, given_of, ordinary
from .product import Product

ENGINE = "onnxruntime"  # OpenVINO takes as long for it as torch does
COMPARED = 2  # drawn images


class Judge(Protocol):
    """Asks a product about an image's features."""

    def judge(self, base: Base, product: Product, features: Features) -> Judgement:
        """What a product on this base says of one image."""


class EagerJudge:
    """In eager torch, on any device: the reference."""

    def judge(self, base: Base, product: Product, features: Features) -> Judgement:
        """As `Product.inspect`."""
        return product.inspect(base, features)


class NetworkJudge:
    """Maps by a network on the processor, and what follows from them in torch.

    One network serves all products of a base that are learned alike, for a product's numbers are among its
    inputs. It is a copy as of `compiling`, compared on images drawn from the cells of the first product that
    asks for it. Products with cells beside their flow, as lines had them before, are left to torch and say
    what they said. Threads may share a judge.

    Args:
        fall_back: leave it to eager torch, with a warning that says why, where there can be no such copy.
    """

    def __init__(self, *, fall_back: bool) -> None:
        self._fall_back = fall_back
        self._known: WeakKeyDictionary[Product, tuple[Run, Arrays] | None] = WeakKeyDictionary()
        self._preparing = threading.Lock()

    def judge(self, base: Base, product: Product, features: Features) -> Judgement:
        """The same as `Product.inspect` to `compiling.TOLERANCE`.

        Raises BackboneError where there can be no copy, and eager torch shall not stand in for it.
        """
        prepared = self._prepared(base, product)
        if prepared is None:
            return product.inspect(base, features)
        run, given = prepared
        maps, ordinary = run({PATCHES: features.patches.float().contiguous().numpy(), **given})
        return product.judged(torch.from_numpy(maps), torch.from_numpy(ordinary), features.pooled)

    def _prepared(self, base: Base, product: Product) -> tuple[Run, Arrays] | None:
        with self._preparing:
            if product not in self._known:
                self._known[product] = self._prepare(base, product)
            return self._known[product]

    def _prepare(self, base: Base, product: Product) -> tuple[Run, Arrays] | None:
        if product.config.scoring.cells is not None:
            return None  # torch has another formula for cells beside a flow, whose rounding is its own
        grid = base.position.shape[0], base.position.shape[1]
        given = given_of(product, grid)
        try:
            return opened(ENGINE, recipe(base, product, given)).run, given
        except CopyError as error:
            if not self._fall_back:
                raise BackboneError(str(error)) from error
            warnings.warn(f"products are asked in eager torch, not in {ENGINE}: {error}", stacklevel=2)
            return None


def judge_for(device: torch.device, wish: RuntimeName) -> Judge:
    """Who asks the products of a line on this device, where this runtime was asked for."""
    if device.type != "cpu" or wish not in ("auto", ENGINE) or not installed(ENGINE):
        return EagerJudge()
    return NetworkJudge(fall_back=wish == "auto")


def recipe(base: Base, product: Product, given: Arrays) -> Recipe:
    """The copy for products like this one on this base."""
    shapes = {
        name: [None if name in COUNTED and i == 0 else length for i, length in enumerate(values.shape)]
        for name, values in given.items()
    }
    facts = {
        "base": fingerprint(base.state_dict()),
        "grid": list(base.position.shape[:2]),
        "flow": to_dict(product.config.flow),
        "scoring": to_dict(product.config.scoring),
        "given": shapes,
    }
    return Recipe(
        "densities",
        "the products' densities",
        facts,
        make=lambda: density_network(base, product, given),
        differ=lambda run: _difference(base, product, given, run),
        alike=False,  # another product may be nowhere as far from torch
    )


def _difference(base: Base, product: Product, given: Arrays, run: Run) -> float:
    """How far maps of drawn images are apart, in spreads of good images; of what lies beyond 1 the share."""
    return max(
        apart(other, one.numpy())
        for image in ordinary(base, product, COMPARED).split(1)
        for one, other in zip(product.maps(base, image), run({PATCHES: image.numpy(), **given}), strict=True)
    )
