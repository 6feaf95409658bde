"""From a line and a picture's features to what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from .data.sources import name_of
from .errors import ImageError
from .features.extractor import Features
from .intake import Picture
from .line import Line
from .product import Judgement, Product
from .results import Prediction, Routing
from .routing.gaussian import describe
from .verdict.calibration import TwoVoices
from .verdict.drift import FINDING_RATE, Facts, Finding, channels_beyond, facts_of

MOST = 0.9  # of a map: more than a defect covers
TYPICAL = (
    1.0  # calibrated score that so much of a good image's map lies below, each place being in its own spread
)


@torch.no_grad()
def inspect(
    line: Line,
    picture: Picture,
    features: Features,
    *,
    see: Callable[[Sequence[Picture]], Features],
    task: str | None = None,
) -> Prediction:
    """One picture's features to its verdict.

    Images pass one by one once the backbone has seen the batch: their features fit the processor's
    cache, and what is said of an image cannot depend on its neighbours in the batch.

    Args:
        line: with at least one product.
        picture: the image.
        features: what the backbone sees of it.
        see: what it sees of other pictures: one of a product that is aligned passes the backbone again.
        task: the product, where it is given; no routing is done then.

    Raises:
        ImageError: a score that is not finite.
    """
    assert line.base is not None
    assert line.router is not None
    decision = None if task else line.router.decide(describe(features.patches))[0]
    name = task or decision.task  # type: ignore[union-attr]
    product = line.products[name]
    pose, placement = product.pose, None
    if pose is not None and pose.template is not None:
        placement = pose.place(picture.own, picture.size)
        if placement is not None:
            features = see([picture.aligned(placement, pose.window)])
    found = product.inspect(line.base, features)
    score = found.score
    if not np.isfinite(score):
        raise ImageError(f"{name_of(picture.source)}: its score is not finite ({score})")
    routing = None
    if decision is not None:
        routing = Routing(
            distance=decision.distance,
            distance_limit=line.router.limits[name],
            strangeness=found.strangeness,
            strangeness_limit=product.familiarity.limit,
            margin=decision.margin,
            distances=decision.distances,
            known=product.familiarity.knows(
                found.strangeness, near=decision.distance <= line.router.limits[name]
            ),
        )
    rate, threshold = line.verdict(name)
    grid = found.patch_map.shape[0], found.patch_map.shape[1]
    facts = facts_of(picture.own, clipped=picture.clipped, size=picture.size)
    facts = replace(facts, place=found.strangeness, whole=found.whole)
    return Prediction(
        source=picture.source,
        task=name,
        known=routing is None or routing.known,
        pred_score=score,
        p_value=product.calibration.p_value(score),
        threshold=threshold,
        pred_label=score > threshold,
        place_score=found.place,
        whole_score=found.whole,
        patch_map=found.patch_map[picture.cells(grid)].cpu().numpy(),
        map_threshold=product.map_threshold(rate, threshold),
        image_size=picture.size,
        routing=routing,
        facts=facts,
        findings=_findings(facts, product),
        map_rise=_rise(found, product),
        placement=placement,
    )


def _findings(facts: Facts, product: Product) -> tuple[Finding, ...]:
    return () if product.reference is None else channels_beyond(facts, product.reference, rate=FINDING_RATE)


def _rise(found: Judgement, product: Product) -> float:
    """How far most of a map lies above that of a good image, in the map's unit."""
    if not isinstance(product.calibration, TwoVoices):
        return 0.0
    most = float(found.patch_map.quantile(MOST))
    return max(0.0, most - product.calibration.place.units(TYPICAL))
