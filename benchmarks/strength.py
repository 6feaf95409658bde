"""How strongly the rivals that share one flow should hold on to earlier products.

    python benchmarks/strength.py --method lwf --values 1 3 10 [--steps 200 --base-steps 250 --patches 512]

A sequence of products is learned from good images, with every value of the method's main option (EWC's
strength, LwF's weight, replay's share of kept images) in turn. What counts at the end is the mean negative
log-likelihood of a patch on held-out good images of all products, in nats: the value with the lowest is
EWC's default; LwF keeps its paper's. Defects play no part, so the choice cannot flatter a rival or wrong it.
Steps and patches are the bench's own unless said otherwise.

Products are drawn ones; where MOLEFLOW_REALDATA is set to a folder of products in MVTec AD's layout, those.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from moleflow.bench.methods import make
from moleflow.bench.methods.base import Pictures, Setting
from moleflow.bench.methods.single import SingleFlow
from moleflow.config import LineConfig, TrainingConfig
from moleflow.data.factory import make_sample
from moleflow.data.images import read_image, resize
from moleflow.data.layouts import read_dataset
from moleflow.features.extractor import Extractor

MAIN_OPTION = {"ewc": "strength", "lwf": "weight", "replay": "kept"}
DRAWN = ("gear", "wood", "bottle_cap")
REAL = ("mvtec3d_tire", "magnetic_tile", "elpv_mono")
BATCH = 8


def main() -> None:
    options = arguments()
    extractor = Extractor(image_size=options.image_size)
    training = replace(
        TrainingConfig(), steps=options.steps, base_steps=options.base_steps, patches=options.patches
    )
    setting = Setting(
        grid=extractor.grid,
        channels=extractor.dim,
        image_size=extractor.image_size,
        seed=options.seed,
        config=LineConfig(training=training),
    )
    learned, held = zip(*products(extractor, options), strict=True)
    for pictures, unseen in zip(learned, held, strict=True):
        print(f"{pictures.product}: {len(pictures)} images to learn from, {len(unseen)} held out")
    main_option = MAIN_OPTION[options.method]
    for value in options.values:
        started = time.perf_counter()
        method = make(options.method, setting, {main_option: value})
        assert isinstance(method, SingleFlow)
        for pictures in learned:
            method.learn([pictures])
        found = [nll(method, unseen) for unseen in held]
        each = ", ".join(f"{p.product} {one:.1f}" for p, one in zip(learned, found, strict=True))
        seconds = time.perf_counter() - started
        print(
            f"{options.method} {main_option} {value:g}: {np.mean(found):.1f} nats ({each}), {seconds:.0f} s",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    training = TrainingConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=MAIN_OPTION, required=True)
    parser.add_argument("--values", type=float, nargs="+", required=True, help="of the main option")
    parser.add_argument("--products", nargs="+", help="in the order in which they are learned")
    parser.add_argument(
        "--images", type=int, default=100, help="of a product at most, held-out ones included"
    )
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the images")
    parser.add_argument("--image-size", type=int, help="default: the backbone's own")
    parser.add_argument("--steps", type=int, default=training.steps)
    parser.add_argument("--base-steps", type=int, default=training.base_steps)
    parser.add_argument("--patches", type=int, default=training.patches)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def products(extractor: Extractor, options: argparse.Namespace) -> Iterator[tuple[Pictures, torch.Tensor]]:
    """Every product to learn, and features (n, h, w, D) of its held-out images."""
    for name, images in sources(options, extractor.image_size):
        parts = [
            extractor.features(extractor.stack([image() for image in images[i : i + BATCH]])).half()
            for i in range(0, len(images), BATCH)
        ]
        features = torch.cat(parts)
        order = np.random.default_rng(options.seed).permutation(len(features))
        count = max(1, round(options.held_out * len(features)))
        yield Pictures(name, features[order[count:]], unread), features[order[:count]]


def sources(
    options: argparse.Namespace, size: tuple[int, int]
) -> Iterator[tuple[str, list[Callable[[], np.ndarray]]]]:
    """Names of products and their good training images, not yet read."""
    root = os.environ.get("MOLEFLOW_REALDATA")
    if root is None:
        for name in options.products or DRAWN:
            yield name, [partial(drawn, name, i, size) for i in range(options.images)]
        return
    found = read_dataset(Path(root), layout="mvtec-ad").products
    for name in options.products or REAL:
        paths = [item.path for item in found[name].train]
        some = np.linspace(0, len(paths) - 1, min(options.images, len(paths))).round().astype(int)
        yield name, [partial(photographed, paths[i], size) for i in some]


def photographed(path: Path, size: tuple[int, int]) -> np.ndarray:
    return resize(read_image(path), size)


def drawn(name: str, number: int, size: tuple[int, int]) -> np.ndarray:
    return resize(make_sample(name, number, size=max(size)).image, size)


def unread(i: int, size: tuple[int, int]) -> np.ndarray:
    raise AssertionError("methods of one flow look at features alone")


@torch.no_grad()
def nll(method: SingleFlow, features: torch.Tensor) -> float:
    """-log p of a patch in nats, the mean over images (n, h, w, D)."""
    assert method.flow is not None
    return float(torch.stack([method.flow.scores(one).mean() for one in features.split(1)]).mean())


if __name__ == "__main__":
    main()
