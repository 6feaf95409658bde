"""What the library hands back: frozen records with the field's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.sources import name_of
from .interpolation import bilinear
from .photographs.review import Lesson
from .photographs.suspects import Suspect
from .pose import Placement, PoseReport
from .verdict.changes import Changes
from .verdict.drift import CONDITIONS, Facts, Finding
from .verdict.promise import OUT_OF_REACH, Promise
from .verdict.regions import Region, find_regions, reduced

if TYPE_CHECKING:  # this brings torch, which a result does without
    from .sizes import Part

STAGES = ("decode", "backbone", "routing", "expert", "verdict")

NEAR = 3.5  # times the distance of the farthest good images: what another light may make of a product


def as_decimal(value: float, decimals: int) -> str:
    """A number with so many decimals, zero without a sign."""
    written = f"{value:.{decimals}f}"
    return written if float(written) else f"{0:.{decimals}f}"


@dataclass(frozen=True)
class Routing:
    """Why an image was taken for a product, or for none.

    `distance` is in units of the product's typical good image, `margin` is how many times farther the
    second nearest product is (1: undecided, infinite with one product), `distances` are the plain
    Mahalanobis distances per channel to every product; `strangeness` says how foreign most of the
    picture looks to the product's expert. `known` is False when the image looks like no product that was
    taught: docs/calibration.md says how that follows from the two.
    """

    distance: float
    distance_limit: float
    strangeness: float
    strangeness_limit: float
    margin: float
    distances: dict[str, float]
    known: bool


@dataclass(frozen=True, eq=False)
class Prediction:
    """One inspected image.

    Attributes:
        source: the path, or the position in what was passed in.
        task: the product the image was judged as.
        known: False when it looks like none of the taught products; the scores are still given.
        pred_score: anomaly score in spreads above a typical good image of this product.
        p_value: share of good images expected to score at least this high.
        threshold: score above which the image is called defective.
        pred_label: True when the score exceeds the threshold.
        place_score: of the map alone, the mean of its highest patches, in spreads of good images' maps.
        whole_score: of the picture as a whole, in spreads of good images; None where the product has no
            such voice. `pred_score` is the mean of the two, in spreads of that mean over good images.
        patch_map: scores on the part of the patch grid that shows the image, (h, w) float32, in the unit of
            `place_score`.
        map_threshold: score of the map above which a place is conspicuous, at the same false-alarm rate.
        image_size: (H, W) of the image in pixels.
        routing: None when the product was given.
        facts: under which conditions the image was taken.
        findings: in which of them it lies beyond the product's good images; none where nobody knows theirs.
        map_rise: how far most of the map lies above that of a good image, in the unit of `place_score`; a
            drift lifts all of a map, a defect some of it.
        placement: how the object lay, where the image was aligned before it was judged: `patch_map` shows it
            as aligned then, all other maps and the regions as it came.
        seconds: that it took, by stage: `STAGES`; the first two are shares of its batch.
    """

    source: Path | int
    task: str
    known: bool
    pred_score: float
    p_value: float
    threshold: float
    pred_label: bool
    place_score: float
    whole_score: float | None
    patch_map: np.ndarray = field(repr=False)
    map_threshold: float
    image_size: tuple[int, int]
    routing: Routing | None = None
    facts: Facts | None = None
    findings: tuple[Finding, ...] = ()
    map_rise: float = 0.0
    placement: Placement | None = None
    seconds: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def status(self) -> str:
        """What it is in a word: "good", "defective", "unknown" or "drifting".

        "drifting" is what would be defective, or unknown and yet not far from the product, and lies beyond
        its good images in light, contrast, sharpness, clipping or colour: what makes it strange may be the
        camera, and nobody can tell. A place that is conspicuous beyond what all of the picture rose by
        stays a defect in any light, and what is far from every product stays unknown.
        """
        if self.known and not self.pred_label:
            return "good"
        if self._conditions and self._may_be_the_camera:
            return "drifting"
        return "defective" if self.known else "unknown"

    @property
    def reason(self) -> str:
        """Why it has this status, in a sentence."""
        threshold = f"{self.threshold:.2f}" if self.threshold < OUT_OF_REACH else "out of reach"
        score = f"its score is {as_decimal(self.pred_score, 2)}, the threshold {threshold}"
        if self.status == "good":
            return f"like good images of {self.task}: {score}"
        if self.status == "drifting":
            what = "defective" if self.known else "of another product"
            return f"{self._conditions[0].sentence}; so nobody can tell whether it is {what}"
        if self.status == "unknown":
            return f"like none of the taught products, not even the nearest, {self.task}"
        where = "at a place" if self.place_score > self.map_threshold else "as a whole"
        return f"stranger than good images of {self.task} {where}: {score}"

    @property
    def _may_be_the_camera(self) -> bool:
        if self.known:
            return self.place_score - self.map_rise <= self.map_threshold
        return self.routing is not None and self.routing.distance <= NEAR * self.routing.distance_limit

    @property
    def _conditions(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.channel in CONDITIONS)

    @property
    def anomaly_map(self) -> np.ndarray:
        """The patch map at image size, (H, W) float32, interpolated anew at every access."""
        return self.map_at(self.image_size)

    @property
    def pred_mask(self) -> np.ndarray:
        """Pixels whose score exceeds the map's threshold, (H, W) bool."""
        return self.anomaly_map > self.map_threshold

    @property
    def regions(self) -> tuple[Region, ...]:
        """Connected parts of `pred_mask`, the highest 20, found anew at every access; see `Region`.

        An image may be defective without a region above its threshold, where what is wrong is spread over
        it or is the picture as a whole, and a good one may have small ones. In an image of more than four
        million pixels they are found on a map reduced to that many, and scaled.
        """
        size = reduced(self.image_size)
        return find_regions(self.map_at(size), self.map_threshold, size=self.image_size)

    def map_at(self, size: tuple[int, int]) -> np.ndarray:
        """The patch map at `size` (H, W) of the whole image, float32, in the image's own coordinates."""
        if self.placement is not None:
            return self.placement.map_back(self.patch_map, size, image_size=self.image_size)
        return bilinear(self.patch_map, size)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps and regions as plain JSON-able values."""
        routing = None
        if self.routing is not None:
            routing = {
                "distance": self.routing.distance,
                "distance_limit": _finite(self.routing.distance_limit),
                "strangeness": self.routing.strangeness,
                "strangeness_limit": _finite(self.routing.strangeness_limit),
                "margin": _finite(self.routing.margin),
                "distances": self.routing.distances,
            }
        return {
            "source": str(self.source),
            "task": self.task,
            "status": self.status,
            "reason": self.reason,
            "known": self.known,
            "pred_score": self.pred_score,
            "p_value": self.p_value,
            "threshold": self.threshold,
            "place_score": self.place_score,
            "whole_score": self.whole_score,
            "map_threshold": self.map_threshold,
            "map_rise": self.map_rise,
            "pred_label": self.pred_label,
            "image_size": list(self.image_size),
            "routing": routing,
            "facts": None if self.facts is None else self.facts.to_dict(),
            "placement": None if self.placement is None else self.placement.to_dict(),
        }


@dataclass(frozen=True)
class Failure:
    """An image of which nothing can be said, in its place among the results.

    Attributes:
        source: the path, or the position in what was passed in.
        error: why, in one sentence that names the source.
    """

    source: Path | int
    error: str

    @property
    def reason(self) -> str:
        """The error without the source, for where that stands beside it."""
        return self.error.removeprefix(f"{name_of(self.source)}: ")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return {"source": str(self.source), "error": self.error}


@dataclass(frozen=True)
class TaskInfo:
    """One taught product.

    Attributes:
        name: the product.
        version: folder of the saved version, None while not saved.
        images: good images learned from, calibration included.
        calibration: "left-out", or "in-sample" where a single image leaves no other way; "held-out" or
            "cross-fitted" of products from a line's first format. And on how many independent images.
        threshold: score above which an image is called defective.
        false_alarm_rate: rate the threshold was set for; None when it was set by hand.
        seconds: by stage: backbone, pose, base, learning, calibration.
        parameters: all numbers the product owns: flow, cells, router, calibration and the rest.
        bytes: all of these in a saved line, in bytes, file headers apart.
        parts: both by part: `statistics`, `whitening`, `lora`, `dia`, `cells`, `coreset`, `correction`,
            `whole`, `router`, `pose`, `calibration`, as far as the product has them.
        rerouted: witnesses that lost their way, by product: of an older one those that go to another product
            since this one came; under its own name those that are taken for another product. They stand for
            good images, 32 at most of each product; see `routing.gaussian.WITNESSES`.
        promise: which false-alarm rate its images support, and what more of them would change.
        lesson: what it was last taught from: light, sharpness, what was left out.
        unreadable: images of the last lesson that were left out because they could not be read, or had taught
            the product before, each with the reason.
        changes: what the last update of it changed, until the line is loaded anew; None without one.
        pose: whether its images are aligned, and why; None for a product that was learned without asking.
        known_defects: images of missed defects that it was shown.
    """

    name: str
    version: str | None
    images: int
    calibration: str
    calibration_images: int
    threshold: float
    false_alarm_rate: float | None
    seconds: dict[str, float]
    parameters: int
    bytes: int
    parts: dict[str, Part]
    rerouted: dict[str, int]
    promise: Promise
    lesson: Lesson
    unreadable: tuple[str, ...] = ()
    pose: PoseReport | None = None
    known_defects: int = 0
    changes: Changes | None = field(default=None, compare=False)

    @property
    def independent(self) -> int:
        """How many of the last lesson's images are no near-copies of one another."""
        return self.lesson.independent

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """Images of the last lesson that may not belong among the good ones, the gravest first."""
        return self.lesson.suspects


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if np.isfinite(value) else None
