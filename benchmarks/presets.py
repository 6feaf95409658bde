"""What every preset costs on every backbone: numbers, bytes and seconds, by part; with random weights.

    python benchmarks/presets.py [--backbones NAME ...] [--presets NAME ...] [--images 200] [--no-seconds]

Sizes follow from the shapes alone, so nothing is learned: a product of zeros is measured, of the size of one
that so many photographs taught. Kilobytes are what a saved line holds: 4 bits a number in `default` and
`lean`, mostly, 16 in the others. Seconds are those of the processor for one step of the base and one of an
expert, on random features with a share of a step's patches and with twice as many, drawn out to all patches,
times all steps; one thread by default.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from moleflow.config import LineConfig, TrainingConfig
from moleflow.densities.coreset import PatchCoreset
from moleflow.densities.whole import WholeGaussian
from moleflow.features.extractor import Extractor
from moleflow.flow.cells import CellGaussians
from moleflow.flow.expert import Base, Expert
from moleflow.learning.training import fit, likelihood_loss
from moleflow.line.product import Densities, Product
from moleflow.presets import PRESETS, get_preset
from moleflow.routing.gaussian import WITNESSES, DescriptorStatistics
from moleflow.sizes import Part, total
from moleflow.verdict.calibration import TwoVoices, Voice
from moleflow.verdict.maps import PositionCalibration
from moleflow.verdict.unknown import ORDINARY, Familiarity

BACKBONES = ("vit_base_patch16", "wide_resnet50", "dinov2_vit_b14", "efficientnet_lite0")
COLUMNS = ("whitening", "lora", "dia", "cells", "coreset", "whole", "router", "calibration")
SHARE = 8  # of a step's patches are timed, as far as whole windows allow


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--images", type=int, default=200, help="photographs that taught the product")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-seconds", dest="seconds", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kb = "".join(f" {name} kB |" for name in COLUMNS)
    print(f"| backbone, preset | D | base | expert | of base | all it owns | MB |{kb} base s | product s |")
    print("|---|" + "---:|" * (len(COLUMNS) + 8))
    for backbone in options.backbones:
        extractor = Extractor(backbone, weights="random")
        for name in options.presets:
            config = get_preset(name).at(extractor.dim)
            base = Base(extractor.grid, extractor.dim, config.flow).requires_grad_(False)
            product = blank(base, extractor, config, options.images)
            seconds = timed(base, config) if options.seconds else ("", "")
            print(row(f"{backbone}, {name}", base, product, seconds), flush=True)


def row(title: str, base: Base, product: Product, seconds: tuple[str, str]) -> str:
    """A line of the table; parts in kilobytes."""
    parts = product.parts()
    whole = total(parts)
    parts["whitening"] = total({k: parts[k] for k in ("statistics", "whitening") if k in parts})
    shared, own = numbers(base), numbers(product.densities.expert)
    cells = [
        title,
        f"{base.channels:,}",
        f"{shared:,}",
        f"{own:,}",
        f"{100 * own / shared:.1f} %" if shared else "–",
        f"{whole.numbers:,}",
        f"{whole.bytes / 1e6:.2f}",
        *(f"{parts.get(name, Part(0, 0)).bytes / 1e3:,.0f}" for name in COLUMNS),
        *seconds,
    ]
    return "| " + " | ".join(cells) + " |"


def numbers(module: nn.Module) -> int:
    """How many numbers of a module are trained."""
    return sum(p.numel() for p in module.parameters())


def blank(base: Base, extractor: Extractor, config: LineConfig, images: int) -> Product:
    """A product in the shape of one that so many photographs taught, all zeros."""
    scoring, channels, wide = config.scoring, base.channels, extractor.pooled_dim
    beside = scoring.cells
    cells = None if beside is None else CellGaussians(extractor.grid, channels, beside)
    rank = 0 if scoring.whole is None else min(scoring.whole.rank, images - 1, wide - 1)
    bits = 8 if scoring.whole is None else scoring.whole.bits
    mean, spread, directions, variances = (torch.zeros(size) for size in (wide, wide, (rank, wide), rank))
    whole = WholeGaussian(mean, spread, directions, variances, 1.0, bits)
    position = PositionCalibration(0.0, torch.ones(extractor.grid))
    coreset = None
    if scoring.coreset is not None:
        own = scoring.coreset
        coreset = PatchCoreset.of(torch.zeros(own.patches, channels), own.bits, rank=own.rank)
    scores = tuple(float(f"{1 + i / 301:.7g}") for i in range(images))  # of as many digits as real ones
    return Product(
        config=config,
        densities=Densities(Expert(base), cells, coreset),
        whole=None if scoring.whole is None else whole,
        positions=(position,) * (1 + (cells is not None) + (coreset is not None)),
        descriptors=DescriptorStatistics(
            torch.zeros(channels),
            torch.zeros(min(config.router.rank, images - 1, channels - 1), channels),
            1.0,
            torch.zeros(min(WITNESSES, images), channels),
        ),
        calibration=TwoVoices(
            Voice(scores), None if scoring.whole is None else Voice(scores), tuple(range(images))
        ),
        familiarity=Familiarity(ORDINARY, scores),
        images=images,
    )


def timed(base: Base, config: LineConfig) -> tuple[str, str]:
    """Seconds to learn the base, and an expert on it."""
    training, (height, width) = config.training, base.position.shape[:2]
    window = min(training.window, height) * min(training.window, width)
    taken = max(window, training.patches // SHARE // window * window)
    sizes = (taken, min(2 * taken, training.patches))
    features = torch.randn(2, height, width, base.channels)
    expert = Expert(base)
    expert.start(base, base.prepare(features))

    def step(owned: list[nn.Parameter]) -> float:
        """Seconds of one: what every step costs, whatever it looks at, and what every patch adds."""
        if not owned:
            return 0.0  # everything is closed-form
        shares = [TrainingConfig(**{**vars(training), "patches": size}) for size in sizes]
        few, more = (
            seconds_of(owned, partial(likelihood_loss, base, expert, features, share), share)
            for share in shares
        )
        if sizes[0] == sizes[1]:
            return few
        each = max(0.0, more - few) / (sizes[1] - sizes[0])
        return few + each * (training.patches - sizes[0])

    of_expert = step(list(expert.parameters()))
    expert.adapters = nn.ModuleList()
    base.requires_grad_(True)
    of_base = step([*base.parameters(), *expert.parameters()])
    base.requires_grad_(False)
    return f"{of_base * training.base_steps:,.0f}", f"{of_expert * training.steps:,.0f}"


def seconds_of(
    owned: list[nn.Parameter], loss: Callable[[torch.Generator], Tensor], training: TrainingConfig
) -> float:
    """The processor's for the faster of two steps, the first of which also warms up."""
    taken = []
    for seed in range(2):
        started = time.process_time()
        fit(owned, loss, training, steps=1, seed=seed)
        taken.append(time.process_time() - started)
    return min(taken)


if __name__ == "__main__":
    main()
