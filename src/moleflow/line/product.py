"""Everything the line knows about one product: what it says about an image, and what a saved line keeps.

A product is immutable once learned: what it says about an image depends on the image, the frozen base
and itself, never on which other products the line knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..codes import part
from ..config import LineConfig, ScoringConfig
from ..densities.coreset import PatchCoreset
from ..densities.correction import Correction
from ..densities.whole import WholeGaussian
from ..features.extractor import Features
from ..flow.cells import CellGaussians
from ..flow.expert import Base, Expert
from ..pose import Pose
from ..routing.gaussian import DescriptorStatistics
from ..sizes import Part, parts_of, total
from ..verdict.calibration import ScoreCalibration, TwoVoices, calibration_from_dict
from ..verdict.drift import Reference
from ..verdict.judgement import Judgement, judged, map_threshold
from ..verdict.maps import PositionCalibration, image_scores, smooth
from ..verdict.unknown import Familiarity

ROUTER = "router."  # names of the router's tensors in a saved line begin so


@dataclass(frozen=True, eq=False)
class Densities:
    """What a product says of the same patches; higher scores are stranger."""

    expert: Expert
    cells: CellGaussians | None
    coreset: PatchCoreset | None = None
    correction: Correction | None = None

    @property
    def gaussians(self) -> CellGaussians | None:
        """The cells: those that the flow begins with, or those beside it."""
        return self.expert.gaussians or self.cells

    def scores(self, base: Base, patches: Tensor) -> list[Tensor]:
        """Patch scores (B, h, w) of flow, cells and coreset for raw features (B, h, w, D)."""
        scores = [base.score(self.expert, base.prepare(patches))]
        return scores + [density(patches) for density in (self.cells, self.coreset) if density is not None]

    def known(self, patches: Tensor) -> Tensor:
        """What known defects add to the map, (B, h, w); a single 0 where none were shown."""
        if self.correction is None or self.gaussians is None:
            return torch.zeros((), device=patches.device)
        return self.correction.weight * self.correction(self.gaussians, patches)


@dataclass(frozen=True, eq=False)
class Product:
    """One product: densities, their calibration, and what the router needs to recognise it.

    Attributes:
        densities: flow expert, cell Gaussians, coreset, and what known defects taught.
        whole: density of the picture as a whole; None where the line or an older product has none. It speaks
            where it is calibrated; else an update of too few images only handed it on.
        positions: calibration of each density's patch scores over the image.
        descriptors: the router's statistics.
        calibration: good images' scores.
        familiarity: what good images' ordinary places look like.
        images: how many good images were learned from, calibration included.
        seconds: by stage.
        reference: conditions the good images were taken under; None for products of earlier libraries.
        pose: whether and how its images are aligned; None where nobody asked.
        taught_base: whether the line's base was learned from its images.
    """

    config: LineConfig
    densities: Densities
    whole: WholeGaussian | None
    positions: tuple[PositionCalibration, ...]
    descriptors: DescriptorStatistics
    calibration: ScoreCalibration | TwoVoices
    familiarity: Familiarity
    images: int
    seconds: dict[str, float] = field(default_factory=dict)
    reference: Reference | None = None
    pose: Pose | None = None
    taught_base: bool = False

    @property
    def known_defects(self) -> int:
        """How many images of defects it was shown."""
        return 0 if self.densities.correction is None else self.densities.correction.images

    @torch.no_grad()
    def inspect(self, base: Base, seen: Features) -> Judgement:
        """One image's features to what this product says of it."""
        return self.judged(*self.maps(base, seen.patches), seen.pooled)

    @torch.no_grad()
    def maps(self, base: Base, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, h, w, D) to raw maps, and to those of the densities alone, both (B, h, w)."""
        scoring = self.config.scoring
        scores = self.densities.scores(base, patches)
        found = combine(scores, self.positions, scoring) + self.densities.known(patches)
        return smooth(found, scoring.smoothing), density_map(scores, self.positions, scoring)

    @torch.no_grad()
    def judged(self, maps: Tensor, ordinary: Tensor, pooled: Tensor) -> Judgement:
        """What follows from one image's two `maps` and its pooled features (1, E)."""
        place = float(image_scores(maps, self.config.scoring)[0])
        strangeness = float(self.familiarity.of(ordinary)[0])
        whole = None if self.whole is None else float(self.whole(pooled)[0])
        return judged(self.calibration, maps[0].cpu().numpy(), place, whole, strangeness)

    def map_threshold(self, rate: float | None, threshold: float) -> float:
        """Score of the map, in its unit, above which a place is conspicuous.

        Args:
            rate: the false-alarm rate that the image's threshold follows from; None where it was set by hand.
            threshold: of the image's score; one set by hand means the rate that it comes to.
        """
        return map_threshold(self.calibration, rate, threshold)

    def parts(self) -> dict[str, Part]:
        """What the product owns, part by part: numbers and bytes in a saved line."""
        return parts_of(self.tensors(), self._verdicts())

    def memory(self) -> int:
        """Bytes that it takes in memory once it has inspected an image."""
        gaussians, coreset = self.densities.gaussians, self.densities.coreset
        tensors: list[Tensor] = list(self.densities.expert.parameters())
        tensors += [position.spread for position in self.positions]
        tensors += [] if self.whole is None else list(self.whole.tensors().values())
        tensors += [self.descriptors.factor, self.descriptors.witnesses]
        own = sum(tensor.nbytes for tensor in tensors) + (0 if coreset is None else coreset.nbytes)
        return own + (0 if gaussians is None else gaussians.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps of the product; expert and cells fit 16 bits by construction."""
        parts = {f"flow.{k}": v for k, v in self.densities.expert.kept().items()}
        if self.densities.gaussians is not None:
            parts |= {f"cells.{k}": v for k, v in self.densities.gaussians.kept().items()}
        if self.densities.coreset is not None:
            parts |= {f"coreset.{k}": v for k, v in self.densities.coreset.tensors().items()}
        if self.densities.correction is not None:
            parts |= {f"correction.{k}": v for k, v in self.densities.correction.tensors().items()}
        if self.whole is not None:
            parts |= {f"whole.{k}": v for k, v in self.whole.tensors().items()}
        for i, position in enumerate(self.positions):
            parts |= {f"position.{i}.{k}": v for k, v in position.kept().items()}
        parts |= {f"{ROUTER}{k}": v for k, v in self.descriptors.tensors().items()}
        if self.pose is not None:
            parts |= {f"pose.{k}": torch.from_numpy(v) for k, v in self.pose.arrays().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}

    def info(self) -> dict[str, Any]:
        """The rest, as plain JSON."""
        return {
            "images": self.images,
            **self._verdicts(),
            "seconds": self.seconds,
            "parameters": total(self.parts()).numbers,
            "reference": None if self.reference is None else self.reference.to_dict(),
            "pose": None if self.pose is None else self.pose.info(),
            "taught_base": self.taught_base,
        }

    def _verdicts(self) -> dict[str, Any]:
        """What its verdicts follow from, as plain JSON."""
        older = isinstance(self.calibration, ScoreCalibration)
        return {
            "calibration": self.calibration.to_dict(),
            "strangeness": list(self.familiarity.values) if older else self.familiarity.to_dict(),
        }

    @classmethod
    def from_saved(
        cls, base: Base, config: LineConfig, tensors: dict[str, Tensor], info: dict[str, Any]
    ) -> Product:
        """The inverse of `tensors` and `info`, to the bit. Raises KeyError or RuntimeError on a misfit."""
        device = base.position.device
        options = config.flow.cells or config.scoring.cells
        cells = None
        if options is not None:
            kept = part(tensors, "cells.")
            cells = CellGaussians.from_kept(_grid(base), base.channels, options, kept).to(device)
        expert = Expert.from_kept(base, part(tensors, "flow."))
        if config.flow.cells is not None:
            assert cells is not None
            expert, cells = expert.beginning_with(cells), None
        coreset = part(tensors, "coreset.")
        layers = () if config.scoring.coreset is None else config.scoring.coreset.compared
        positions = tuple(
            PositionCalibration.from_kept(part(tensors, f"position.{i}."))
            for i in range(1 + (cells is not None) + bool(coreset))
        )
        pose = {name: tensor.numpy() for name, tensor in part(tensors, "pose.").items()}
        whole, correction = part(tensors, "whole."), part(tensors, "correction.")
        return cls(
            config=config,
            densities=Densities(
                expert.requires_grad_(False).eval().to(device),
                cells,
                PatchCoreset.from_tensors(coreset, layers).to(device) if coreset else None,
                Correction.from_tensors(correction).to(device) if correction else None,
            ),
            whole=WholeGaussian.from_tensors(whole) if whole else None,
            positions=positions,
            descriptors=statistics_of(tensors),
            calibration=calibration_from_dict(info["calibration"]),
            familiarity=Familiarity.from_dict(info["strangeness"], rate=config.router.false_rejection_rate),
            images=info["images"],
            seconds=info["seconds"],
            reference=Reference.from_dict(info["reference"]) if info.get("reference") else None,
            pose=Pose.from_saved(pose, info["pose"]) if info.get("pose") else None,
            taught_base=info.get("taught_base", "base" in info["seconds"]),  # older lines say it by its time
        )


def statistics_of(tensors: Mapping[str, Tensor]) -> DescriptorStatistics:
    """What the router keeps of a product, of the tensors that a saved line keeps."""
    return DescriptorStatistics.from_tensors(part(tensors, ROUTER))


def combine(
    scores: Sequence[Tensor], positions: Sequence[PositionCalibration], scoring: ScoringConfig
) -> Tensor:
    """Weighted mean of the calibrated patch scores of flow, cells and coreset, (B, h, w)."""
    densities = density_map(scores, positions, scoring)
    if len(scores) == _densities(scoring):
        return densities
    assert scoring.coreset is not None
    weight = scoring.coreset.weight
    return (densities + weight * positions[-1](scores[-1])) / (1 + weight)


def density_map(
    scores: Sequence[Tensor], positions: Sequence[PositionCalibration], scoring: ScoringConfig
) -> Tensor:
    """The same of flow and cells alone: what says whether a picture is of the product at all.

    A coreset cannot: some remembered patch is like an ordinary place of most pictures.
    """
    parts = [positions[i](scores[i]) for i in range(_densities(scoring))]
    if len(parts) == 1:
        return parts[0]
    return (scoring.flow_weight * parts[0] + parts[1]) / (scoring.flow_weight + 1)


def _densities(scoring: ScoringConfig) -> int:
    """How many of a product's scores are of densities; the coreset's comes behind them."""
    return 1 if scoring.cells is None else 2


def _grid(base: Base) -> tuple[int, int]:
    return base.position.shape[0], base.position.shape[1]
