"""Whole sets of options by name: the original's, and ours; each says where it comes from.

A preset says what its source says. What the source leaves to the number of channels D follows from it by a
rule that stands beside the preset, and a line stores the numbers that came out, never the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import (
    Cells,
    Context,
    Dia,
    FlowConfig,
    LineConfig,
    Lora,
    Mixer,
    RouterConfig,
    ScoringConfig,
    TrainingConfig,
    override,
    to_dict,
)
from .errors import ConfigError

Rule = Callable[[int], Any]  # from D to the value of an option

DEFAULT = "default"
ANCHOR = 152  # channels that our defaults were settled with; there every rule of ours gives the default
STEP = 16  # flow widths are multiples of it


@dataclass(frozen=True)
class Preset:
    """A set of options.

    Attributes:
        name: as `--preset` and `Detector(preset=...)` take it.
        source: where its numbers come from.
        says: all options; those in `follows` stand there as they are for one number of channels.
        follows: what follows from D, by dotted path.
    """

    name: str
    source: str
    says: LineConfig
    follows: Mapping[str, Rule]

    def at(self, channels: int) -> LineConfig:
        """The options for features of so many channels."""
        return override(self.says, {path: rule(channels) for path, rule in self.follows.items()})


def flow_width(channels: int) -> int:
    """Width of the flow: grows as the root of D, from 64 at 152; 144 at 768, 208 at 1,536."""
    grown = FlowConfig().hidden * math.sqrt(channels / ANCHOR)
    return max(STEP, STEP * round(grown / STEP))


def flow_lora(channels: int) -> dict[str, Any]:
    """LoRA of a quarter of the flow's width, at scale one: rank 16 at D = 152, 36 at 768, 52 at 1,536."""
    rank = flow_width(channels) // 4
    return {"rank": rank, "alpha": float(rank)}


def flow_rate(channels: int) -> float:
    """Learning rate of our flow: 2e-3 at D = 152, 8.9e-4 at 768, 6.2e-4 at 1,536."""
    return rate_at_width(flow_width(channels))


def rate_at_width(width: int) -> float:
    """Learning rate of a flow of this width: the default for the default's, less for wider ones.

    A step moves what a wide map says in proportion to its inputs, so it shrinks as they grow in number.
    """
    return TrainingConfig().learning_rate * FlowConfig().hidden / width


def _all_channels(channels: int) -> int:
    return channels


OURS: Mapping[str, Rule] = {
    "flow.hidden": flow_width,
    "flow.lora": flow_lora,
    "training.learning_rate": flow_rate,
}
THEIRS: Mapping[str, Rule] = {"flow.hidden": _all_channels, "flow.dia.hidden": _all_channels}
"""The original's subnets are twice as wide as their input, D / 2. Its adapters' blocks have two nets of three
maps of width D / 2; ours have one of two maps, which at width D has as many weights."""

NO_FLOW: Mapping[str, Any] = {
    "flow.couplings": 0,
    **dict.fromkeys(("flow.whitening", "flow.mixer", "flow.context", "flow.lora", "flow.dia"), None),
}
"""Nothing that learns: the start of a flow, and what stands beside it."""

_THEIR_CHANNELS = 768
_AN_EPOCH = 15  # steps: 242 images, a product's of MVTec AD on average, sixteen a step
WHOLE_IMAGES = 1024  # side of a window that no grid is larger than
_PATCHES = 16 * 14 * 14  # of sixteen images


def _original(
    *,
    couplings: int = 8,
    dia: int = 4,
    rank: int = 64,
    epochs: int = 60,
    tail_weight: float = 0.55,
    tail_share: float = 0.05,
    top: int,
) -> LineConfig:
    """The original's method as far as our parts are its parts, with what its configurations differ in."""
    return LineConfig(
        flow=FlowConfig(
            cells=None,
            normalisation="layer",
            statistics=True,
            couplings=couplings,
            hidden=_THEIR_CHANNELS,
            mixer=Mixer(kernel="full"),
            context=Context(kernel=5),
            lora=Lora(rank=rank, alpha=1.0),  # the scale of its code, one over the rank
            dia=Dia(blocks=dia, hidden=_THEIR_CHANNELS),
            bits=16,
        ),
        training=TrainingConfig(
            base="learn",
            early_stop=False,
            steps=epochs * _AN_EPOCH,
            base_steps=epochs * _AN_EPOCH,
            patches=_PATCHES,
            window=WHOLE_IMAGES,
            learning_rate=3e-4,
            tail_weight=tail_weight,
            tail_share=tail_share,
            tail="image",
            log_det_weight=1e-4,
            log_det_of="flow",
            noise=0.0,
        ),
        scoring=ScoringConfig(
            cells=None,
            coreset=None,
            whole=None,
            position_calibration=False,
            top_share=1e-6,  # so that `top_least` decides
            top_least=top,
        ),
        router=RouterConfig(metric="product"),
    )


LAYERED: Mapping[str, Any] = {
    "flow.cells": None,
    "flow.normalisation": "layer",
    "flow.statistics": True,
    "training.steps": 500,
    "training.base_steps": 400,
    "training.noise": 0.3,
    "training.early_stop": False,
    "training.base": "learn",
}
"""A flow that begins with normalised features and their spread per channel, as the original's does, in this
project's size. One flow over all products can begin no other way: cells are of one product."""


def layered(config: LineConfig) -> LineConfig:
    """The same with a flow that begins with normalised features; as it is where it does so already.

    Options of learning that were set to others than the defaults stay as set.
    """
    if config.flow.cells is not None:
        return override(config, layered_options(config))
    return config


def layered_options(config: LineConfig) -> dict[str, Any]:
    """`LAYERED` without options of learning that this config sets to others than the defaults."""
    usual = {f"training.{name}": value for name, value in vars(TrainingConfig()).items()}
    now = {f"training.{name}": value for name, value in vars(config.training).items()}
    return {name: value for name, value in LAYERED.items() if now.get(name) == usual.get(name)}


_BESIDE = {
    "scoring.cells": to_dict(Cells(rank=24, bits=16)),
    "scoring.coreset": None,
    "scoring.whole.bits": 16,
    "flow.bits": 16,
}

_ROWS = (
    Preset(DEFAULT, "this project; docs/results.md", LineConfig(), OURS),
    Preset(
        "lean",
        "this project without any learned part: cells, coreset, the picture as a whole",
        override(LineConfig(), NO_FLOW),
        {},
    ),
    Preset(
        "layered",
        "this project's first default: a flow over normalised features, cells beside it",
        override(LineConfig(), {**LAYERED, **_BESIDE}),
        OURS,
    ),
    Preset(
        "deck",
        "the original's deck, its text: 8 couplings, DIA 4, LoRA 64, tail 0.55 of 5 %, 3e-4, 60 epochs",
        _original(top=3),
        THEIRS,
    ),
    Preset(
        "deck-main",
        "the configuration that the original calls main and made its tables with, on WideResNet-50: "
        "6 couplings, DIA 2, LoRA 64, tail 0.7 of 2 %, 3 patches in the score",
        _original(couplings=6, dia=2, tail_weight=0.7, tail_share=0.02, top=3),
        THEIRS,
    ),
    Preset(
        "balanced",
        "the original's search of 78 runs, best in pixel AP (98.24 / 53.50 on MVTec AD, WideResNet-50): "
        "the deck's text with 5 patches in the score",
        _original(top=5),
        THEIRS,
    ),
    Preset(
        "max-image-auroc",
        "the original's search of 78 runs, best in image AUROC (98.36 / 52.42, the same): 10 couplings, "
        "DIA 5, LoRA 128, tail 0.55 of 3 %, 80 epochs, 5 patches in the score",
        _original(couplings=10, dia=5, rank=128, epochs=80, tail_share=0.03, top=5),
        THEIRS,
    ),
)

PRESETS: Mapping[str, Preset] = {row.name: row for row in _ROWS}


def get_preset(name: str) -> Preset:
    """The preset of this name; ConfigError for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]
