"""How sure a benchmark's figures are: intervals around every entry's, and gaps to the first entry's.

Two questions are kept apart. *These products*: what other test images and other seeds would have given. *Such
products*: what other products would have given, of which these are a draw; with few products that interval is
as wide as so few allow, and one alone says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.bootstrap import (
    LEVEL,
    Comparison,
    Draws,
    compare,
    compare_products,
    interval,
    interval_of_products,
)
from ..metrics.resampling import REPLICATES
from .figures import NAMES
from .files import read_state
from .reuse import images_path

FAMILY = ("image_auroc", "pixel_ap", "aupro_30", "aupimo")  # judged together, over all entries
THESE, SUCH = SCOPES = ("these products", "such products")

Runs = Mapping[tuple[str, int], Mapping[str, str]]
"""By stream and seed, the digest of every product's inspections at the end."""


def uncertainty(out: Path, runs: Mapping[str, Runs]) -> dict[str, Any]:
    """Intervals and gaps of entries, as plain JSON; the first entry is what the others are compared with.

    Args:
        out: folder of the run.
        runs: complete ones of every entry.

    Returns:
        "level", "replicates"; "bins": by figure, how much its bins are off at most; "means": by entry and
        figure the mean, its interval by scope, and standard deviations over seeds and over orders; "first";
        "gaps": by entry and figure and scope `Comparison`, of which those in `FAMILY` are corrected for each
        other.
    """
    present = {entry: own for entry, own in runs.items() if own}
    shelf = _Shelf(out)
    first = next(iter(runs), None)
    others = [entry for entry in present if entry != first]
    gaps = _gaps(shelf, present[first], {e: present[e] for e in others}) if first in present else {}
    return {
        "level": LEVEL,
        "replicates": REPLICATES,
        "bins": shelf.bins(present),
        "means": {entry: _means(shelf, own) for entry, own in present.items()},
        "first": first,
        "gaps": gaps,
    }


class _Shelf:
    """Figures and replicates of inspections, read once each."""

    def __init__(self, out: Path) -> None:
        @cache
        def read(product: str, digest: str) -> dict[str, np.ndarray]:
            path = images_path(out, product, digest)
            if not path.exists():  # of a run by an earlier version
                return {}
            tensors = read_state(path).tensors
            return {name: tensor.numpy() for name, tensor in tensors.items()}

        self.read = read

    def stacked(self, runs: Runs, name: str) -> np.ndarray | None:
        """Row 0 the figure and the others its replicates, (seeds, products, 1 + R), means over orders.

        Of products that have the figure in all runs; None where none does.
        """
        products = sorted(set.intersection(*(set(own) for own in runs.values())))
        having = [
            product
            for product in products
            if all(f"again.{name}" in self.read(product, own[product]) for own in runs.values())
        ]
        if not having:
            return None
        seeds = sorted({seed for _, seed in runs})
        return np.stack(
            [np.stack([self._over_orders(runs, name, seed, product) for product in having]) for seed in seeds]
        )

    def _over_orders(self, runs: Runs, name: str, seed: int, product: str) -> np.ndarray:
        found = [self.read(product, own[product]) for (_, s), own in runs.items() if s == seed]
        return np.mean([np.append(one[f"figure.{name}"], one[f"again.{name}"]) for one in found], axis=0)

    def bins(self, runs: Mapping[str, Runs]) -> dict[str, float]:
        """By how much bins are off at most, by figure."""
        worst: dict[str, float] = {}
        for own in runs.values():
            for digests in own.values():
                for product, digest in digests.items():
                    for name, value in self.read(product, digest).items():
                        kind, _, figure = name.partition(".")
                        if kind == "bins":
                            worst[figure] = max(worst.get(figure, 0.0), float(value))
        return worst


def _drawn(stacked: np.ndarray) -> np.ndarray:
    """Replicates (R,) of the mean over seeds and products."""
    seeds, count, rows = stacked.shape
    return Draws.make(seeds, count, rows - 1).means(stacked[:, :, 1:])


def _means(shelf: _Shelf, runs: Runs) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        stacked = shelf.stacked(runs, name)
        if stacked is None:
            continue
        of_products = stacked[:, :, 0].mean(0)
        mean = float(of_products.mean())
        found[name] = {
            "mean": mean,
            THESE: list(interval(mean, _drawn(stacked))),
            SUCH: list(interval_of_products(of_products)) if len(of_products) > 1 else None,
            "seeds": _deviation(stacked[:, :, 0].mean(1)),
            "orders": _deviation(_by_order(shelf, runs, name)),
        }
    return found


def _by_order(shelf: _Shelf, runs: Runs, name: str) -> list[float]:
    """Means of every order over its seeds and the products that have the figure."""
    orders: dict[str, dict[tuple[str, int], Mapping[str, str]]] = {}
    for (stream, seed), own in runs.items():
        orders.setdefault(stream, {})[stream, seed] = own
    stacks = [shelf.stacked(own, name) for own in orders.values()]
    return [float(stack[:, :, 0].mean()) for stack in stacks if stack is not None]


def _deviation(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _gaps(shelf: _Shelf, first: Runs, others: Mapping[str, Runs]) -> dict[str, Any]:
    """Gaps of all entries to the first, on the orders and seeds that both have."""
    keys: list[tuple[str, str]] = []
    stacks: list[np.ndarray] = []
    for entry, runs in others.items():
        shared = first.keys() & runs.keys()
        for name in NAMES if shared else ():
            mine, other = (shelf.stacked({k: of[k] for k in shared}, name) for of in (first, runs))
            if mine is not None and other is not None and mine.shape == other.shape:
                keys.append((entry, name))
                stacks.append(other - mine)
    found: dict[str, Any] = {}
    for own in (True, False):
        family = [i for i, (_, name) in enumerate(keys) if (name in FAMILY) == own]
        for scope, judged in _judged([stacks[i] for i in family]).items():
            for i, one in zip(family, judged, strict=True):
                entry, name = keys[i]
                found.setdefault(entry, {}).setdefault(name, {})[scope] = None if one is None else _plain(one)
    return found


def _judged(gaps: Sequence[np.ndarray]) -> dict[str, list[Comparison | None]]:
    """A family of gaps (seeds, products, 1 + R) in both scopes; of one product alone there is no second."""
    if not gaps:
        return {}
    these = compare([float(gap[:, :, 0].mean()) for gap in gaps], np.stack([_drawn(gap) for gap in gaps]))
    several = [gap[:, :, 0].mean(0) for gap in gaps if gap.shape[1] > 1]
    such = iter(compare_products(several))
    return {THESE: [*these], SUCH: [next(such) if gap.shape[1] > 1 else None for gap in gaps]}


def _plain(one: Comparison) -> dict[str, float]:
    return {"gap": one.gap, "error": one.error, "low": one.low, "high": one.high, "p": one.p}
