"""Chooses options by synthetic defects in training images, and says what a choice by test labels would give.

A trial learns all products from most of their training images and is judged on the rest of these, with and
without synthetic defects. Beside it stands the oracle: the same options, learned from all training images
and judged on the labelled test images. The oracle is reported and never chooses.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ...data.layouts import Product
from ...errors import BenchError, ConfigError
from ...presets import DEFAULT
from ..files import write_json
from ..methods import METHODS
from ..pictures import Told, has_masks
from ..ranking import spearman
from ..synthetic import validation_of
from .search import grid, tpe
from .space import Options, Points, Space
from .trials import Done, Trials, workers

CRITERIA: dict[str, tuple[str, ...]] = {
    "balanced": ("image_auroc", "pixel_ap"),
    "max_image_auroc": ("image_auroc",),
}
"""What to choose by: the mean of these figures, the product found by the method. Each figure is first
averaged over the products that have it, so with masks for all products "balanced" is the mean over products
of (image AUROC + pixel AP) / 2."""

Sampler = Literal["grid", "tpe"]


def sweep(
    space: Space | Points,
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
    preset: str = DEFAULT,
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
        space: what is tried: combinations of options, or a list of them.
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
        preset: what all trials change, by name.
        options: dotted paths into `LineConfig` for all trials; a trial's own come before them.
        backbone, weights, image_size, eval_size, threads: as in `Plan`.
        device: where the backbone computes features, and where methods learn and score.
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
    setting = Trials(
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
            "preset": preset,
            "options": dict(options or {}),
            "leave_out": False,
            "threads": threads,
        },
        device=device,
        told=told,
    )
    if isinstance(space, Points):
        space = space.around(_unchanged(space, setting))
    with workers(setting, jobs) as finish:
        search = grid if sampler == "grid" else tpe
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
        "preset": preset,
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


def _unchanged(space: Space | Points, setting: Trials) -> Options:
    """The values of a space's options where none of them is changed."""
    config = setting.works({})[0].plan.configured("trial")
    return {name: functools.reduce(_inside, name.split("."), config) for name in space.options}


def _inside(table: Any, name: str) -> Any:
    return None if table is None else table[name]  # a part that was left out has no options


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("options", "criterion", "oracle")}


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's; None for under three pairs or a constant side."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return spearman(a, b)
