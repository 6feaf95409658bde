"""Does the verdict keep the false-alarm rate it promises, and what does it find at it?

    python benchmarks/false_alarms.py ROOT... [--seeds 0 1 2] [--few 30 --draws 5] [--json FILE]
    python benchmarks/false_alarms.py --drawn

Each ROOT is a folder of products in any layout that `moleflow benchmark` reads; `--drawn` adds six products
drawn by a program. For each:

- `test`: taught with all its training photographs on a line with the others, product not given. Share of good
  test images whose score exceeds the threshold at 5, 1 and 0.1 % (false alarms), of defective ones found
  there, and of those that the best threshold with as few false alarms on these very test images would find
  (the oracle, which needs labels); what good and defective images are called in a word at 1 %; image AUROC,
  and pixel AP at 256 x 256 where there are masks.
- `left out`: what its images are called once it is taken off the line.
- `drift KIND STEP`, drawn products only: the same line, its test images under a drift that was not taught.
- `sessions`, drawn products only: taught with photographs of eight sessions, each under a mild drift of its
  own in colour, sharpness and pose, and judged on those of eight new sessions of the same kind.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from moleflow.bench.drift import DRIFTS, Image, distort, distort_mask, drifted
from moleflow.bench.methods.base import Pictures, Setting
from moleflow.bench.methods.line import MoleFlow
from moleflow.bench.pictures import AlteredItem, Shelf, has_masks, item_mask
from moleflow.config import LineConfig, TrainingConfig
from moleflow.data.factory import PRODUCTS, write_product
from moleflow.data.layouts import Item, Mask, Product, read_dataset
from moleflow.features.cache import FeatureCache
from moleflow.features.extractor import Extractor, Features
from moleflow.inspection import inspect
from moleflow.intake import Intake, Picture
from moleflow.learning.blocks import make_blocks
from moleflow.learning.changes import Note, reference_of
from moleflow.line.record import Line
from moleflow.line.shelf import Shelf as Products
from moleflow.metrics import image_auroc, pixel_ap
from moleflow.results import Prediction
from moleflow.verdict.drift import facts_of

RATES = (0.05, 0.01, 0.001)
ASKED = 0.01  # for which images are called something in a word
EVAL_SIZE = (256, 256)
DRIFT_STEPS = (1, 4)
SESSIONS = 8  # of training images, and of test images of either kind
DRAWN = {"train": 60, "test_good": 30, "test_defective": 30, "size": 256}

WORDS = ("defective", "drifting", "unknown")

Row = dict[str, float | str | int]


@dataclass(frozen=True)
class Session:
    """What all photographs of a session share: the mildest step of colour and pose, half of them blurred."""

    seed: int

    @property
    def key(self) -> str:
        """For caches."""
        return f"session-{self.seed}"

    @property
    def makes_defects(self) -> bool:
        """Never."""
        return False

    def image(self, image: Image, item: Item) -> Image:
        """As this session sees it."""
        image = distort(image, "geometry", 1, self.seed)
        image = distort(image, "blur", 1 + self.seed % 2, self.seed)  # the first step leaves it as it is
        return distort(image, "colour", 1, self.seed)

    def mask(self, mask: Mask, item: Item) -> Mask:
        """Moved as the image."""
        return distort_mask(mask, "geometry", 1, self.seed)


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
                if drawn:
                    rows += told(in_sessions(shelf, products, seed, options))
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
    line = taught(shelf, [shelf.pictures(product, "train") for product in products.values()], seed, options)
    for name, product in products.items():
        row: Row = {"kind": "test", "product": name, "seed": seed}
        row |= judged(line, product, shelf, name, pixels=True)
        if len(products) > 1:
            row |= once_lost(line, product, shelf)
        yield row
        for kind in DRIFTS if drifting else ():
            for step in DRIFT_STEPS:
                moved = replace(product, test=drifted(product, kind, step).test)
                found = judged(line, moved, shelf, name, pixels=False)
                row = {"kind": f"drift {kind} {step}", "product": name, "seed": seed}
                yield row | found


def in_sessions(
    shelf: Shelf, products: dict[str, Product], seed: int, options: argparse.Namespace
) -> Iterator[Row]:
    """All products on one line, taught in sessions and judged in new ones."""
    taken = {
        name: taken_in_sessions(product, 1000 * (len(products) * seed + number))
        for number, (name, product) in enumerate(products.items())
    }
    line = taught(shelf, [shelf.pictures(product, "train") for product in taken.values()], seed, options)
    for name, product in taken.items():
        row: Row = {"kind": "sessions", "product": name, "seed": seed}
        yield row | judged(line, product, shelf, name, pixels=False) | once_lost(line, product, shelf)


def taken_in_sessions(product: Product, first: int) -> Product:
    """Training images in sessions of neighbours; test images in others, good and defective ones in each.

    Args:
        product: as photographed.
        first: seed of the first session; the next thousand belong to this product.
    """
    good = [item for item in product.test if not item.label]
    defective = [item for item in product.test if item.label]
    test = (*sessions_of(good, first + SESSIONS), *sessions_of(defective, first + SESSIONS))
    return replace(product, train=sessions_of(product.train, first), test=test)


def sessions_of(items: Sequence[Item], first: int) -> tuple[AlteredItem, ...]:
    return tuple(
        AlteredItem(**vars(item), alteration=Session(first + number * SESSIONS // len(items)))
        for number, item in enumerate(items)
    )


def alone(shelf: Shelf, product: Product, seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """A line that knows this product only: few photographs, and stand-ins for tomorrow."""
    pictures, count = shelf.pictures(product, "train"), len(product.train)
    if 0 < options.few < count:
        for number in range(seed, options.draws, max(len(options.seeds), 1)):
            chosen = np.sort(np.random.default_rng(number).permutation(count)[: options.few])
            line = taught(shelf, [pictures.take(chosen.tolist())], number, options)
            found = judged(line, product, shelf, product.name, pixels=False)
            row: Row = {"kind": f"few ({options.few})", "product": product.name, "seed": number}
            yield row | found
    if options.no_tomorrow or count < 20:
        return
    fifth, order = count // 5, np.random.default_rng(seed).permutation(count)
    start = (seed % 5) * fifth
    for kind, held in (("block", range(start, start + fifth)), ("random", order[:fifth])):
        away = sorted(int(i) for i in held)
        rest = sorted(set(range(count)) - set(away))
        line = taught(shelf, [pictures.take(rest)], seed, options)
        seen = inspected(line, pictures.take(away))
        row = {"kind": f"tomorrow, {kind}", "product": product.name, "seed": seed}
        for rate in RATES:
            row[f"false alarms {rate:g}"] = share(alarms(line, seen, rate))
        yield row | called("good", seen)


def taught(shelf: Shelf, lessons: Sequence[Pictures], seed: int, options: argparse.Namespace) -> Line:
    """A line that learned these products one after another, as `moleflow add` would."""
    extractor, config = shelf.cache.extractor, LineConfig()
    if options.steps:
        training = TrainingConfig(steps=options.steps, base_steps=options.steps)
        config = replace(config, training=training)
    size = extractor.image_size
    hashed = extractor.weights_hash
    setting = Setting(
        extractor.grid,
        extractor.dim,
        size,
        seed=seed,
        config=config,
        weights_hash=hashed,
        widths=extractor.widths,
    )
    method = MoleFlow(setting)
    products = {}
    for pictures in lessons:
        started = time.perf_counter()
        method.learn([pictures])
        product = method.parts[pictures.product].product
        notes = [Note(str(i), facts_of(pictures.read(i, size)), None) for i in range(len(pictures))]
        blocks = make_blocks(len(pictures), config.scoring)
        reference = reference_of(notes, product, blocks, earlier=None)
        products[pictures.product] = replace(product, reference=reference)
        took = time.perf_counter() - started
        print(f"seed {seed} {pictures.product}: learned in {took:.0f} s", flush=True)
    line = Line(false_alarm_rate=ASKED, intake=Intake(size), base=method.base)
    return line.with_products(Products(products), config.router)


def inspected(line: Line, pictures: Pictures) -> list[Prediction]:
    """What the line says of pictures, product not given."""

    def see(_: Sequence[Picture]) -> Sequence[Features]:
        raise AssertionError("expected features from the cache alone")  # no product here is aligned

    size, found = line.intake.size, []
    for i in range(len(pictures)):
        picture = Picture(i, pictures.read(i, size), size)
        found.append(inspect(line, picture, pictures.seen_of(i), see=see))
    return found


def judged(line: Line, product: Product, shelf: Shelf, name: str, *, pixels: bool) -> Row:
    labels = np.array([item.label for item in product.test])
    found = inspected(line, shelf.pictures(product, "test"))
    scores = np.array([one.pred_score for one in found])
    good, bad = labels == 0, labels == 1
    row: Row = {}
    for rate in RATES:
        alarm = np.array(list(alarms(line, found, rate)))
        row[f"false alarms {rate:g}"] = share(alarm[good])
        row[f"found {rate:g}"] = share(alarm[bad])
        limit = np.quantile(scores[good], 1 - rate, method="higher") if good.any() else np.inf
        row[f"oracle {rate:g}"] = share(scores[bad] > limit)
    for kind, mine in (("good", good), ("defective", bad)):
        row |= called(kind, [one for one, is_mine in zip(found, mine, strict=True) if is_mine])
    row["routed right"] = share(one.task == name for one in found)
    if good.any() and bad.any():
        row["image AUROC"] = 100 * image_auroc(scores, labels)
    if pixels and has_masks(product):
        maps = [at_eval_size(one.patch_map) for one in found]
        row["pixel AP"] = 100 * pixel_ap(maps, [item_mask(item, EVAL_SIZE) for item in product.test])
    return row


def called(kind: str, found: Sequence[Prediction]) -> Row:
    """Shares of the images of a kind by what they are called; the rest is called good."""
    return {f"{kind}: {word}": share(one.status == word for one in found) for word in WORDS}


def alarms(line: Line, found: Iterable[Prediction], rate: float) -> Iterator[bool]:
    """Alarms at another rate; an image sent to another product is judged by that one's threshold."""
    for one in found:
        yield one.pred_score > line.products[one.task].calibration.threshold(rate)


def once_lost(line: Line, product: Product, shelf: Shelf) -> Row:
    """What images of a product are called that was taken off the line."""
    others = line.without(product.name, LineConfig().router)
    found = inspected(others, shelf.pictures(product, "test"))
    return {f"left out: {word}": share(one.status == word for one in found) for word in WORDS[1:]}


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
