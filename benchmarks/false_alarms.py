"""Does the verdict keep the false-alarm rate it promises, and what does it find at it?

    python benchmarks/false_alarms.py ROOT... [--seeds 0 1 2] [--few 30 --draws 5] [--json FILE]
    python benchmarks/false_alarms.py --drawn

Each ROOT is a folder of products in any layout that `moleflow benchmark` reads; `--drawn` adds six products
drawn by a program, whose test images are also shown under drifting colour, sharpness and pose. For each:

- `test`: taught with all its training photographs on a line with the others, product not given. Share of good
  test images called defective at 5, 1 and 0.1 %, of defective ones found there, and of those that the best
  threshold with as few false alarms on these very test images would find (the oracle, which needs labels);
  images called unknown; image AUROC, and pixel AP at 256 x 256 where there are masks.
- `left out`: how many of its images are called unknown once it is taken off the line.
- `few`: taught alone with so many photographs drawn at random from them, over several draws.
- `tomorrow`: taught with four fifths of the training folder, judged on the good photographs of the rest: a
  block in file order, as another session would be, and the same number drawn at random.

Everything is learned as `moleflow add` does, on features that are computed once and kept in --cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from moleflow.bench.drift import DRIFTS, drifted
from moleflow.bench.methods.base import Inspection, Pictures, Setting
from moleflow.bench.methods.line import MoleFlow
from moleflow.bench.pictures import Shelf, has_masks, item_mask
from moleflow.config import LineConfig, TrainingConfig
from moleflow.data.factory import PRODUCTS, write_product
from moleflow.data.layouts import Product, read_dataset
from moleflow.features.cache import FeatureCache
from moleflow.features.extractor import Extractor
from moleflow.metrics import image_auroc, pixel_ap

RATES = (0.05, 0.01, 0.001)
EVAL_SIZE = (256, 256)
DRIFT_STEPS = (1, 4)
DRAWN = {"train": 60, "test_good": 30, "test_defective": 30, "size": 256}

Row = dict[str, float | str | int]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        roots = list(options.roots)
        if options.drawn:
            roots.append(str(draw(Path(scratch) / "drawn")))
        if not roots:
            sys.exit("expected a folder of products, or --drawn")
        shelf = Shelf(
            FeatureCache(
                options.cache or Path(scratch) / "features", Extractor(image_size=options.image_size)
            )
        )
        rows: list[Row] = []
        for root in roots:
            products = read_dataset(root).products
            drawn = options.drawn and root == roots[-1]
            for seed in options.seeds:
                rows += told(whole_line(shelf, products, seed, options, drifting=drawn))
                for product in products.values():
                    rows += told(alone(shelf, product, seed, options))
    summarise(rows)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads"
    print(f"\n{machine}, torch {torch.__version__}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="*", metavar="ROOT")
    parser.add_argument(
        "--drawn", action="store_true", help="also on products drawn by a program, with drifts"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--few", type=int, default=30, help="photographs of the small lessons; 0: none")
    parser.add_argument("--draws", type=int, default=5, help="small lessons of each product, in all")
    parser.add_argument(
        "--no-tomorrow", action="store_true", help="without the splits of the training folder"
    )
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--steps", type=int, help="of the flow; the line's own by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, help="folder for features")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def draw(root: Path) -> Path:
    for name in PRODUCTS[:6]:
        write_product(name, root, seed=0, **DRAWN)
    return root


def whole_line(
    shelf: Shelf, products: dict[str, Product], seed: int, options: argparse.Namespace, *, drifting: bool
) -> Iterator[Row]:
    """All products on one line: its verdicts on test images, and what it says of a product it lost."""
    line = new_line(shelf, seed, options)
    for product in products.values():
        started = time.perf_counter()
        line.learn([shelf.pictures(product, "train")])
        print(f"seed {seed} {product.name}: learned in {time.perf_counter() - started:.0f} s", flush=True)
    for name, product in products.items():
        row = {"kind": "test", "product": name, "seed": seed} | judged(
            line, product, shelf, name, pixels=True
        )
        if len(products) > 1:
            row["left out, unknown"] = unknown_once_lost(line, product, shelf)
        yield row
        for kind in DRIFTS if drifting else ():
            for step in DRIFT_STEPS:
                moved = replace(product, test=drifted(product, kind, step).test)
                found = judged(line, moved, shelf, name, pixels=False)
                yield {"kind": f"drift {kind} {step}", "product": name, "seed": seed} | found


def alone(shelf: Shelf, product: Product, seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """A line that knows this product only: few photographs, and stand-ins for tomorrow."""
    pictures, count = shelf.pictures(product, "train"), len(product.train)
    if 0 < options.few < count:
        for number in range(seed, options.draws, max(len(options.seeds), 1)):
            chosen = np.sort(np.random.default_rng(number).permutation(count)[: options.few])
            line = taught(shelf, pictures.take(chosen.tolist()), number, options)
            found = judged(line, product, shelf, product.name, pixels=False)
            yield {"kind": f"few ({options.few})", "product": product.name, "seed": number} | found
    if options.no_tomorrow or count < 20:
        return
    fifth, order = count // 5, np.random.default_rng(seed).permutation(count)
    start = (seed % 5) * fifth
    for kind, held in (("block", range(start, start + fifth)), ("random", order[:fifth])):
        away = sorted(int(i) for i in held)
        rest = sorted(set(range(count)) - set(away))
        line = taught(shelf, pictures.take(rest), seed, options)
        found = list(line.inspect(pictures.take(away), None))
        row: Row = {"kind": f"tomorrow, {kind}", "product": product.name, "seed": seed}
        for rate in RATES:
            row[f"false alarms {rate:g}"] = share(alarms(line, product.name, found, rate))
        row["good unknown"] = share(not one.known for one in found)
        yield row


def new_line(shelf: Shelf, seed: int, options: argparse.Namespace) -> MoleFlow:
    extractor, config = shelf.cache.extractor, LineConfig()
    if options.steps:
        training = TrainingConfig(steps=options.steps, base_steps=options.steps)
        config = replace(config, training=training)
    return MoleFlow(Setting(extractor.grid, extractor.dim, extractor.image_size, seed=seed, config=config))


def taught(shelf: Shelf, pictures: Pictures, seed: int, options: argparse.Namespace) -> MoleFlow:
    line = new_line(shelf, seed, options)
    line.learn([pictures])
    return line


def judged(line: MoleFlow, product: Product, shelf: Shelf, name: str, *, pixels: bool) -> Row:
    labels = np.array([item.label for item in product.test])
    found = list(line.inspect(shelf.pictures(product, "test"), None))
    scores = np.array([one.score for one in found])
    good, bad = labels == 0, labels == 1
    row: Row = {}
    for rate in RATES:
        alarm = np.array(list(alarms(line, name, found, rate)))
        row[f"false alarms {rate:g}"] = share(alarm[good])
        row[f"found {rate:g}"] = share(alarm[bad])
        limit = np.quantile(scores[good], 1 - rate, method="higher") if good.any() else np.inf
        row[f"oracle {rate:g}"] = share(scores[bad] > limit)
    known = np.array([bool(one.known) for one in found])
    row |= {"good unknown": share(~known[good]), "defective unknown": share(~known[bad])}
    row["routed right"] = share(one.task == name for one in found)
    if good.any() and bad.any():
        row["image AUROC"] = 100 * image_auroc(scores, labels)
    if pixels and has_masks(product):
        maps = [at_eval_size(one.patch_map) for one in found if one.patch_map is not None]
        row["pixel AP"] = 100 * pixel_ap(maps, [item_mask(item, EVAL_SIZE) for item in product.test])
    return row


def alarms(line: MoleFlow, name: str, found: Iterable[Inspection], rate: float) -> Iterator[bool]:
    """Alarms at another rate; an image sent to another product is judged by that one's threshold."""
    for one in found:
        threshold = line.parts[one.task or name].product.calibration.threshold(rate)
        yield one.score > threshold


def unknown_once_lost(line: MoleFlow, product: Product, shelf: Shelf) -> float:
    others = line.without(product.name)
    return share(not known for known in others.recognised(shelf.pictures(product, "test")))


def at_eval_size(patch_map: np.ndarray) -> np.ndarray:
    grid = torch.from_numpy(patch_map)[None, None]
    return F.interpolate(grid, size=EVAL_SIZE, mode="bilinear", align_corners=False)[0, 0].numpy()


def share(marks: Iterable[bool]) -> float:
    values = [float(mark) for mark in marks]
    return 100 * float(np.mean(values)) if values else float("nan")


def told(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        print(
            ", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True
        )
        yield row


def summarise(rows: list[Row]) -> None:
    """Mean over seeds or draws, with the standard deviation, and the mean over products."""
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        columns = list(dict.fromkeys(key for row in mine for key in row if isinstance(row[key], float)))
        print(f"\n{kind}\n| product | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
        names = list(dict.fromkeys(str(row["product"]) for row in mine))
        for name in (*names, "mean"):
            cells = []
            for column in columns:
                by_product = {
                    n: [float(r[column]) for r in mine if r["product"] == n and column in r] for n in names
                }
                if name == "mean":
                    means = [np.mean(values) for values in by_product.values() if values]
                    cells.append(f"{np.mean(means):.1f}")
                else:
                    values = by_product[name]
                    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
                    cells.append(f"{np.mean(values):.1f}{spread}" if values else "–")
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
