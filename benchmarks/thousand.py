"""What a line of many products costs: to open, to route, to inspect, and in memory.

    python benchmarks/thousand.py [--products 1 10 100 1000] [--rounds 5]

One drawn product is taught at the default size; lines of any length hold it again and again under other
names, each with a router's mean of its own. Every line is measured in a process of its own: seconds until it
is open; milliseconds for the route of an image; for a whole inspection by the same few products in turn, and
by another one each time; the resident memory at the end, once every product has judged an image, beside what
it was with the line just opened. Medians of the rounds: compare the ratios within a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch

from moleflow import Detector
from moleflow.data.factory import PRODUCTS, make_sample
from moleflow.store import LineStore

TAUGHT = 24
FEW = 4  # products that the warm images are of
COLUMNS = ("open s", "route ms", "warm ms", "each another ms", "MB opened", "MB at the end")


def main() -> None:
    options = arguments()
    if options.measure:
        print(json.dumps(measured(options.measure, options.rounds)))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {options.image_size} px")
    print(f"| products | {' | '.join(COLUMNS)} |\n|---:|{'---:|' * len(COLUMNS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        record = taught(folder / "one", options.image_size)
        for count in options.products:
            line = many(folder / "one", folder / f"{count}", record, count)
            command = [sys.executable, __file__, "--measure", str(line), "--rounds", str(options.rounds)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {count} | {' | '.join(f'{found[name]:.3g}' for name in COLUMNS)} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--products", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the lines here; a temporary one by default")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def pictures(count: int, first: int) -> list:
    return [make_sample(PRODUCTS[0], seed).image for seed in range(first, first + count)]


def taught(path: Path, size: int):
    """One product, as it stands on disk."""
    if not path.exists():
        line = Detector(image_size=size)
        line.add_task("p0000", pictures(TAUGHT, 0))
        line.save(path)
    return LineStore(path).read_task("p0000")


def many(one: Path, path: Path, record, count: int) -> Path:
    """A line that holds the product so many times."""
    if path.exists():
        return path
    store, source = LineStore(path), LineStore(one).read()
    draw = torch.Generator().manual_seed(count)
    scale = record.tensors["router.mean"].abs().mean()
    tasks = []
    for number in range(count):
        moved = torch.randn(record.tensors["router.mean"].shape, generator=draw) * scale * (number > 0)
        tensors = record.tensors | {"router.mean": record.tensors["router.mean"] + moved}
        tasks.append(replace(record, name=f"p{number:04}", version=None, tensors=tensors))
    store.create(
        source.settings, source.base, fingerprint=source.fingerprint, base_info=source.base_info, tasks=tasks
    )
    Detector.load(path).save()  # keeps the router beside it, as every save does
    return path


def measured(path: Path, rounds: int) -> dict[str, float]:
    """One line in this process."""
    opened = []
    for _ in range(min(rounds, 3)):
        started = time.perf_counter()
        line = Detector.load(path)
        opened.append(time.perf_counter() - started)
    at_first, shown = memory(), pictures(FEW, 1000)
    features = [line.extractor.see(line.extractor.stack([line.intake.read(0, one).pixels])) for one in shown]
    names, few = line.tasks, cycle(line.tasks[:FEW])
    line.predict(shown[0])
    route, warm, other = [], [], []
    fresh = cycle(reversed(names))
    for _ in range(rounds):
        for one, seen in zip(shown, features, strict=True):
            route.append(timed(lambda seen=seen: line._line.decide(seen)))
            warm.append(timed(lambda one=one: line.predict(one, task=next(few))))
            other.append(timed(lambda one=one: line.predict(one, task=next(fresh))))
    for name in names:  # all of them once: what stays in memory
        line._line.judge(name, features[0])
    values = statistics.median(opened), *(1e3 * statistics.median(v) for v in (route, warm, other))
    return dict(zip(COLUMNS, (*values, at_first, memory()), strict=True))


def timed(what) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def memory() -> float:
    """Resident, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
