"""What defects among the good photographs cost, and how many of them the lesson names.

    python benchmarks/contaminated.py ROOT [--shares 0 2 5 10] [--seeds 0 1 2] [--most 100]

Of every product's training photographs and its defective test images a folder is drawn at random by the seed,
with so many per cent of defects in it, and taught as `moleflow add` does: once as it is, once with
`--drop-suspicious`. It is judged, product given, on the test images that are in no folder of this seed. Rows
are means over the seeds with their standard deviation: image AUROC, share of defects found at 1 % promised
false alarms, false alarms there, and which share of the defects and of the good ones in the folder was named
as suspicious.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from moleflow import Detector
from moleflow.data.layouts import Item, Product, read_dataset
from moleflow.metrics import image_auroc

RATE = 0.01
COLUMNS = ("image AUROC", "found", "false alarms", "defects named", "good ones named")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows: dict[tuple[str, float, str], list[list[float]]] = defaultdict(list)
    for product in read_dataset(options.root).products.values():
        for seed in options.seeds:
            for share, how, found in folders(product, seed, options):
                rows[product.name, share, how].append(found)
                columns = zip(COLUMNS, found, strict=True)
                told = ", ".join(f"{name} {value:.1f}" for name, value in columns if not np.isnan(value))
                print(f"{product.name}, seed {seed}, {share:g} %, {how}: {told}", flush=True)
    print("\n| product | defects | | " + " | ".join(COLUMNS) + " |\n|---|---:|---|" + "---:|" * len(COLUMNS))
    for (name, share, how), several in rows.items():
        means = map(spread, zip(*several, strict=True))
        print(f"| {name} | {share:g} % | {how} | " + " | ".join(means) + " |")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads"
    print(f"\n{machine}, torch {torch.__version__}")


def folders(
    product: Product, seed: int, options: argparse.Namespace
) -> Iterator[tuple[float, str, list[float]]]:
    """Share of defects, whether suspicious ones are left out, and the columns."""
    chance = np.random.default_rng(seed)
    defective = [item for item in product.test if item.label]
    good = drawn(list(product.train), options.most, chance)
    among = [round(share / 100 * len(good)) for share in options.shares]
    if max(among) > len(defective) // 2:
        print(f"{product.name}: expected at most half of its {len(defective)} defects in a folder, left out")
        return
    shown = drawn(defective, max(among), chance)  # a smaller share has the first of them
    hidden = {item.path for item in shown}
    test = [item for item in product.test if item.path not in hidden]
    for share, count in zip(options.shares, among, strict=True):
        folder = drawn([*good, *shown[:count]], len(good) + count, chance)
        plain = judged(folder, test, seed, False, options)
        yield share, "as it is", plain
        named = np.nansum(plain[-2:]) > 0  # else both lessons are the same
        dropped = judged(folder, test, seed, True, options) if named else plain
        yield share, "suspicious ones dropped", dropped


def judged(
    folder: list[Item], test: list[Item], seed: int, drop: bool, options: argparse.Namespace
) -> list[float]:
    """The columns, in per cent; a share of nothing is not a number."""
    line = Detector(image_size=options.image_size, seed=seed, false_alarm_rate=RATE)
    info = line.add_task("product", [item.path for item in folder], drop_suspicious=drop)
    named = {suspect.source for suspect in info.suspects if suspect.fault}
    found = [line.predict([item.path], task="product")[0] for item in test]
    scores = np.array([one.pred_score for one in found])
    alarms, labels = scores > info.threshold, np.array([item.label for item in test])
    suspected = np.array([str(item.path) in named for item in folder])
    mixed_in = np.array([bool(item.label) for item in folder])
    return [
        100 * image_auroc(scores, labels),
        *(percent(alarms[labels == label]) for label in (1, 0)),
        *(percent(suspected[mixed_in == is_defect]) for is_defect in (True, False)),
    ]


def drawn(items: list[Item], most: int, chance: np.random.Generator) -> list[Item]:
    """That many of them in random order."""
    return [items[i] for i in chance.permutation(len(items))[:most]]


def percent(marks: np.ndarray) -> float:
    return 100 * float(marks.mean()) if len(marks) else np.nan


def spread(values: tuple[float, ...]) -> str:
    """Mean and standard deviation."""
    if np.isnan(values).all():
        return "–"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of labelled products")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0, 2, 5, 10], help="of defects, in per cent"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--most", type=int, default=100, help="good photographs in a folder")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
