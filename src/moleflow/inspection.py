"""From a line and a picture's features to what is said of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .data.sources import name_of
from .errors import ImageError
from .intake import Picture
from .line import Line
from .results import Prediction, Routing
from .routing.gaussian import describe


@torch.no_grad()
def inspect(
    line: Line,
    picture: Picture,
    features: Tensor,
    *,
    see: Callable[[list[Picture]], Tensor],
    task: str | None = None,
) -> Prediction:
    """One picture's features (1, h, w, D) to its verdict.

    Images pass one by one once the backbone has seen the batch: their features fit the processor's
    cache, and what is said of an image cannot depend on its neighbours in the batch.

    Args:
        line: with at least one product.
        picture: the image.
        features: raw patch features of it.
        see: raw patch features of other pictures: one of a product that is aligned passes the backbone again.
        task: the product, where it is given; no routing is done then.

    Raises:
        ImageError: a score that is not finite.
    """
    assert line.base is not None
    assert line.router is not None
    decision = None if task else line.router.decide(describe(features))[0]
    name = task or decision.task  # type: ignore[union-attr]
    product = line.products[name]
    pose, placement = product.pose, None
    if pose is not None and pose.template is not None:
        placement = pose.place(picture.pixels, picture.size)
        if placement is not None:
            features = see([picture.aligned(placement, pose.window)])
    maps, scores, strangeness = product.inspect(line.base, features)
    score = float(scores[0])
    if not np.isfinite(score):
        raise ImageError(f"{name_of(picture.source)}: its score is not finite ({score})")
    routing = None
    if decision is not None:
        routing = Routing(
            distance=decision.distance,
            distance_limit=line.router.limits[name],
            strangeness=float(strangeness[0]),
            strangeness_limit=product.strangeness_limit,
            margin=decision.margin,
            distances=decision.distances,
        )
    _, threshold = line.verdict(name)
    return Prediction(
        source=picture.source,
        task=name,
        known=routing is None or routing.known,
        pred_score=score,
        p_value=product.calibration.p_value(score),
        threshold=threshold,
        pred_label=score > threshold,
        patch_map=maps[0].cpu().numpy(),
        image_size=picture.size,
        routing=routing,
        placement=placement,
    )
