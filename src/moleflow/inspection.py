"""From a line and pictures to what is said of them, whatever computes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from .data.sources import Errors, Source, name_of
from .errors import ConfigError, ImageError
from .intake import Intake, Picture, check_errors, pictures_in
from .results import Failure, Prediction, Routing
from .verdict.calibration import Calibration, TwoVoices
from .verdict.drift import FINDING_RATE, Facts, Finding, Reference, channels_beyond, facts_of
from .verdict.judgement import Decision, Judgement
from .verdict.unknown import Familiarity

MOST = 0.9  # of a map: more than a defect covers
TYPICAL = (
    1.0  # calibrated score that so much of a good image's map lies below, each place being in its own spread
)

F = TypeVar("F")  # what a backbone sees of one picture
F_in = TypeVar("F_in", contravariant=True)
See = Callable[[Sequence[Picture]], Sequence[F]]


class KnownProduct(Protocol):
    """What a verdict needs to know of a product."""

    @property
    def calibration(self) -> Calibration:
        """Good images' scores."""

    @property
    def familiarity(self) -> Familiarity:
        """What good images' ordinary places look like."""

    @property
    def reference(self) -> Reference | None:
        """Conditions the good images were taken under."""

    @property
    def pose(self) -> Any:
        """How its images are aligned; None where they are not."""

    def map_threshold(self, rate: float | None, threshold: float) -> float:
        """Score of the map above which a place is conspicuous."""


class KnownLine(Protocol[F_in]):
    """What an inspection needs of a line: the products, and who computes."""

    @property
    def intake(self) -> Intake:
        """From an image to what the backbone sees."""

    @property
    def products(self) -> Mapping[str, KnownProduct]:
        """By name."""

    @property
    def limits(self) -> Mapping[str, float]:
        """Distance up to which an image is near a product, by name."""

    def decide(self, features: F_in) -> Decision:
        """Which product one image's features are nearest to."""

    def judge(self, name: str, features: F_in) -> Judgement:
        """What a product says of one image's features."""

    def verdict(self, name: str) -> tuple[float | None, float]:
        """False-alarm rate, None where set by hand, and threshold."""


def check_stream(batch_size: int, errors: str) -> None:
    """ConfigError for a batch of no size, or for another word for `errors`."""
    check_errors(errors)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"expected a batch size of at least 1, got {batch_size}")


def inspect_all(
    line: KnownLine[F],
    sources: Sequence[tuple[Source, Any]],
    *,
    see: See[F],
    task: str | None,
    batch_size: int,
    errors: Errors,
) -> Iterator[Prediction | Failure]:
    """One result for every image in turn; with "yield" a `Failure` where there is nothing to say.

    Args:
        line: with at least one product.
        sources: the images.
        see: what the backbone sees of pictures, in one pass.
        task: the product, where it is given.
        batch_size: pictures of a pass.
        errors: whether ImageError is raised.
    """
    clock = _Clock()
    for batch in line.intake.batches(sources, batch_size, errors=errors):
        pictures = pictures_in(batch)
        decode = clock.lap() / max(len(pictures), 1)
        features = iter(see(pictures) if pictures else ())
        shares = {"decode": decode, "backbone": clock.lap() / max(len(pictures), 1)}
        for one in batch:
            if isinstance(one, Failure):
                yield one
                continue
            try:
                said = inspect(line, one, next(features), see=see, task=task)
                result: Prediction | Failure = replace(said, seconds=shares | said.seconds)
            except ImageError as error:
                if errors == "raise":
                    raise
                result = Failure(one.source, str(error))
            yield result
        clock.lap()  # what was done with the results is no part of the next batch


class _Clock:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Since the last time."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def inspect(
    line: KnownLine[F], picture: Picture, features: F, *, see: See[F], task: str | None = None
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
    clock = _Clock()
    decision = None if task else line.decide(features)
    seconds = {"routing": clock.lap()}
    name = task or decision.task  # type: ignore[union-attr]
    product = line.products[name]
    pose, placement = product.pose, None
    if pose is not None and pose.template is not None:
        placement = pose.place(picture.own, picture.size)
        if placement is not None:
            features = see([picture.aligned(placement, pose.window)])[0]
    found = line.judge(name, features)
    seconds["expert"] = clock.lap()
    score = found.score
    if not np.isfinite(score):
        raise ImageError(f"{name_of(picture.source)}: its score is not finite ({score})")
    routing = None
    if decision is not None:
        limit = line.limits[name]
        routing = Routing(
            distance=decision.distance,
            distance_limit=limit,
            strangeness=found.strangeness,
            strangeness_limit=product.familiarity.limit,
            margin=decision.margin,
            distances=decision.distances,
            known=product.familiarity.knows(found.strangeness, near=decision.distance <= limit),
        )
    rate, threshold = line.verdict(name)
    grid = found.patch_map.shape[0], found.patch_map.shape[1]
    facts = facts_of(picture.own, clipped=picture.clipped, size=picture.size)
    facts = replace(facts, place=found.strangeness, whole=found.whole)
    said = Prediction(
        source=picture.source,
        task=name,
        known=routing is None or routing.known,
        pred_score=score,
        p_value=product.calibration.p_value(score),
        threshold=threshold,
        pred_label=score > threshold,
        place_score=found.place,
        whole_score=found.whole,
        patch_map=found.patch_map[picture.cells(grid)],
        map_threshold=product.map_threshold(rate, threshold),
        image_size=picture.size,
        routing=routing,
        facts=facts,
        findings=_findings(facts, product),
        map_rise=_rise(found, product),
        placement=placement,
    )
    return replace(said, seconds=seconds | {"verdict": clock.lap()})


def _findings(facts: Facts, product: KnownProduct) -> tuple[Finding, ...]:
    return () if product.reference is None else channels_beyond(facts, product.reference, rate=FINDING_RATE)


def _rise(found: Judgement, product: KnownProduct) -> float:
    """How far most of a map lies above that of a good image, in the map's unit."""
    if not isinstance(product.calibration, TwoVoices):
        return 0.0
    most = float(np.quantile(found.patch_map, MOST))
    return max(0.0, most - product.calibration.place.units(TYPICAL))
