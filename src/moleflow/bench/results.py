"""What a benchmark found, put together from its units: matrices, continual metrics, means and spreads.

`results.json` holds no time and no machine, so an interrupted run that was taken up again writes the very
same bytes; seconds and the machine are in `timings.json`.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import average_accuracy, backward_transfer, forgetting
from .figures import NAMES
from .files import read_json, write_json, write_text
from .methods import METHODS
from .plan import Plan, Unit, Work
from .unit import unit_folder

VIEWS = ("oracle", "routed")  # the product given, and found by the method
SHARES = (
    "routing_good",
    "routing_defective",
    "unknown_good",
    "unknown_defective",
    "false_alarms",
    "detected",
)


@dataclass(frozen=True)
class Chain:
    """One entry on one stream with one seed, as far as it came.

    Attributes:
        entry, stream, seed: which.
        tasks: products of every task, in order.
        steps: the units' records, one for every step that is done.
        times: their seconds.
    """

    entry: str
    stream: str
    seed: int
    tasks: tuple[tuple[str, ...], ...]
    steps: tuple[dict[str, Any], ...]
    times: tuple[dict[str, float], ...]

    @property
    def complete(self) -> bool:
        """Whether all its units are done."""
        return len(self.steps) == len(self.tasks)

    @property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """Every product with the task it is learned in, in order: the columns of matrices."""
        return tuple((name, number) for number, task in enumerate(self.tasks) for name in task)

    def matrix(self, metric: str, view: str) -> list[list[float | None]]:
        """a[k][j], on product j after task k; None where it is not learned yet, or has no such figure."""
        return [
            [
                step["products"][name][view]["figures"][metric] if task <= k else None
                for name, task in self.columns
            ]
            for k, step in enumerate(self.steps)
        ]

    def continual(self, metric: str, view: str) -> dict[str, float | None]:
        """ACC, BWT and FM over the products that have this metric; None where none has it."""
        matrix = np.array(self.matrix(metric, view), dtype=np.float64)
        having = np.isfinite(matrix[-1]) if self.complete else np.zeros(len(self.columns), bool)
        if not having.any():
            return {"acc": None, "bwt": None, "fm": None}
        learned = [task for (_, task), has in zip(self.columns, having, strict=True) if has]
        return {
            "acc": average_accuracy(matrix[:, having], learned),
            "bwt": backward_transfer(matrix[:, having], learned),
            "fm": forgetting(matrix[:, having], learned),
        }

    def isolated(self) -> bool:
        """Whether every map and score with the product given stayed the same to the bit ever after."""
        first: dict[str, str] = {}
        for step in self.steps:
            for name, record in step["products"].items():
                if first.setdefault(name, record["oracle"]["digest"]) != record["oracle"]["digest"]:
                    return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without times."""
        last = self.steps[-1]
        added = [
            now["bytes"] - (before["bytes"] if before else now["shared_bytes"])
            for now, before in zip(self.steps, (None, *self.steps[:-1]), strict=True)
        ]
        numbers = [
            now["numbers"] - (before["numbers"] if before else now["shared_numbers"])
            for now, before in zip(self.steps, (None, *self.steps[:-1]), strict=True)
        ]
        return {
            "entry": self.entry,
            "stream": self.stream,
            "seed": self.seed,
            "tasks": [list(products) for products in self.tasks],
            "complete": self.complete,
            "columns": [name for name, _ in self.columns],
            "matrices": {v: {m: self.matrix(m, v) for m in NAMES} for v in VIEWS},
            "continual": {v: {m: self.continual(m, v) for m in NAMES} for v in VIEWS},
            "products": {
                name: {
                    **{v: record[v]["figures"] for v in VIEWS},
                    **{share: record[share] for share in SHARES},
                }
                for name, record in last["products"].items()
            },
            "pooled": last["pooled"],
            "rejected": last["rejected"],
            "isolated": self.isolated(),
            "bytes": last["bytes"],
            "shared_bytes": last["shared_bytes"],
            "kept_bytes": last["kept_bytes"],
            "numbers": last["numbers"],
            "shared_numbers": last["shared_numbers"],
            "bytes_per_task": added,
            "numbers_per_task": numbers,
        }


def collect(work: Work) -> dict[str, Any]:
    """Everything the finished units say, as plain JSON."""
    chains = [chain for chain in read_chains(work) if chain.steps]
    return {
        "plan": read_json(work.out / "plan.json"),
        "titles": {entry: title_of(work.plan, entry) for entry in work.plan.entries},
        "sources": {entry: METHODS[v.method].source for entry, v in work.plan.entries.items()},
        "routes": {entry: METHODS[v.method].routes for entry, v in work.plan.entries.items()},
        "notes": {chain.entry: chain.steps[-1]["notes"] for chain in chains},
        "runs": [chain.to_dict() for chain in chains],
        "summary": {entry: summarise(chains, entry) for entry in work.plan.entries},
    }


def title_of(plan: Plan, entry: str) -> str:
    """The method's title, or the entry's own name where it is a variant."""
    variant = plan.entries[entry]
    return METHODS[variant.method].title if entry == variant.method else entry


def read_chains(work: Work) -> list[Chain]:
    """All chains of a plan in its order, each with the units that are done."""
    found = []
    for seed in work.plan.seeds:
        for number, stream in enumerate(work.plan.streams):
            for entry in work.plan.entries:
                folder = unit_folder(work, Unit(entry, number, seed, 0))
                steps, times = [], []
                for step in range(len(stream.tasks)):
                    path = folder / f"step-{step:02}.json"
                    if not path.exists():
                        break
                    steps.append(read_json(path))
                    times.append(read_json(folder / f"time-{step:02}.json"))
                tasks = tuple(task.products for task in stream.tasks)
                found.append(Chain(entry, stream.name, seed, tasks, tuple(steps), tuple(times)))
    return found


def summarise(chains: Sequence[Chain], entry: str) -> dict[str, Any]:
    """Mean and standard deviation over all complete chains (streams and seeds) of one entry."""
    own = [chain for chain in chains if chain.entry == entry and chain.complete]
    records = [chain.to_dict() for chain in own]
    continual = {
        view: {
            metric: {
                name: spread([r["continual"][view][metric][name] for r in records])
                for name in ("acc", "bwt", "fm")
            }
            for metric in NAMES
        }
        for view in VIEWS
    }
    gaps = {
        metric: spread(
            [
                _difference(r["continual"]["oracle"][metric]["acc"], r["continual"]["routed"][metric]["acc"])
                for r in records
            ]
        )
        for metric in NAMES
    }
    return {
        "runs": len(own),
        "continual": continual,
        "router_gap": gaps,
        "pooled": {v: {m: spread([_pooled(r, v, m) for r in records]) for m in NAMES} for v in VIEWS},
        "shares": {
            share: spread([mean([p[share] for p in r["products"].values()]) for r in records])
            for share in SHARES
        },
        "rejected": spread([mean(list((r["rejected"] or {}).values())) for r in records]),
        "isolated": bool(records) and all(r["isolated"] for r in records),
        "bytes_per_task": spread([mean(r["bytes_per_task"]) for r in records]),
        "numbers_per_task": spread([mean(r["numbers_per_task"]) for r in records]),
        "bytes": spread([r["bytes"] for r in records]),
        "shared_bytes": spread([r["shared_bytes"] for r in records]),
        "shared_numbers": spread([r["shared_numbers"] for r in records]),
        "kept_bytes": spread([r["kept_bytes"] for r in records]),
    }


def timings(work: Work, command: str) -> dict[str, Any]:
    """Seconds of every unit, their means by entry, and the machine they were taken on."""
    chains = [chain for chain in read_chains(work) if chain.steps]
    by_entry = {}
    for entry in work.plan.entries:
        times = [time for chain in chains if chain.entry == entry for time in chain.times]
        by_entry[entry] = {
            "learn": spread([time["learn"] for time in times]),
            "inspect_image": spread([time["inspect_image"] for time in times]),
        }
    return {
        "command": command,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "timm", "numpy")},
            "threads": work.plan.threads,
        },
        "entries": by_entry,
    }


def write(work: Work, command: str) -> dict[str, Any]:
    """Writes results.json, results.csv and timings.json; returns what results.json holds."""
    results = collect(work)
    write_json(work.out / "results.json", results)
    write_text(work.out / "results.csv", table(results))
    write_json(work.out / "timings.json", timings(work, command))
    return results


def table(results: Mapping[str, Any]) -> str:
    """Every figure in one row: entry, stream, seed, step, product, view, metric, value."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("entry", "stream", "seed", "product", "view", "metric", "value"))
    for run in results["runs"]:
        for name, record in run["products"].items():
            where = (run["entry"], run["stream"], run["seed"], name)
            for view in VIEWS:
                for metric, value in record[view].items():
                    if value is not None:
                        rows.writerow((*where, view, metric, repr(value)))
            for share in SHARES:
                if record[share] is not None:
                    rows.writerow((*where, "", share, repr(record[share])))
    return text.getvalue()


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there, or None."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean, standard deviation (None for a single value) and count of the values that are there."""
    there = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(there) if there else None,
        "sd": statistics.stdev(there) if len(there) > 1 else None,
        "count": len(there),
    }


def _pooled(record: Mapping[str, Any], view: str, metric: str) -> float | None:
    return None if record["pooled"] is None else record["pooled"][view][metric]


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def load_results(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """results.json and timings.json of a finished run's folder."""
    return read_json(out / "results.json"), read_json(out / "timings.json")
