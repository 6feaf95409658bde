"""What a few known defects teach, and whether they blind a product to the others.

    python benchmarks/correct.py ROOT [--seeds 0 1 2] [--known 1 5 20] [--cache DIR]

Every product is taught with its good training photographs. Then, of every kind of defect in turn, some test
images are shown to it as `moleflow correct` does, with their masks and without, drawn at random by the seed;
it is judged on the other images of the same kind, on those of all other kinds, and on the good test images.
Rows are means over products, kinds and seeds: image AUROC, share found at 1 % promised false alarms, false
alarms there. The first row of each number shown is the product as it was, judged on the same images. What
does not depend on the defects is learned once.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moleflow.bases.shipped import shipped_base
from moleflow.bench.methods.base import Pictures
from moleflow.bench.pictures import Shelf, item_mask
from moleflow.config import LineConfig, with_layers
from moleflow.data.layouts import Product as Labelled
from moleflow.data.layouts import read_dataset
from moleflow.densities.correction import Defects
from moleflow.features.cache import FeatureCache
from moleflow.features.extractor import Extractor
from moleflow.flow.expert import Base
from moleflow.learning import product as product_learning
from moleflow.learning.known_defects import MARKED
from moleflow.learning.product import learn_product
from moleflow.line.product import Product, combine
from moleflow.metrics import image_auroc
from moleflow.verdict.calibration import TwoVoices
from moleflow.verdict.maps import image_scores, smooth

RATE = 0.01
LEAST = 8  # images of a kind that are left to judge by
COLUMNS = ("same AUROC", "other AUROC", "same found", "other found", "false alarms")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        extractor = Extractor(image_size=options.image_size)
        shelf = Shelf(FeatureCache(options.cache or Path(scratch), extractor))
        for product in read_dataset(options.root).products.values():
            for seed in options.seeds:
                remember_once()
                for known, how, found in trials(shelf, product, seed, options.known):
                    rows[known, how].append(found)
                    told = ", ".join(
                        f"{name} {value:.1f}" for name, value in zip(COLUMNS, found, strict=True)
                    )
                    print(f"{product.name}, seed {seed}, {known} shown, {how}: {told}", flush=True)
    print("\n| shown | | " + " | ".join(COLUMNS) + " |\n|---:|---|" + "---:|" * len(COLUMNS))
    for (known, how), several in rows.items():
        means = np.nanmean(np.array(several), axis=0)
        print(f"| {known} | {how} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads"
    print(f"\n{machine}, torch {torch.__version__}")


def remember_once() -> None:
    """What is learned of good images alone is kept between lessons on the same ones."""
    for name in ("begin_flow", "finish_flow", "CoresetLeftOut", "whole_left_out"):
        original = getattr(product_learning, name)
        original = getattr(original, "original", original)
        setattr(product_learning, name, once(original))


def once(original: Any) -> Any:
    kept: list[Any] = []

    def remembered(*given: Any, **more: Any) -> Any:
        if not kept:
            kept.append(original(*given, **more))
        return kept[0]

    remembered.original = original  # type: ignore[attr-defined]
    return remembered


@dataclass(frozen=True, eq=False)
class Inspected:
    """Test images before a correction: maps (n, h, w), white patches (n, h, w, D), scores of the whole."""

    maps: Tensor
    white: Tensor
    wholes: list[float]


def trials(
    shelf: Shelf, labelled: Labelled, seed: int, known: Sequence[int]
) -> Iterator[tuple[int, str, list[float]]]:
    """How many are shown, with or without masks, and the columns."""
    train, test = shelf.pictures(labelled, "train"), shelf.pictures(labelled, "test")
    extractor = shelf.cache.extractor
    config = with_layers(LineConfig(), extractor.widths)
    base = shipped_base(extractor.weights_hash, extractor.grid, extractor.dim, config.flow)
    assert base is not None
    plain = lesson(base, train, config, seed, None)
    seen = inspected(base, plain, test)
    kinds = np.array([item.kind if item.label else "" for item in labelled.test])
    chance = np.random.default_rng(seed)
    for kind in sorted(set(kinds) - {""}):
        mine = np.flatnonzero(kinds == kind)
        for count in known:
            if len(mine) < count + LEAST:
                continue
            shown = chance.choice(mine, count, replace=False)
            rest = np.setdiff1d(mine, shown)
            others = np.flatnonzero((kinds != kind) & (kinds != ""))
            judge = partial(judged, seen=seen, good=kinds == "", same=rest, others=others)
            yield count, "not shown", judge(plain)
            patches = torch.cat([test.seen_of(int(i)).patches for i in shown])
            yield count, "images", judge(lesson(base, train, config, seed, Defects(patches)))
            if all(labelled.test[i].masks for i in shown):
                marks = torch.stack([marked(labelled, int(i), extractor.grid) for i in shown])
                product = lesson(base, train, config, seed, Defects(patches, marks))
                yield count, "images and masks", judge(product)


def lesson(base: Base, train: Pictures, config: LineConfig, seed: int, defects: Defects | None) -> Product:
    return learn_product(base, train.seen, config, seed=seed, altered=train.altered, defects=defects)


@torch.no_grad()
def inspected(base: Base, product: Product, test: Pictures) -> Inspected:
    maps, white, wholes = [], [], []
    gaussians = product.densities.gaussians
    assert gaussians is not None
    assert product.whole is not None
    for i in range(len(test)):
        seen = test.seen_of(i)
        scores = product.densities.scores(base, seen.patches)
        maps.append(combine(scores, product.positions, product.config.scoring))
        white.append(gaussians.whiten(seen.patches)[0].half())
        wholes.append(float(product.whole(seen.pooled)[0]))
    return Inspected(torch.cat(maps), torch.cat(white), wholes)


def judged(
    product: Product, seen: Inspected, good: np.ndarray, same: np.ndarray, others: np.ndarray
) -> list[float]:
    """The columns, in percent."""
    scoring, correction = product.config.scoring, product.densities.correction
    maps = seen.maps
    if correction is not None:
        along = torch.stack([own.float() @ correction.direction for own in seen.white])
        maps = maps + correction.weight * (along - correction.level)
    places = image_scores(smooth(maps, scoring.smoothing), scoring).tolist()
    calibration = product.calibration
    assert isinstance(calibration, TwoVoices)
    scores = np.array([calibration.score(*both) for both in zip(places, seen.wholes, strict=True)])
    alarms = scores > calibration.threshold(RATE)

    def auroc(bad: np.ndarray) -> float:
        if not len(bad):
            return np.nan
        labels = [0] * int(good.sum()) + [1] * len(bad)
        return 100 * image_auroc(np.concatenate([scores[good], scores[bad]]), labels)

    def share(chosen: np.ndarray) -> float:
        return 100 * float(alarms[chosen].mean()) if len(chosen) else np.nan

    return [auroc(same), auroc(others), share(same), share(others), share(np.flatnonzero(good))]


def marked(labelled: Labelled, index: int, grid: tuple[int, int]) -> Tensor:
    """(h, w) bool, as `moleflow correct --masks` marks patches."""
    mask = torch.from_numpy(item_mask(labelled.test[index], None)).float()
    share = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], grid)[0, 0]
    return (share >= min(MARKED, float(share.max()))) & (share > 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of labelled products")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--known", type=int, nargs="+", default=[1, 5, 20], help="images that are shown")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, help="folder for features")
    return parser.parse_args()


if __name__ == "__main__":
    main()
