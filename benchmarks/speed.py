"""Seconds to add a product and to inspect an image, against the backbone's own forward pass, in one run.

    python benchmarks/speed.py [--images 200] [--few 8 24] [--products 1 15 200]

Images are procedural and random weights are not involved; the product a line knows many times over is the
same one under other names, which costs what different ones would. Timings are medians; compare the ratios,
not the seconds, between machines.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from moleflow import Detector
from moleflow.data.factory import PRODUCTS, make_sample

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--few", type=int, nargs="*", default=[8, 24], help="photographs of small lessons")
    parser.add_argument("--products", type=int, nargs="+", default=[1, 15, 200])
    options = parser.parse_args()
    cores, threads = os.cpu_count(), torch.get_num_threads()
    print(f"{platform.machine()}, {cores} cores, {threads} threads, torch {torch.__version__}")
    line = adding(options.images, options.few)
    for count in options.products:
        inspecting(line, count)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def adding(images: int, few: list[int]) -> Detector:
    """A line that learns two products from many photographs, and the second again from a few of them."""
    line = Detector()
    lessons = [(PRODUCTS[0], images), (PRODUCTS[1], images), *((PRODUCTS[1], count) for count in few)]
    for number, (product, count) in enumerate(lessons):
        pictures = [make_sample(product, seed, size=384).image for seed in range(count)]
        started = time.perf_counter()
        info = line.add_task(f"{product} {number}", pictures)
        whole = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            line.save(Path(folder) / "line")
            writing = time.perf_counter() - started
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in info.seconds.items())
        print(
            f"add {product}: {count} images in {whole:.1f} s ({stages}, writing {writing:.2f}), "
            f"{info.bytes / 1e6:.3f} MB, {info.parameters} parameters"
        )
    return line


def inspecting(line: Detector, count: int) -> None:
    """Prints what inspection costs over and above the backbone when the line knows `count` products."""
    known = line._line
    product = next(iter(known.products.values()))
    copies = {f"product {i:03}": replace(product) for i in range(count)}
    line._line = known.with_products(copies, line.config.router)
    pictures = [make_sample(PRODUCTS[0], 10_000 + i, size=384).image for i in range(BATCH)]
    batch = line.extractor.stack(pictures)
    backbone, whole = [], []
    for _ in range(12):  # alternating, so that whatever else the machine does meets both alike
        backbone.append(timed(lambda: line.extractor.features(batch)))
        whole.append(timed(lambda: line.predict(pictures, batch_size=BATCH)))
    ratio = statistics.median(w / b for w, b in zip(whole, backbone, strict=True)) - 1
    print(
        f"inspect, {count} products: backbone {1e3 * statistics.median(backbone) / BATCH:.1f} ms an image, "
        f"all {1e3 * statistics.median(whole) / BATCH:.1f} ms, over the backbone {100 * ratio:.0f} %"
    )
    line._line = known


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
