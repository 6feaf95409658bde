"""Our own method, and the same with nothing shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blocks import Blocks, make_blocks
from ...features.extractor import Features
from ...flow.expert import Base
from ...product import FirstBase, Product, learn_first_base, learn_product
from ...routing.gaussian import DescriptorStatistics
from ...routing.router import Decision
from .base import Inspection, PerProduct, Pictures, Setting, State

FALSE_ALARM_RATE = 0.01


@dataclass(frozen=True, eq=False)
class _Part:
    base: Base
    product: Product


class TaskSeparated(PerProduct):
    """A whole flow for every product: base and expert learned from its images, nothing shared."""

    name = "task-separated"
    title = "task-separated"
    source = "one model per product; no forgetting and no sharing by construction"

    @property
    def notes(self) -> tuple[str, ...]:
        """What speaks for reading the figures of the line itself with care."""
        return ("defaults settled on three real products, see docs/results.md",)

    def learn_part(self, pictures: Pictures) -> _Part:
        """A base and an expert on it."""
        first = self.learn_base([pictures])
        return self.learn_expert(first.final, pictures, without=first.without)

    def learn_base(self, products: Sequence[Pictures]) -> FirstBase:
        """The base from all images of these products, frozen."""
        scoring = self.setting.config.scoring
        return learn_first_base(
            products[0].features if len(products) == 1 else torch.cat([own.features for own in products]),
            self.setting.config,
            seed=self.setting.seed,
            blocks=Blocks.together([make_blocks(len(own), scoring) for own in products]),
        )

    def learn_expert(
        self, base: Base, pictures: Pictures, *, without: tuple[Base, Base] | None = None
    ) -> _Part:
        """An expert, its closed forms and its calibration on a frozen base."""
        setting = self.setting
        product = learn_product(
            base,
            pictures.seen,
            setting.config,
            seed=setting.seed,
            altered=pictures.altered,
            without=without,
        )
        return _Part(base, product)

    def describe_product(self, pictures: Pictures) -> DescriptorStatistics:
        """As the line itself learned them."""
        statistics: DescriptorStatistics = self.parts[pictures.product].product.descriptors
        return statistics

    def inspect_part(self, part: _Part, seen: Features) -> Inspection:
        """Standardised map and score, and the verdict at the accepted rate of false alarms."""
        product = part.product
        found = product.inspect(part.base, seen)
        return Inspection(
            task=None,
            known=found.strangeness <= product.familiarity.limit,
            score=found.score,
            patch_map=found.patch_map.cpu().numpy(),
            threshold=product.calibration.threshold(FALSE_ALARM_RATE),
        )

    def is_known(self, decision: Decision, found: Inspection) -> bool:
        """Unknown where even the most ordinary places look foreign, as on the line."""
        return bool(found.known)

    def part_state(self, part: _Part) -> State:
        """What a saved line keeps of the product, and its base."""
        base = {f"base.{name}": tensor for name, tensor in _tensors(part.base).items()}
        return State(base | part.product.tensors(), part.product.info())

    def part_from(self, state: State) -> _Part:
        """The inverse of `part_state`."""
        base = self._base_from(
            {k.removeprefix("base."): v for k, v in state.tensors.items() if k.startswith("base.")}
        )
        return _Part(base, Product.from_saved(base, self.setting.config, state.tensors, state.notes))

    def _base_from(self, tensors: dict[str, Tensor]) -> Base:
        with torch.random.fork_rng(devices=[]):
            base = Base(self.setting.grid, self.setting.channels, self.setting.config.flow)
        base.load_state_dict(tensors)
        return base.requires_grad_(False).eval().to(self.setting.device)


class MoleFlow(TaskSeparated):
    """MoLE-Flow: the base is frozen after the first task, every product has an expert on it.

    The same as the `Detector`, on features that were cached in 16 bits. Where the first task has several
    products the base is learned from the images of all of them, in as many steps as from one.
    """

    name = "moleflow"
    title = "MoLE-Flow"
    source = "MoLE-Flow, as in this project"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.base: Base | None = None
        self._without: tuple[Base, Base] | None = None  # while the first task is learned

    def learn(self, products: Sequence[Pictures]) -> None:
        """The base with the first task, then every product's expert."""
        first = self.learn_base(products) if self.base is None else None
        if first is not None:
            self.base = first.final
        # The bases that have not seen half of the images calibrate every product that the base learned from.
        self._without = None if first is None else first.without
        super().learn(products)
        self._without = None

    def learn_part(self, pictures: Pictures) -> _Part:
        """An expert on the frozen base."""
        assert self.base is not None
        return self.learn_expert(self.base, pictures, without=self._without)

    def part_state(self, part: _Part) -> State:
        """What a saved line keeps of the product."""
        return State(part.product.tensors(), part.product.info())

    def part_from(self, state: State) -> _Part:
        """The inverse of `part_state`, on the shared base."""
        assert self.base is not None
        product = Product.from_saved(self.base, self.setting.config, state.tensors, state.notes)
        return _Part(self.base, product)

    def state(self) -> State:
        """The base and all experts."""
        own = super().state()
        shared = {} if self.base is None else _tensors(self.base)
        return State({f"shared/{name}": tensor for name, tensor in shared.items()} | own.tensors, own.notes)

    def restore(self, state: State) -> None:
        """The base first: experts are made for it."""
        shared = {k.removeprefix("shared/"): v for k, v in state.tensors.items() if k.startswith("shared/")}
        # Not "if shared": a base without couplings and mixer has nothing to keep and is one all the same.
        self.base = self._base_from(shared) if state.notes["products"] else None
        super().restore(state)


def _tensors(base: Base) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in base.state_dict().items()}
