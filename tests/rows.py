"""Made-up products and small options for the rows of the bench, shared by their tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from moleflow.bench.methods import METHODS, WITH_CELLS, make
from moleflow.bench.methods.base import Pictures, Setting
from moleflow.bench.methods.line import DeCoFlow
from moleflow.bench.methods.single import SingleFlow
from moleflow.config import (
    Cells,
    Context,
    Coreset,
    Dia,
    FlowConfig,
    LineConfig,
    ScoringConfig,
    TrainingConfig,
    override,
    to_dict,
)
from moleflow.presets import LAYERED

GRID, CHANNELS, POOLED = (6, 6), 12, 20
CONFIG = LineConfig(
    flow=FlowConfig(
        cells=Cells(side=2, rank=4, mean_side=3), hidden=8, context=Context(kernel=3), dia=Dia(hidden=8)
    ),
    training=TrainingConfig(steps=2, base_steps=2, patches=96, window=3),
    scoring=ScoringConfig(coreset=Coreset(patches=30), folds=2),
)
SETTING = Setting(grid=GRID, channels=CHANNELS, image_size=(48, 48), config=CONFIG)


def normalised(config):
    """The same with a flow over normalised features and the cells beside it, in as many steps."""
    cells = {"scoring.cells": to_dict(config)["flow"]["cells"]}
    start = {name: value for name, value in LAYERED.items() if name.startswith("flow.")}
    return override(config, start | cells)


def of_all_products(name):
    """Whether a row has a flow that can begin in no other way."""
    return issubclass(METHODS[name], (SingleFlow, DeCoFlow, *WITH_CELLS))


NORMALISED = normalised(CONFIG)
PLACE = (2, 3)  # of the defect
SMALL = {
    "ewc": {"windows": 2},
    "ewc-with-cells": {"windows": 2},
    "memory-bank": {"least": 20, "most": 60},
    "memory-bank-calibrated": {"least": 20, "most": 60},
    "shared-coreset": {"size": 60},
    "projection-bank": {"least": 20, "most": 60, "banks": 3},
    "gcr": {"size": 40, "nearest": 5, "tokens": 12},
    "dinosaur": {"least": 5, "radius": 1},
}
SMALL |= {f"{name}-with-image": table for name, table in SMALL.items()}


def no_pixels(image, size):
    raise AssertionError("these methods need no pixels")


def images(product, count=14, seed=0):
    """Good images: a texture of the product's own around a level of its own, and pooled features to match."""
    character = torch.Generator().manual_seed(sum(map(ord, product)))
    level = 3 * torch.randn(CHANNELS, generator=character)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=character) / 4
    whole = torch.randn(POOLED, generator=character)
    chance = torch.Generator().manual_seed(seed)
    patches = level + torch.randn(count, *GRID, CHANNELS, generator=chance) @ mixing
    pooled = whole + 0.1 * torch.randn(count, POOLED, generator=chance)
    return Pictures(product, patches.half(), no_pixels, pooled=pooled)


def faulty(product, count=4):
    pictures = images(product, count, seed=7)
    pictures.features[:, PLACE[0], PLACE[1]] += 6
    return pictures


def setting_of(name):
    """The options that a row is tried with."""
    return replace(SETTING, config=NORMALISED) if of_all_products(name) else SETTING


def taught(name, products=("a", "b"), setting=None):
    method = make(name, setting or setting_of(name), SMALL.get(name, {}))
    for product in products:
        method.learn([images(product)])
    return method


def tell(inspections):
    return [
        (i.task, i.known, i.score, None if i.patch_map is None else i.patch_map.tobytes(), i.threshold)
        for i in inspections
    ]
