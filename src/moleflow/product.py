"""Everything the line knows about one product, and how it is learned from good images alone.

A product is immutable once learned: what it says about an image depends on the image, the frozen base
and itself, never on which other products the line knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .blocks import Blocks, make_blocks
from .cells import CellGaussians, fit_without_each
from .config import LineConfig, ScoringConfig
from .features.extractor import Features
from .flow.expert import Base, Expert
from .pose import Pose
from .routing.gaussian import WITNESSES, DescriptorStatistics, describe
from .storage import Part, parts_of, total
from .training import learn_base, learn_expert
from .verdict.calibration import ScoreCalibration, TwoVoices, Voice, calibration_from_dict
from .verdict.drift import Reference
from .verdict.maps import LEAST_SPREAD, PositionCalibration, image_scores, smooth
from .verdict.unknown import ORDINARY, Familiarity
from .whole import WholeGaussian

Progress = Callable[[str, float], None]  # stage and the share of it done, 0..1

MEMORY_LEAST, MEMORY_MOST = 32, 128  # images drawn from a product's past when it is updated
HALF_SHARE = 0.25  # of the flow's steps for each of the two flows that calibrate; the final one has the rest
LEAST_RATE = 1e-12  # that a threshold set by hand is taken to mean
GAP_IMAGES = 12  # of each half, by which a flow's optimism about what it learned from is measured


@dataclass(frozen=True, eq=False)
class Densities:
    """The two densities of a product over the same patches; higher scores are stranger."""

    expert: Expert
    cells: CellGaussians | None

    def scores(self, base: Base, patches: Tensor) -> list[Tensor]:
        """Patch scores (B, h, w) of each density for raw features (B, h, w, D)."""
        scores = [-base.log_prob(self.expert, base.prepare(patches))]
        return scores if self.cells is None else [*scores, self.cells(patches)]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a product says of one image.

    Attributes:
        patch_map: (h, w), in spreads of good images' map scores above the typical one.
        score: of the image, in the unit of `Prediction.pred_score`.
        place: the map's own score, in the map's unit.
        whole: the picture's own score, in spreads above the typical good image; None without that voice.
        strangeness: how foreign the most ordinary places look.
    """

    patch_map: Tensor
    score: float
    place: float
    whole: float | None
    strangeness: float


@dataclass(frozen=True, eq=False)
class Product:
    """One product: densities, their calibration, and what the router needs to recognise it.

    Attributes:
        densities: flow expert and cell Gaussians.
        whole: density of the picture as a whole; None where the line or an older product has none.
        positions: calibration of each density's patch scores over the image.
        descriptors: the router's statistics.
        calibration: good images' scores.
        familiarity: what good images' ordinary places look like.
        images: how many good images were learned from, calibration included.
        seconds: by stage.
        reference: conditions the good images were taken under; None for products of earlier libraries.
        pose: whether and how its images are aligned; None where nobody asked.
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

    @torch.no_grad()
    def inspect(self, base: Base, seen: Features) -> Judgement:
        """One image's features to what this product says of it."""
        scoring = self.config.scoring
        calibrated = combine(self.densities.scores(base, seen.patches), self.positions, scoring.flow_weight)
        maps = smooth(calibrated, scoring.smoothing)
        place = float(image_scores(maps, scoring)[0])
        strangeness = float(self.familiarity.of(calibrated)[0])
        if isinstance(self.calibration, ScoreCalibration):  # of a line's first format
            score = float(self.calibration.standardise(image_scores(maps, scoring))[0])
            return Judgement(self.calibration.standardise(maps)[0], score, score, None, strangeness)
        whole = None if self.whole is None else float(self.whole(seen.pooled)[0])
        voice = self.calibration.place
        return Judgement(
            patch_map=(maps[0] - voice.level) / voice.spread,
            score=self.calibration.score(place, whole),
            place=voice.units(place),
            whole=None
            if whole is None or self.calibration.whole is None
            else self.calibration.whole.units(whole),
            strangeness=strangeness,
        )

    def map_threshold(self, rate: float | None, threshold: float) -> float:
        """Score of the map, in its unit, above which a place is conspicuous.

        Args:
            rate: the false-alarm rate that the image's threshold follows from; None where it was set by hand.
            threshold: of the image's score; one set by hand means the rate that it comes to.
        """
        if isinstance(self.calibration, ScoreCalibration):
            return threshold
        if rate is None:
            rate = min(max(self.calibration.p_value(threshold), LEAST_RATE), 1 - LEAST_RATE)
        return self.calibration.place_threshold(rate)

    def parts(self) -> dict[str, Part]:
        """What the product owns, part by part: numbers and bytes in a saved line."""
        return parts_of(self.tensors(), self._verdicts())

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps of the product; expert and cells fit 16 bits by construction."""
        parts = {f"flow.{k}": v.half() for k, v in self.densities.expert.state_dict().items()}
        if self.densities.cells is not None:
            state = self.densities.cells.state_dict()
            halves = ("mean", "directions")
            parts |= {f"cells.{k}": v.half() if k in halves else v for k, v in state.items()}
        if self.whole is not None:
            parts |= {f"whole.{k}": v for k, v in self.whole.tensors().items()}
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
            **self._verdicts(),
            "seconds": self.seconds,
            "parameters": total(self.parts()).numbers,
            "reference": None if self.reference is None else self.reference.to_dict(),
            "pose": None if self.pose is None else self.pose.info(),
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
        whole = _part(tensors, "whole.")
        return cls(
            config=config,
            densities=Densities(expert.requires_grad_(False).eval().to(device), cells),
            whole=WholeGaussian.from_tensors(whole) if whole else None,
            positions=positions,
            descriptors=DescriptorStatistics.from_tensors(_part(tensors, "router.")),
            calibration=calibration_from_dict(info["calibration"]),
            familiarity=_familiarity_from(info["strangeness"], config),
            images=info["images"],
            seconds=info["seconds"],
            reference=Reference.from_dict(info["reference"]) if info.get("reference") else None,
            pose=Pose.from_saved(_part(tensors, "pose."), info["pose"]) if info.get("pose") else None,
        )


def _familiarity_from(values: Any, config: LineConfig) -> Familiarity:
    if isinstance(values, list):  # of a line's first format: the median patch, and a limit from a model
        return Familiarity(0.5, tuple(values), rate=config.router.false_rejection_rate)
    return Familiarity(values["quantile"], tuple(values["values"]), floor=values["floor"])


def combine(scores: list[Tensor], positions: Sequence[PositionCalibration], flow_weight: float) -> Tensor:
    """Weighted mean of the calibrated densities' patch scores, (B, h, w)."""
    flow, *rest = (calibrate(score) for calibrate, score in zip(positions, scores, strict=True))
    if not rest:
        return flow
    return (flow_weight * flow + rest[0]) / (flow_weight + 1)


@dataclass(frozen=True, eq=False)
class Altered:
    """Good images again, as decoding and the sensor alone might have made them.

    Attributes:
        originals: position of the good image behind each.
        seen: their features.
    """

    originals: tuple[int, ...]
    seen: Features


@dataclass(frozen=True, eq=False)
class FirstBase:
    """A line's base with the two that calibrate the product it was learned from.

    Attributes:
        final: what all products share, learned from all images of the first.
        without: learned without the first half of its blocks, and without the second; None where there are
            no two halves. A base that knows an image says too little against it.
    """

    final: Base
    without: tuple[Base, Base] | None


def learn_first_base(
    patches: Tensor,
    config: LineConfig,
    *,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
    groups: Sequence[Hashable] | None = None,
    copies: Sequence[int] | None = None,
    blocks: Blocks | None = None,
) -> FirstBase:
    """The base from a line's first product, in as many steps as one takes; arguments as `learn_product`.

    `blocks` are given where the patches are of several products that a line begins with together.
    """
    blocks = blocks or make_blocks(len(patches), config.scoring, groups=groups, copies=copies)
    learn = partial(learn_base, flow=config.flow, training=config.training)
    if blocks.count < 2:
        return FirstBase(learn(patches, seed=seed, progress=progress), None)
    halves = [
        learn(
            patches[blocks.half(1 - parity)],
            seed=seed,
            share=HALF_SHARE,
            progress=lambda done, parity=parity: progress(HALF_SHARE * (parity + done)),  # type: ignore[misc]
        )
        for parity in (0, 1)
    ]
    share = 1 - 2 * HALF_SHARE
    final = learn(
        patches,
        seed=seed + 1,
        share=share,
        begun=halves[0],
        progress=lambda done: progress(2 * HALF_SHARE + share * done),
    )
    return FirstBase(final, (halves[0], halves[1]))


def learn_product(
    base: Base,
    seen: Features,
    config: LineConfig,
    *,
    seed: int,
    progress: Progress = lambda stage, share: None,
    previous: Product | None = None,
    groups: Sequence[Hashable] | None = None,
    copies: Sequence[int] | None = None,
    altered: Altered | None = None,
    without: tuple[Base, Base] | None = None,
    routed: Tensor | None = None,
) -> Product:
    """Learns a product on a frozen base from the features of its good images.

    All images teach, and all calibrate: block by block they are left out of the closed-form densities, and
    half by half of the flow, whose final form goes on from one of the halves. See docs/calibration.md.

    Args:
        base: the frozen base.
        seen: of the good images at hand.
        config: all options.
        seed: fixes initial weights, sampling and noise.
        progress: told stage and share.
        previous: what was known of the product. Its images are gone, but its densities can draw
            features like theirs, which are learned beside the new ones.
        groups: session or lot of every image, where it is known; see `make_blocks`.
        copies: number of every image's group of near-copies, where that is known.
        altered: some of the images as the sensor alone might have changed them: no spread that follows
            from the images is believed to be smaller than what that makes of a score.
        without: bases that have not seen one half of the blocks or the other, where `base` itself was
            learned from these images; see `FirstBase`.
        routed: patches (N, h, w, D) of the same images as the router sees them, where `seen` is of aligned
            ones.
    """
    started = time.perf_counter()
    blocks = make_blocks(len(seen), config.scoring, groups=groups, copies=copies)
    memory = _remembered(previous, seen, seed)
    bases = (base, *(without or (base, base)))
    flows = _learn_flows(bases, seen.patches, memory.patches, blocks, config, seed, progress)
    learned = time.perf_counter()
    progress("calibration", 0.0)
    cells, left_out_cells = _learn_cells(seen.patches, memory.patches, blocks, config)
    progress("calibration", 0.5)
    densities = Densities(flows.final, cells)
    left_out = [flows.left_out] if left_out_cells is None else [flows.left_out, left_out_cells]
    positions = (flows.position, *(PositionCalibration.fit(s, config.scoring) for s in left_out[1:]))
    calibrated = _calibrated_without_own(left_out, blocks, config.scoring)
    whole, left_out_whole = _learn_whole(seen.pooled, memory.pooled, blocks, config.scoring)
    calibration, familiarity = _verdict(calibrated, left_out_whole, blocks, config.scoring)
    product = Product(
        config=config,
        densities=densities,
        whole=whole,
        positions=positions,
        calibration=calibration,
        familiarity=familiarity,
        descriptors=_descriptors(
            seen.patches if routed is None else routed, config=config, previous=previous
        ),
        images=len(seen) + (previous.images if previous else 0),
    )
    if altered is not None:
        product = _floored(product, base, altered)
    progress("calibration", 1.0)
    product.seconds.update(learning=learned - started, calibration=time.perf_counter() - learned)
    return product


# The flow, left out by halves


@dataclass(frozen=True, eq=False)
class _Flows:
    """A product's flow, its calibration over the image, and left-out patch scores (n, h, w) of all images."""

    final: Expert
    position: PositionCalibration
    left_out: Tensor


def _learn_flows(
    bases: tuple[Base, Base, Base],
    patches: Tensor,
    memory: Tensor,
    blocks: Blocks,
    config: LineConfig,
    seed: int,
    progress: Progress,
) -> _Flows:
    """The flow in as many steps as one would take, two short flows included that each saw half of the blocks.

    What the short ones say of the other half's blocks calibrates. The final flow goes on from the first of
    them with all images; its scores of images it learned from are corrected by the gap that the short ones
    show between the images they learned from and those they did not.

    Args:
        bases: of the final flow, and of each of the short ones.
    """
    base, *halves = bases
    training, scoring, count = config.training, config.scoring, len(patches)
    if blocks.count < 2:
        final = learn_expert(
            base, torch.cat([patches, memory]), training, seed=seed, progress=_part_of(progress, 0.0, 1.0)
        )
        scores = _flow_scores(base, final, patches)
        return _Flows(final, PositionCalibration.fit(scores, scoring), scores)
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    begun: Expert | None = None
    gaps: list[tuple[float, float]] = []
    for parity in (0, 1):
        out, learn = blocks.half(parity), blocks.half(1 - parity)
        half = learn_expert(
            halves[parity],
            torch.cat([patches[learn], memory]),
            training,
            seed=seed,
            share=HALF_SHARE,
            progress=_part_of(progress, parity * HALF_SHARE, HALF_SHARE),
        )
        left_out[out] = _flow_scores(halves[parity], half, patches[out])
        known = _flow_scores(halves[parity], half, patches[spread(learn, GAP_IMAGES)])
        fresh = left_out[spread(out, GAP_IMAGES)]
        gaps.append((float(fresh.mean() - known.mean()), float(fresh.std() / known.std().clamp_min(1e-9))))
        left_out[out] -= float(left_out[out].mean())  # each short flow has a level of its own
        begun = begun or half
    share = 1 - 2 * HALF_SHARE
    final = learn_expert(
        base,
        torch.cat([patches, memory]),
        training,
        seed=seed + 1,
        share=share,
        begun=begun,
        progress=_part_of(progress, 2 * HALF_SHARE, share),
    )
    known = _flow_scores(base, final, patches[spread(list(range(count)), 4 * GAP_IMAGES)])
    position = PositionCalibration.fit(known, scoring).moved(
        float(np.mean([gap for gap, _ in gaps])), max(1.0, float(np.mean([ratio for _, ratio in gaps])))
    )
    return _Flows(final, position, left_out)


def _part_of(progress: Progress, start: float, share: float) -> Callable[[float], None]:
    return lambda done: progress("learning", min(1.0, start + share * done))


def spread(images: Sequence[int], most: int) -> list[int]:
    """At most so many of the images, evenly spread."""
    places = np.linspace(0, len(images) - 1, min(len(images), most)).round().astype(int)
    return [images[place] for place in places]


@torch.no_grad()
def _flow_scores(base: Base, expert: Expert, patches: Tensor) -> Tensor:
    return torch.cat([-base.log_prob(expert, base.prepare(image)) for image in patches.split(1)])


# The closed forms, left out by blocks


@torch.no_grad()
def _learn_cells(
    patches: Tensor, memory: Tensor, blocks: Blocks, config: LineConfig
) -> tuple[CellGaussians | None, Tensor | None]:
    """The cells, and what cells without an image's block say of it (n, h, w)."""
    if config.scoring.cells is None:
        return None, None
    together, labels = torch.cat([patches, memory]), [*blocks.left_out, *[None] * len(memory)]
    if blocks.count < 2 and not len(memory):
        cells = CellGaussians(
            (patches.shape[1], patches.shape[2]), patches.shape[3], config.scoring.cells
        ).to(patches.device)
        cells.fit(together)
        return cells, torch.cat([cells(image) for image in patches.split(1)])
    cells, without = fit_without_each(together, labels, config.scoring.cells)
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    for block, others in enumerate(without):
        for i in blocks.images_of(block):
            left_out[i] = others(patches[i : i + 1])[0]
    return cells, left_out


def _learn_whole(
    pooled: Tensor, memory: Tensor, blocks: Blocks, scoring: ScoringConfig
) -> tuple[WholeGaussian | None, Tensor | None]:
    """The density of whole pictures, and what one without an image's block says of it (n,)."""
    if scoring.whole is None or not pooled.shape[1]:
        return None, None
    whole = WholeGaussian.fit(torch.cat([pooled, memory]), scoring.whole)
    if blocks.count < 2:
        return whole, whole(pooled)
    left_out = torch.empty(len(pooled), dtype=torch.float64)
    for block in range(blocks.count):
        images = blocks.images_of(block)
        others = [i for i, own in enumerate(blocks.left_out) if own != block]
        left_out[images] = WholeGaussian.fit(torch.cat([pooled[others], memory]), scoring.whole)(
            pooled[images]
        )
    return whole, left_out


def _calibrated_without_own(left_out: list[Tensor], blocks: Blocks, scoring: ScoringConfig) -> Tensor:
    """Calibrated maps (n, h, w), each with a position calibration that its block had no part in.

    Its own spread would make each image look more ordinary than the next one will.
    """
    calibrated = torch.empty_like(left_out[0])
    for block in range(blocks.count):
        images = blocks.images_of(block)
        rest = [i for i, own in enumerate(blocks.left_out) if own != block] or images
        seen = [PositionCalibration.fit(score[rest], scoring) for score in left_out]
        calibrated[images] = combine([score[images] for score in left_out], seen, scoring.flow_weight)
    return calibrated


def _verdict(
    calibrated: Tensor, whole: Tensor | None, blocks: Blocks, scoring: ScoringConfig
) -> tuple[TwoVoices, Familiarity]:
    """Both voices' left-out scores and the strangeness of good images, one of each group of near-copies."""
    first = list(blocks.first)
    places = image_scores(smooth(calibrated, scoring.smoothing), scoring)[first]
    calibration = TwoVoices(
        Voice(_numbers(places)), None if whole is None else Voice(_numbers(whole[first])), blocks.sessions
    )
    familiarity = Familiarity(ORDINARY, ())
    return calibration, Familiarity(ORDINARY, _numbers(familiarity.of(calibrated[first])))


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().cpu().tolist())


def _floored(product: Product, base: Base, altered: Altered) -> Product:
    """The product with its spreads held above what decoding and the sensor alone make of a score."""
    calibration = product.calibration
    assert isinstance(calibration, TwoVoices)
    told = [product.inspect(base, one) for one in altered.seen.split()]
    place = _moved([one.place for one in told], altered) * calibration.place.spread
    calibration = replace(calibration, place=replace(calibration.place, floor=place))
    if calibration.whole is not None:
        moved = _moved([one.whole or 0.0 for one in told], altered) * calibration.whole.spread
        calibration = replace(calibration, whole=replace(calibration.whole, floor=moved))
    strange = _moved([one.strangeness for one in told], altered)
    return replace(
        product,
        calibration=calibration,
        familiarity=replace(product.familiarity, floor=strange),
    )


def _moved(values: list[float], altered: Altered) -> float:
    """Standard deviation of what is said of one picture in its versions, none of which was learned."""
    originals = np.array(altered.originals)
    groups = [np.array(values)[originals == i] for i in sorted(set(altered.originals))]
    return math.sqrt(float(np.mean([group.var() for group in groups])))


# The past, and the router


def _remembered(previous: Product | None, seen: Features, seed: int) -> Features:
    """Features like those of the earlier images, about as many as there are new ones; none without a past."""
    if previous is None or previous.densities.cells is None:
        return seen.take([])
    generator = torch.Generator().manual_seed(seed)
    count = min(previous.images, max(len(seen), MEMORY_LEAST), MEMORY_MOST)
    patches = previous.densities.cells.sample(count, generator).to(seen.patches)
    pooled = seen.pooled[:0] if previous.whole is None else previous.whole.sample(count, generator)
    return Features(patches, pooled.to(seen.pooled))


def _descriptors(patches: Tensor, *, config: LineConfig, previous: Product | None) -> DescriptorStatistics:
    """The router's statistics, of new images and of the earlier ones it remembers descriptors of."""
    learned = describe(patches)
    held = learned[spread(list(range(len(learned))), WITNESSES)]
    if len(learned) > 1:
        # Seen from a mean they helped to make they lie too near; a new image would lie this much farther.
        mean = learned.mean(0)
        held = mean + (held - mean) * math.sqrt((len(learned) + 1) / (len(learned) - 1))
    if previous is not None:
        old = previous.descriptors.witnesses
        learned = torch.cat([learned, old])
        held = torch.cat([held[: WITNESSES - len(old) // 2], old[: len(old) // 2 + len(old) % 2]])
    return DescriptorStatistics.fit(learned, held, rank=config.router.rank)


def split(count: int, config: LineConfig, seed: int) -> tuple[list[int], list[list[int]], str]:
    """Images to learn from, the groups that calibrate, and how: for the bench's rivals that hold out.

    With enough images a share of them is held out. With few, every image calibrates in turn: for each fold
    a density is learned from the others.
    """
    scoring = config.scoring
    order = np.random.default_rng(seed).permutation(count).tolist()
    if count == 1:
        return order, [order], "in-sample"
    if count < scoring.cross_fit_below:
        folds = min(scoring.folds, count)
        return sorted(order), [sorted(order[i::folds]) for i in range(folds)], "cross-fitted"
    held = min(max(scoring.holdout_least, round(scoring.holdout * count)), count // 2)
    return sorted(order[held:]), [sorted(order[:held])], "held-out"


def _grid(base: Base) -> tuple[int, int]:
    return base.position.shape[0], base.position.shape[1]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
