"""Learning on cached features: the base with the first product, an expert for every product.

A plain loop. A step that is not finite is never skipped: learning goes back to its last sound state
with half the learning rate, and after a few such retreats it stops with a named error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import FlowConfig, TrainingConfig
from ..data.sources import evenly
from ..errors import TrainingError
from ..features.finite import require_finite
from ..flow.bijections import Place
from ..flow.cells import CellGaussians
from ..flow.expert import Base, Expert
from ..threads import one_thread, seeded

Progress = Callable[[float], None]  # called with the share done, 0..1

RETREATS = 4
SMALL = 2**18  # numbers of the largest weight up to which one thread learns
START_IMAGES = 64
CHECK_EVERY = 25  # steps between sound states kept to retreat to
ASK_EVERY = 10  # steps between two looks at what was left out
PATIENCE = 2  # looks in a row that were worse than an earlier one, after which learning ends
RULER_PATCHES = 2048  # of the left-out images, the same at every look


@dataclass(eq=False)
class LeftOut:
    """Good images that a flow does not learn from: it is taken back to where their loss was least.

    That may be where it began, so what is learned is never worse than its start by this ruler.

    Attributes:
        features: raw patch features (N, h, w, D).
        share: of the steps after which that was; known once a flow was learned beside them.
    """

    features: Tensor
    share: float = 1.0


def learn_base(
    features: Tensor,
    flow: FlowConfig,
    training: TrainingConfig,
    *,
    seed: int,
    share: float = 1.0,
    begun: Base | None = None,
    cells: CellGaussians | None = None,
    left_out: LeftOut | None = None,
    progress: Progress | None = None,
) -> Base:
    """The shared base, learned with the first product and frozen.

    Args:
        features: raw patch features (N, h, w, D) of the first product's good images.
        flow: shape of the density.
        training: how to learn.
        seed: fixes initial weights, sampling and noise.
        share: of the steps that `training` gives.
        begun: a base to go on from, which stays as it is.
        cells: that the flow begins with; fitted to the features by default.
        left_out: images by which the best of all steps is chosen; the last is by default.
        progress: told the share done.

    Raises:
        TrainingError: learning did not stay finite.
    """
    require_finite(features)
    with seeded(seed):
        base = Base((features.shape[1], features.shape[2]), features.shape[3], flow).to(features.device)
        if begun is not None:
            base.load_state_dict(begun.state_dict())
        companion = Expert(base).to(features.device)
    companion.adapters = nn.ModuleList()  # while W itself learns, a low-rank change of it is redundant
    if share and (flow.couplings or flow.mixer):
        if cells is None:
            companion.start(base, _to_start(base, features))
        else:
            companion = companion.beginning_with(cells)
        helped = fit(
            [*base.parameters(), *companion.parameters()],
            partial(likelihood_loss, base, companion, features, training),
            training,
            steps=max(1, round(share * training.base_steps)),
            seed=seed,
            ruler=_ruler(base, companion, left_out, training, seed),
            progress=progress,
        )
        if left_out is not None:
            left_out.share = helped
    elif progress:
        progress(1.0)
    return base.requires_grad_(False).eval()


def learn_common_base(
    products: Sequence[Tensor],
    flow: FlowConfig,
    training: TrainingConfig,
    *,
    steps: int,
    seed: int,
    progress: Progress | None = None,
) -> Base:
    """A base from several products at once: behind the cells of each, beside a companion of its own.

    Args:
        products: raw patch features (N, h, w, D) of each product's good images, on the same grid.
        flow: shape of the density, which begins with cells.
        training: how to learn; each step is of one product.
        steps: how many.
        seed: fixes initial weights, sampling and noise.
        progress: told the share done.

    Raises:
        TrainingError: learning did not stay finite.
    """
    grid, channels = (products[0].shape[1], products[0].shape[2]), products[0].shape[3]
    with seeded(seed):
        base = Base(grid, channels, flow)
        companions = [Expert(base) for _ in products]
    for companion, features in zip(companions, products, strict=True):
        require_finite(features)
        companion.adapters = nn.ModuleList()
        companion.start(base, features)

    def step_loss(generator: torch.Generator) -> Tensor:
        which = int(torch.randint(len(products), (), generator=generator))
        return likelihood_loss(base, companions[which], products[which], training, generator)

    owned = [*base.parameters(), *(p for companion in companions for p in companion.parameters())]
    fit(owned, step_loss, training, steps=steps, seed=seed, progress=progress)
    return base.requires_grad_(False).eval()


def learn_expert(
    base: Base,
    features: Tensor,
    training: TrainingConfig,
    *,
    seed: int,
    share: float = 1.0,
    begun: Expert | None = None,
    cells: CellGaussians | None = None,
    left_out: LeftOut | None = None,
    progress: Progress | None = None,
) -> Expert:
    """One product's expert on a frozen base; depends on nothing but the base, these images and the seed.

    Args:
        base, features, training, seed, left_out, progress: as for `learn_base`.
        share: of the steps that `training` gives; with none the expert is its start.
        begun: an expert of the same product to go on from, which stays as it is; its start is kept.
        cells: that the flow begins with; fitted to the features by default.

    Raises:
        TrainingError: learning did not stay finite.
    """
    require_finite(features)
    if begun is None:
        with seeded(seed):
            expert = Expert(base).to(features.device)
        if cells is None:
            expert.start(base, _to_start(base, features))
        else:
            expert = expert.beginning_with(cells)
    else:
        expert = copy.deepcopy(begun).requires_grad_(True).train()
    owned = list(expert.parameters())
    if owned and share:
        loss = partial(likelihood_loss, base, expert, features, training)
        steps = max(1, round(share * training.steps))
        ruler = _ruler(base, expert, left_out, training, seed)
        helped = fit(owned, loss, training, steps=steps, seed=seed, ruler=ruler, progress=progress)
        if left_out is not None:
            left_out.share = helped
    elif progress:
        progress(1.0)
    expert.round_to_kept()
    return expert.requires_grad_(False).eval()


def _ruler(
    base: Base, expert: Expert, left_out: LeftOut | None, training: TrainingConfig, seed: int
) -> Callable[[], float] | None:
    """The loss that is learned, of the same left-out patches under the same noise, as it is now."""
    if left_out is None:
        return None
    wider = replace(training, patches=RULER_PATCHES)

    @torch.no_grad()
    def ask() -> float:
        generator = torch.Generator().manual_seed(seed)
        return likelihood_loss(base, expert, left_out.features, wider, generator).item()

    return ask


def _to_start(base: Base, features: Tensor) -> Tensor:
    """What the closed-form start is fitted to: cells to everything, as it is; a spread needs but some."""
    return features if base.config.cells is not None else base.prepare(some(features))


def some(features: Tensor, count: int = START_IMAGES) -> Tensor:
    """So many images at most, evenly spread over all of them: for a mean and a spread per channel."""
    return features[evenly(range(len(features)), count)]


def loss_of(log_prob: Tensor, log_det: Tensor, training: TrainingConfig) -> Tensor:
    """(1 - lambda) mean + lambda tail + lambda_det mean log-det squared, in nats per patch.

    The tail is the mean over the hardest patches, in mean form: of the whole step, or of each window and
    then over windows. A step sees small windows of many images, so by default it is taken over all of
    them: a small window has too few patches to have one. A window as large as the grid is an image.

    Args:
        log_prob: (B, …) of the windows' patches.
        log_det: what the penalty is on, of the same shape.
        training: the weights, and which tail.
    """
    nll = -log_prob.flatten() if training.tail == "step" else -log_prob.flatten(1)
    k = max(1, int(training.tail_share * nll.shape[-1]))
    tail = nll.topk(k, dim=-1).values.mean()
    plain = (1 - training.tail_weight) * nll.mean() + training.tail_weight * tail
    return plain + training.log_det_weight * log_det.square().mean()


def fit(
    owned: list[nn.Parameter],
    step_loss: Callable[[torch.Generator], Tensor],
    training: TrainingConfig,
    *,
    steps: int,
    seed: int,
    ruler: Callable[[], float] | None = None,
    progress: Progress | None = None,
) -> float:
    """Moves `owned` down the loss of random steps; a loss that is not finite is retreated from.

    Args:
        owned: what is learned.
        step_loss: draws a step's samples with the generator it is given and returns their loss.
        training: learning rate and gradient clip.
        steps: how many.
        seed: of the generator.
        ruler: says how good `owned` is as it stands, less being better. It is asked now and then, and what
            was best is taken.
        progress: told the share done.

    Returns:
        The share of the steps after which `owned` is taken.

    Raises:
        TrainingError: not finite after `RETREATS` retreats.
    """
    with one_thread(is_small(owned)):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        rate, retreats = training.learning_rate, 0
        optimiser, schedule = _optimiser(owned, rate, steps)
        sound = [p.detach().clone() for p in owned]
        best = None if ruler is None else _Best(owned, ruler)
        for step in range(steps):
            loss = step_loss(generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(owned, training.clip)
            if torch.isfinite(loss) and torch.isfinite(norm):
                if step % CHECK_EVERY == 0:  # before the step: these weights have just shown a finite loss
                    sound = [p.detach().clone() for p in owned]
                optimiser.step()
                schedule.step()
            else:
                retreats, rate = retreats + 1, rate / 2
                if retreats > RETREATS:
                    raise TrainingError(
                        f"learning did not stay finite: step {step} of {steps} gave loss {loss.item()} after "
                        f"{RETREATS} retreats to half the learning rate; are the images of one product?"
                    )
                _restore(owned, sound)
                optimiser, schedule = _optimiser(owned, rate, steps, done=step)
            if progress:
                progress((step + 1) / steps)
            if best is not None and ((step + 1) % ASK_EVERY == 0 or step + 1 == steps):
                best.ask(step + 1)
                if best.worse == PATIENCE:
                    if progress:
                        progress(1.0)
                    break
        if best is not None:
            _restore(owned, best.values)
        for parameter in owned:
            parameter.grad = None  # as large as the weights, and never used again
        return 1.0 if best is None else best.step / steps


def is_small(owned: Iterable[Tensor]) -> bool:
    """Whether one thread learns these weights about as fast as several would."""
    where = ("cpu", "meta")  # the latter an outline, without numbers
    return all(weight.numel() <= SMALL and weight.device.type in where for weight in owned)


class _Best:
    """The best of the states that a ruler was asked about, the first among equals."""

    def __init__(self, owned: list[nn.Parameter], ruler: Callable[[], float]) -> None:
        self.owned, self.ruler = owned, ruler
        self.least, self.step, self.worse = math.inf, 0, 0
        self.values: list[Tensor] = [p.detach().clone() for p in owned]
        self.ask(0)

    def ask(self, step: int) -> None:
        """How good they are after so many steps; what is no number is worse than everything."""
        found = self.ruler()
        if found < self.least:
            self.least, self.step, self.worse = found, step, 0
            self.values = [p.detach().clone() for p in self.owned]
        else:
            self.worse += 1


def likelihood_loss(
    base: Base, expert: Expert, features: Tensor, training: TrainingConfig, generator: torch.Generator
) -> Tensor:
    """Loss of one step: random windows of raw features (N, h, w, D), with noise."""
    windows = sample_windows(features, base.position, training, generator)
    x = base.prepare(windows.features)
    noise = training.noise * torch.randn(x.shape, generator=generator).to(x.device)
    passage = base.passage(expert, x, place=windows.place, noise=noise)
    penalised = passage.penalised(training.log_det_of)
    return loss_of(windows.counted(passage.log_prob), windows.counted(penalised), training)


class Windows(NamedTuple):
    """One step's windows, with what lies around them.

    Attributes:
        features: raw, (B, S, S, D).
        place: where they were cut.
        inner: rows (B, s, 1) and columns (B, 1, s) of the patches that count; None where all do.
    """

    features: Tensor
    place: Place
    inner: tuple[Tensor, Tensor] | None = None

    @classmethod
    def joined(cls, windows: Iterable[Windows]) -> Windows:
        """All of them, in turn; of one size and margin."""
        features, places, inner = zip(*windows, strict=True)
        place = Place(*(torch.cat(parts) for parts in zip(*places, strict=True)))
        if inner[0] is None:
            return cls(torch.cat(features), place)
        rows, columns = zip(*inner, strict=True)
        return cls(torch.cat(features), place, (torch.cat(rows), torch.cat(columns)))

    def counted(self, values: Tensor) -> Tensor:
        """Of values (B, S, S, …) those of the patches that count, (B, s, s, …)."""
        if self.inner is None:
            return values
        rows, columns = self.inner
        return values[torch.arange(len(values))[:, None, None], rows, columns]


def sample_windows(
    features: Tensor, position: Tensor, training: TrainingConfig, generator: torch.Generator
) -> Windows:
    """Square windows of random images with the position encoding of where they were cut.

    Windows rather than loose patches, because mixer and context look at neighbours; several small
    ones rather than one image, because a step should see several images. With a margin a window is cut
    with so many patches around it, up to the image's border: what its own patches see there is what they
    see in the whole image.
    """
    count, height, width, _ = features.shape
    side_h, side_w = min(training.window, height), min(training.window, width)
    batch = max(1, training.patches // (side_h * side_w))
    image = torch.randint(count, (batch,), generator=generator)[:, None, None]
    top = torch.randint(height - side_h + 1, (batch,), generator=generator)
    left = torch.randint(width - side_w + 1, (batch,), generator=generator)
    outer_top, rows = _with_margin(top, side_h, height, training.margin)
    outer_left, columns = _with_margin(left, side_w, width, training.margin)
    rows, columns = rows[:, :, None], columns[:, None, :]
    inner = None
    if training.margin:
        inner = (
            (top - outer_top)[:, None, None] + torch.arange(side_h)[:, None],
            (left - outer_left)[:, None, None] + torch.arange(side_w),
        )
    place = Place(position[rows, columns], rows * width + columns)
    return Windows(features[image, rows, columns], place, inner)


def _with_margin(start: Tensor, side: int, size: int, margin: int) -> tuple[Tensor, Tensor]:
    """Where windows (B,) begin once a margin is around them, within the image, and their places (B, S)."""
    whole = min(side + 2 * margin, size)
    outer = (start - margin).clamp(0, size - whole)
    return outer, outer[:, None] + torch.arange(whole)


def _optimiser(
    owned: list[nn.Parameter], rate: float, steps: int, done: int = 0
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    # One call for all of them, of which an expert has many small ones.
    fused = {weight.device.type for weight in owned} <= {"cpu", "cuda"}
    optimiser = torch.optim.Adam(owned, lr=rate, fused=fused)
    warm = max(1, min(20, steps // 10))

    def shape(step: int) -> float:
        at = step + done
        return min(1.0, (at + 1) / warm) * max(0.05, 0.5 * (1 + math.cos(math.pi * at / steps)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, shape)


def _restore(owned: Iterable[nn.Parameter], sound: Iterable[Tensor]) -> None:
    for parameter, value in zip(owned, sound, strict=True):
        parameter.data.copy_(value)
