"""What a product's densities say of images they did not learn from, for little more than one fit.

The flow is left out by halves: two short flows, each of which saw half of the blocks, judge the other half,
and the final one goes on from the first of them. Closed forms are left out block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .blocks import Blocks, make_blocks
from .cells import CellGaussians, fit_without_each
from .config import Cells, LineConfig, ScoringConfig
from .coreset import PatchCoreset, coresets_without_each
from .correction import Correction
from .data.sources import evenly
from .flow.expert import Base, Expert
from .threads import side_by_side
from .training import LeftOut, is_small, learn_base, learn_expert
from .verdict.maps import PositionCalibration
from .whole import WholeGaussian

Progress = Callable[[str, float], None]  # stage and the share of it done, 0..1

HALF_SHARE = 0.25  # of the flow's steps for each of the two flows that calibrate; the final one has the rest
FINAL_SHARE = 1 - 2 * HALF_SHARE
WORTH_A_THREAD = 4  # images that are asked about on one
LEAST_WHOLE = 3  # images without which a Gaussian of whole pictures has no spread to speak of
GAP_IMAGES = 12  # of each half, by which a flow's optimism about what it learned from is measured


@dataclass(frozen=True, eq=False)
class FirstBase:
    """A line's base with the two that calibrate the product it was learned from.

    Attributes:
        final: what all products share, learned from all images of the first.
        without: learned without the first half of its blocks, and without the second; None where there are
            no two halves. A base that knows an image says too little against it.
        learned: from that product; False for one that came from elsewhere.
    """

    final: Base
    without: tuple[Base, Base] | None
    learned: bool = True


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
    cells = None
    if config.flow.cells is not None:
        cells = _cells_of(patches, config.flow.cells)
    learn = partial(learn_base, flow=config.flow, training=config.training, cells=cells)
    if blocks.count < 2:
        share = _share_of_lone(config)
        return FirstBase(learn(patches, seed=seed, share=share, progress=progress), None)
    judges = [_judge(patches[blocks.half(parity)], config) for parity in (0, 1)]
    halves = [
        learn(
            patches[blocks.half(1 - parity)],
            seed=seed,
            share=HALF_SHARE,
            left_out=judges[parity],
            progress=lambda done, parity=parity: progress(HALF_SHARE * (parity + done)),  # type: ignore[misc]
        )
        for parity in (0, 1)
    ]
    share = _share_left(judges)
    final = learn(
        patches,
        seed=seed + 1,
        share=share,
        begun=halves[0],
        progress=lambda done: progress(2 * HALF_SHARE + FINAL_SHARE * done),
    )
    return FirstBase(final, (halves[0], halves[1]))


@dataclass(frozen=True, eq=False)
class Flows:
    """A product's flow, its calibration over the image, and left-out patch scores (n, h, w) of all images."""

    final: Expert
    position: PositionCalibration
    left_out: Tensor


def flows_left_out(
    bases: tuple[Base, Base, Base],
    patches: Tensor,
    memory: Tensor,
    blocks: Blocks,
    config: LineConfig,
    seed: int,
    progress: Progress,
) -> Flows:
    """The flow in as many steps as one would take, two short flows included that each saw half of the blocks.

    What the short ones say of the other half's blocks calibrates, behind cells without the block where the
    flow begins with cells. With `TrainingConfig.early_stop` that half also says how far a short one goes, and
    the final one goes no further unless both were still getting better; a flow that nothing is left out for
    stays what it begins with, where that is a density. The final flow goes on from the first of them with all
    images; its scores of images it learned from are corrected by the gap that the short ones show between the
    images they learned from and those they did not.

    Args:
        bases: of the final flow, and of each of the short ones.
    """
    base, *halves = bases
    training, scoring, count = config.training, config.scoring, len(patches)
    cells: CellGaussians | None = None
    without: list[CellGaussians] = []
    if config.flow.cells is not None:
        named = blocks.left_out if blocks.count > 1 else (None,) * count
        labels = [*named, *[None] * len(memory)]
        cells, without = fit_without_each(_together(patches, memory), labels, config.flow.cells)
    if blocks.count < 2:
        final = learn_expert(
            base,
            _together(patches, memory),
            training,
            seed=seed,
            share=_share_of_lone(config),
            cells=cells,
            progress=_part_of(progress, 0.0, 1.0),
        )
        scores = _scores(base, final, patches)
        return Flows(final, PositionCalibration.fit(scores, scoring), scores)
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    begun: Expert | None = None
    gaps: list[tuple[float, float]] = []
    judges = [_judge(patches[blocks.half(parity)], config) for parity in (0, 1)]
    for parity in (0, 1):
        out, learn = blocks.half(parity), blocks.half(1 - parity)
        half = learn_expert(
            halves[parity],
            _together(patches[learn], memory),
            training,
            seed=seed,
            share=HALF_SHARE,
            cells=cells,
            left_out=judges[parity],
            progress=_part_of(progress, parity * HALF_SHARE, HALF_SHARE),
        )
        if cells is None:
            left_out[out] = _scores(halves[parity], half, patches[out])
        for block in range(parity, blocks.count, 2) if cells is not None else ():
            images = blocks.images_of(block)
            stranger = half.beginning_with(without[block])
            left_out[images] = _scores(halves[parity], stranger, patches[images])
        known = _scores(halves[parity], half, patches[evenly(learn, GAP_IMAGES)])
        fresh = left_out[evenly(out, GAP_IMAGES)]
        gaps.append((float(fresh.mean() - known.mean()), float(fresh.std() / known.std().clamp_min(1e-9))))
        left_out[out] -= float(left_out[out].mean())  # each short flow has a level of its own
        begun = begun or half
    # A base that went on from where the short flows met it asks for an expert that has met it.
    share = _share_left(judges) if base is halves[0] else FINAL_SHARE
    final = learn_expert(
        base,
        _together(patches, memory),
        training,
        seed=seed + 1,
        share=share,
        begun=begun,
        progress=_part_of(progress, 2 * HALF_SHARE, FINAL_SHARE),
    )
    met = list(range(count)) if share else blocks.half(1)  # the first short flow's
    known = _scores(base, final, patches[evenly(met, 4 * GAP_IMAGES)])
    position = PositionCalibration.fit(known, scoring).moved(
        float(np.mean([gap for gap, _ in gaps])), max(1.0, float(np.mean([ratio for _, ratio in gaps])))
    )
    return Flows(final, position, left_out)


def _judge(patches: Tensor, config: LineConfig) -> LeftOut | None:
    return LeftOut(patches) if config.training.early_stop else None


def _share_of_lone(config: LineConfig) -> float:
    """Of the steps, where nothing can be left out: none if what a flow begins with is a density already."""
    return 0.0 if config.flow.cells is not None and config.training.early_stop else 1.0


def _share_left(judges: Sequence[LeftOut | None]) -> float:
    """Of the steps, for the final flow: none where a short one was at its best before its end."""
    at_end = all(judge is None or judge.share == 1 for judge in judges)
    return FINAL_SHARE if at_end else 0.0


def _part_of(progress: Progress, start: float, share: float) -> Callable[[float], None]:
    return lambda done: progress("learning", min(1.0, start + share * done))


def _scores(base: Base, expert: Expert, patches: Tensor) -> Tensor:
    """Patch scores (n, h, w), image by image, half of them beside the other half."""

    @torch.no_grad()  # of each thread
    def of(images: Tensor) -> list[Tensor]:
        return [base.score(expert, base.prepare(image)) for image in images.split(1) if len(image)]

    middle = len(patches) // 2
    worth_it = middle >= WORTH_A_THREAD and is_small(base.parameters())
    first, second = side_by_side(
        partial(of, patches[:middle]), partial(of, patches[middle:]), at_once=worth_it
    )
    return torch.cat([*first, *second])


def _together(patches: Tensor, memory: Tensor) -> Tensor:
    """Both, without a copy where there is no memory."""
    return torch.cat([patches, memory]) if len(memory) else patches


def _cells_of(patches: Tensor, config: Cells) -> CellGaussians:
    cells = CellGaussians((patches.shape[1], patches.shape[2]), patches.shape[3], config).to(patches.device)
    cells.fit(patches)
    return cells


def coreset_left_out(
    patches: Tensor, memory: Tensor, known: Tensor | None, blocks: Blocks, scoring: ScoringConfig, seed: int
) -> tuple[PatchCoreset | None, Tensor | None]:
    """The coreset, and what one without an image's block says of it (n, h, w).

    `known` are patches that an earlier version of the product remembers.
    """
    if scoring.coreset is None:
        return None, None
    named: tuple[int | None, ...] = blocks.left_out if blocks.count > 1 else (None,) * len(patches)
    together, labels = patches, named
    if known is None and len(memory):
        together, labels = _together(patches, memory), (*named, *[None] * len(memory))
    coreset, without = coresets_without_each(together, labels, scoring.coreset, seed=seed, known=known)
    if blocks.count < 2:
        return coreset, torch.cat([coreset(image) for image in patches.split(1)])
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    for block, others in enumerate(without):
        for i in blocks.images_of(block):
            left_out[i] = others(patches[i : i + 1])[0]
    return coreset, left_out


@torch.no_grad()
def correction_left_out(
    correction: Correction,
    cells: CellGaussians,
    patches: Tensor,
    memory: Tensor,
    blocks: Blocks,
) -> Tensor:
    """What a correction says of good images (n, h, w), each behind cells without its block."""
    if blocks.count < 2:
        return torch.cat([correction(cells, image) for image in patches.split(1)])
    labels = [*blocks.left_out, *[None] * len(memory)]
    _, without = fit_without_each(_together(patches, memory), labels, cells.config)
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    for block, others in enumerate(without):
        for i in blocks.images_of(block):
            left_out[i] = correction(others, patches[i : i + 1])[0]
    return left_out


@torch.no_grad()
def cells_left_out(
    patches: Tensor, memory: Tensor, blocks: Blocks, scoring: ScoringConfig
) -> tuple[CellGaussians | None, Tensor | None]:
    """The cells, and what cells without an image's block say of it (n, h, w)."""
    if scoring.cells is None:
        return None, None
    together, labels = _together(patches, memory), [*blocks.left_out, *[None] * len(memory)]
    if blocks.count < 2 and not len(memory):
        cells = _cells_of(together, scoring.cells)
        return cells, torch.cat([cells(image) for image in patches.split(1)])
    cells, without = fit_without_each(together, labels, scoring.cells)
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    for block, others in enumerate(without):
        for i in blocks.images_of(block):
            left_out[i] = others(patches[i : i + 1])[0]
    return cells, left_out


def whole_left_out(
    pooled: Tensor, memory: Tensor, blocks: Blocks, scoring: ScoringConfig
) -> tuple[WholeGaussian | None, Tensor | None]:
    """The density of whole pictures, and what one without an image's block says of it (n,).

    None where one of those would be of fewer than `LEAST_WHOLE` pictures: what it says is beyond all measure.
    """
    if scoring.whole is None or not pooled.shape[1]:
        return None, None
    largest = max(len(blocks.images_of(block)) for block in range(blocks.count))
    if len(pooled) - largest + len(memory) < LEAST_WHOLE:
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
