"""Makes a base that ships with the library: couplings learned once, from drawn products, for one backbone.

    python benchmarks/make_base.py --backbone efficientnet_lite0

Every drawn product has its own cells and a companion of its own, as an expert would; what they share is the
base. Written to src/moleflow/bases, where a new line of this backbone and shape of flow finds it. The same
machine, threads and seed give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from moleflow.bases.shipped import FOLDER, write_base
from moleflow.config import LineConfig, override
from moleflow.data.factory import PRODUCTS, make_sample
from moleflow.features.extractor import Extractor
from moleflow.learning.training import learn_common_base


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    config = override(LineConfig(), {"flow.cells.rank": options.cells_rank})
    extractor = Extractor(options.backbone, image_size=options.image_size)
    drawn = {name: features_of(extractor, name, options.images) for name in PRODUCTS}
    base = learn_common_base(
        list(drawn.values()),
        config.flow,
        config.training,
        steps=options.steps,
        seed=options.seed,
        progress=lambda done: print(f"\rlearning {done:.0%}", end="" if done < 1 else "\n", flush=True),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = write_base(
        options.out,
        extractor,
        base,
        how={
            "products": list(PRODUCTS),
            "images": options.images,
            "image_size": options.image_size,
            "steps": options.steps,
            "seed": options.seed,
            "cells_rank": options.cells_rank,
        },
    )
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def features_of(extractor: Extractor, product: str, images: int) -> Tensor:
    """Patches (N, h, w, D) of drawn good images."""
    parts = []
    for i in range(images):
        picture = make_sample(product, i, size=extractor.image_size[0]).image
        parts.append(extractor.features(extractor.stack([picture])).half())
        print(f"\r{product}: {i + 1} of {images}", end="" if i + 1 < images else "\n", flush=True)
    return torch.cat(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--images", type=int, default=24, help="of every product")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cells-rank", type=int, default=24, help="directions of the drawn products' cells")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
