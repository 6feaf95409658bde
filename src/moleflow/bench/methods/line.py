"""Our own method, and the same with nothing shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...bases.shipped import shipped_base
from ...config import Cells, Dia, FlowConfig, LineConfig, Lora, TrainingConfig
from ...errors import ConfigError
from ...features.extractor import Features
from ...flow.expert import Base
from ...learning.blocks import Blocks, make_blocks
from ...learning.left_out import FirstBase, learn_first_base
from ...learning.product import learn_product
from ...line.product import Product
from ...presets import flow_rate, layered, rate_at_width
from ...routing.gaussian import DescriptorStatistics
from ...threads import seeded
from ...verdict.judgement import Decision
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
            patch_map=found.patch_map,
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
        with seeded(0):
            base = Base(self.setting.grid, self.setting.channels, self.setting.config.flow)
        base.load_state_dict(tensors)
        return base.requires_grad_(False).eval().to(self.setting.device)


class MoleFlow(TaskSeparated):
    """MoLE-Flow: the base is frozen, every product has an expert on it.

    The same as the `Detector`, on features that were cached in 16 bits. The base comes with the library where
    it has one for the backbone and the options; elsewhere it is learned from the images of all products of
    the first task, in as many steps as from one.
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

    def learn_base(self, products: Sequence[Pictures]) -> FirstBase:
        """The base that comes with the library, or else one from all images of these products, frozen."""
        if self._shipped is not None:
            return FirstBase(self._shipped, None)
        return super().learn_base(products)

    @cached_property
    def _shipped(self) -> Base | None:
        """The base that comes with the library, where the options ask for it and there is one."""
        setting, config = self.setting, self.setting.config
        if config.training.base != "auto":
            return None
        base = shipped_base(setting.weights_hash, setting.grid, setting.channels, config.flow)
        return None if base is None else base.to(setting.device)

    @property
    def _tied(self) -> bool:
        """On a base that no product taught an expert follows from its own images alone."""
        return self._shipped is None

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


NO_FLOW = FlowConfig(
    cells=None,
    position=0.0,
    whitening=None,
    mixer=None,
    couplings=0,
    lora=None,
    dia=None,
)
"""Nothing in it learns, so nothing is spent on it."""


def cells_of(config: LineConfig) -> Cells | None:
    """The cells that the flow begins with, or those beside it."""
    return config.flow.cells or config.scoring.cells


class CellsAlone(TaskSeparated):
    """The line without its flow: cell Gaussians, the picture as a whole, and all their calibrations.

    What a line's expert says before it has learned anything, without a coreset.
    """

    name = "cells"
    title = "cells alone"
    source = "the cell Gaussians of this project (after Defard et al. 2021) and its density of whole pictures"

    def __init__(self, setting: Setting) -> None:
        cells = cells_of(setting.config)
        if cells is None:
            raise ConfigError("cells: expected flow.cells or scoring.cells, which were left out")
        scoring = replace(setting.config.scoring, cells=cells, flow_weight=0.0, coreset=None)
        super().__init__(replace(setting, config=replace(setting.config, flow=NO_FLOW, scoring=scoring)))


class DeCoFlow(MoleFlow):
    """The line in the shape of the original's published successor: its flow, and nothing beside it.

    Six couplings and two adapter blocks, hidden layers as wide as the features, LoRA of rank 64 at scale 1.
    What is not the paper's: the shared features and training options of the bench, exact log-determinants,
    our router in place of its prototypes, and the image score from the top patches of our map.
    """

    name = "decoflow"
    title = "DeCoFlow's shape"
    source = "DeCoFlow (arXiv 2606.26687): 6 couplings, 2 adapter blocks, hidden = D, as a row of the line"

    def __init__(self, setting: Setting) -> None:
        super().__init__(replace(setting, config=successor(setting.config, setting.channels)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the row takes from the paper, and what it does not."""
        return (
            "6 couplings, 2 adapter blocks, hidden = D, LoRA 64 at scale 1; neither cells nor calibration",
            "the bench's features, training options and router instead of the paper's",
        )


def successor(config: LineConfig, channels: int) -> LineConfig:
    """The options of DeCoFlow for features of so many channels.

    Training stays as given, but for a learning rate that nobody set: that follows from the flow's width by
    the rule of this project's own flows.
    """
    dia = Dia(blocks=2, hidden=channels)
    config = layered(config)
    flow = replace(config.flow, couplings=6, hidden=channels, lora=Lora(64, 64.0), dia=dia)
    scoring = replace(config.scoring, cells=None, coreset=None, whole=None, position_calibration=False)
    training = config.training
    if training.learning_rate in (TrainingConfig().learning_rate, flow_rate(channels)):
        training = replace(training, learning_rate=rate_at_width(channels))
    return replace(config, flow=flow, scoring=scoring, training=training)


def _tensors(base: Base) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in base.state_dict().items()}
