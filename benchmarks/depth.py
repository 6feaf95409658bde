"""Whether learning stays sound in depth: the loss of every step, by couplings and channels; random weights.

    python benchmarks/depth.py [--couplings 2 8 16] [--channels 768 1024] [--preset default] [--steps 60]

Photographs are drawn, the backbone is a WideResNet-50 with random weights, brought to so many channels. The
base learns from one product, an expert on the frozen base from another. A loss that is not finite, or whose
median over the last five steps is above its beginning, is a divergence and ends the command with code 1; how
many steps were above it, and how far, is told beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moleflow.config import LineConfig, override
from moleflow.data.factory import make_sample
from moleflow.features.extractor import Extractor
from moleflow.flow.expert import Base, Expert
from moleflow.learning.training import fit, likelihood_loss
from moleflow.presets import PRESETS, get_preset

PRODUCTS = ("gear", "wood")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--couplings", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--channels", type=int, nargs="+", default=[768, 1024])
    parser.add_argument("--preset", default="default", choices=list(PRESETS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--patches", type=int, default=512, help="of a step")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    print("| D | couplings | width | rate | | first | largest | last | above the first | not finite |")
    print("|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|")
    for channels in options.channels:
        seen = features(channels, options.images, options.image_size)
        for couplings in options.couplings:
            config = configured(options, channels, couplings)
            for what, losses in learned(seen, config).items():
                finite = [loss for loss in losses if math.isfinite(loss)]
                flow, rate = config.flow, config.training.learning_rate
                record = {
                    "channels": channels,
                    "couplings": couplings,
                    "what": what,
                    "first": losses[0],
                    "largest": max(finite),
                    "last": float(np.median(losses[-5:])),
                    "above": sum(loss > losses[0] for loss in finite),
                    "not_finite": len(losses) - len(finite),
                }
                found.append(record)
                shown = " | ".join(f"{record[key]:,.1f}" for key in ("first", "largest", "last"))
                head = f"{channels:,} | {couplings} | {flow.hidden} | {rate:.1e} | {what}"
                print(f"| {head} | {shown} | {record['above']} | {record['not_finite']} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))
    sys.exit(any(r["not_finite"] or not r["last"] < r["first"] for r in found))


def configured(options: argparse.Namespace, channels: int, couplings: int) -> LineConfig:
    """The preset with other depth and so many steps of so many patches."""
    config = override(get_preset(options.preset).at(channels), {"flow.couplings": couplings})
    training = replace(
        config.training, steps=options.steps, base_steps=options.steps, patches=options.patches
    )
    return replace(config, training=training)


def features(channels: int, images: int, size: int) -> list[Tensor]:
    """Patch features (N, h, w, D) of each product."""
    extractor = Extractor(f"wide_resnet50@2,3:mean-{channels}", weights="random", image_size=size)
    drawn = ([make_sample(product, seed, size=size).image for seed in range(images)] for product in PRODUCTS)
    return [extractor.features(extractor.stack(pictures)) for pictures in drawn]


def learned(seen: list[Tensor], config: LineConfig) -> dict[str, list[float]]:
    """Loss of every step, of the base on the first product and of an expert on the second."""
    torch.manual_seed(0)
    base = Base((seen[0].shape[1], seen[0].shape[2]), seen[0].shape[3], config.flow)
    companion = Expert(base)
    companion.adapters = nn.ModuleList()
    companion.start(base, base.prepare(seen[0]))
    of_base = losses_of([*base.parameters(), *companion.parameters()], base, companion, seen[0], config)
    base.requires_grad_(False)
    expert = Expert(base)
    expert.start(base, base.prepare(seen[1]))
    return {"base": of_base, "expert": losses_of(list(expert.parameters()), base, expert, seen[1], config)}


def losses_of(
    owned: list[nn.Parameter], base: Base, expert: Expert, seen: Tensor, config: LineConfig
) -> list[float]:
    """The loss of every step that is taken or retreated from."""
    losses = []

    def step(generator: torch.Generator) -> Tensor:
        loss = likelihood_loss(base, expert, seen, config.training, generator)
        losses.append(float(loss.detach()))
        return loss

    fit(owned, step, config.training, steps=config.training.steps, seed=0)
    return losses


if __name__ == "__main__":
    main()
