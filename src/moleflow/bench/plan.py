"""What a benchmark compares: entries, streams, seeds; and the folders it works in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..config import Cells, LineConfig, override, to_dict
from ..data.layouts import Product
from ..errors import ConfigError
from ..features.backbones import channels_of
from ..presets import DEFAULT, LAYERED, get_preset
from ..store.names import folded_name
from .methods import METHODS, options_of
from .streams import Stream


@dataclass(frozen=True)
class Variant:
    """A method with some of its options changed: a rival of itself in an ablation or a sweep."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)  # as those of a Plan


@dataclass(frozen=True)
class Plan:
    """All that decides a benchmark's figures.

    Attributes:
        entries: what is compared, by the name it has in tables.
        streams: orders of tasks.
        seeds: of everything random.
        backbone, weights, image_size: of the cached features.
        eval_size: (H, W) at which maps meet masks; None for each image's own size.
        preset: the line's options that `options` change, by name; what it leaves to the number of channels
            follows from the backbone.
        options: for all entries: dotted paths into LineConfig ("training.steps"), or a method's name and an
            option of its own ("ewc.strength").
        leave_out: at the end of a stream, whether each product in turn is taken out and its images tried.
        threads: of each unit; part of the plan because sums depend on it in their last bits.
    """

    entries: Mapping[str, Variant]
    streams: tuple[Stream, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    image_size: tuple[int, int] | None = None
    eval_size: tuple[int, int] | None = None
    preset: str = DEFAULT
    options: Mapping[str, Any] = field(default_factory=dict)
    leave_out: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        for what, given in (("method", self.entries), ("stream", self.streams), ("seed", self.seeds)):
            if not given:
                raise ConfigError(f"expected at least one {what} to run, got none")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"expected different seeds, got {', '.join(map(str, self.seeds))}")
        _check_folders("entry", self.entries)
        _check_folders("stream", [stream.name for stream in self.streams])
        if any("shared" in stream.products for stream in self.streams):
            raise ConfigError("no product can be called 'shared': states name so what is no product's alone")
        compared = {variant.method for variant in self.entries.values()}
        for option in self.options:
            if _owner(option) not in (None, *compared):
                raise ConfigError(f"{option}: an option of a method that is not compared")
        for name, variant in self.entries.items():
            if variant.method not in METHODS:
                raise ConfigError(f"unknown method {variant.method!r}; known are {', '.join(METHODS)}")
            for option in variant.options:
                if _owner(option) not in (None, variant.method):
                    raise ConfigError(f"entry {name!r}: {option} is no option of {variant.method}")
            self.config(name)  # a wrong option shows here, not after an hour
            options_of(variant.method, self.own(name))

    def config(self, entry: str) -> LineConfig:
        """The line's options that an entry runs with."""
        preset = get_preset(self.preset).at(channels_of(self.backbone))
        return override(preset, {k: v for k, v in self._options(entry).items() if not _owner(k)})

    def own(self, entry: str) -> dict[str, Any]:
        """The options that are the entry's method's alone."""
        method = self.entries[entry].method
        chosen = {k: v for k, v in self._options(entry).items() if _owner(k) == method}
        return {k.removeprefix(f"{method}."): v for k, v in chosen.items()}

    def configured(self, entry: str) -> dict[str, Any]:
        """All options of an entry, its method's own by the method's name."""
        method = self.entries[entry].method
        own = options_of(method, self.own(entry), default=True)
        return to_dict(self.config(entry)) | ({} if own is None else {method: to_dict(own)})

    def _options(self, entry: str) -> dict[str, Any]:
        return {**self.options, **self.entries[entry].options}

    def units(self) -> Iterator[Unit]:
        """Every unit, in the order they are begun."""
        for seed in self.seeds:
            for number, stream in enumerate(self.streams):
                for entry in self.entries:
                    for step in range(len(stream.tasks)):
                        yield Unit(entry, number, seed, step)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; entries with the whole of their options, and the version whose code learned."""
        values = asdict(self)
        values["version"] = metadata.version("moleflow")
        values["configs"] = {name: self.configured(name) for name in self.entries}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


@dataclass(frozen=True)
class Unit:
    """One step of one entry on one stream (by its number) with one seed."""

    entry: str
    stream: int
    seed: int
    step: int


@dataclass(frozen=True)
class Work:
    """What a process needs to run units.

    Attributes:
        plan: the benchmark.
        products: by name, those of all streams.
        out: folder of the run.
        cache: folder of the features.
    """

    plan: Plan
    products: Mapping[str, Product]
    out: Path
    cache: Path


def check_option(name: str, value: Any) -> None:
    """Refuses, with a ConfigError, an option that there is not and a value that it can have with no flow."""
    owner = _owner(name)
    if owner is None:
        try:
            override(LineConfig(), {name: value})
        except ConfigError:  # some are of use only where the flow does not begin with cells
            override(LineConfig(), {**LAYERED, "scoring.cells": to_dict(Cells()), name: value})
    else:
        options_of(owner, {name.removeprefix(f"{owner}."): value})


def _check_folders(what: str, names: Iterable[str]) -> None:
    """Refuses names that are no folders of their own, also where letters' case makes no difference."""
    seen: set[str] = set()
    for name in names:
        if name != Path(name).name or "\\" in name or ":" in name or name.startswith("."):
            raise ConfigError(f"{what} {name!r}: cannot be the name of a folder")
        if folded_name(name) in seen:
            raise ConfigError(f"{what} {name!r}: expected different names")
        seen.add(folded_name(name))


def _owner(option: str) -> str | None:
    """The method an option belongs to; None for one of the line's."""
    first = option.split(".", 1)[0]
    return first if first in METHODS else None
