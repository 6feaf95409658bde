"""Made-up products and small options for the rows of the bench, shared by their tests."""

from __future__ import annotations

import torch

from moleflow.bench.methods import make
from moleflow.bench.methods.base import Pictures, Setting
from moleflow.config import Cells, Context, Dia, FlowConfig, LineConfig, ScoringConfig, TrainingConfig

GRID, CHANNELS, POOLED = (6, 6), 12, 20
CONFIG = LineConfig(
    flow=FlowConfig(hidden=8, context=Context(kernel=3), dia=Dia(hidden=8)),
    training=TrainingConfig(steps=2, base_steps=2, patches=96, window=3),
    scoring=ScoringConfig(cells=Cells(side=2, rank=4, mean_side=3), folds=2),
)
SETTING = Setting(grid=GRID, channels=CHANNELS, image_size=(48, 48), config=CONFIG)
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


def taught(name, products=("a", "b"), setting=SETTING):
    method = make(name, setting, SMALL.get(name, {}))
    for product in products:
        method.learn([images(product)])
    return method


def tell(inspections):
    return [
        (i.task, i.known, i.score, None if i.patch_map is None else i.patch_map.tobytes(), i.threshold)
        for i in inspections
    ]
