"""Which options are tried one after the other: points of a grid, or what Optuna asks for."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np

from ...errors import ConfigError
from .space import Choice, Options, Points, Range, Space
from .trials import Done, Finish, Trials


def grid(
    space: Space | Points, setting: Trials, trials: int, seed: int, finish: Finish, done: Done | None
) -> list[dict[str, Any]]:
    """The unchanged options and then the points of the grid, or as many of them; records in this order."""
    tried = [{}, *_combinations(space, trials, seed)]
    errors = finish(tried, done)
    return [setting.record(options, errors) for options in tried]


def _combinations(space: Space | Points, trials: int, seed: int) -> list[Options]:
    """The whole grid in its order, or as many different points of it as asked for, drawn at random.

    With more trials the points drawn are the same and further ones.
    """
    if isinstance(space, Points):
        if trials >= space.size:
            return list(space.points)
        drawn_points = np.random.default_rng(seed).permutation(space.size)[:trials]
        return [space.points[i] for i in drawn_points]
    values_of = {name: o.values for name, o in space.options.items() if isinstance(o, Choice)}
    if len(values_of) < len(space.options):
        ranges = ", ".join(name for name in space.options if name not in values_of)
        raise ConfigError(f"a grid needs lists of values, but there is a range for {ranges}; use sampler tpe")
    places = [range(len(values)) for values in values_of.values()]
    points = list(itertools.product(*places)) if trials >= math.prod(map(len, places)) else []
    if not points:
        rng = np.random.default_rng(seed)
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < trials:
            drawn[tuple(int(rng.integers(len(place))) for place in places)] = None
        points = list(drawn)
    return [
        {name: values[i] for (name, values), i in zip(values_of.items(), point, strict=True)}
        for point in points
    ]


def tpe(
    space: Space | Points, setting: Trials, trials: int, seed: int, finish: Finish, done: Done | None
) -> list[dict[str, Any]]:
    """Asks Optuna for one trial after the other.

    The study lives in memory alone: a stored one would remember its trials but not where the sampler's
    generator stood, and so go on with other suggestions after a kill. Told the same values anew, it asks the
    same questions.
    """
    if isinstance(space, Points):
        raise ConfigError("sampler tpe: expected lists of values or ranges to draw from, got combinations")
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
