"""Where normalised patches lie: what is the same for all of them, and how well the sphere's chart suits.

    python benchmarks/coordinates.py [ROOT] [--products A B] [--images 20 --image-size 256]

For each product, of its good images: the log-determinant of the closed-form statistics, a constant that the
penalty on the whole chain holds small with the rest, over layer-normalised patches and on the sphere; the
smallest spread of normalised patches in any direction, against the median direction's; and the range of
p / R, -1 being the one point that the chart cannot reach. ROOT holds products in MVTec AD's layout; without
it they are drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from moleflow.config import LineConfig
from moleflow.data.factory import make_sample
from moleflow.data.images import read_image, resize
from moleflow.data.layouts import read_dataset
from moleflow.features.extractor import Extractor
from moleflow.flow.expert import Base, Expert
from moleflow.presets import layered

DRAWN = ("gear", "wood", "bottle_cap")
KINDS: tuple[Literal["layer", "sphere"], ...] = ("layer", "sphere")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--products", nargs="+")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=256)
    options = parser.parse_args()
    extractor = Extractor(image_size=options.image_size)
    print("product: statistics' log|det| over layer / sphere; least spread over layer / sphere; p/R")
    for name, images in products(options, extractor.image_size):
        features = torch.cat([extractor.features(extractor.stack([image])) for image in images])
        found = {kind: started(extractor, features, kind) for kind in KINDS}
        square = found["sphere"][1].square().sum(-1) / extractor.dim
        reached = (1 - square) / (1 + square)
        print(
            f"{name}: {found['layer'][0]:.1f} / {found['sphere'][0]:.1f}; "
            f"{least_spread(found['layer'][1]):.2g} / {least_spread(found['sphere'][1]):.2g}; "
            f"{float(reached.min()):.2f} to {float(reached.max()):.2f}",
            flush=True,
        )


def products(options: argparse.Namespace, size: tuple[int, int]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Names, and some good images of each."""
    if options.root is None:
        for name in options.products or DRAWN:
            pictures = (make_sample(name, i, size=max(size)).image for i in range(options.images))
            yield name, [resize(picture, size) for picture in pictures]
        return
    found = read_dataset(options.root, layout="mvtec-ad").products
    for name in options.products or found:
        paths = [item.path for item in found[name].train]
        some = np.linspace(0, len(paths) - 1, min(options.images, len(paths))).round().astype(int)
        yield name, [resize(read_image(paths[i]), size) for i in some]


def started(
    extractor: Extractor, features: torch.Tensor, kind: Literal["layer", "sphere"]
) -> tuple[float, torch.Tensor]:
    """log|det| of the statistics, and the prepared features that they are of."""
    flow = replace(layered(LineConfig()).flow, normalisation=kind)
    base = Base(extractor.grid, extractor.dim, flow)
    expert, prepared = Expert(base), base.prepare(features)
    expert.start(base, prepared)
    assert expert.statistics is not None
    return float(expert.statistics.log_scale.sum()), prepared


def least_spread(prepared: torch.Tensor) -> float:
    """Standard deviation along the narrowest direction, in the median one's."""
    variances = torch.linalg.eigvalsh(prepared.flatten(0, -2).double().T.cov()).clamp_min(0)
    return float((variances[0] / variances.median()).sqrt())


if __name__ == "__main__":
    main()
