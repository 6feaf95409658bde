"""What sections ask of a benchmark's results, and the metrics they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..ablation import FULL, TABLES
from ..figures import AUPRO_LIMITS
from ..results import over_seeds, spread

Spread = Mapping[str, Any]  # mean, sd, count; as `results.spread` gives it
METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro_30": f"AUPRO {AUPRO_LIMITS[0]}",
    "aupro_05": f"AUPRO {AUPRO_LIMITS[1]}",
    "aupimo": "AUPIMO",
}
MAIN = ("image_auroc", "pixel_ap")
HEADLINE = (*MAIN, "aupro_30", "aupro_05", "aupimo")
MOST = 12  # entries a chart can tell apart; with more it shows the first of each method


@dataclass(frozen=True)
class Findings:
    """The results with the questions that several sections ask of them."""

    results: Mapping[str, Any]
    times: Mapping[str, Any]

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan that was run, as plain JSON."""
        return self.results["plan"]

    @property
    def entries(self) -> tuple[str, ...]:
        """In the order they were given."""
        return tuple(self.results["order"])

    @cached_property
    def leaders(self) -> tuple[str, ...]:
        """The first entry of every method."""
        first: dict[str, str] = {}
        for entry in self.entries:
            first.setdefault(self.method(entry), entry)
        return tuple(first.values())

    @cached_property
    def families(self) -> tuple[tuple[str, ...], ...]:
        """Entries that are compared with the first of them: those of one method, in an ablation all."""
        if self.entries[0] == FULL:
            return (self.entries,)
        by_method = (tuple(e for e in self.entries if self.method(e) == self.method(f)) for f in self.leaders)
        return tuple(family for family in by_method if len(family) > 1)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The entries that stand in charts; of very many methods those with nothing put beside them."""
        if len(self.entries) <= MOST:
            return self.entries
        alone = tuple(e for e in self.leaders if self.method(e) in TABLES["all"])
        return alone if alone and len(self.leaders) > MOST else self.leaders

    @cached_property
    def groups(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """Streams over the same products: the products as the first of them orders them, streams' names."""
        found: dict[frozenset[str], tuple[tuple[str, ...], list[str]]] = {}
        for stream in self.plan["streams"]:
            products = tuple(p for task in stream["tasks"] for p in task["products"])
            found.setdefault(frozenset(products), (products, []))[1].append(stream["name"])
        return tuple((products, tuple(names)) for products, names in found.values())

    def method(self, entry: str) -> str:
        """The name of an entry's method."""
        return self.plan["entries"][entry]["method"]

    def title(self, entry: str) -> str:
        """An entry as tables call it."""
        return self.results["titles"].get(entry, entry)

    def notes(self, entry: str) -> Sequence[str]:
        """What the method has to say of how it was run; nothing before its first unit is done."""
        return self.results.get("notes", {}).get(entry, ())

    def untrained(self, entry: str) -> bool:
        """Whether a network that a method brings along had random weights."""
        return "random weights" in self.notes(entry)

    def summary(self, entry: str) -> Mapping[str, Any]:
        """Means and spreads over an entry's complete runs."""
        return self.results["summary"][entry]

    def runs(self, entry: str) -> list[Mapping[str, Any]]:
        """Complete ones; nothing else is ever averaged."""
        return [run for run in self.results["runs"] if run["entry"] == entry and run["complete"]]

    def acc(self, entry: str, metric: str, view: str = "routed", name: str = "acc") -> Spread:
        """ACC (or BWT, FM) of an entry over its runs."""
        return self.summary(entry)["continual"][view][metric][name]

    def interval(self, entry: str, metric: str) -> tuple[float, float] | None:
        """Where an entry's mean may lie with other test images and seeds; None where nobody drew them."""
        means = self.results.get("uncertainty", {}).get("means", {})
        found = means.get(entry, {}).get(metric)
        return None if found is None else tuple(found["these products"])

    def of_product(self, entry: str, streams: Sequence[str], product: str, *key: str) -> float | None:
        """A product's figure, such as ("routed", "pixel_ap"), averaged over streams and seeds."""
        values = []
        for run in self.runs(entry):
            if run["stream"] in streams:
                value: Any = run["products"][product]
                for part in key:
                    value = value[part]
                values.append(value)
        return spread(values)["mean"]

    def per_product(self, entry: str, key: str) -> Spread:
        """Bytes or numbers that all tasks added, divided by the number of products."""
        return over_seeds(self.runs(entry), lambda r: sum(r[f"{key}_per_task"]) / len(r["products"]))

    def whole_bytes(self, entry: str) -> float | None:
        """What has to be kept at the end of a stream, images included."""
        return over_seeds(self.runs(entry), lambda run: run["bytes"] + run["kept_bytes"])["mean"]

    def seconds(self, entry: str, what: str) -> Spread:
        """Of learning a product ("learn") or inspecting an image ("inspect_image")."""
        return self.times.get("entries", {}).get(entry, {}).get(what) or spread([])

    def style(self, entry: str) -> int:
        """Colour and mark, the same in all charts."""
        return self.drawn.index(entry)
