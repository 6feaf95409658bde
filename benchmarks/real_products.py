"""Detection, routing and forgetting on real products, added one after another with defaults.

    MOLEFLOW_REALDATA=/path/to/products python benchmarks/real_products.py --seeds 0 1 2 [--json FILE]

The folder holds products in MVTec AD's layout: mvtec3d_tire (class tire of MVTec 3D-AD), magnetic_tile and
elpv_mono (monocrystalline cells of ELPV). No run chooses anything on test images. Figures are in per cent;
pixel metrics pool all pixels of all test images at `--eval-size` (nearest-neighbour masks, bilinear maps).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from moleflow import Detector, Prediction
from moleflow.data.layouts import Product, load_mask, read_dataset
from moleflow.metrics import image_auroc, pixel_ap, pixel_auroc

ORDER = ("mvtec3d_tire", "magnetic_tile", "elpv_mono")


def main() -> None:
    options = arguments()
    if "MOLEFLOW_REALDATA" not in os.environ:
        sys.exit("skipped: MOLEFLOW_REALDATA is not set to a folder of real products")
    products = read_dataset(os.environ["MOLEFLOW_REALDATA"], layout="mvtec-ad").products
    runs = [run(products, seed, options) for seed in options.seeds]
    summary = summarise(runs)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for name, (mean, spread) in summary.items():
        print(f"{name:36s} {mean:8.2f} +- {spread:.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"runs": runs, "summary": summary}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--order", nargs="+", default=list(ORDER))
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--eval-size", type=int, default=256)
    parser.add_argument("--json")
    return parser.parse_args()


def run(products: dict[str, Product], seed: int, options: argparse.Namespace) -> dict:
    line = Detector(seed=seed, image_size=options.image_size)
    first = options.order[0]
    figures: dict[str, float] = {"seed": seed}
    before: list[Prediction] = []
    routed_before: list[Prediction] = []
    for name in options.order:
        started = time.perf_counter()
        info = line.add_task(name, [item.path for item in products[name].train])
        stages = ", ".join(f"{k} {v:.1f}" for k, v in info.seconds.items())
        print(
            f"seed {seed} {name}: {time.perf_counter() - started:.0f} s ({stages}), {info.bytes / 1e6:.2f} MB"
        )
        figures[f"{name} seconds"] = sum(info.seconds.values())
        figures[f"{name} MB"] = info.bytes / 1e6
        if name == first:
            before = line.predict([item.path for item in products[first].test], task=first)
            routed_before = line.predict([item.path for item in products[first].test])
    after = line.predict([item.path for item in products[first].test], task=first)
    figures["first product bit-identical"] = float(
        all(same(a, b) for a, b in zip(before, after, strict=True))
    )
    for name in options.order:
        routed = line.predict([item.path for item in products[name].test])
        figures |= {f"{name} {k}": v for k, v in judge(products[name], routed, options.eval_size).items()}
        if name == first:
            changed = sum(a.task != b.task for a, b in zip(routed_before, routed, strict=True))
            known = sum(a.known != b.known for a, b in zip(routed_before, routed, strict=True))
            figures |= {"first product rerouted": changed, "first product known changed": known}
    figures |= unknown(line, products, options)
    print(", ".join(f"{name} {float(value):.4g}" for name, value in figures.items()), flush=True)
    return figures


def same(a: Prediction, b: Prediction) -> bool:
    return a.pred_score == b.pred_score and np.array_equal(a.patch_map, b.patch_map)


def judge(product: Product, predictions: list[Prediction], size: int) -> dict[str, float]:
    labels = np.array([item.label for item in product.test])
    right = np.array([p.task == product.name for p in predictions])
    alarm = np.array([p.pred_label for p in predictions])
    known = np.array([p.known for p in predictions])
    figures = {
        "I": 100 * image_auroc([p.pred_score for p in predictions], labels),
        "routing good": 100 * right[labels == 0].mean(),
        "routing defective": 100 * right[labels == 1].mean(),
        "false alarms": 100 * alarm[labels == 0].mean(),
        "detected": 100 * alarm[labels == 1].mean(),
        "good called unknown": 100 * (~known[labels == 0]).mean(),
        "defective called unknown": 100 * (~known[labels == 1]).mean(),
    }
    if product.has_masks:
        maps = [at_size(p.patch_map, size) for p in predictions]
        masks = [
            load_mask(item, shape=(size, size)) if item.masks else np.zeros((size, size), bool)
            for item in product.test
        ]
        figures |= {"P": 100 * pixel_auroc(maps, masks), "AP": 100 * pixel_ap(maps, masks)}
    return figures


def unknown(line: Detector, products: dict[str, Product], options: argparse.Namespace) -> dict[str, float]:
    """Each product in turn is taken out of the line: which of its images are then called unknown."""
    rates = {}
    for name in options.order[1:]:
        held = line._line
        line.remove_task(name)
        predictions = line.predict([item.path for item in products[name].test[::4]])
        line._line = held
        rates[f"{name} left out: called unknown"] = 100 * float(np.mean([not p.known for p in predictions]))
    return rates


def at_size(patch_map: np.ndarray, size: int) -> np.ndarray:
    grid = torch.from_numpy(patch_map)[None, None]
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[0, 0].numpy()


def summarise(runs: list[dict]) -> dict[str, tuple[float, float]]:
    rows = {key: [run[key] for run in runs] for key in runs[0] if key != "seed"}
    for metric in ("I", "AP"):
        keys = [key for key in rows if key.endswith(f" {metric}")]
        rows[f"mean {metric}"] = [float(np.mean([run[key] for key in keys])) for run in runs]
    return {
        key: (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
        for key, values in rows.items()
    }


if __name__ == "__main__":
    main()
