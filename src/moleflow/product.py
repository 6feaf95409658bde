"""Everything the line knows about one product, and how it is learned from good images alone.

A product is immutable once learned: what it says about an image depends on the image, the frozen base
and itself, never on which other products the line knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cells import CellGaussians
from .config import LineConfig
from .flow.expert import Base, Expert
from .pose import Pose
from .routing.gaussian import WITNESSES, DescriptorStatistics, describe
from .scoring import LEAST_SPREAD, PositionCalibration, ScoreCalibration, image_scores, smooth, upper_limit
from .training import learn_expert

Progress = Callable[[str, float], None]  # stage and the share of it done, 0..1

LEFT_OUT_GROUPS = 32  # into which calibration images are parted at most
MEMORY_LEAST, MEMORY_MOST = 32, 128  # images drawn from a product's past when it is updated


@dataclass(frozen=True, eq=False)
class Densities:
    """The two densities of a product over the same features; higher scores are stranger."""

    expert: Expert
    cells: CellGaussians | None

    def scores(self, base: Base, features: Tensor) -> list[Tensor]:
        """Patch scores (B, h, w) of each density for raw features (B, h, w, D)."""
        scores = [-base.log_prob(self.expert, base.prepare(features))]
        return scores if self.cells is None else [*scores, self.cells(features)]


@dataclass(frozen=True, eq=False)
class Product:
    """One product: densities, their calibration, and what the router needs to recognise it.

    Attributes:
        densities: flow expert and cell Gaussians.
        positions: calibration of each density's patch scores over the image.
        descriptors: the router's statistics.
        calibration: good images' scores.
        strangeness: median calibrated patch score of each good image that calibrated.
        images: how many good images were learned from, calibration included.
        seconds: by stage.
        pose: whether and how its images are aligned; None where nobody asked.
    """

    config: LineConfig
    densities: Densities
    positions: tuple[PositionCalibration, ...]
    descriptors: DescriptorStatistics
    calibration: ScoreCalibration
    strangeness: tuple[float, ...]
    images: int
    seconds: dict[str, float] = field(default_factory=dict)
    pose: Pose | None = None

    def inspect(self, base: Base, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised maps (B, h, w), image scores (B,) and strangeness (B,) of features (B, h, w, D)."""
        calibrated = self._calibrated(self.densities.scores(base, features))
        maps = smooth(calibrated, self.config.scoring.smoothing)
        return (
            self.calibration.standardise(maps),
            self.calibration.standardise(image_scores(maps, self.config.scoring)),
            calibrated.flatten(1).median(1).values,
        )

    @cached_property
    def strangeness_limit(self) -> float:
        """Twice as far above typical as the rare good image comes: a defect covers part of a picture, and
        the median patch of a known product stays below this."""
        values = list(self.strangeness)
        limit = upper_limit(values, self.config.router.false_rejection_rate)
        return float(np.mean(values)) + 2 * (limit - float(np.mean(values)))

    def parameters(self) -> int:
        """Trained numbers the product owns."""
        return sum(p.numel() for p in self.densities.expert.parameters())

    def _calibrated(self, scores: list[Tensor]) -> Tensor:
        return combine(scores, self.positions, self.config.scoring.flow_weight)

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps of the product; expert and cells fit 16 bits by construction."""
        parts = {f"flow.{k}": v.half() for k, v in self.densities.expert.state_dict().items()}
        if self.densities.cells is not None:
            state = self.densities.cells.state_dict()
            halves = ("mean", "directions")
            parts |= {f"cells.{k}": v.half() if k in halves else v for k, v in state.items()}
        for i, position in enumerate(self.positions):
            parts[f"position.{i}.level"] = torch.tensor([position.level])
            parts[f"position.{i}.spread"] = position.spread.half()
        parts |= {f"router.{k}": v for k, v in self.descriptors.tensors().items()}
        if self.pose is not None:
            parts |= {f"pose.{k}": v for k, v in self.pose.tensors().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}

    def info(self) -> dict[str, Any]:
        """The rest, as plain JSON."""
        return {
            "images": self.images,
            "calibration": self.calibration.to_dict(),
            "strangeness": list(self.strangeness),
            "seconds": self.seconds,
            "parameters": self.parameters(),
            "pose": None if self.pose is None else self.pose.info(),
        }

    @classmethod
    def from_saved(
        cls, base: Base, config: LineConfig, tensors: dict[str, Tensor], info: dict[str, Any]
    ) -> Product:
        """The inverse of `tensors` and `info`, to the bit. Raises KeyError or RuntimeError on a misfit."""
        device = base.position.device
        expert = Expert(base)
        expert.load_state_dict({k: v.float() for k, v in _part(tensors, "flow.").items()})
        cells = None
        if config.scoring.cells is not None:
            cells = CellGaussians(_grid(base), base.channels, config.scoring.cells)
            cells.load_state_dict({k: v.float() for k, v in _part(tensors, "cells.").items()})
            cells = cells.to(device)
        positions = tuple(
            PositionCalibration(
                float(tensors[f"position.{i}.level"][0]),
                tensors[f"position.{i}.spread"].float().clamp_min(LEAST_SPREAD),
            )
            for i in range(1 if cells is None else 2)
        )
        return cls(
            config=config,
            densities=Densities(expert.requires_grad_(False).eval().to(device), cells),
            positions=positions,
            descriptors=DescriptorStatistics.from_tensors(_part(tensors, "router.")),
            calibration=ScoreCalibration.from_dict(info["calibration"]),
            strangeness=tuple(info["strangeness"]),
            images=info["images"],
            seconds=info["seconds"],
            pose=Pose.from_saved(_part(tensors, "pose."), info["pose"]) if info.get("pose") else None,
        )


def combine(scores: list[Tensor], positions: tuple[PositionCalibration, ...], flow_weight: float) -> Tensor:
    """Weighted mean of the calibrated densities' patch scores, (B, h, w)."""
    flow, *rest = (calibrate(score) for calibrate, score in zip(positions, scores, strict=True))
    if not rest:
        return flow
    return (flow_weight * flow + rest[0]) / (flow_weight + 1)


def learn_product(
    base: Base,
    features: Tensor,
    config: LineConfig,
    *,
    seed: int,
    progress: Progress = lambda stage, share: None,
    previous: Product | None = None,
    routed: Tensor | None = None,
) -> Product:
    """Learns a product on a frozen base from raw features (N, h, w, D) of its good images.

    With enough images a share of them is held out to calibrate. With few, every image calibrates in
    turn (cross-fitting): for each fold the densities are learned from the others, and the scores of
    all left-out images together calibrate the densities learned from all.

    Args:
        base: the frozen base.
        features: of the good images at hand.
        config: all options.
        seed: fixes split, initial weights, sampling and noise.
        progress: told stage and share.
        previous: what was known of the product. Its images are gone, but its cell Gaussians can draw
            features like theirs, which are learned beside the new ones.
        routed: features of the same images as the router sees them, where `features` are of aligned ones.
    """
    started = time.perf_counter()
    learn, folds, kind = split(len(features), config, seed)
    memory = _remembered(previous, features, seed)
    rounds = len(folds) + 1 if kind == "cross-fitted" else 1
    done = [0]

    def densities_of(images: list[int]) -> Densities:
        known = torch.cat([features[images], memory])
        learned = _densities(
            base, known, config, seed, lambda share: progress("learning", (done[0] + share) / rounds)
        )
        done[0] += 1
        return learned

    held: list[list[Tensor]] = []
    if kind == "cross-fitted":
        for fold in folds:
            others = sorted(set(learn) - set(fold))
            held.append(_scores(densities_of(others), base, features[fold]))
    densities = densities_of(learn)
    learned = time.perf_counter()
    progress("calibration", 0.0)
    if kind != "cross-fitted":
        held.append(_scores(densities, base, features[folds[0]]))
    scores = [torch.cat(parts) for parts in zip(*held, strict=True)]
    calibrating = [i for fold in folds for i in fold]
    positions, calibration, strangeness = _calibrate(config, scores, kind)
    progress("calibration", 1.0)
    return Product(
        config=config,
        densities=densities,
        positions=positions,
        calibration=calibration,
        strangeness=strangeness,
        descriptors=_descriptors(
            features if routed is None else routed, learn, calibrating, config=config, previous=previous
        ),
        images=len(features) + (previous.images if previous else 0),
        seconds={"learning": learned - started, "calibration": time.perf_counter() - learned},
    )


def _remembered(previous: Product | None, features: Tensor, seed: int) -> Tensor:
    """Features like those of the earlier images, about as many as there are new ones; none without a past."""
    if previous is None or previous.densities.cells is None:
        return features[:0]
    generator = torch.Generator().manual_seed(seed)
    count = min(previous.images, max(len(features), MEMORY_LEAST), MEMORY_MOST)
    return previous.densities.cells.sample(count, generator).to(features)


def _descriptors(
    features: Tensor,
    learn: list[int],
    calibrating: list[int],
    *,
    config: LineConfig,
    previous: Product | None,
) -> DescriptorStatistics:
    """The router's statistics, of new images and of the earlier ones it remembers descriptors of."""
    learned, held = describe(features[learn]), describe(features[calibrating])
    if set(learn) == set(calibrating) and len(learn) > 1:
        # Seen from a mean they helped to make they lie too near; a new image would lie this much farther.
        mean = learned.mean(0)
        held = mean + (held - mean) * math.sqrt((len(learn) + 1) / (len(learn) - 1))
    if previous is not None:
        old = previous.descriptors.witnesses
        learned = torch.cat([learned, old])
        held = torch.cat([held[: WITNESSES - len(old) // 2], old[: len(old) // 2 + len(old) % 2]])
    return DescriptorStatistics.fit(learned, held, rank=config.router.rank)


def split(count: int, config: LineConfig, seed: int) -> tuple[list[int], list[list[int]], str]:
    """Images to learn from, the groups that calibrate, and how: see `learn_product`."""
    scoring = config.scoring
    order = np.random.default_rng(seed).permutation(count).tolist()
    if count == 1:
        return order, [order], "in-sample"
    if count < scoring.cross_fit_below:
        folds = min(scoring.folds, count)
        return sorted(order), [sorted(order[i::folds]) for i in range(folds)], "cross-fitted"
    held = min(max(scoring.holdout_least, round(scoring.holdout * count)), count // 2)
    return sorted(order[held:]), [sorted(order[:held])], "held-out"


def _densities(
    base: Base, features: Tensor, config: LineConfig, seed: int, progress: Callable[[float], None]
) -> Densities:
    expert = learn_expert(base, features, config.training, seed=seed, progress=progress)
    cells = None
    if config.scoring.cells is not None:
        cells = CellGaussians(_grid(base), base.channels, config.scoring.cells).to(features.device)
        cells.fit(features)
    return Densities(expert, cells)


@torch.no_grad()
def _scores(densities: Densities, base: Base, features: Tensor) -> list[Tensor]:
    parts = [densities.scores(base, image) for image in features.split(1)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@torch.no_grad()
def _calibrate(
    config: LineConfig, scores: list[Tensor], kind: str
) -> tuple[tuple[PositionCalibration, ...], ScoreCalibration, tuple[float, ...]]:
    """All that follows from good images' patch scores (n, h, w) of each density.

    The scores that set the threshold are taken with a position calibration the image itself had no
    part in: its own spread would make each image look more ordinary than the next one will.
    """
    positions = tuple(PositionCalibration.fit(score, config.scoring) for score in scores)
    count = len(scores[0])
    groups = [list(range(count))[i::LEFT_OUT_GROUPS] for i in range(min(count, LEFT_OUT_GROUPS))]
    calibrated = torch.empty_like(scores[0])
    for group in groups:
        rest = sorted(set(range(count)) - set(group)) or group
        seen = tuple(PositionCalibration.fit(score[rest], config.scoring) for score in scores)
        calibrated[group] = combine([score[group] for score in scores], seen, config.scoring.flow_weight)
    raw = image_scores(smooth(calibrated, config.scoring.smoothing), config.scoring)
    strangeness = calibrated.flatten(1).median(1).values.double().tolist()
    return positions, ScoreCalibration(kind, tuple(sorted(raw.double().tolist()))), tuple(strangeness)


def _grid(base: Base) -> tuple[int, int]:
    return base.position.shape[0], base.position.shape[1]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
