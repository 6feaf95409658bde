"""What a flow's lesson is worth, stage by stage, with few images: the loss of others that are good as well.

    python benchmarks/few.py ROOT [--images 3 5 8 16 32] [--seeds 0 1] [--image-size 512] [--cache DIR]

From the good training images of every product some are drawn by the seed, and `HELD` others are held out;
test images are not looked at. The loss is the one that is learned, under the same noise, in nats per patch:
of the cells that a flow begins with, of the two short flows on the halves (their mean), and of the first of
them when it went on with all images for the rest of the steps. How many of the two were still getting better
at their end says whether a lesson would have gone on.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moleflow.bases.shipped import shipped_base
from moleflow.bench.pictures import Shelf
from moleflow.config import LineConfig
from moleflow.data.layouts import Product, read_dataset
from moleflow.features.cache import FeatureCache
from moleflow.features.extractor import Extractor
from moleflow.flow.expert import Base, Expert
from moleflow.learning.blocks import make_blocks
from moleflow.learning.left_out import FINAL_SHARE, begin_flow
from moleflow.learning.training import learn_expert, likelihood_loss
from moleflow.threads import Beside

HELD = 20  # images
LOOKS = 4  # at so many patches each
PATCHES = 8192


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)  # small products of matrices, see moleflow/threads.py
    config = LineConfig()
    extractor = Extractor(image_size=options.image_size)
    base = shipped_base(extractor.weights_hash, extractor.grid, extractor.dim, config.flow)
    if base is None:
        raise SystemExit("expected a size that the library has a base for")
    print("| images | product | cells | two short flows | gone on with all | still getting better |")
    print("|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        shelf = Shelf(FeatureCache(options.cache or Path(scratch), extractor))
        for count in options.images:
            for product in read_dataset(options.root).products.values():
                if len(product.train) < count + HELD:
                    continue
                found = [losses(base, shelf, product, config, count, seed) for seed in options.seeds]
                cells, short, final, better = np.mean(found, axis=0)
                row = f"{cells:.1f} | {short:.1f} | {final:.1f} | {better:.1f} of 2"
                print(f"| {count} | {product.name} | {row} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[3, 5, 8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--cache", type=Path)
    return parser.parse_args()


def losses(
    base: Base, shelf: Shelf, product: Product, config: LineConfig, count: int, seed: int
) -> tuple[float, float, float, float]:
    """Of the cells, the short flows and the final one; and how many of the two were best at their end."""
    drawn = np.random.default_rng(seed).permutation(len(product.train))
    pictures = shelf.pictures(product, "train")
    known, held = (
        torch.cat([pictures.seen_of(int(i)).patches for i in sorted(some)])
        for some in (drawn[:count], drawn[count : count + HELD])
    )
    blocks = make_blocks(count, config.scoring)
    alone = Beside(None)
    begun = begin_flow((base, base), known, known[:0], blocks, config, seed, lambda share: None, alone)
    learn = partial(learn_expert, base, known, config.training)
    cells = learn(seed=seed, share=0.0, cells=begun.cells)
    final = learn(seed=seed + 1, share=FINAL_SHARE, begun=begun.shorts[0].expert)
    return (
        loss(base, cells, held, config),
        float(np.mean([loss(base, short.expert, held, config) for short in begun.shorts])),
        loss(base, final, held, config),
        float(sum(short.best_at_end for short in begun.shorts)),
    )


@torch.no_grad()
def loss(base: Base, expert: Expert, held: Tensor, config: LineConfig) -> float:
    """Of the held-out images, the same patches under the same noise each time."""
    generator = torch.Generator().manual_seed(9)
    wide = replace(config.training, patches=PATCHES)
    looks = [likelihood_loss(base, expert, held, wide, generator).item() for _ in range(LOOKS)]
    return float(np.mean(looks))


if __name__ == "__main__":
    main()
