"""A product's numbers as an exported line keeps them, as the arrays that its network takes.

The counterpart of `packing` and of what `CellGaussians` works out, without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..codes import CODES, LEAST_SPREAD, NIBBLES, ODD, STEP, part
from ..interpolation import bilinear

Arrays = dict[str, np.ndarray]


def unpacked(kept: Mapping[str, np.ndarray]) -> Arrays:
    """All arrays in float32: those in 4 or 8 bits put together again (`packing.unpacked`)."""
    found: Arrays = {}
    for name, values in kept.items():
        own, dot, kind = name.rpartition(".")
        if dot + kind == CODES:
            found[own] = values.astype(np.float32) * kept[own + STEP]
        elif dot + kind in (NIBBLES, ODD):
            codes = parted(values, 2 * values.shape[-1] - (dot + kind == ODD)).astype(np.float32) - 8
            found[own] = codes * kept[own + STEP]
        elif not (dot + kind == STEP and any(own + code in kept for code in (CODES, NIBBLES, ODD))):
            found[name] = values.astype(np.float32)
    return found


def parted(pairs: np.ndarray, length: int) -> np.ndarray:
    """Codes 0..15 of rows of that length, from two a byte."""
    both = np.stack([pairs % 16, pairs // 16], -1)
    return both.reshape(*pairs.shape[:-1], -1)[..., :length]


def network_inputs(
    tensors: Mapping[str, np.ndarray], grid: tuple[int, int], *, mean_side: int, correction_weight: float
) -> Arrays:
    """What the network of a product's densities takes beside an image's patches, float32.

    Args:
        tensors: of the product's file.
        grid: patch grid (h, w).
        mean_side: at most so many rows and columns the mean of the cells is kept at.
        correction_weight: of what known defects taught, in the map.
    """
    inputs = {f"flow.{name}": values for name, values in unpacked(part(tensors, "flow.")).items()}
    cells = part(tensors, "cells.")
    if cells:
        inputs |= _cells(unpacked(cells), grid, mean_side)
    coreset = part(tensors, "coreset.")
    if coreset:
        inputs |= _coreset(coreset)
    correction = part(tensors, "correction.")
    if correction:
        inputs["correction.direction"] = correction["direction"].astype(np.float32)
        inputs["correction.level"] = correction["level"].astype(np.float32)
        inputs["correction.weight"] = np.array([correction_weight], np.float32)
    for name, values in unpacked(part(tensors, "position.")).items():
        inputs[f"position.{name}"] = np.maximum(values, LEAST_SPREAD) if name.endswith("spread") else values
    return inputs


def _cells(kept: Arrays, grid: tuple[int, int], mean_side: int) -> Arrays:
    """Mean of every place; of every cell the axes, what is added to 1 along them, the log-determinant."""
    directions, noise = kept["directions"], kept["noise"].reshape(1)
    _, rank, channels = directions.shape
    mean = kept["mean"].T if kept["mean"].ndim == 2 else kept["mean"].reshape(-1, channels)
    sides = [min(mean_side, length) for length in grid]
    lengths = np.sqrt(np.square(directions, dtype=np.float64).sum(-1, keepdims=True))
    axes = (directions / np.maximum(lengths, 1e-12)).astype(np.float32)
    squared = np.minimum(np.square(directions).sum(-1), np.float32(1 - 1e-6))
    shrink = np.sqrt(1 - squared) - 1
    wide = axes.astype(np.float64)
    inner = np.eye(rank) + shrink[..., None].astype(np.float64) * (wide @ wide.transpose(0, 2, 1))
    log_dets = np.linalg.slogdet(inner)[1] - 0.5 * channels * np.log(noise.astype(np.float64))
    return {
        "cells.mean": bilinear(mean.reshape(*sides, channels), grid),
        "cells.axes": axes,
        "cells.shrink": shrink.astype(np.float32),
        "cells.log_dets": log_dets.astype(np.float32),
        "cells.root": np.sqrt(noise),
    }


def _coreset(kept: Arrays) -> Arrays:
    """The patches; or where they lie along axes, how far that is from the centre, and these."""
    low, step = kept["low"], kept["step"]
    codes = next(
        (parted(kept[name.lstrip(".")], len(low)) for name in (NIBBLES, ODD) if name.lstrip(".") in kept),
        kept.get("codes"),
    )
    assert codes is not None
    points = (low + codes.astype(np.float32) * step).astype(np.float32)
    if "centre" not in kept:
        return {"coreset.patches": points}
    axes = kept["axes" + CODES].astype(np.float32) * kept["axes" + STEP]
    return {
        "coreset.points": points,
        "coreset.norms": np.square(points @ axes).sum(1),
        "coreset.axes": axes,
        "coreset.centre": kept["centre"],
    }


def whole_distance(kept: Mapping[str, np.ndarray], pooled: np.ndarray) -> float:
    """Distance of a picture's pooled features (E,), as of `WholeGaussian`."""
    own = {name: values.astype(np.float64) for name, values in unpacked(kept).items()}
    z = (pooled.astype(np.float64) - own["mean"]) / own["spread"]
    along = np.square(own["directions"] @ z)
    outside = max(float(z @ z - along.sum()), 0.0)
    return float(np.sqrt((float((along / own["variances"]).sum()) + outside / own["noise"][0]) / len(z)))


def mean_of_highest(patch_map: np.ndarray, share: float, least: int) -> float:
    """Mean of the highest patches of a map (h, w), as of `verdict.maps.image_scores`."""
    flat = patch_map.ravel()
    count = min(len(flat), max(least, round(share * len(flat))))
    return float(np.partition(flat, len(flat) - count)[-count:].mean(dtype=np.float64))


def apart(found: Any, expected: Any) -> float:
    """Largest difference of two arrays, of what lies beyond 1 as a share; infinite where one is no number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    gaps = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    return float(np.where(np.isfinite(gaps), gaps, np.inf).max())
