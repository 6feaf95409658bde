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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from operator import itemgetter
from typing import Any

import numpy as np

from ..features.extractor import device_name
from ..metrics import average_accuracy, backward_transfer, forgetting
from .figures import NAMES
from .files import read_json, write_json, write_text
from .methods import METHODS
from .plan import Plan, Unit, Work
from .uncertainty import Runs, uncertainty
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
SIZES = ("bytes", "shared_bytes", "shared_numbers", "kept_bytes")


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
        "order": list(work.plan.entries),  # JSON on disk is sorted by name
        "titles": {entry: title_of(work.plan, entry) for entry in work.plan.entries},
        "sources": {entry: METHODS[v.method].source for entry, v in work.plan.entries.items()},
        "routes": {entry: METHODS[v.method].routes for entry, v in work.plan.entries.items()},
        "notes": {chain.entry: chain.steps[-1]["notes"] for chain in chains},
        "runs": [chain.to_dict() for chain in chains],
        "summary": {entry: summarise(chains, entry) for entry in work.plan.entries},
        "uncertainty": uncertainty(work.out, {e: _told(chains, e) for e in work.plan.entries}),
    }


def _told(chains: Sequence[Chain], entry: str) -> Runs:
    """What an entry's complete runs said at their end, by digest."""
    return {
        (chain.stream, chain.seed): {
            name: record["routed"]["digest"] for name, record in chain.steps[-1]["products"].items()
        }
        for chain in chains
        if chain.entry == entry and chain.complete
    }


def title_of(plan: Plan, entry: str) -> str:
    """The method's title, with what a variant named after it adds; any other variant has its own name."""
    method = plan.entries[entry].method
    added = entry.removeprefix(method)
    if added.startswith("-"):
        return f"{METHODS[method].title}, {added[1:].replace('-', ' ')}"
    return entry if added else METHODS[method].title


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
    """Mean and standard deviation over the seeds of all complete chains of one entry."""
    own = [chain for chain in chains if chain.entry == entry and chain.complete]
    records = [chain.to_dict() for chain in own]

    def over(value: Callable[[Mapping[str, Any]], float | None]) -> dict[str, float | int | None]:
        return over_seeds(records, value)

    def continual(view: str, metric: str, name: str) -> dict[str, float | int | None]:
        return over(lambda r: r["continual"][view][metric][name])

    return {
        "runs": len(own),
        "continual": {
            view: {m: {name: continual(view, m, name) for name in ("acc", "bwt", "fm")} for m in NAMES}
            for view in VIEWS
        },
        "router_gap": {metric: over(partial(_router_gap, metric)) for metric in NAMES},
        "pooled": {view: {m: over(partial(_pooled, view, m)) for m in NAMES} for view in VIEWS},
        "shares": {share: over(partial(_share, share)) for share in SHARES},
        "rejected": over(lambda r: mean(list((r["rejected"] or {}).values()))),
        "isolated": bool(records) and all(r["isolated"] for r in records),
        **{name: over(partial(_mean_of, name)) for name in ("bytes_per_task", "numbers_per_task")},
        **{name: over(itemgetter(name)) for name in SIZES},
    }


def over_seeds(
    runs: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]
) -> dict[str, float | int | None]:
    """Spread over seeds of a value's mean over streams.

    Over all runs at once a method that does the same in every order would seem surer than its seeds are.
    """
    by_seed: dict[int, list[float | None]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], []).append(value(run))
    return spread([mean(values) for values in by_seed.values()])


def timings(work: Work, command: str, jobs: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Seconds to learn a product and to inspect an image, mean and deviation over complete runs, and the
    machine they were taken on."""
    chains = [chain for chain in read_chains(work) if chain.complete]
    by_entry = {
        entry: {
            what: spread([mean([t[what] for t in chain.times]) for chain in chains if chain.entry == entry])
            for what in ("learn", "inspect_image")
        }
        for entry in work.plan.entries
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
            "jobs": jobs,
            "device": device_name(device),
        },
        "entries": by_entry,
    }


def write(
    work: Work,
    command: str,
    *,
    jobs: int = 1,
    device: str = "cpu",
    failed: Mapping[Unit, str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes results.json, results.csv and timings.json; returns what the first and the last hold."""
    found, times = collect(work), timings(work, command, jobs, device)
    times["failed"] = {
        f"{unit.entry}, {work.plan.streams[unit.stream].name}, seed {unit.seed}": error
        for unit, error in (failed or {}).items()
    }
    write_json(work.out / "results.json", found)
    write_text(work.out / "results.csv", table(found))
    write_json(work.out / "timings.json", times)
    return found, times


def table(results: Mapping[str, Any]) -> str:
    """Every figure in one row; of a run that is not complete those after its last step."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("entry", "stream", "seed", "step", "complete", "product", "view", "metric", "value"))
    for run in results["runs"]:
        for name, record in run["products"].items():
            reached = len(run["bytes_per_task"]), "yes" if run["complete"] else "no"
            where = (run["entry"], run["stream"], run["seed"], *reached, name)
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


def _router_gap(metric: str, run: Mapping[str, Any]) -> float | None:
    oracle, routed = (run["continual"][view][metric]["acc"] for view in VIEWS)
    return None if oracle is None or routed is None else oracle - routed


def _pooled(view: str, metric: str, run: Mapping[str, Any]) -> float | None:
    return None if run["pooled"] is None else run["pooled"][view][metric]


def _share(share: str, run: Mapping[str, Any]) -> float | None:
    return mean([product[share] for product in run["products"].values()])


def _mean_of(name: str, run: Mapping[str, Any]) -> float | None:
    return mean(run[name])
