"""The files between the two environments: a job in, a record and arrays out. JSON and plain .npz, no pickle.

Nothing here needs more than numpy, so that both environments read and write with the same code.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

AT_ONCE = 8  # images that a round at batch 1 inspects one after the other


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to measure: a method on a product.

    Attributes:
        method, product: names.
        train, test: paths of good images to learn from, and of images to judge.
        first: paths of the test images of the first product, where this is the second; else none.
        size: side of the square that images are squeezed to.
        eval_size: side of the maps that come back.
        batches: batch sizes to time.
        rounds: timed rounds of each, of which the median counts; one more warms up.
        epochs: that FastFlow learns for.
        steps: that EfficientAD's time for a step is measured over.
        threads: of the processor.
        seed: of everything random.
        backbone: timm's name; `weights` are its tensors by timm's names (.npz); `mean`, `std` go with it.
        layers: feature indices that the memory bank and our line take.
        start: what an earlier product left behind and this one goes on from; None for the first.
        keep: where to leave that for the next product.
    """

    method: str
    product: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    first: tuple[str, ...]
    size: int
    eval_size: int
    batches: tuple[int, ...]
    rounds: int
    epochs: int
    steps: int
    threads: int
    seed: int
    backbone: str
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[int, ...]
    start: str | None
    keep: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was measured, but for the arrays.

    Attributes:
        learn_seconds: from paths to a product that can be inspected.
        learn_estimated: of what those seconds were worked out, where the lesson was cut short; else empty.
        ms: milliseconds an image from its file to its map, by batch size, one number a round.
        bytes: kept for this product alone.
        shared_bytes: kept once for all products.
        backbone: the network and its weights, in words.
        versions: of what ran.
        load: average number of waiting processes over the last minute, before and after.
        peak_bytes: of memory.
        more: what only one method has to say.
    """

    learn_seconds: float
    learn_estimated: str = ""
    ms: dict[str, list[float]]
    bytes: int
    shared_bytes: int
    backbone: str
    versions: dict[str, str]
    load: tuple[float, float]
    peak_bytes: int
    more: dict[str, float] = field(default_factory=dict)


def write_job(path: Path, job: Job) -> None:
    write_json(path, asdict(job))


def read_job(path: Path) -> Job:
    told = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    return Job(**found)


def write_outcome(folder: Path, record: Record, arrays: dict[str, np.ndarray]) -> None:
    """Both files; the record comes last, so where it is the arrays are whole."""
    write_arrays(folder / "arrays.npz", arrays)
    write_json(folder / "record.json", asdict(record))


def read_outcome(folder: Path) -> tuple[Record, dict[str, np.ndarray]]:
    told = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return Record(**told | {"load": tuple(told["load"])}), read_arrays(folder / "arrays.npz")


def write_json(path: Path, value: Any) -> None:
    _replaced(path, lambda part: part.write_text(json.dumps(value, indent=1), encoding="utf-8"))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Plain numbers only; ValueError for an array that would need pickle."""
    if wrong := [name for name, array in arrays.items() if array.dtype.hasobject]:
        raise ValueError(f"{path}: expected arrays of numbers, got objects in {', '.join(wrong)}")

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **cast(dict[str, Any], arrays))

    _replaced(path, write)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _replaced(path: Path, write: Callable[[Path], object]) -> None:
    """A killed process leaves the file as before or as after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    write(part)
    os.replace(part, path)


def timings(inspect: Callable[[Sequence[str]], object], job: Job) -> dict[str, list[float]]:
    """Milliseconds an image by batch size, one number a round; `inspect` takes paths, one batch of them."""
    return {str(batch): _rounds(inspect, job, batch) for batch in job.batches}


def _rounds(inspect: Callable[[Sequence[str]], object], job: Job, batch: int) -> list[float]:
    count = max(AT_ONCE, batch)
    paths = [job.test[i % len(job.test)] for i in range(count)]
    took = []
    for _ in range(job.rounds + 1):
        started = time.perf_counter()
        for at in range(0, count, batch):
            inspect(paths[at : at + batch])
        took.append(1e3 * (time.perf_counter() - started) / count)
    return took[1:]  # the first warms up


def median(record: Record, batch: int) -> float:
    return statistics.median(record.ms[str(batch)])


def load_average() -> float:
    return os.getloadavg()[0]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
