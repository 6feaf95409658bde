"""How sure a benchmark's figures are: intervals around every entry's, and gaps to the first entry's.

Two questions are kept apart. *These products*: what other test images and other seeds would have given. *Such
products*: the same with other products of which these are a draw; with few products that interval is as wide
as so few allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.bootstrap import LEVEL, Comparison, Draws, compare, interval
from ..metrics.resampling import REPLICATES
from .figures import NAMES
from .files import read_state
from .reuse import images_path

FAMILY = ("image_auroc", "pixel_ap", "aupro_30", "aupimo")  # judged together, over all entries
SCOPES = {"these products": False, "such products": True}  # whether products are drawn as well

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


def _drawn(stacked: np.ndarray, products: bool) -> np.ndarray:
    """Replicates (R,) of the mean over seeds and products."""
    seeds, count, rows = stacked.shape
    draws = Draws.make(seeds, count, rows - 1, draw_products=products)
    return draws.means(stacked[:, :, 1:])


def _means(shelf: _Shelf, runs: Runs) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        stacked = shelf.stacked(runs, name)
        if stacked is None:
            continue
        mean = float(stacked[:, :, 0].mean())
        found[name] = {
            "mean": mean,
            **{scope: list(interval(mean, _drawn(stacked, how))) for scope, how in SCOPES.items()},
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
    keys, estimates = [], []
    drawn: dict[str, list[np.ndarray]] = {scope: [] for scope in SCOPES}
    for entry, runs in others.items():
        shared = first.keys() & runs.keys()
        for name in NAMES if shared else ():
            mine, other = (shelf.stacked({k: of[k] for k in shared}, name) for of in (first, runs))
            if mine is None or other is None or mine.shape != other.shape:
                continue
            gap = other - mine
            keys.append((entry, name))
            estimates.append(float(gap[:, :, 0].mean()))
            for scope, how in SCOPES.items():
                drawn[scope].append(_drawn(gap, how))
    found: dict[str, Any] = {}
    family = np.array([name in FAMILY for _, name in keys], dtype=bool)
    for scope, replicates in drawn.items():
        for which in (family, ~family):
            chosen = np.flatnonzero(which)
            if not len(chosen):
                continue
            judged = compare([estimates[i] for i in chosen], np.stack([replicates[i] for i in chosen]))
            for i, one in zip(chosen, judged, strict=True):
                entry, name = keys[i]
                found.setdefault(entry, {}).setdefault(name, {})[scope] = _plain(one)
    return found


def _plain(one: Comparison) -> dict[str, float]:
    return {"gap": one.gap, "error": one.error, "low": one.low, "high": one.high, "p": one.p}
