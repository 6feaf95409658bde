"""Everything learned so far, as one frozen record: replaced whole, never changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..config import RouterConfig
from ..errors import TaskError
from ..features.extractor import Features
from ..flow.expert import Base
from ..intake import Intake
from ..photographs.review import Lesson
from ..routing.gaussian import describe
from ..routing.router import Router
from ..store import check_task_name
from ..verdict.calibration import verdict_of
from ..verdict.changes import Changes
from ..verdict.judgement import Decision, Judgement
from .judges import EagerJudge, Judge
from .product import Product
from .shelf import Shelf


@dataclass(frozen=True, eq=False)
class Line:
    """The base, the products on it, and the router over them; readers in other threads are safe.

    Attributes:
        false_alarm_rate: of products that have none of their own.
        intake: from an image to what the backbone sees; settled with the first product.
        base, base_hash: the frozen base and its fingerprint; None and "" before the first product.
        products: by name, in the order they were added.
        router: over all products; None without one.
        overrides: verdicts changed by hand, by product.
        rerouted: witnesses that lost their way as a product was learned, see `rerouted_by`, by product.
        changes: what the last update of a product changed, by product; not saved.
        unreadable: what was left out of a product's last lesson, each with the reason, by product.
        lessons: what each product was last taught from; products of older lines have none.
        asks: who asks a product about an image.
    """

    false_alarm_rate: float
    intake: Intake
    base: Base | None = None
    base_hash: str = ""
    products: Shelf = field(default_factory=Shelf)
    router: Router | None = None
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    rerouted: dict[str, dict[str, int]] = field(default_factory=dict)
    changes: dict[str, Changes] = field(default_factory=dict)
    unreadable: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lessons: dict[str, Lesson] = field(default_factory=dict)
    asks: Judge = field(default_factory=EagerJudge)

    def product(self, name: str) -> Product:
        """The product of this name; `TaskError` when there is none."""
        try:
            return self.products[check_task_name(name)]
        except KeyError:
            known = ", ".join(repr(task) for task in self.products) or "none"
            raise TaskError(f"{name!r} is no product of this line; known: {known}") from None

    @property
    def limits(self) -> dict[str, float]:
        """Distance, in typical ones, up to which an image is near a product, by name."""
        assert self.router is not None
        return self.router.limits

    def decide(self, features: Features) -> Decision:
        """Which product one image's features are nearest to."""
        assert self.router is not None
        return self.router.decide(describe(features.patches))[0]

    @torch.inference_mode(False)  # what is worked out of a product is kept, and may be learned on
    @torch.no_grad()
    def judge(self, name: str, features: Features) -> Judgement:
        """What a product says of one image's features."""
        assert self.base is not None
        return self.asks.judge(self.base, self.products[name], features)

    def verdict(self, name: str) -> tuple[float | None, float]:
        """The false-alarm rate a product's threshold follows from (None: set by hand), and the threshold."""
        return verdict_of(
            self.products[name].calibration, self.overrides.get(name, {}), self.false_alarm_rate
        )

    def lesson(self, name: str) -> Lesson:
        """What a product was last taught from; where nobody looked, every image counts."""
        if name in self.lessons:
            return self.lessons[name]
        images = self.products[name].images
        return Lesson(images=images, independent=images)

    def with_products(self, products: Shelf, config: RouterConfig, **changes: Any) -> Line:
        """The line with other products, and the router that goes with them."""
        router = Router(products.statistics(), config) if products else None
        return replace(self, products=products, router=router, **changes)

    def without(self, name: str, config: RouterConfig) -> Line:
        """The line as if this product had never been taught; the base stays."""
        self.product(name)
        return self.only(set(self.products) - {check_task_name(name)}, config)

    def only(self, names: Collection[str], config: RouterConfig) -> Line:
        """The line as if no products but these had ever been taught; the base stays."""
        return self.with_products(
            self.products.only(names),
            config,
            overrides=_only(self.overrides, names),
            rerouted=_only(self.rerouted, names),
            changes=_only(self.changes, names),
            unreadable=_only(self.unreadable, names),
            lessons=_only(self.lessons, names),
        )


def rerouted_by(name: str, before: Line, after: Line) -> dict[str, int]:
    """How many witnesses of each product, which stand for good images, lost their way as `name` was learned.

    Of older products those that are taken for another one now and were not before, or for yet another; of
    `name` all that are taken for another one, which says that the two look alike as a whole.
    """
    if before.router is None or after.router is None:
        return {}
    changed = {}
    for other, statistics in before.products.statistics().items():
        if other == name:
            continue
        old, new = before.router.nearest(statistics.witnesses), after.router.nearest(statistics.witnesses)
        if count := sum(other != b != a for a, b in zip(old, new, strict=True)):
            changed[other] = count
    own = after.products[name].descriptors.witnesses
    if count := sum(nearest != name for nearest in after.router.nearest(own)):
        changed[name] = count
    return changed


def _only(table: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key in names}
