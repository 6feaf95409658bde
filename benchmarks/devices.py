"""How long every method takes on the processor and on a card, and how far their figures differ.

    python benchmarks/devices.py /path/to/products --device cuda

Every one of `bench.methods.METHODS`; without the weights of a ViT name them with --methods, but for ucad.

Prints a table, and ends with an error where a product's image AUROC or pixel AP differ by more than
`TOLERANCE`. Features are computed once, on the processor, so that only learning and scoring are compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from moleflow.bench.benchmark import benchmark, used
from moleflow.bench.files import read_json
from moleflow.bench.methods import METHODS
from moleflow.bench.plan import Plan, Variant, Work
from moleflow.bench.streams import streams_for
from moleflow.data.layouts import read_dataset
from moleflow.errors import ConfigError
from moleflow.features.extractor import device_name, resolve_device

TOLERANCE = 0.02
FIGURES = ("image_auroc", "pixel_ap")


def main() -> None:
    """Runs the same plan on both devices and compares."""
    options = _options()
    try:
        card = resolve_device(options.device)
    except ConfigError as error:
        sys.exit(f"{error}: nothing to compare with the processor")
    dataset = read_dataset(options.data)
    streams = tuple(streams_for(dataset, "plain"))
    names = list(METHODS) if options.methods == "all" else options.methods.split(",")
    entries = {name: Variant(name) for name in names}
    size = (options.image_size, options.image_size)
    plan = Plan(entries, streams, (options.seed,), image_size=size, eval_size=size, leave_out=False)
    found = {}
    for device in ("cpu", card.type):
        work = Work(plan, used(dataset, streams), options.out / device, options.out / "features")
        found[device] = benchmark(work, command="benchmarks/devices.py", device=device)
    times = {device: read_json(options.out / device / "timings.json")["entries"] for device in found}
    print(
        f"seconds on the processor and on {device_name(card)}; largest difference of {' and '.join(FIGURES)}"
    )
    worst = 0.0
    for name in names:
        gap = largest_difference(*(_figures(one, name) for one in found.values()))
        worst = max(worst, gap)
        learn, look = (
            " / ".join(f"{_mean(own[name][what]):.3g}" for own in times.values())
            for what in ("learn", "inspect_image")
        )
        print(f"{name:24} learn a product {learn:>16}   inspect an image {look:>16}   {gap:.4f}")
    if worst > TOLERANCE:
        sys.exit(f"figures differ by {worst:.4f}, expected at most {TOLERANCE}")


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of any product's figures, by product and by name; what is not there (None) must be so in both."""
    gaps = [0.0]
    for product, figures in one.items():
        for name in FIGURES:
            a, b = figures[name], other[product][name]
            if (a is None) != (b is None):
                raise ValueError(f"{product}: {name} is {a} on the processor and {b} on the card")
            gaps.append(0.0 if a is None else abs(a - b))
    return max(gaps)


def _figures(found: dict[str, Any], entry: str) -> dict[str, Any]:
    run = next(run for run in found["runs"] if run["entry"] == entry)
    return {name: record["routed"] for name, record in run["products"].items()}


def _mean(value: Any) -> float:
    return float("nan") if value is None or value["mean"] is None else float(value["mean"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", default="all", help="with commas between them")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("devices"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
