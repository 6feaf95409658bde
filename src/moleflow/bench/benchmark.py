"""The one door: a data set, a plan, a folder; out come figures, tables and a report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from ..data.layouts import Dataset, Product
from ..errors import BenchError, ConfigError
from . import results
from .drift import drift
from .files import alone
from .look_alikes import with_twins
from .pictures import Told
from .plan import Unit, Work
from .report import Gallery, write_report
from .reuse import FOLDER
from .runner import Done, run
from .showcase import cards
from .streams import Stream
from .unit import unit_folder

REPORT = "report.html"


def benchmark(
    work: Work,
    *,
    command: str,
    jobs: int = 1,
    device: str = "cpu",
    told: Told | None = None,
    done: Done | None = None,
) -> dict[str, Any]:
    """Runs what is missing of a plan and writes results.json, results.csv, timings.json and report.html.

    Args:
        work: plan, data and folders.
        command: what was typed, for the report.
        jobs: processes side by side.
        device: where the backbone computes features, and where methods learn and score.
        told: hears of features being computed.
        done: hears of every finished unit.

    Returns:
        What results.json holds.

    Raises:
        BenchError: the folder holds another benchmark or one is running in it, or units failed; what the
            others found is written.
    """
    with alone(work.out):
        failed = run(work, jobs=jobs, device=device, told=told, done=done)
        found, times = results.write(work, command, jobs=jobs, device=device, failed=failed)
        write_report(work.out / REPORT, found, times, galleries=galleries(work))
        if not failed:
            shutil.rmtree(work.out / FOLDER, ignore_errors=True)  # nothing is left to do that could use it
    if failed:
        listed = "; ".join(f"{_named(work, unit)}: {error}" for unit, error in failed.items())
        raise BenchError(f"{len(failed)} units failed, what the others found is in {work.out}: {listed}")
    return found


def galleries(work: Work) -> list[Gallery]:
    """Pictures of the first entry that has any, from the first stream and seed."""
    for entry in work.plan.entries:
        path = unit_folder(work, Unit(entry, 0, work.plan.seeds[0], 0)) / "showcase.safetensors"
        if path.exists():
            title = results.title_of(work.plan, entry)
            return [Gallery(f"{title}: {name}", tuple(own)) for name, own in cards(path, work.products)]
    return []


def used(dataset: Dataset, streams: Sequence[Stream], *, tested: bool = True) -> dict[str, Product]:
    """The products that streams speak of, by name: those of the data set, and twins of them.

    Raises ConfigError for one without training images or, where products are `tested`, without good and
    defective test images.
    """
    names = dict.fromkeys(name for stream in streams for name in stream.products)
    products = {name: with_twins(dataset.products, name) for name in names}
    for name, product in products.items():
        if not product.train:
            raise ConfigError(f"{dataset.root}: expected training images of {name}, found none")
        defective = sum(item.label for item in product.test)
        if tested and not 0 < defective < len(product.test):
            raise ConfigError(
                f"{dataset.root}: expected good and defective test images of {name}, "
                f"found {len(product.test) - defective} good and {defective} defective ones"
            )
    return products


def drift_streams(product: Product, kinds: Sequence[str]) -> tuple[tuple[Stream, ...], dict[str, Product]]:
    """One stream for every kind of drift of one product, and the drifted products they are made of."""
    streams: list[Stream] = []
    products: dict[str, Product] = {}
    for kind in kinds:
        stream, own = drift(product, kind)
        streams.append(stream)
        products |= own
    return tuple(streams), products


def _named(work: Work, unit: Unit) -> str:
    return f"{unit.entry}, {work.plan.streams[unit.stream].name}, seed {unit.seed}, step {unit.step + 1}"
