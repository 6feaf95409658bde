"""A line-scan product brought to a square, to the size that a new line proposes, and in tiles.

    python benchmarks/shapes.py [--train 32] [--test 100] [--steps 50]

The product is drawn here: 100 x 2500 strips of the procedural wood, good ones and ones with a scratch a few
pixels wide at a random place. Every way learns from the same images and sees the same ones; seconds are of
this machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from moleflow import Detector, LineConfig, TrainingConfig
from moleflow.data.factory import make_sample
from moleflow.metrics import image_auroc

HEIGHT, WIDTH = 100, 2500
WAYS: dict[str, dict[str, Any]] = {
    "square": {"image_size": 384},
    "letterbox": {"image_size": 384, "fit": "letterbox"},
    "proposed": {},
    "defect 12": {"smallest_defect": 12},
    "tiles 1x4": {"image_size": (96, 736), "tiles": (1, 4)},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=32)
    parser.add_argument("--test", type=int, default=100, help="half of them good")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    planks = [make_sample("wood", seed, size=512).image for seed in range(12)]
    draw = np.random.default_rng(0)
    train = [strip(planks, draw) for _ in range(options.train)]
    test = [strip(planks, draw) for _ in range(options.test)]
    labels = np.arange(options.test) % 2
    test = [scratched(image, draw) if label else image for image, label in zip(test, labels, strict=True)]
    config = LineConfig(training=TrainingConfig(steps=options.steps, base_steps=options.steps))
    for way in options.ways:
        measure(way, train, test, labels, config)


def measure(way: str, train: list, test: list, labels: np.ndarray, config: LineConfig) -> None:
    line = Detector(device="cpu", config=config, **WAYS[way])
    started = time.perf_counter()
    line.add_task("strip", train)
    learned = time.perf_counter()
    scores = np.array([prediction.pred_score for prediction in line.predict(test)])
    seconds = (time.perf_counter() - learned) / len(test)
    height, width = line.extractor.image_size
    print(
        f"{way:10s} {height:4d} x {width:4d}  image AUROC {100 * image_auroc(scores, labels):5.1f}  "
        f"learned in {learned - started:5.0f} s  {1000 * seconds:4.0f} ms an image",
        flush=True,
    )


def strip(planks: list[np.ndarray], draw: np.random.Generator) -> np.ndarray:
    """Wood passing by: pieces at random heights of random planks, one after the other."""
    pieces = []
    for _ in range(-(-WIDTH // 512)):
        top = int(draw.integers(0, 512 - HEIGHT))
        pieces.append(planks[int(draw.integers(len(planks)))][top : top + HEIGHT])
    return np.concatenate(pieces, 1)[:, :WIDTH]


def scratched(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The strip with one slanted scratch, 20 to 30 pixels long and 3 wide, a little darker than the wood."""
    x, y = int(draw.integers(40, WIDTH - 40)), int(draw.integers(30, HEIGHT - 30))
    length, angle = draw.uniform(20, 30), draw.uniform(0, np.pi)
    mask = Image.new("L", (WIDTH, HEIGHT))
    end = (x + length * np.cos(angle), y + length * np.sin(angle))
    ImageDraw.Draw(mask).line([(x, y), end], fill=255, width=3)
    dark = np.asarray(mask, np.float32)[..., None] / 255 * 0.5
    return (image * (1 - dark)).astype(np.uint8)


if __name__ == "__main__":
    main()
