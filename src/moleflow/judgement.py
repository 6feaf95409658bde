"""What router and product say of one image, before the line makes a verdict of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Decision:
    """For one image: the nearest product, its distance in typical ones, and the plain distances to all."""

    task: str
    distance: float
    margin: float
    distances: dict[str, float]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a product says of one image.

    Attributes:
        patch_map: (h, w) float32, in spreads of good images' map scores above the typical one.
        score: of the image, in the unit of `Prediction.pred_score`.
        place: the map's own score, in the map's unit.
        whole: the picture's own score, in spreads above the typical good image; None without that voice.
        strangeness: how foreign the most ordinary places look.
    """

    patch_map: np.ndarray
    score: float
    place: float
    whole: float | None
    strangeness: float


def nearest(
    names: list[str], distances: list[float], order: list[int], typical: dict[str, float]
) -> Decision:
    """The decision that follows from an image's distances to the products of these names.

    Args:
        names: of the products.
        distances: to each of them.
        order: their positions, the one that is meant first.
        typical: distance of a good image, by name.
    """
    best, margin = order[0], float("inf")
    if len(order) > 1:
        margin = distances[order[1]] / max(distances[best], 1e-12)
    name = names[best]
    return Decision(name, distances[best] / typical[name], margin, dict(zip(names, distances, strict=True)))
