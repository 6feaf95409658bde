"""What the backbone alone and a whole inspection take on each runtime, in milliseconds an image, in one run.

    python benchmarks/runtimes.py [--sizes 256 384 512] [--batches 1 16] [--repeats 9]
    python benchmarks/runtimes.py --backbone vit_base_patch16 --weights random --sizes 224

Images are procedural and come as arrays, so decoding is not in it; a line knows one product. Runtimes take
turns, so that whatever else the machine does meets all alike, and figures are medians: compare the ratios
between machines, not the milliseconds. "Apart" is the largest difference from eager torch on these images: of
any feature, in spreads of the features, and of the score, in its own unit, spreads of good images.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from moleflow import Detector
from moleflow.data.factory import PRODUCTS, make_sample
from moleflow.data.images import resize
from moleflow.features.extractor import Features
from moleflow.features.runtime import CACHE_VARIABLE, COMPILED, RuntimeName

T = TypeVar("T")

RUNTIMES: tuple[RuntimeName, ...] = ("torch", *COMPILED)  # type: ignore[assignment]
COLUMNS = ("backbone", "of torch's", "inspection", "of torch's", "inspection of backbone")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads"
    print(f"{machine}, {options.backbone}, torch {torch.__version__}")
    print("\n| size | batch | runtime | " + " | ".join(COLUMNS) + " | features apart | scores apart |")
    print("|---:|---:|---|" + "---:|" * (len(COLUMNS) + 2))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[CACHE_VARIABLE] = str(Path(scratch) / "cache")
        for size in options.sizes:
            lines = taught(options, size, Path(scratch) / str(size))
            for batch in options.batches:
                compare(lines, size, batch, options.repeats)
        for size in options.sizes:
            for name in COMPILED:
                print(f"\n{name}, {size}: first image after {opened(options, size, name):.2f} s", end="")
    print(", copies kept")


def taught(options: argparse.Namespace, size: int, folder: Path) -> dict[str, Detector]:
    """The same line on every runtime."""
    line = Detector(options.backbone, weights=options.weights, image_size=size, device="cpu", runtime="torch")
    line.add_task(PRODUCTS[0], [make_sample(PRODUCTS[0], i, size=size).image for i in range(8)])
    line.save(folder)
    return {name: Detector.load(folder, device="cpu", runtime=name) for name in RUNTIMES}


def compare(lines: dict[str, Detector], size: int, batch: int, repeats: int) -> None:
    pictures = [make_sample(PRODUCTS[0], 10_000 + i, size=size).image for i in range(batch)]
    stacked = lines["torch"].extractor.stack([resize(picture, (size, size)) for picture in pictures])
    backbone: dict[str, list[float]] = defaultdict(list)
    whole: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, Features] = {}
    scores: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for name, line in lines.items():
            took, seen[name] = timed(lambda line=line: line.extractor.see(stacked))  # type: ignore[misc]
            backbone[name].append(1e3 * took / batch)
            took, found = timed(lambda line=line: line.predict(pictures, batch_size=batch))  # type: ignore[misc]
            whole[name].append(1e3 * took / batch)
            scores[name] = [one.pred_score for one in found]
    for name in lines:
        one, all_of_it, eager = backbone[name][1:], whole[name][1:], seen["torch"]  # the first warms up
        pairs = ((seen[name].patches, eager.patches), (seen[name].pooled, eager.pooled))
        apart = max(float((mine - theirs).abs().max() / theirs.std()) for mine, theirs in pairs)
        moved = max(abs(a - b) for a, b in zip(scores[name], scores["torch"], strict=True))
        cells = (
            f"{statistics.median(one):.1f} ms",
            f"{ratio(one, backbone['torch'][1:]):.2f}",
            f"{statistics.median(all_of_it):.1f} ms",
            f"{ratio(all_of_it, whole['torch'][1:]):.2f}",
            f"{ratio(all_of_it, one):.2f}",
            f"{apart:.0e}" if apart else "–",
            f"{moved:.0e}" if moved else "–",
        )
        print(f"| {size} | {batch} | {name} | " + " | ".join(cells) + " |", flush=True)


def opened(options: argparse.Namespace, size: int, name: str) -> float:
    """Seconds until a new line's backbone has seen its first image, where its copy is kept already."""
    picture = resize(make_sample(PRODUCTS[0], 0, size=size).image, (size, size))
    started = time.perf_counter()
    line = Detector(options.backbone, weights=options.weights, image_size=size, device="cpu", runtime=name)  # type: ignore[arg-type]
    line.extractor.see(line.extractor.stack([picture]))
    return time.perf_counter() - started


def ratio(one: list[float], other: list[float]) -> float:
    """Median of what one takes against the other in the same round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", help="a file, or 'random'")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
