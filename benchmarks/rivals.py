"""All methods side by side, at every size, in every order, from every seed: one command for the tables.

    python benchmarks/rivals.py /path/to/products --out rivals
    python benchmarks/rivals.py /path/to/products --sizes 384 --methods moleflow padim --seeds 0 --jobs 1

A run of `moleflow benchmark` for each image size, in OUT/<size>, with its report, results and timings; then
OUT/<size>.md with the tables (as `publish.py` prints them) and OUT/<size>-charts. A killed run goes on where
it was when the same command is given again. The time left is estimated from the units that are done, without
what the backbone takes at the beginning of each size. Methods are all that the bench knows, in its
three tables, unless named.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import publish
from moleflow.bench.ablation import TABLES, chosen
from moleflow.bench.benchmark import benchmark, used
from moleflow.bench.files import number_or_same
from moleflow.bench.plan import Plan, Unit, Work
from moleflow.bench.streams import streams_for
from moleflow.data.layouts import read_dataset
from moleflow.errors import BenchError, ConfigError
from remaining import Remaining

# UCAD brings a transformer along whose trained weights no registry holds: a small one with random weights.
UCAD = {
    "ucad.backbone": "timm:vit_tiny_patch16_224.augreg_in21k@0,1,2,3,4",
    "ucad.weights": "random",
}


def main() -> None:
    options = arguments()
    works = [work_of(options, size) for size in options.sizes]
    remaining, started = Remaining(works, options.jobs), time.monotonic()
    failed = []
    for number, (size, work) in enumerate(zip(options.sizes, works, strict=True)):
        try:
            benchmark(
                work,
                command=shlex.join(["python", *sys.argv]),
                jobs=options.jobs,
                told=lambda what, done, total: say(f"features of {what}: {done} of {total}", done == total),
                done=partial(told, remaining, number, work, started),
            )
        except BenchError as error:  # what the others found is written; the next size may fare better
            failed.append(f"{size}: {error}")
        (options.out / f"{size}.md").write_text(publish.tables(work.out), encoding="utf-8")
        publish.charts(work.out, options.out / f"{size}-charts")
        print(f"\n{options.out / f'{size}.md'}")
    if failed:
        sys.exit("\n".join(failed))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of labelled products")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--out", type=Path, default=Path("rivals"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384], help="of the images")
    parser.add_argument("--eval-size", type=int, default=256, help="at which maps meet masks")
    parser.add_argument("--orders", type=int, default=2, help="how many random orders of products")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(TABLES),
        help=f"or tables of them: {', '.join(TABLES)}, all three by default; others compare with the first",
    )
    parser.add_argument("--without", nargs="+", default=[], help="methods or tables to leave out")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--cache", type=Path, help="folder of features; OUT/features by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of the benchmark")
    return parser.parse_args()


def work_of(options: argparse.Namespace, size: int) -> Work:
    """The benchmark of one image size."""
    dataset = read_dataset(options.data, layout=options.layout)
    streams = tuple(streams_for(dataset, "orders", seeds=range(options.orders)))
    try:
        left_out = chosen(options.without)
        entries = {name: own for name, own in chosen(options.methods).items() if name not in left_out}
    except ConfigError as error:
        sys.exit(str(error))
    plan = Plan(
        entries,
        streams,
        seeds=tuple(options.seeds),
        image_size=(size, size),
        eval_size=(options.eval_size, options.eval_size),
        options=(UCAD if "ucad" in entries else {}) | settings(options.set),
    )
    cache = options.cache or options.out / "features"
    return Work(plan, used(dataset, streams), options.out / str(size), cache)


def settings(pairs: list[str]) -> dict[str, Any]:
    """Options of methods and of the line, values in YAML."""
    parts = [pair.partition("=") for pair in pairs]
    return {key.strip(): number_or_same(yaml.safe_load(value)) for key, _, value in parts}


def told(remaining: Remaining, number: int, work: Work, started: float, unit: Unit) -> None:
    """Says which unit is done and how long the rest may take."""
    remaining.finished(number, unit)
    left = remaining.seconds()
    where = f"{work.out.name}, {work.plan.streams[unit.stream].name}, seed {unit.seed}"
    say(
        f"{remaining.done} of {remaining.total}: {unit.entry}, {where}, step {unit.step + 1}; "
        f"{duration(time.monotonic() - started)} gone, about "
        f"{'?' if left is None else duration(left)} left",
        remaining.done == remaining.total,
    )


def say(line: str, last: bool = False) -> None:
    """A line that takes the place of the one before on a screen, and its own in a file."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    main()
