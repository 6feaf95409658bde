"""Rivals that learn one flow over all products: fine-tuning, EWC, LwF, replay and joint training.

All have the architecture of the line, base and one expert as a whole network in which everything learns;
LoRA is left out, for a low-rank change of weights that learn themselves is redundant. A product costs
`base_steps + steps`, what the line spends on its first one. No method knows products when it inspects.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...config import TrainingConfig, check, to_dict
from ...errors import TaskError
from ...features.finite import require_finite
from ...flow.bijections import Place
from ...flow.expert import Base, Expert
from ...learning.training import START_IMAGES, Windows, fit, loss_of, sample_windows, some
from ...presets import layered
from ...threads import seeded
from .base import Inspection, Method, Pictures, Setting, State, judged

MEMORY = "memory"  # features of kept images in a state


@dataclass(frozen=True)
class Consolidation:
    """Options of EWC.

    The default strength lies above the Bayesian 1 because a diagonal leaves out how weights act together.
    It is chosen by the likelihood of held-out good images, never by defects:
    `python benchmarks/strength.py --method ewc --values 1 3 10`.
    """

    strength: float = 3.0  # lambda: nats of the new task that one nat of an old task is worth
    windows: int = 256  # from which a task's Fisher information is estimated

    def __post_init__(self) -> None:
        check(self, positive=("strength", "windows"))


@dataclass(frozen=True)
class Distillation:
    """Options of LwF.

    The paper's weight of 1. `python benchmarks/strength.py --method lwf --values 1 3 10` gave 153 nats
    against 156 with 3 on good images of three real products, on drawn ones a little more than with 3.
    """

    weight: float = 1.0  # of the old flow's answers against the new likelihood, both in nats per patch

    def __post_init__(self) -> None:
        check(self, positive=("weight",))


@dataclass(frozen=True)
class Rehearsal:
    """Options of replay."""

    kept: float = 0.05  # share of every product's images that is kept, one image at least
    old: float = 0.5  # share of a step's windows that is drawn from kept images

    def __post_init__(self) -> None:
        check(self, share=("kept", "old"))


class WholeFlow(nn.Module):
    """Base and one expert as one density, everything in it trainable."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        flow = replace(layered(setting.config).flow, lora=None)
        with seeded(setting.seed):
            self.base = Base(setting.grid, setting.channels, flow)
            self.expert = Expert(self.base)
        self.to(setting.device)

    def latent(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """z (B, h, w, d) and log-determinant (B, h, w) of prepared windows."""
        return self.base.latent(self.expert, x, place=place)

    def scores(self, features: Tensor) -> Tensor:
        """-log p of every patch, (B, h, w), for raw features (B, h, w, D)."""
        return -self.base.log_prob(self.expert, self.base.prepare(features))


@dataclass(frozen=True, eq=False)
class Cached(State):
    """A state with features of kept images in it, which do not count: they can be had again from the images.

    What does count is the images, whose price stands in the notes.
    """

    def _of(self, owner: str | None) -> dict[str, Tensor]:
        bare = {k: v for k, v in self.tensors.items() if not k.startswith(f"shared/{MEMORY}.")}
        return State(bare)._of(owner)


def price(pictures: Pictures, chosen: Sequence[int], setting: Setting) -> int:
    """Bytes that it costs to keep some images: the file of each, or its pixels where these are fewer."""
    height, width = setting.image_size
    pixels = height * width * 3
    if pictures.file_bytes is None:
        return pixels * len(chosen)
    return sum(min(pixels, pictures.file_bytes[i]) for i in chosen)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Features of several origins from which a step draws windows, without ever joining them.

    Attributes:
        sources: raw features, each (N_i, h, w, D).
        shares: chance of each source, whatever its number of images.
    """

    sources: tuple[Tensor, ...]
    shares: tuple[float, ...]

    @classmethod
    def equal(cls, sources: Sequence[Tensor]) -> Mixture:
        """Every source as likely as every other.

        By products rather than by images, because figures are means over products, and because each
        product then gets as many windows as it would get on its own.
        """
        return cls(tuple(sources), (1 / len(sources),) * len(sources))

    def draw(self, position: Tensor, training: TrainingConfig, generator: torch.Generator) -> Windows:
        """One step's windows and where they were cut, as `sample_windows`, ordered by source."""
        height, width = position.shape[:2]
        patches = min(training.window, height) * min(training.window, width)
        batch = max(1, training.patches // patches)
        origin = torch.multinomial(torch.tensor(self.shares), batch, replacement=True, generator=generator)
        return Windows.joined(
            sample_windows(source, position, replace(training, patches=count * patches), generator)
            for source, count in zip(
                self.sources, origin.bincount(minlength=len(self.sources)).tolist(), strict=True
            )
            if count
        )


class Step(NamedTuple):
    """What a flow made of one step's prepared and noisy windows."""

    x: Tensor  # (B, S, S, d), the margin around the windows included
    place: Place
    z: Tensor  # (B, S, S, d)
    log_det: Tensor  # (B, S, S)
    log_prob: Tensor  # (B, s, s) of the patches that count, but for a constant
    penalised: Tensor  # (B, s, s), the log-determinants of which the loss asks to be small


class SingleFlow(Method):
    """One flow that is learned further with every task; subclasses say what speaks against forgetting.

    The closed-form statistics in front of the flow are fitted once, to the first task, and are a choice of
    units from then on. Fitted again they would move the density of every earlier product at a stroke, by a
    way that no penalty on weights sees; whitening and couplings behind them can adapt as well.

    Attributes:
        flow: what was learned so far.
        products: names of what it was learned from, in order.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.flow: WholeFlow | None = None
        self.products: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the line's; subclasses add how it departs from their paper."""
        return ("the flow alone scores: no cell Gaussians, no position calibration",)

    def learn(self, products: Sequence[Pictures]) -> None:
        """Learns on from the known flow.

        Raises:
            TrainingError: learning did not stay finite; the method is as it was.
        """
        self.flow = self._learned(self.flow, products)
        self.products += [pictures.product for pictures in products]

    def mixture(self, products: Sequence[Pictures]) -> Mixture:
        """What a step draws its windows from."""
        return Mixture.equal([pictures.features for pictures in products])

    def penalty(self, flow: WholeFlow, step: Step) -> Tensor:
        """What is added to a step's loss, in nats per patch; `self.flow` is the flow before this task."""
        return torch.zeros((), device=step.z.device)

    @torch.no_grad()
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """-log p of every patch; the product plays no part.

        Raises:
            TaskError: nothing was learned yet.
        """
        if self.flow is None:
            raise TaskError(f"{self.name}: expected at least one task to be learned first, got none")
        for i in range(len(pictures)):
            score, patch_map = judged(self.flow.scores(pictures.features[i : i + 1]), self.setting)
            yield Inspection(None, None, score, patch_map)

    def state(self) -> State:
        """The flow, all of it shared; in 32 bits, because it is learned further."""
        flow = {} if self.flow is None else self.flow.state_dict()
        return State(
            {f"shared/flow.{k}": v.cpu().contiguous() for k, v in flow.items()},
            {"products": [*self.products]},
        )

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        self.products = list(state.notes["products"])
        self.flow = None
        if self.products:
            self.flow = WholeFlow(self.setting).requires_grad_(False).eval()
            self.flow.load_state_dict(_owned(state, "flow"))

    def _learned(self, known: WholeFlow | None, products: Sequence[Pictures]) -> WholeFlow:
        """Learned on from a known flow or anew, or taken from a run's memory.

        All methods begin alike; then a flow follows from the method and all that it has kept.
        """
        if self.remembered is None or not all(one.key for one in products):
            return self._fitted(known, products)
        own = to_dict(self.options) if hasattr(self, "options") else None
        begun = ["a first flow"] if known is None else ["a flow", self.name, own, self.state()]
        kept = self.remembered.learned(
            [*begun, *(pictures.key for pictures in products)],
            lambda: State({k: v.cpu() for k, v in self._fitted(known, products).state_dict().items()}),
        )
        flow = WholeFlow(self.setting)
        flow.load_state_dict(kept.tensors)
        return flow.requires_grad_(False).eval()

    def _fitted(self, known: WholeFlow | None, products: Sequence[Pictures]) -> WholeFlow:
        for pictures in products:
            require_finite(pictures.features)
        training = layered(self.setting.config).training
        flow = self._new(products) if known is None else copy.deepcopy(known)
        mixture = self.mixture(products)

        def loss(generator: torch.Generator) -> Tensor:
            step = taken(flow, mixture, training, generator)
            return loss_of(step.log_prob, step.penalised, training) + self.penalty(flow, step)

        owned = list(flow.requires_grad_(True).parameters())
        if owned:
            steps = (training.base_steps + training.steps) * len(products)
            fit(owned, loss, training, steps=steps, seed=self.setting.seed)
        return flow.requires_grad_(False).eval()

    def _new(self, products: Sequence[Pictures]) -> WholeFlow:
        """A flow whose statistics are those of these products: as many images of each, where it has them."""
        flow = WholeFlow(self.setting)
        each = max(1, START_IMAGES // len(products))
        start = torch.cat([some(pictures.features, each) for pictures in products])
        flow.expert.start(flow.base, flow.base.prepare(start))
        return flow


def taken(flow: WholeFlow, mixture: Mixture, training: TrainingConfig, generator: torch.Generator) -> Step:
    """One step's windows with noise on them, through the flow."""
    windows = mixture.draw(flow.base.position, training, generator)
    x = flow.base.prepare(windows.features)
    x = x + training.noise * torch.randn(x.shape, generator=generator).to(x.device)
    passage = flow.base.passage(flow.expert, x, place=windows.place)
    return Step(
        x,
        windows.place,
        passage.z,
        passage.log_det,
        log_prob=windows.counted(passage.log_prob),
        penalised=windows.counted(passage.penalised(training.log_det_of)),
    )


class FineTuning(SingleFlow):
    """The flow simply learns on: the lower bound."""

    name = "fine-tuning"
    title = "fine-tuning"
    source = "lower bound: one flow trained on each product in turn"


class EWC(SingleFlow):
    """Elastic weight consolidation: weights that earlier tasks depend on are held where they are.

    penalty = lambda / 2 sum_i F_i (theta_i - theta*_i)^2, F the diagonal Fisher information of the
    likelihood per patch (Kirkpatrick et al. 2017, eq. 3). To second order it is what the old tasks lose,
    in nats per patch as the loss itself, so lambda has no unit. Several tasks share one penalty: their
    Fisher informations are summed and theta* is where the last task ended, which is the Laplace
    approximation carried on (Huszar 2018); a penalty per task would count the earlier ones twice.
    """

    name = "ewc"
    title = "EWC"
    source = "Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017"

    def __init__(self, setting: Setting, *, options: Consolidation | None = None) -> None:
        super().__init__(setting)
        self.options = options or Consolidation()
        self.fisher: dict[str, Tensor] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the Fisher information is here."""
        return (*super().notes, "diagonal empirical Fisher information over windows, summed over tasks")

    def learn(self, products: Sequence[Pictures]) -> None:
        """Learns on, then adds what this task's likelihood depends on."""
        super().learn(products)
        assert self.flow is not None
        own = fisher_information(
            self.flow,
            self.mixture(products),
            layered(self.setting.config).training,
            windows=self.options.windows,
            seed=self.setting.seed,
        )
        self.fisher = {k: v + self.fisher[k] if self.fisher else v for k, v in own.items()}

    def penalty(self, flow: WholeFlow, step: Step) -> Tensor:
        """Squared distance from the flow before this task, in units of the Fisher information."""
        if self.flow is None:
            return super().penalty(flow, step)
        anchor = dict(self.flow.named_parameters())
        terms = [(self.fisher[k] * (p - anchor[k]).square()).sum() for k, p in flow.named_parameters()]
        return 0.5 * self.options.strength * torch.stack(terms).sum()

    def state(self) -> State:
        """The flow and the Fisher information; theta* is the flow itself."""
        own = super().state()
        fisher = {f"shared/fisher.{k}": v.cpu() for k, v in self.fisher.items()}
        return State(own.tensors | fisher, own.notes)

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self.fisher = {k: v.to(self.setting.device) for k, v in _owned(state, "fisher").items()}


def fisher_information(
    flow: WholeFlow, mixture: Mixture, training: TrainingConfig, *, windows: int, seed: int
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information per patch, for every parameter by its name.

    The mean over windows of (d log p(window) / d theta)^2, divided by the patches of a window: the
    empirical Fisher information. A window is one sample, because mixer and context tie its patches.

    Args:
        flow: where it is taken; left as it is.
        mixture: what windows are drawn from, with the noise of learning.
        training: size of the windows and the noise.
        windows: how many.
        seed: of the draw.
    """
    flow = copy.deepcopy(flow).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(p) for name, p in flow.named_parameters()}
    one = replace(training, patches=1)  # less than a window holds: a single one is drawn
    for _ in range(windows if total else 0):
        log_prob = taken(flow, mixture, one, generator).log_prob
        slopes = torch.autograd.grad(log_prob.sum(), list(flow.parameters()))
        for own, slope in zip(total.values(), slopes, strict=True):
            own += slope.square() / (windows * log_prob.numel())
    return total


class LwF(SingleFlow):
    """Learning without forgetting: on the new product's images, the flow keeps answering as before.

    A classifier's answer is a distribution over classes; a flow's is the code z of a patch and the
    log-determinant there. Keeping both keeps the density where the new data lie, and by continuity near
    them; of regions the new data never visit nothing is known, which is the method's known limit.
    The distance is a divergence in nats per patch, as the likelihood is:

        |z - z'|^2 / 2 + (log_det - log_det')^2 / D

    The first term is KL(N(z', I) || N(z, I)). The second is to second order the KL between two Gaussians
    around one point whose volumes differ by the log-determinants, spread evenly over the D channels.
    Old and new product share the one answer, where the classifier of the paper has a head for each: the
    distillation opposes the likelihood, so its weight is what trades the old product for the new.
    The flow before a task teaches during it; nothing else is kept.
    """

    name = "lwf"
    title = "LwF"
    source = "Li and Hoiem, Learning without Forgetting, ECCV 2016"

    def __init__(self, setting: Setting, *, options: Distillation | None = None) -> None:
        super().__init__(setting)
        self.options = options or Distillation()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is distilled."""
        return (*super().notes, "distils a density (Gaussian latents) instead of class probabilities")

    def penalty(self, flow: WholeFlow, step: Step) -> Tensor:
        """Divergence from the answers of the flow before this task, on the step's own windows."""
        if self.flow is None:
            return super().penalty(flow, step)
        with torch.no_grad():
            z, log_det = self.flow.latent(step.x, step.place)
        moved = 0.5 * (step.z - z).square().sum(-1)
        swollen = (step.log_det - log_det).square() / z.shape[-1]
        return self.options.weight * (moved + swollen).mean()


class Replay(SingleFlow):
    """A share of every earlier product's images is kept and learned along.

    The state holds features of the kept images in their place, so that learning can go on from it. They
    cache what the backbone makes of the images and are not counted; the images are.

    Half of a step's windows are new and half are old, as many from each earlier product: the new product
    is still to be learned, the old ones only to be kept (Chaudhry et al. 2019 draw as many from memory as
    from the new data). The number of windows stays the same, so replay costs no more than fine-tuning.
    """

    name = "replay"
    title = "replay 5 %"
    source = "Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019"

    def __init__(self, setting: Setting, *, options: Rehearsal | None = None) -> None:
        super().__init__(setting)
        self.options = options or Rehearsal()
        self.memory: list[Tensor] = []  # one (n, h, w, D) for each of `products`
        self.kept_bytes = 0

    def learn(self, products: Sequence[Pictures]) -> None:
        """Learns on, then keeps images drawn at random."""
        super().learn(products)
        for pictures in products:
            count = max(1, round(self.options.kept * len(pictures)))
            generator = torch.Generator().manual_seed(self.setting.seed)
            chosen = torch.randperm(len(pictures), generator=generator)[:count].sort().values
            self.memory.append(pictures.features[chosen])
            self.kept_bytes += price(pictures, chosen.tolist(), self.setting)

    def mixture(self, products: Sequence[Pictures]) -> Mixture:
        """The new products beside what is kept of the old ones."""
        new = super().mixture(products)
        if not self.memory:
            return new
        shares = [(1 - self.options.old) * share for share in new.shares]
        shares += [self.options.old / len(self.memory)] * len(self.memory)
        return Mixture((*new.sources, *self.memory), tuple(shares))

    def state(self) -> State:
        """The flow, the kept images' features, and in the notes what the images cost."""
        own = super().state()
        kept = {f"shared/{MEMORY}.{i}": features.cpu() for i, features in enumerate(self.memory)}
        cost = {"kept_images": sum(map(len, self.memory)), "kept_bytes": self.kept_bytes}
        return Cached(own.tensors | kept, own.notes | cost)

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        super().restore(state)
        kept = _owned(state, MEMORY)
        self.memory = [kept[str(i)].to(self.setting.device) for i in range(len(self.products))]
        self.kept_bytes = state.notes["kept_bytes"]


class Joint(SingleFlow):
    """One flow learned anew from all products so far at every step: the upper bound of sharing.

    It needs every image ever seen, which its state does not hold: notes say how many and how large, for
    they are its real cost. Statistics are fitted to all products, as everything else is. With n products
    it learns n times as long, so each product is looked at as often as by the others.
    """

    name = "joint"
    title = "joint"
    source = "upper bound: one flow trained on all products at once"
    keeps_images = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.seen: list[Pictures] = []
        self.kept = {"kept_images": 0, "kept_bytes": 0}

    def learn(self, products: Sequence[Pictures]) -> None:
        """Learns anew from these and all earlier products.

        Raises:
            TaskError: the method was restored and not reminded of the earlier images.
            TrainingError: learning did not stay finite; the method is as it was.
        """
        if len(self.seen) < len(self.products):
            raise TaskError(
                f"joint: expected the images of {', '.join(self.products)} to learn anew from, but a "
                "restored state holds none"
            )
        seen = [*self.seen, *products]
        self.flow = self._learned(None, seen)
        self.seen, self.products = seen, [pictures.product for pictures in seen]
        cost = sum(price(pictures, range(len(pictures)), self.setting) for pictures in seen)
        self.kept = {"kept_images": sum(map(len, seen)), "kept_bytes": cost}

    def remind(self, pictures: Sequence[Pictures]) -> None:
        """Takes the earlier images back."""
        self.seen = list(pictures)

    def state(self) -> State:
        """The flow, and in the notes what it would have to keep to go on learning."""
        own = super().state()
        return State(own.tensors, own.notes | self.kept)

    def restore(self, state: State) -> None:
        """The inverse of `state`, to inspect with; to learn on it must be reminded of the images."""
        super().restore(state)
        self.seen = []
        self.kept = {name: state.notes[name] for name in self.kept}


def _owned(state: State, part: str) -> dict[str, Tensor]:
    prefix = f"shared/{part}."
    return {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
