"""What a sweep tries: values or ranges for options of a plan."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..files import number_or_same, read_yaml
from ..methods import METHODS
from ..plan import check_option

Options = dict[str, Any]


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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the inverse of `from_dict`."""
        return {
            name: list(tried.values)
            if isinstance(tried, Choice)
            else {"low": tried.low, "high": tried.high, "log": tried.log}
            for name, tried in self.options.items()
        }


@dataclass(frozen=True)
class Points:
    """Combinations of options one by one: those of a `Plan`, each with what it changes."""

    points: tuple[Options, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ConfigError("expected at least one combination to try, got none")
        told = [json.dumps(point, sort_keys=True) for point in self.points]
        for number, text in enumerate(told):
            if text in told[:number]:
                raise ConfigError(f"combination {number + 1}: expected different ones, got {text} again")
        names = self.names
        for name in names:
            inside = next((other for other in names if other.startswith(f"{name}.")), None)
            if inside is not None:
                raise ConfigError(f"expected {name} as a whole or {inside}, got both")
        for number, point in enumerate(self.points, 1):
            for name, value in point.items():
                try:
                    check_option(name, value)
                except ConfigError as error:
                    raise ConfigError(f"combination {number}: {error}") from error

    @property
    def names(self) -> tuple[str, ...]:
        """All options that any of them changes, in the order in which they first appear."""
        return tuple(dict.fromkeys(name for point in self.points for name in point))

    @property
    def options(self) -> dict[str, Choice]:
        """Which values they give each option."""
        return {
            name: Choice(tuple(_different(point[name] for point in self.points if name in point)))
            for name in self.names
        }

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.points)

    def around(self, unchanged: Options) -> Points:
        """The same with every option said in each, as it is `unchanged` where a combination says nothing."""
        whole = (unchanged | point for point in self.points)
        return Points(tuple(_different({name: point[name] for name in self.names} for point in whole)))

    @classmethod
    def from_list(cls, content: Any) -> Points:
        """A table from options to values for each combination."""
        tables = content if isinstance(content, list) else [content]
        for table in tables:
            if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
                raise ConfigError(f"expected tables from options to values, got {reprlib.repr(table)}")
        return cls(tuple({name: number_or_same(v) for name, v in table.items()} for table in tables))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the values of every option."""
        return {name: list(tried.values) for name, tried in self.options.items()}


def _different(values: Iterable[Any]) -> list[Any]:
    """Each once, told apart by their JSON: 1 is not true."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


def read_space(path: str | Path) -> Space | Points:
    """What a YAML file says is tried, as a table or as a list of combinations::

        training.tail_weight: [0.5, 0.7, 0.9]
        training.learning_rate: {low: 0.0003, high: 0.003, log: true}
        flow.dia: [null, {blocks: 2, hidden: 64}]

        - {training.tail_weight: 0.55, training.learning_rate: 0.0003}
        - {flow.couplings: 12}

    Raises ConfigError, with the path, for a file that cannot be read, for an unknown option and for values
    that it cannot have.
    """
    content = read_yaml(path)
    try:
        return Points.from_list(content) if isinstance(content, list) else Space.from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


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
    "memory-bank-calibrated": {"memory-bank-calibrated.share": [0.01, 0.05]},
    "padim": {"padim.ridge": [0.01, 0.03, 0.1, 0.3]},
    "gcr": {"gcr.size": [196, 1_000], "gcr.nearest": [1, 16]},
    "dinosaur": {"dinosaur.share": [0.05, 0.1], "dinosaur.radius": [1, 3]},
    "projection-bank": {"projection-bank.neighbours": [2, 5], "projection-bank.banks": [3, 5]},
    "shared-coreset": {"shared-coreset.size": [3_000, 10_000]},
}


def default_space(method: str = "moleflow") -> Space:
    """What is tried of a method: for ours the options its original research searched, around our defaults.

    Raises ConfigError for a method that is none, or with nothing to choose.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if method not in _SPACES:
        raise ConfigError(f"{method} has no options that are searched by default; expected a space")
    return Space.from_dict(_SPACES[method])
