"""The runs behind every trial: where they lie, how the missing ones are run, what they found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...data.layouts import Product
from ...features.cache import FeatureCache
from ...features.extractor import Extractor
from ..figures import NAMES
from ..methods import METHODS
from ..methods.base import PerProduct
from ..pictures import Shelf, Told, mark
from ..plan import Plan, Variant, Work
from ..results import mean, read_chains
from ..reuse import FOLDER
from ..runner import MOST_JOBS, end_with_parent, ended_processes_named, run
from ..streams import Stream, Task, at_once
from .space import Options

Done = Callable[[int, int], None]  # runs done, runs in all: one for every trial, seed and set of images
Finish = Callable[[Sequence[Options], Done | None], dict[Path, str]]  # errors by the folder of their run


@dataclass(frozen=True)
class Trials:
    """What all trials have in common, and where they lie."""

    products: Mapping[str, Product]
    synthetic: Mapping[str, Product]
    out: Path
    cache: Path
    seeds: tuple[int, ...]
    oracle: bool
    metrics: tuple[str, ...]
    method: str
    plan: dict[str, Any]  # arguments of every plan
    device: str
    told: Told | None
    marks: dict[str, str] = field(default_factory=dict)  # of the images on each side

    def __post_init__(self) -> None:
        self.marks["synthetic"] = mark(self.synthetic)
        if self.oracle:
            self.marks["oracle"] = mark(self.products)

    def works(self, options: Options) -> list[Work]:
        """One run for every seed on the synthetic defects, and with the oracle one on the test images."""
        return [self._work(options, seed, side) for seed in self.seeds for side in self.marks]

    def _work(self, options: Options, seed: int, side: str) -> Work:
        products = self.synthetic if side == "synthetic" else self.products
        if issubclass(METHODS[self.method], PerProduct):
            stream = at_once("sweep", products)
        else:
            stream = Stream("sweep", tuple(Task((name,)) for name in products))
        plan = Plan(
            entries={"trial": Variant(self.method, options)}, streams=(stream,), seeds=(seed,), **self.plan
        )
        # Folders for all that decides the figures: those of another sweep never meet them, and a wider
        # space, more seeds or more trials find them again.
        told = {**plan.to_dict(), "seeds": None}
        trial = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.out / "trials" / trial / f"{side}-{self.marks[side]}-{seed}"
        return Work(plan, products, folder, self.cache)

    def record(self, options: Options, errors: Mapping[Path, str]) -> dict[str, Any]:
        """What is known of one trial, as plain JSON."""
        works = self.works(options)
        found = [_figures(work) for work in works]
        sides = {side: found[number :: len(self.marks)] for number, side in enumerate(self.marks)}
        values = {side: [_value(figures, self.metrics) for figures in own] for side, own in sides.items()}
        nothing: list[float | None] = [None] * len(self.seeds)
        criterion, oracle = values["synthetic"], values.get("oracle", nothing)
        return {
            "options": options,
            "criterion": _over_all(criterion),
            "oracle": _over_all(oracle),
            "figures": {
                side: {name: _over_all([f[name] if f else None for f in own]) for name in NAMES}
                for side, own in sides.items()
            },
            "seeds": [
                {"seed": seed, "criterion": a, "oracle": b}
                for seed, a, b in zip(self.seeds, criterion, oracle, strict=True)
            ],
            "errors": [errors[work.out] for work in works if work.out in errors],
        }

    def learn_features(self) -> None:
        """The features of all images, before processes would wait for each other's."""
        extractor = Extractor(
            self.plan["backbone"],
            weights=self.plan["weights"],
            image_size=self.plan["image_size"],
            device=self.device,
        )
        shelf = Shelf(FeatureCache(self.cache, extractor))
        for side in self.marks:
            for product in (self.synthetic if side == "synthetic" else self.products).values():
                shelf.pictures(product, "train", told=self.told)
                shelf.pictures(product, "test", told=self.told)


@contextlib.contextmanager
def workers(setting: Trials, jobs: int) -> Iterator[Finish]:
    """Hands out a function that runs what is missing of some trials."""
    jobs = min(jobs, MOST_JOBS)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) if jobs > 1 else None
    features = False

    def finish(tried: Sequence[Options], done: Done | None) -> dict[Path, str]:
        nonlocal features
        works = [work for options in tried for work in setting.works(options)]
        missing = [work for work in works if not _complete(work)]
        if missing and not features:
            setting.learn_features()
            features = True
        failed = {}
        finished = len(works) - len(missing)
        for number, (folder, error) in enumerate(_each(missing, setting.device, pool), finished + 1):
            if error is not None:
                failed[folder] = error
            if done:
                done(number, len(works))
        return failed

    try:
        with ended_processes_named():
            yield finish
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _each(
    works: Sequence[Work], device: str, pool: ProcessPoolExecutor | None
) -> Iterator[tuple[Path, str | None]]:
    if pool is None:
        for work in works:
            yield work.out, _run(work, device)
        return
    futures = {pool.submit(_run, work, device): work for work in works}
    for future in as_completed(futures):
        yield futures[future].out, future.result()


def _run(work: Work, device: str) -> str | None:
    """The error of a run's first unit that failed, or None."""
    failed = run(work, device=device)
    if not failed:  # what was learned is of no further use, and there may be hundreds of trials
        for state in work.out.rglob("state-*.safetensors"):
            state.unlink()
        shutil.rmtree(work.out / FOLDER, ignore_errors=True)
    return next((f"seed {unit.seed}, step {unit.step}: {error}" for unit, error in failed.items()), None)


def _complete(work: Work) -> bool:
    return all(chain.complete for chain in read_chains(work))


def _figures(work: Work) -> dict[str, float | None] | None:
    """Every figure's mean over the products that have it, or None for a run that did not come to its end."""
    chain = read_chains(work)[0]
    if not chain.complete:
        return None
    products = chain.to_dict()["products"].values()
    return {name: mean([product["routed"][name] for product in products]) for name in NAMES}


def _value(figures: Mapping[str, float | None] | None, metrics: Sequence[str]) -> float | None:
    return None if figures is None else _over_all([figures[name] for name in metrics])


def _over_all(values: Sequence[float | None]) -> float | None:
    """The mean, or None where one is missing."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None
