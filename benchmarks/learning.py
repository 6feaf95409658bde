"""Seconds to teach a line, lesson after lesson, by stage: many photographs twice, then a few.

    python benchmarks/learning.py PHOTOGRAPHS [--lessons 200 200 8 24] [--threads 1]

PHOTOGRAPHS is a folder of good images of one product; each lesson learns so many of them, evenly spread, as
a product of its own. To compare two releases start both side by side, each with its own sources, so that
both meet the same machine:

    PYTHONPATH=old/src python benchmarks/learning.py PHOTOGRAPHS & python benchmarks/learning.py PHOTOGRAPHS
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import torch

import moleflow
from moleflow import Detector

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--lessons", type=int, nargs="+", default=[200, 200, 8, 24])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads"
    print(f"{Path(moleflow.__file__).parent}, {machine}")
    found = sorted(path for path in options.photographs.iterdir() if path.suffix.lower() in ENDINGS)
    line = Detector(device="cpu")
    for number, count in enumerate(options.lessons, 1):
        kept = min(count, len(found))
        chosen = [found[i * len(found) // kept] for i in range(kept)]
        started = time.perf_counter()
        info = line.add_task(f"product {number}", chosen)
        whole = time.perf_counter() - started
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in info.seconds.items())
        print(f"lesson {number}: {len(chosen)} images in {whole:.1f} s ({stages})", flush=True)


if __name__ == "__main__":
    main()
