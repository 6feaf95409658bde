"""What a product's densities say of images they did not learn from, for little more than one fit.

The flow is left out by halves: two short flows, each of which saw half of the blocks, judge the other half,
and the final one goes on from the first of them. Closed forms are left out block by block.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config import LineConfig, ScoringConfig
from ..data.sources import evenly
from ..densities.coreset import Candidates, PatchCoreset
from ..densities.correction import Correction, Defects
from ..densities.whole import WholeGaussian
from ..flow.cells import CellGaussians, fit_without_each
from ..flow.expert import Base, Expert
from ..threads import Beside, side_by_side
from ..verdict.maps import PositionCalibration
from .blocks import Blocks, make_blocks
from .training import LeftOut, is_small, learn_base, learn_expert

HALF_SHARE = 0.25  # of the flow's steps for each of the two flows that calibrate; the final one has the rest
FINAL_SHARE = 1 - 2 * HALF_SHARE
WORTH_A_THREAD = 4  # images that are asked about on one
LEAST_WHOLE = 3  # independent images without which a Gaussian of whole pictures has no spread to speak of
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
        cells = CellGaussians.of(patches, config.flow.cells)
    learn = partial(learn_base, flow=config.flow, training=config.training, cells=cells)
    if blocks.count < 2:
        share = _share_of_lone(config)
        return FirstBase(learn(patches, seed=seed, share=share, progress=progress), None)
    judges = [_judge(patches[blocks.half(parity)], config) for parity in (0, 1)]
    shares = _Shares(progress, HALF_SHARE, HALF_SHARE, FINAL_SHARE)
    first, second = (
        partial(
            learn,
            patches[blocks.half(1 - parity)],
            seed=seed,
            share=HALF_SHARE,
            left_out=judges[parity],
            progress=shares.of(parity),
        )
        for parity in (0, 1)
    )
    halves = side_by_side(first, second, at_once=_is_small(patches, config))
    share = _share_left(map(_best_at_end, judges))
    final = learn(patches, seed=seed + 1, share=share, begun=halves[0], progress=shares.of(2))
    return FirstBase(final, halves)


def _is_small(patches: Tensor, config: LineConfig) -> bool:
    """Whether one thread learns a base for these as fast as several."""
    with torch.device("meta"):
        outline = Base((patches.shape[1], patches.shape[2]), patches.shape[3], config.flow)
    return patches.device.type == "cpu" and is_small(outline.parameters())


@dataclass(frozen=True, eq=False)
class ShortFlow:
    """A flow that saw half of the blocks.

    Attributes:
        expert: the flow.
        left_out: what it says of the other half's patches (n, h, w), about their mean.
        gap, ratio: by how much these are farther, and spread wider, than those of images that it saw.
        best_at_end: whether it was still getting better when its steps were over.
    """

    expert: Expert
    left_out: Tensor
    gap: float
    ratio: float
    best_at_end: bool


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a product's final flow goes on from.

    Attributes:
        cells: of all images; None where the flow does not begin with cells.
        shorts: the flow without the first half of the blocks, and without the second; none where there are
            no two halves.
        progress: told the share of the final flow that is done.
    """

    cells: CellGaussians | None
    shorts: tuple[ShortFlow, ...]
    progress: Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Flows:
    """A product's flow, its calibration over the image, and left-out patch scores (n, h, w) of all images."""

    final: Expert
    position: PositionCalibration
    left_out: Tensor


def begin_flow(
    bases: tuple[Base, Base],
    patches: Tensor,
    memory: Tensor,
    blocks: Blocks,
    config: LineConfig,
    seed: int,
    progress: Callable[[float], None],
    other: Beside,
) -> Beginning:
    """The cells that a product's flow begins with, and two short flows that each saw half of the blocks.

    What the short ones say of the other half's blocks calibrates, behind cells without the block where the
    flow begins with cells. With `TrainingConfig.early_stop` that half also says how far a short one goes.

    Args:
        bases: of each of the short ones.
        other: on which one of the short ones may learn.
    """
    cells: CellGaussians | None = None
    without: list[CellGaussians] = []
    if config.flow.cells is not None:
        named = blocks.left_out if blocks.count > 1 else (None,) * len(patches)
        labels = [*named, *[None] * len(memory)]
        cells, without = fit_without_each(_together(patches, memory), labels, config.flow.cells)
    if blocks.count < 2:
        return Beginning(cells, (), progress)
    shares = _Shares(progress, HALF_SHARE, HALF_SHARE, FINAL_SHARE)
    first, second = (
        partial(
            _short_flow,
            bases[parity],
            patches,
            memory,
            blocks,
            config,
            seed,
            parity=parity,
            cells=(cells, without),
            progress=shares.of(parity),
        )
        for parity in (0, 1)
    )
    begun = other.begin(second)
    return Beginning(cells, (first(), begun()), shares.of(2))


def finish_flow(
    base: Base,
    beginning: Beginning,
    patches: Tensor,
    memory: Tensor,
    blocks: Blocks,
    config: LineConfig,
    seed: int,
    *,
    met: bool,
) -> Flows:
    """The flow in as many steps as one would take, those of two short ones included.

    It goes on from the first of them with all images, with `TrainingConfig.early_stop` only if both were
    still getting better; a flow that nothing is left out for stays what it begins with, where that is a
    density. Its scores of images it learned from are corrected by the gap that the short ones show between
    the images they learned from and those they did not.

    Args:
        base: of the final flow.
        beginning: of `begin_flow` with the same images and options.
        met: whether the short flows met this very base, and not one that went on from theirs: that one asks
            for an expert that has met it.
    """
    training, scoring, shorts = config.training, config.scoring, beginning.shorts
    if not shorts:
        share, begun = _share_of_lone(config), None
    else:
        share = _share_left(short.best_at_end for short in shorts) if met else FINAL_SHARE
        begun = shorts[0].expert
    final = learn_expert(
        base,
        _together(patches, memory),
        training,
        seed=seed + 1 if shorts else seed,
        share=share,
        begun=begun,
        cells=beginning.cells,
        progress=beginning.progress,
    )
    if not shorts:
        scores = _scores(base, final, patches)
        return Flows(final, PositionCalibration.fit(scores, scoring), scores)
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    for parity, short in enumerate(shorts):
        left_out[blocks.half(parity)] = short.left_out
    known = list(range(len(patches))) if share else blocks.half(1)  # the first short flow's
    scores = _scores(base, final, patches[evenly(known, 4 * GAP_IMAGES)])
    position = PositionCalibration.fit(scores, scoring).moved(
        float(np.mean([short.gap for short in shorts])),
        max(1.0, float(np.mean([short.ratio for short in shorts]))),
    )
    return Flows(final, position, left_out)


def _short_flow(
    base: Base,
    patches: Tensor,
    memory: Tensor,
    blocks: Blocks,
    config: LineConfig,
    seed: int,
    *,
    parity: int,
    cells: tuple[CellGaussians | None, list[CellGaussians]],
    progress: Callable[[float], None],
) -> ShortFlow:
    """The flow that saw all blocks but those of this parity; `cells` are of all images, and without each."""
    out, learn = blocks.half(parity), blocks.half(1 - parity)
    of_all, without = cells
    judge = _judge(patches[out], config)
    expert = learn_expert(
        base,
        _together(patches[learn], memory),
        config.training,
        seed=seed,
        share=HALF_SHARE,
        cells=of_all,
        left_out=judge,
        progress=progress,
    )
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    if of_all is None:
        left_out[out] = _scores(base, expert, patches[out])
    for block in range(parity, blocks.count, 2) if of_all is not None else ():
        images = blocks.images_of(block)
        left_out[images] = _scores(base, expert.beginning_with(without[block]), patches[images])
    known = _scores(base, expert, patches[evenly(learn, GAP_IMAGES)])
    fresh = left_out[evenly(out, GAP_IMAGES)]
    return ShortFlow(
        expert,
        left_out[out] - float(left_out[out].mean()),  # each short flow has a level of its own
        gap=float(fresh.mean() - known.mean()),
        ratio=float(fresh.std() / known.std().clamp_min(1e-9)),
        best_at_end=_best_at_end(judge),
    )


class _Shares:
    """Progress of parts that may go on at the same time; told by the thread that made it alone.

    Args:
        told: called with the share done.
        shares: of the parts, which add up to 1.
    """

    def __init__(self, told: Callable[[float], None], *shares: float) -> None:
        self._told, self._shares = told, shares
        self._done = [0.0] * len(shares)
        self._thread = threading.get_ident()

    def of(self, part: int) -> Callable[[float], None]:
        """What one part tells the share of itself."""

        def tell(done: float) -> None:
            self._done[part] = done
            if threading.get_ident() == self._thread:
                self._told(min(1.0, sum(map(operator.mul, self._shares, self._done))))

        return tell


def _judge(patches: Tensor, config: LineConfig) -> LeftOut | None:
    return LeftOut(patches) if config.training.early_stop else None


def _share_of_lone(config: LineConfig) -> float:
    """Of the steps, where nothing can be left out: none if what a flow begins with is a density already."""
    return 0.0 if config.flow.cells is not None and config.training.early_stop else 1.0


def _best_at_end(judge: LeftOut | None) -> bool:
    return judge is None or judge.share == 1


def _share_left(best_at_end: Iterable[bool]) -> float:
    """Of the steps, for the final flow: none where a short one was at its best before its end."""
    return FINAL_SHARE if all(best_at_end) else 0.0


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


class CoresetLeftOut:
    """A product's coreset, and what one without its block says of every image; computed beside the flow.

    In parts, so that the flow finds the other thread free when it needs it, and the one that waits in the
    end can help.

    Args:
        patches, memory: of the images, and drawn ones for those of an earlier version.
        known: patches that an earlier version of the product remembers; the memory is not needed then.
        blocks: of the images.
        scoring: options.
        seed: of the selection.
        other: the thread, which begins with half of the coresets.
    """

    def __init__(
        self,
        patches: Tensor,
        memory: Tensor,
        known: Tensor | None,
        blocks: Blocks,
        scoring: ScoringConfig,
        seed: int,
        other: Beside,
    ) -> None:
        self._patches, self._blocks, self._other = patches, blocks, other
        self._options, self._seed = scoring.coreset, seed
        self._lone = blocks.count < 2
        self._labels: tuple[int | None, ...] = (None,) * len(patches) if self._lone else blocks.left_out
        self._memory, self._known = memory if known is None else memory[:0], known
        if self._options is not None:
            self._candidates = other.begin(self._draw)
            self._first = other.begin(lambda: self._select(first=True))

    def go_on(self) -> None:
        """The flow has no need of the other thread from now on: it selects the rest, and asks."""
        if self._options is not None:
            self._second = self._other.begin(lambda: self._select(first=False))
            blocks = range(self._blocks.count)
            self._asked = [self._other.begin(partial(self._said, block)) for block in blocks]

    def outcome(self) -> tuple[PatchCoreset | None, Tensor | None]:
        """The coreset of all images, and the left-out distances (n, h, w); None where options have none."""
        if self._options is None:
            return None, None
        left_out = torch.empty(self._patches.shape[:3], device=self._patches.device)
        for block in reversed(range(self._blocks.count)):  # the other thread comes from the front
            left_out[self._blocks.images_of(block)] = self._asked[block]()
        whole = self._second()[0] if self._lone else self._candidates().coreset()
        return whole, left_out

    def _draw(self) -> Candidates:
        assert self._options is not None
        images, labels = _together(self._patches, self._memory), (*self._labels, *[None] * len(self._memory))
        return Candidates.of(images, labels, self._options, seed=self._seed, known=self._known)

    def _select(self, *, first: bool) -> list[PatchCoreset]:
        candidates, middle = self._candidates(), self._blocks.count // 2
        if self._lone:
            return [] if first else [candidates.coreset()]
        blocks = range(middle) if first else range(middle, self._blocks.count)
        return [candidates.without(block) for block in blocks]

    def _said(self, block: int) -> Tensor:
        judge = [*self._first(), *self._second()][block]
        return torch.cat([judge(self._patches[i : i + 1]) for i in self._blocks.images_of(block)])


@torch.no_grad()
def correction_left_out(
    correction: Correction,
    cells: CellGaussians,
    patches: Tensor,
    memory: Tensor,
    blocks: Blocks,
    defects: Defects | None,
) -> Tensor:
    """What a correction says of good images (n, h, w), each behind cells without its block.

    With marked defects it is learned anew for every block from the other good images: a direction is
    nearly blind to what it was told to part the defects from. Without them it is of an earlier version, which
    has not seen these images.
    """
    if blocks.count < 2:
        return torch.cat([correction(cells, image) for image in patches.split(1)])
    labels = [*blocks.left_out, *[None] * len(memory)]
    _, without = fit_without_each(_together(patches, memory), labels, cells.config)
    left_out = torch.empty(patches.shape[:3], device=patches.device)
    for block, others in enumerate(without):
        judge = correction
        if defects is not None:
            rest = [i for i, own in enumerate(blocks.left_out) if own != block]
            judge = Correction.fit(others, patches[rest], defects)
        for i in blocks.images_of(block):
            left_out[i] = judge(others, patches[i : i + 1])[0]
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
        cells = CellGaussians.of(together, scoring.cells)
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

    None where one of those would be of fewer than `LEAST_WHOLE` independent pictures: what it says is beyond
    all measure. Near-copies are one picture, and what is remembered of earlier ones calibrates nothing.
    """
    if scoring.whole is None or not pooled.shape[1]:
        return None, None
    independent = Counter(blocks.left_out[i] for i in blocks.first)
    if independent.total() - max(independent.values()) < LEAST_WHOLE:
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
