"""Image AUROC of procedural products that lie anywhere, or much the same, with pose off, on and auto.

    python benchmarks/pose.py [--size 192] [--train 40] [--test 30] [--steps 200]

Drawn pictures are turned by any angle and moved by up to a tenth of the picture; what comes in from outside
has the colour of most of the border. All are products of one line, so that they share a base, and the
product is given: this is about scores alone. What "auto" decides is one of the other two, to the bit, so it
is learned with its choice and only the other one beside it. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import numpy as np
import torch

from moleflow import Detector, LineConfig, TrainingConfig
from moleflow.data.factory import defect_kinds, make_sample
from moleflow.learning.pose import Wish
from moleflow.metrics import image_auroc, pixel_ap
from moleflow.pose import Placement

CASES = (("gear", True), ("bottle_cap", True), ("gear", False), ("bottle_cap", False), ("wood", False))
REACH = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--train", type=int, default=40)
    parser.add_argument("--test", type=int, default=30, help="good test images, and as many defective ones")
    parser.add_argument("--steps", type=int, default=TrainingConfig().steps, help="of an expert")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {options}")
    print("product     lies      pose      image AUROC  pixel AP  s/image  s to learn  found")
    training = TrainingConfig(steps=options.steps, base_steps=min(options.steps, TrainingConfig().base_steps))
    line = Detector(image_size=options.size, device="cpu", config=LineConfig(training=training))
    for product, anywhere in CASES:
        train, test, masks = pictures(product, anywhere, options)
        lies, chosen = "anywhere" if anywhere else "still", ""
        for wish in ("auto", "other"):
            name = f"{product} {lies} {wish}"
            pose: Wish = "auto" if wish == "auto" else "off" if chosen == "on" else "on"
            started = time.process_time()
            info = line.add_task(name, train, pose=pose)
            spent = time.process_time() - started
            assert info.pose is not None
            found = "on" if info.pose.aligned else "off"
            if wish == "auto":
                chosen, found = found, f"auto={found}"
            measured = measure(line, name, test, masks)
            print(
                f"{product:<11} {lies:<9} {found:<9} {measured}  {spent:10.1f}  {info.pose}; "
                f"seconds { ({k: round(v, 1) for k, v in info.seconds.items()}) }",
                flush=True,
            )


def pictures(
    product: str, anywhere: bool, options: argparse.Namespace
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Training images, test images and their masks, the good ones first."""
    rng, kinds, size = np.random.default_rng(0), defect_kinds(product), options.size
    good = [make_sample(product, seed, size=size) for seed in range(options.train + options.test)]
    bad = [make_sample(product, 1000 + i, kind=kinds[i % len(kinds)], size=size) for i in range(options.test)]
    images, masks = [], []
    for sample in (*good, *bad):
        placement = laid(rng) if anywhere else None
        mask = np.repeat(sample.mask[..., None], 3, 2).astype(np.uint8) * 255
        shape = (size, size)
        images.append(placement.aligned(sample.image, shape) if placement else sample.image)
        masks.append((placement.aligned(mask, shape) if placement else mask)[..., 0] > 127)
    return images[: options.train], images[options.train :], masks[options.train :]


def laid(rng: np.random.Generator) -> Placement:
    """A turn by any angle and a shift; taking it away and putting it there are the same kind of move."""
    angle, (x, y) = rng.uniform(-180, 180), rng.uniform(-REACH, REACH, 2)
    return Placement(float(angle), (float(x), float(y)))


def measure(line: Detector, name: str, test: list[np.ndarray], masks: list[np.ndarray]) -> str:
    started = time.process_time()
    predictions = line.predict(test, task=name)
    seconds = (time.process_time() - started) / len(test)
    labels = np.arange(len(test)) >= len(test) // 2
    auroc = image_auroc(np.array([p.pred_score for p in predictions]), labels)
    ap = pixel_ap([p.anomaly_map for p in predictions], masks)
    return f"{100 * auroc:11.1f} {100 * ap:9.1f} {seconds:8.3f}"


if __name__ == "__main__":
    main()
