"""Chooses options by synthetic defects in training images, and says what a choice by test labels would give.

A trial learns all products one after the other from most of their training images and is judged on the rest
of these, with and without synthetic defects. Beside it stands the oracle: the same options, learned from
all training images and judged on the labelled test images. The oracle is reported and never chooses.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import reprlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from ..data.layouts import Product
from ..errors import BenchError, ConfigError
from ..features.cache import FeatureCache
from ..features.extractor import Extractor
from .figures import NAMES
from .files import number_or_same, read_yaml, write_json
from .methods import METHODS
from .methods.base import PerProduct
from .pictures import Shelf, Told, has_masks, mark
from .plan import Plan, Variant, Work, check_option
from .results import mean, read_chains
from .runner import MOST_JOBS, end_with_parent, ended_processes_named, run
from .streams import Stream, Task, at_once
from .synthetic import validation_of

CRITERIA: dict[str, tuple[str, ...]] = {
    "balanced": ("image_auroc", "pixel_ap"),
    "max_image_auroc": ("image_auroc",),
}
"""What to choose by: the mean of these figures, the product found by the method. Each figure is first
averaged over the products that have it, so with masks for all products "balanced" is the mean over products
of (image AUROC + pixel AP) / 2."""

Sampler = Literal["grid", "tpe"]
Options = dict[str, Any]
Done = Callable[[int, int], None]  # runs done, runs in all: one for every trial, seed and set of images


# What is tried


@dataclass(frozen=True)
class Choice:
    """One of several values; a table or None puts a part of the method in or leaves it out."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("expected at least one value to try, got none")
        told = [json.dumps(value, sort_keys=True) for value in self.values]
        if len(set(told)) < len(told):
            raise ConfigError(f"expected different values to try, got {reprlib.repr(list(self.values))}")


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; a whole number where both ends are whole numbers.

    With `log` its logarithm is drawn evenly.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
                raise ConfigError(f"expected a range between two numbers, got {end!r}")
        if not isinstance(self.log, bool):
            raise ConfigError(f"expected log to be true or false, got {self.log!r}")
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ConfigError(
                f"expected a range of low < high{', both above 0' if self.log else ''}; "
                f"got {self.low} to {self.high}"
            )


@dataclass(frozen=True)
class Space:
    """Which options are tried: those of a `Plan`."""

    options: Mapping[str, Choice | Range]

    def __post_init__(self) -> None:
        if not self.options:
            raise ConfigError("expected at least one option to try, got none")
        for name, tried in self.options.items():
            ends = tried.values if isinstance(tried, Choice) else (tried.low, tried.high)
            for value in ends:
                check_option(name, value)  # a wrong one shows here, not after an hour

    @property
    def size(self) -> int | None:
        """How many combinations there are, or None where a range has too many to count."""
        sizes = [len(o.values) if isinstance(o, Choice) else None for o in self.options.values()]
        return None if None in sizes else math.prod(s for s in sizes if s is not None)

    @classmethod
    def from_dict(cls, table: Any) -> Space:
        """A list of values, or a table of low, high and perhaps log, for every option."""
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
            raise ConfigError(f"expected a table from options to what is tried, got {reprlib.repr(table)}")
        options = {}
        for name, content in table.items():
            try:
                options[name] = _tried(content)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        return cls(options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Space:
        """The space that a YAML file describes::

            training.tail_weight: [0.5, 0.7, 0.9]
            training.learning_rate: {low: 0.0003, high: 0.003, log: true}
            flow.dia: [null, {blocks: 2, hidden: 64}]

        Raises ConfigError, with the path, for a file that cannot be read, for an unknown option and for
        values that it cannot have.
        """
        source = Path(path)
        content = read_yaml(source)
        try:
            return cls.from_dict(content)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the inverse of `from_dict`."""
        return {
            name: list(tried.values)
            if isinstance(tried, Choice)
            else {"low": tried.low, "high": tried.high, "log": tried.log}
            for name, tried in self.options.items()
        }


def _tried(content: Any) -> Choice | Range:
    if isinstance(content, list):
        return Choice(tuple(number_or_same(value) for value in content))
    keys = {"low", "high"}
    if isinstance(content, dict) and keys <= content.keys() <= keys | {"log"}:
        low, high = (number_or_same(content[end]) for end in ("low", "high"))
        return Range(low, high, content.get("log", False))
    raise ConfigError(f"expected a list of values or low, high and perhaps log; got {reprlib.repr(content)}")


_FLOW = {"training.learning_rate": [5e-4, 1e-3, 2e-3], "training.steps": [250, 500, 1000]}
_SPACES: Mapping[str, Mapping[str, Any]] = {
    "moleflow": {
        "training.tail_weight": [0.5, 0.7, 0.9],
        "training.tail_share": [0.02, 0.05, 0.1],
        "scoring.top_share": [0.002, 0.005, 0.02],
        "training.log_det_weight": [1e-5, 1e-4, 1e-3],
        "flow.context.kernel": [3, 5, 7],
        "training.learning_rate": [5e-4, 1e-3, 2e-3],
        "flow.dia.blocks": [1, 2, 4],
        # alpha follows the rank, so that the update's scale alpha / rank stays the same.
        "flow.lora": [{"rank": r, "alpha": float(r)} for r in (8, 16, 64)],
        "flow.couplings": [2, 4, 6],
        "training.steps": [250, 500, 1000],
    },
    "fine-tuning": _FLOW,
    "ewc": {"ewc.strength": [1.0, 3.0, 10.0, 30.0]},
    "lwf": {"lwf.weight": [1.0, 3.0, 10.0]},
    "replay": {"replay.old": [0.25, 0.5, 0.75]},
    "joint": _FLOW,
    "task-separated": _FLOW,
    "ucad": {"ucad.smoothing": [2.0, 4.0, 8.0]},
    "memory-bank": {"memory-bank.share": [0.01, 0.05], "memory-bank.neighbours": [1, 9]},
    "memory-bank-calibrated": {
        "memory-bank-calibrated.share": [0.01, 0.05],
        "memory-bank-calibrated.neighbours": [1, 9],
    },
    "padim": {"padim.ridge": [0.01, 0.03, 0.1, 0.3]},
    "shared-coreset": {"shared-coreset.most": [3_000, 10_000]},
}


def default_space(method: str = "moleflow") -> Space:
    """What is tried of a method: for ours the options its original research searched, around our defaults.

    Raises ConfigError for a method with nothing to choose.
    """
    if method not in _SPACES:
        raise ConfigError(f"{method} has no options that are searched by default; expected a space")
    return Space.from_dict(_SPACES[method])


# The sweep


@dataclass(frozen=True)
class _Trials:
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


def sweep(
    space: Space,
    products: Sequence[Product],
    out: str | Path,
    cache: str | Path,
    *,
    trials: int = 32,
    seeds: Sequence[int] = (0,),
    sampler: Sampler = "grid",
    criterion: str = "balanced",
    oracle: bool = True,
    jobs: int = 1,
    seed: int = 0,
    share: float = 0.25,
    method: str = "moleflow",
    options: Mapping[str, Any] | None = None,
    backbone: str = "efficientnet_lite0",
    weights: str | None = None,
    image_size: tuple[int, int] | None = None,
    eval_size: tuple[int, int] | None = None,
    threads: int = 1,
    device: str = "cpu",
    told: Told | None = None,
    done: Done | None = None,
) -> dict[str, Any]:
    """Tries options and chooses the best by synthetic defects; writes `sweep.json` and returns what it holds.

    Before all trials the options are measured as they are, unchanged: what a search was worth is the
    difference to these.

    Every finished unit is kept in `out`, and a trial's suggestions follow from the seed and the figures of
    the trials before it, which are read there again. So a killed sweep that is started anew ends with the
    very same bytes, and one with more trials or another criterion goes on from what is there.

    Args:
        space: what is tried.
        products: learned in this order; their test images are opened only for the oracle.
        out, cache: folders of the trials and of the features.
        trials: at most so many. A smaller grid is tried as a whole, a larger one at combinations drawn at
            random without repetition; TPE may ask for the same options twice, which counts but costs nothing.
        seeds: of learning; figures are their means.
        sampler: "grid", or "tpe" for tree-structured Parzen estimators (Bergstra et al., Algorithms for
            Hyper-Parameter Optimization, NIPS 2011), by Optuna.
        criterion: one of `CRITERIA`.
        oracle: whether the labelled test images are measured as well. It changes nothing else.
        jobs: processes; a grid keeps all busy, TPE only one for every seed and set of images.
        seed: of the sampler, of the images held out and of the defects in them.
        share: of the training images, held out.
        method: what is tuned, one of `METHODS`.
        options: dotted paths into `LineConfig` for all trials; a trial's own come before them.
        backbone, weights, image_size, eval_size, threads: as in `Plan`.
        device: where the backbone computes features.
        told: hears of features being computed.
        done: hears of every run that is finished.

    Returns:
        Plain JSON. "unchanged" is what the options give before any search. "trials" are in the order they
        were tried, each with its "options", their value by the "criterion" and by the "oracle" (None where it
        failed or was not asked for), the mean "figures" behind both and the values of each seed. "best" is
        the trial of the largest criterion, "best_by_oracle" that of the largest oracle; "loss" is the oracle
        of the first less that of the second, zero or below, and "rank_correlation" Spearman's between both
        values over all trials, None for fewer than three or where one value is the same for all.

    Raises:
        ConfigError: an impossible argument, or a criterion that the method or the test images have no figures
            for.
        DatasetError: too few training images.
        ImageError: an image cannot be read.
        BenchError: no trial came to an end.
    """
    listed = {product.name: product for product in products}
    _check(listed, len(products), trials, seeds, sampler, criterion, method, jobs, oracle=oracle)
    setting = _Trials(
        products=listed,
        synthetic={name: validation_of(p, share=share, seed=seed) for name, p in listed.items()},
        out=Path(out),
        cache=Path(cache),
        seeds=tuple(seeds),
        oracle=oracle,
        metrics=CRITERIA[criterion],
        method=method,
        plan={
            "backbone": backbone,
            "weights": weights,
            "image_size": image_size,
            "eval_size": eval_size,
            "options": dict(options or {}),
            "leave_out": False,
            "threads": threads,
        },
        device=device,
        told=told,
    )
    with _workers(setting, jobs) as finish:
        search = _grid if sampler == "grid" else _tpe
        unchanged, *records = search(space, setting, trials, seed, finish, done)
    results = {
        "method": method,
        "products": list(listed),
        "space": space.to_dict(),
        "combinations": space.size,
        "sampler": sampler,
        "criterion": criterion,
        "metrics": list(CRITERIA[criterion]),
        "learning_seeds": list(seeds),
        "seed": seed,
        "share": share,
        "backbone": backbone,
        "weights": weights,
        "image_size": image_size and list(image_size),
        "eval_size": eval_size and list(eval_size),
        "base_options": dict(options or {}),
        "unchanged": unchanged | {"options": _unchanged(space, setting)},
        "trials": records,
        **_judged(records),
    }
    write_json(Path(out) / "sweep.json", results)
    return results


def _check(
    listed: Mapping[str, Product],
    count: int,
    trials: int,
    seeds: Sequence[int],
    sampler: str,
    criterion: str,
    method: str,
    jobs: int,
    *,
    oracle: bool,
) -> None:
    for what, given, known in (
        ("sampler", sampler, ("grid", "tpe")),
        ("criterion", criterion, tuple(CRITERIA)),
        ("method", method, tuple(METHODS)),
    ):
        if given not in known:
            raise ConfigError(f"unknown {what} {given!r}; known are {', '.join(known)}")
    if not listed or len(listed) < count:
        raise ConfigError(f"expected at least one product and none twice, got {count}")
    if trials < 1 or jobs < 1:
        raise ConfigError(f"expected at least one trial and one job, got {trials} and {jobs}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"expected at least one seed and none twice, got {list(seeds)}")
    of_pixels = [name for name in CRITERIA[criterion] if name.startswith(("pixel", "aup"))]
    if of_pixels and not METHODS[method].localises:
        raise ConfigError(
            f"expected a method with maps for {', '.join(of_pixels)} of criterion {criterion!r}; "
            f"{method} has image scores only"
        )
    if oracle and not any({item.label for item in p.test} == {0, 1} for p in listed.values()):
        raise ConfigError("expected good and defective test images for the oracle; leave it out without them")
    if oracle and of_pixels and not any(has_masks(product) for product in listed.values()):
        raise ConfigError(
            f"expected test images with masks for the oracle of criterion {criterion!r}; choose another or "
            "leave the oracle out"
        )


# Running trials

_Finish = Callable[[Sequence[Options], Done | None], dict[Path, str]]  # errors by the folder of their run


@contextlib.contextmanager
def _workers(setting: _Trials, jobs: int) -> Iterator[_Finish]:
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
        for number, (folder, error) in enumerate(_each(missing, pool), finished + 1):
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


def _each(works: Sequence[Work], pool: ProcessPoolExecutor | None) -> Iterator[tuple[Path, str | None]]:
    if pool is None:
        for work in works:
            yield work.out, _run(work)
        return
    futures = {pool.submit(_run, work): work for work in works}
    for future in as_completed(futures):
        yield futures[future].out, future.result()


def _run(work: Work) -> str | None:
    """The error of a run's first unit that failed, or None."""
    failed = run(work)
    if not failed:  # what was learned is of no further use, and there may be hundreds of trials
        for state in work.out.rglob("state-*.safetensors"):
            state.unlink()
    return next((f"seed {unit.seed}, step {unit.step}: {error}" for unit, error in failed.items()), None)


def _complete(work: Work) -> bool:
    return all(chain.complete for chain in read_chains(work))


def _grid(
    space: Space, setting: _Trials, trials: int, seed: int, finish: _Finish, done: Done | None
) -> list[dict[str, Any]]:
    tried = [{}, *_combinations(space, trials, seed)]
    errors = finish(tried, done)
    return [setting.record(options, errors) for options in tried]


def _combinations(space: Space, trials: int, seed: int) -> list[Options]:
    """The whole grid in its order, or as many different points of it as asked for, drawn at random.

    With more trials the points drawn are the same and further ones.
    """
    grid = {name: o.values for name, o in space.options.items() if isinstance(o, Choice)}
    if len(grid) < len(space.options):
        ranges = ", ".join(name for name in space.options if name not in grid)
        raise ConfigError(f"a grid needs lists of values, but there is a range for {ranges}; use sampler tpe")
    places = [range(len(values)) for values in grid.values()]
    points = list(itertools.product(*places)) if trials >= math.prod(map(len, places)) else []
    if not points:
        rng = np.random.default_rng(seed)
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < trials:
            drawn[tuple(int(rng.integers(len(place))) for place in places)] = None
        points = list(drawn)
    return [
        {name: values[i] for (name, values), i in zip(grid.items(), point, strict=True)} for point in points
    ]


def _tpe(
    space: Space, setting: _Trials, trials: int, seed: int, finish: _Finish, done: Done | None
) -> list[dict[str, Any]]:
    """Asks Optuna for one trial after the other.

    The study lives in memory alone: a stored one would remember its trials but not where the sampler's
    generator stood, and so go on with other suggestions after a kill. Told the same values anew, it asks the
    same questions.
    """
    optuna = _optuna()
    runs = len(setting.seeds) * len(setting.marks)
    unchanged = setting.record({}, finish([{}], None))
    records: dict[str, dict[str, Any]] = {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        for number in range(trials):
            trial = study.ask()
            options = {name: _suggested(trial, name, tried) for name, tried in space.options.items()}
            name = json.dumps(options, sort_keys=True)
            if name not in records:
                records[name] = setting.record(options, finish([options], None))
            if done:
                done((number + 2) * runs, (trials + 1) * runs)
            value = records[name]["criterion"]
            if value is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, value)
    finally:
        optuna.logging.set_verbosity(before)
    return [unchanged, *records.values()]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("sampler tpe: expected Optuna, found none: pip install moleflow[sweep]") from error
    return optuna


def _suggested(trial: Any, name: str, tried: Choice | Range) -> Any:
    if isinstance(tried, Choice):
        # By its place, for Optuna knows no tables.
        return tried.values[trial.suggest_categorical(name, list(range(len(tried.values))))]
    if isinstance(tried.low, int) and isinstance(tried.high, int):
        return trial.suggest_int(name, tried.low, tried.high, log=tried.log)
    return trial.suggest_float(name, tried.low, tried.high, log=tried.log)


# Figures


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


def _judged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best by either value, and how far the two agree. Of equal ones the first is the best."""
    chosen = [r for r in records if r["criterion"] is not None]
    measured = [r for r in records if r["oracle"] is not None]
    if not chosen:
        errors = [error for record in records for error in record["errors"]]
        raise BenchError(
            f"expected a trial that comes to its end, but all {len(records)} failed; first: {errors[:1]}"
        )
    best = max(chosen, key=lambda r: r["criterion"])
    ideal = max(measured, key=lambda r: r["oracle"], default=None)
    both = [r for r in chosen if r["oracle"] is not None]
    return {
        "best": _short(best),
        "best_by_oracle": None if ideal is None else _short(ideal),
        "loss": None if ideal is None or best["oracle"] is None else best["oracle"] - ideal["oracle"],
        "rank_correlation": _rank_correlation([r["criterion"] for r in both], [r["oracle"] for r in both]),
    }


def _unchanged(space: Space, setting: _Trials) -> Options:
    """The values of a space's options where none of them is changed."""
    config = setting.works({})[0].plan.configured("trial")
    return {name: functools.reduce(_inside, name.split("."), config) for name in space.options}


def _inside(table: Any, name: str) -> Any:
    return None if table is None else table[name]  # a part that was left out has no options


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("options", "criterion", "oracle")}


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, equal values sharing their mean rank; None for under three pairs or a constant side."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
