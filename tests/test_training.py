"""Learning: nothing else moves, the seed decides everything, and what is not finite is never skipped."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moleflow.config import Cells, Context, Dia, FlowConfig, LineConfig, Lora, Mixer, TrainingConfig
from moleflow.errors import TrainingError
from moleflow.flow.bijections import Place
from moleflow.flow.cells import CellGaussians
from moleflow.flow.coupling import NeighbourContext
from moleflow.flow.expert import Base, Expert
from moleflow.learning import training
from moleflow.learning.blocks import Blocks, make_blocks
from moleflow.learning.left_out import Flows, begin_flow, finish_flow, learn_first_base
from moleflow.learning.training import (
    SMALL,
    LeftOut,
    Windows,
    fit,
    learn_base,
    learn_expert,
    loss_of,
    sample_windows,
)
from moleflow.threads import Beside, beside

FLOW = FlowConfig(
    cells=Cells(side=2, rank=3, mean_side=3),
    hidden=16,
    context=Context(kernel=3),
    lora=Lora(rank=4, alpha=4.0),
    dia=Dia(blocks=2, hidden=16),
)
LAYERED = replace(FLOW, cells=None, normalisation="layer", statistics=True)
FLOWS = {"cells": FLOW, "layer": LAYERED}
every_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS.keys())
QUICK = TrainingConfig(steps=12, base_steps=12, patches=96, window=3)
LONGER = TrainingConfig(steps=120, base_steps=120, patches=256, window=3, learning_rate=3e-3, noise=0.3)
GRID, CHANNELS = (5, 6), 8
NOBODY = Beside(None)


def product(which: int, images: int = 12, *, seed: int = 0) -> Tensor:
    """Features (N, h, w, D) of one made-up product: its own correlations, bends and places."""
    character = torch.Generator().manual_seed(100 + which)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=character) / 2
    places = torch.randn(*GRID, CHANNELS, generator=character)
    chance = torch.Generator().manual_seed(seed)
    raw = torch.randn(images, *GRID, CHANNELS, generator=chance)
    raw[..., ::2] = raw[..., ::2].abs()
    return raw @ mixing + places


def weights(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


def cells_of(features: Tensor, config: Cells = FLOW.cells) -> CellGaussians:
    cells = CellGaussians(GRID, CHANNELS, config)
    cells.fit(features)
    return cells


def held_out_loss(base: Base, expert: Expert, features: Tensor, config: TrainingConfig) -> float:
    """The very loss that is learned, on whole images with the same kind of noise."""
    x = base.prepare(features)
    noise = config.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        passage = base.passage(expert, x, noise=noise)
        return float(loss_of(passage.log_prob, passage.penalised(config.log_det_of), config))


@pytest.fixture(scope="module", params=FLOWS.values(), ids=FLOWS.keys())
def base(request) -> Base:
    return learn_base(product(0), request.param, QUICK, seed=3)


# -- nothing else moves ------------------------------------------------------------------------------


def test_base_is_bit_identical_after_learning_experts(base):
    before, position = weights(base), base.position.clone()
    expert = learn_expert(base, product(1), LONGER, seed=1)
    assert weights(base) == before
    assert torch.equal(base.position, position)
    assert any(value.abs().max() > 1e-3 for name, value in expert.named_parameters() if name.endswith(".B"))


def test_base_and_expert_come_back_frozen_and_in_eval_mode(base):
    expert = learn_expert(base, product(1), QUICK, seed=1)
    for module in (base, expert):
        assert not module.training
        assert list(module.parameters())
        assert not any(p.requires_grad for p in module.parameters())


def test_learning_an_expert_does_not_depend_on_earlier_experts(base):
    alone = learn_expert(base, product(2), QUICK, seed=2)
    learn_expert(base, product(1), QUICK, seed=1)
    assert weights(learn_expert(base, product(2), QUICK, seed=2)) == weights(alone)


@every_flow
def test_learning_leaves_features_and_global_random_state_alone(flow):
    features = product(0)
    before = features.clone()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fresh = learn_base(features, flow, QUICK, seed=3)
    learn_expert(fresh, features, QUICK, seed=3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(features, before)


def test_a_failure_leaves_the_global_random_state_alone_too(base):
    state = torch.get_rng_state()
    with pytest.raises(TrainingError):
        learn_expert(base, product(1) * math.nan, QUICK, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


# -- the seed ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(base):
    assert weights(learn_base(product(0), base.config, QUICK, seed=3)) == weights(base)
    torch.manual_seed(991)  # the caller's own state plays no part
    torch.rand(5)
    experts = [learn_expert(base, product(1), QUICK, seed=5) for _ in range(2)]
    assert weights(experts[0]) == weights(experts[1])


def test_another_seed_gives_other_weights(base):
    other = weights(learn_base(product(0), base.config, QUICK, seed=4))
    assert all(other[name] != value for name, value in weights(base).items() if name.endswith("first.weight"))
    first, second = (weights(learn_expert(base, product(1), QUICK, seed=seed)) for seed in (5, 6))
    learned = [name for name in first if not name.startswith(("statistics.", "start_cells."))]
    assert len(learned) < len(first)
    assert all(first[name] != second[name] for name in learned)
    assert all(first[name] == second[name] for name in first if name not in learned)


def test_the_seed_also_chooses_what_is_looked_at_and_the_noise():
    fresh = learn_base(product(0), replace(FLOW, lora=None, dia=None), QUICK, seed=3)
    first, second, again = (learn_expert(fresh, product(1), QUICK, seed=seed) for seed in (5, 6, 5))
    assert weights(first)["whitening.a"] != weights(second)["whitening.a"]  # which starts at zero for both
    assert weights(first) == weights(again)


# -- it learns ---------------------------------------------------------------------------------------


@every_flow
def test_learning_a_base_lowers_the_held_out_loss(flow):
    features, unseen = product(0), product(0, seed=50)
    losses = []
    for steps in (1, 120):
        learned = learn_base(features, flow, replace(LONGER, base_steps=steps), seed=3)
        bare = Expert(learned)
        bare.start(learned, learned.prepare(features))
        losses.append(held_out_loss(learned, bare, unseen, LONGER))
    assert losses[1] < losses[0] - 0.2


def test_learning_an_expert_lowers_the_held_out_loss(base):
    features, unseen = product(1), product(1, seed=50)
    start = Expert(base)
    start.start(base, base.prepare(features))
    learned = learn_expert(base, features, LONGER, seed=1)
    assert held_out_loss(base, learned, unseen, LONGER) < held_out_loss(base, start, unseen, LONGER) - 0.2


@pytest.mark.long
def test_an_expert_prefers_its_own_product(base):
    experts = [learn_expert(base, product(which), LONGER, seed=1) for which in (1, 2)]
    for own, expert in enumerate(experts):
        loss = [held_out_loss(base, expert, product(which, seed=50), LONGER) for which in (1, 2)]
        assert loss[own] < loss[1 - own] - 0.5


def test_the_statistics_are_the_products_own():
    features = product(1)
    layered = learn_base(product(0), LAYERED, QUICK, seed=3)
    expert = learn_expert(layered, features, QUICK, seed=1)
    z, _ = expert.statistics(layered.prepare(features) + layered.position)
    torch.testing.assert_close(z.mean((0, 1, 2)), torch.zeros(CHANNELS), rtol=0, atol=5e-3)
    torch.testing.assert_close(z.std((0, 1, 2)), torch.ones(CHANNELS), rtol=0, atol=5e-3)


def test_the_cells_are_the_products_own_and_of_all_its_images():
    fresh = learn_base(product(0), FLOW, QUICK, seed=3)
    features = product(1, images=2 * training.START_IMAGES + 1)
    expert = learn_expert(fresh, features, QUICK, seed=1)
    assert weights(expert.gaussians) == weights(cells_of(features))
    assert weights(expert.gaussians) != weights(cells_of(training.some(features)))


@pytest.mark.parametrize("count", [1, 64, 65, 100, 127, 200])
def test_what_a_start_is_fitted_to_comes_from_all_over_the_lesson(count):
    chosen = training.some(torch.arange(count)).tolist()
    assert len(chosen) == min(count, training.START_IMAGES)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    steps = {after - before for before, after in itertools.pairwise(chosen)}
    assert max(steps, default=1) - min(steps, default=1) <= 1


@pytest.mark.long
def test_cells_that_are_given_are_begun_with_and_stay_as_they_are():
    fresh = learn_base(product(0), FLOW, QUICK, seed=3)
    cells = cells_of(product(1, seed=4))
    kept, features = weights(cells), product(1)
    expert = learn_expert(fresh, features, LONGER, seed=1, cells=cells)
    assert weights(cells) == kept == weights(expert.gaussians)
    assert weights(expert) != weights(learn_expert(fresh, features, LONGER, seed=1))
    same = learn_expert(fresh, features, LONGER, seed=1, cells=cells_of(features))
    assert weights(same) == weights(learn_expert(fresh, features, LONGER, seed=1))
    with_cells = learn_base(product(0), FLOW, QUICK, seed=3, cells=cells)
    assert weights(cells) == kept
    assert weights(with_cells) != weights(fresh)
    own = learn_base(product(0), FLOW, QUICK, seed=3, cells=cells_of(product(0)))
    assert weights(own) == weights(fresh)


@every_flow
def test_going_on_from_an_expert_keeps_its_start_and_leaves_it_as_it_is(flow):
    fresh = learn_base(product(0), flow, QUICK, seed=3)
    begun = learn_expert(fresh, product(1), QUICK, seed=1)
    before = weights(begun)
    further = learn_expert(fresh, product(1, seed=4), QUICK, seed=2, begun=begun)
    after = weights(further)
    assert weights(begun) == before
    start = [name for name in before if name.startswith(("statistics.", "start_cells."))]
    assert start
    assert all(after[name] == before[name] for name in start)
    assert all(after[name] != before[name] for name in before if name not in start)
    assert not any(p.requires_grad for p in begun.parameters())


def test_learning_behind_cells_lowers_the_loss_and_moves_neither_base_nor_cells():
    features, unseen = product(1), product(1, seed=50)
    fresh = learn_base(product(0), FLOW, QUICK, seed=3)
    before, cells = weights(fresh), cells_of(features)
    start = Expert(fresh).beginning_with(cells)
    kept = weights(cells)
    learned = learn_expert(fresh, features, LONGER, seed=1, cells=cells)
    assert held_out_loss(fresh, learned, unseen, LONGER) < held_out_loss(fresh, start, unseen, LONGER) - 0.2
    assert held_out_loss(fresh, learned, features, LONGER) < held_out_loss(fresh, start, features, LONGER)
    assert weights(fresh) == before
    assert weights(learned.gaussians) == kept == weights(cells)


@every_flow
def test_one_image_is_enough(flow):
    features = product(0, images=1)
    lone = learn_base(features, flow, QUICK, seed=3)
    expert = learn_expert(lone, features, QUICK, seed=3)
    assert torch.isfinite(lone.log_prob(expert, lone.prepare(product(0, seed=50)))).all()


def test_half_precision_features_learn_too(base):
    expert = learn_expert(base, product(1).half(), QUICK, seed=1)
    assert torch.isfinite(base.log_prob(expert, base.prepare(product(1).half()))).all()


@pytest.mark.long
@every_flow
@pytest.mark.parametrize("missing", ["cells", "whitening", "mixer", "context", "lora", "dia"])
def test_learning_works_without_any_one_part(flow, missing):
    flow = replace(flow, **{missing: None})
    fresh = learn_base(product(0), flow, QUICK, seed=3)
    expert = learn_expert(fresh, product(1), QUICK, seed=3)
    assert torch.isfinite(fresh.log_prob(expert, fresh.prepare(product(1)))).all()


@every_flow
def test_learning_works_without_anything_to_learn(flow):
    flow = replace(flow, couplings=0, **dict.fromkeys(("whitening", "mixer", "context", "lora", "dia")))
    fresh = learn_base(product(0), flow, QUICK, seed=3)
    expert = learn_expert(fresh, product(0), QUICK, seed=3)
    assert not list(expert.parameters())
    assert torch.isfinite(fresh.log_prob(expert, fresh.prepare(product(0)))).all()


@every_flow
@pytest.mark.parametrize("bits", [8, 16])
def test_an_expert_is_to_the_bit_what_is_kept_of_it(flow, bits):
    cells = flow.cells and replace(flow.cells, bits=bits)
    fresh = learn_base(product(0), replace(flow, cells=cells, bits=bits), QUICK, seed=3)
    expert = learn_expert(fresh, product(1), LONGER, seed=1)
    kept = expert.kept()
    assert not [name for name in kept if name.startswith("start_cells.")]  # which are kept by themselves
    again = Expert(fresh)
    assert weights(again) != weights(expert)
    again.take_kept(kept)
    if expert.gaussians is not None:
        own = expert.gaussians
        again = again.beginning_with(CellGaussians.from_kept(GRID, CHANNELS, own.config, own.kept()))
    assert weights(again) == weights(expert)
    assert all(torch.equal(value, expert.kept()[name]) for name, value in again.kept().items())
    x = fresh.prepare(product(1, seed=9))
    assert torch.equal(fresh.score(again.eval(), x), fresh.score(expert, x))


@pytest.mark.parametrize("bits", [8, 16])
def test_matrices_of_an_expert_are_kept_in_its_bits_and_the_rest_in_sixteen(bits):
    fresh = learn_base(product(0), replace(FLOW, bits=bits), QUICK, seed=3)
    expert = learn_expert(fresh, product(1), LONGER, seed=1)
    kept, matrices = expert.kept(), 0
    for name, value in expert.named_parameters():
        if value.ndim == 2 and bits == 8:
            matrices += 1
            assert kept[f"{name}.codes"].dtype == torch.int8
            assert kept[f"{name}.codes"].shape == value.shape
            assert kept[f"{name}.step"].shape == (len(value), 1)
        else:
            assert kept[name].dtype == torch.float16
            assert torch.isfinite(kept[name]).all()
            assert torch.equal(kept[name].float(), value), name
    assert bool(matrices) == (bits == 8)
    assert any(not torch.equal(v.half().float(), v) for v in fresh.state_dict().values())


def test_rounding_an_expert_moves_no_weight_by_more_than_half_a_step_and_leaves_the_cells():
    fresh = learn_base(product(0), FLOW, QUICK, seed=3)
    expert = learn_expert(fresh, product(1), QUICK, seed=1)
    chance, cells = torch.Generator().manual_seed(5), weights(expert.gaussians)
    for parameter in expert.parameters():
        parameter.data = torch.randn(parameter.shape, generator=chance)
    before = {name: value.clone() for name, value in expert.named_parameters()}
    expert.round_to_kept()
    once = weights(expert)
    for name, value in expert.named_parameters():
        largest = before[name].abs().amax(-1, keepdim=True)
        most = largest / 7 / 2 * 1.001 if value.ndim == 2 else largest * 2.0**-11
        assert ((value - before[name]).abs() <= most).all(), name
        assert not torch.equal(value, before[name]), name
    assert weights(expert.gaussians) == cells
    expert.round_to_kept()
    assert weights(expert) == once


def test_what_does_not_fit_an_expert_is_refused():
    fresh = learn_base(product(0), FLOW, QUICK, seed=3)
    expert = learn_expert(fresh, product(1), QUICK, seed=1)
    kept = expert.kept()
    missing = dict(kept)
    del missing["whitening.a"]
    for wrong in (missing, {**kept, "whitening.a": torch.zeros(CHANNELS + 1)}, {**kept, "x": torch.zeros(1)}):
        with pytest.raises(RuntimeError):
            expert.take_kept(wrong)


def test_progress_rises_to_one(base):
    told: list[float] = []
    learn_expert(base, product(1), QUICK, seed=1, progress=told.append)
    assert told == sorted(told)
    assert len(told) == QUICK.steps
    assert told[-1] == 1.0


# -- early stop --------------------------------------------------------------------------------------


@lru_cache
def first_base() -> Base:
    return learn_base(product(0), FLOW, QUICK, seed=3)


def learned_beside(left_out: LeftOut | None, config: TrainingConfig, **more) -> Expert:
    return learn_expert(first_base(), product(1), config, seed=1, left_out=left_out, **more)


def test_a_flow_that_gets_better_to_its_end_is_the_one_learned_with_nothing_left_out():
    left_out, short = LeftOut(product(1, seed=50)), replace(LONGER, steps=25)
    assert weights(learned_beside(left_out, short)) == weights(learned_beside(None, short))
    assert left_out.share == 1


def test_a_flow_that_only_gets_worse_stays_its_start_and_ends_early(monkeypatch):
    first_base()
    worse = itertools.count()
    monkeypatch.setattr(training, "_ruler", lambda *around: lambda: next(worse))
    left_out, told = LeftOut(product(1, seed=50)), []
    stayed = learned_beside(left_out, LONGER, progress=told.append)
    assert left_out.share == 0
    assert told[-1] == 1
    assert len(told) < LONGER.steps
    monkeypatch.undo()
    assert weights(stayed) == weights(learned_beside(None, LONGER, share=0))
    assert weights(stayed) != weights(learned_beside(None, LONGER))


def test_what_is_taken_is_the_best_of_all_that_was_looked_at(monkeypatch):
    first_base()
    said = iter([5.0, 4.0, 2.0, 3.0, math.nan, 0.0])
    monkeypatch.setattr(training, "_ruler", lambda *around: lambda: next(said))
    left_out = LeftOut(product(1, seed=50))
    long = replace(QUICK, steps=60, patches=32)
    taken = learned_beside(left_out, long)
    assert left_out.share == pytest.approx(20 / 60)
    assert next(said) == 0.0  # nobody asked any more
    monkeypatch.undo()
    states = []
    monkeypatch.setattr(training._Best, "ask", lambda self, step: states.append((step, snapshot(self.owned))))
    learned_beside(LeftOut(product(1, seed=50)), long)
    at_20 = dict(states)[20]
    torch.testing.assert_close(taken.whitening.a, at_20, atol=1e-3, rtol=1e-2)


def snapshot(owned: list[nn.Parameter]) -> Tensor:
    return owned[0].detach().clone()


def test_asking_changes_neither_weights_nor_chance():
    fresh = learn_base(product(0), FLOW, QUICK, seed=3)
    expert = Expert(fresh).beginning_with(cells_of(product(1)))
    before, state = weights(expert), torch.get_rng_state()
    ask = training._ruler(fresh, expert, LeftOut(product(1, seed=50)), LONGER, 0)
    assert ask() == ask()
    assert weights(expert) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert training._ruler(fresh, expert, None, LONGER, 0) is None


def line_of(early_stop: bool, flow: FlowConfig = FLOW) -> LineConfig:
    config = replace(LONGER, early_stop=early_stop, learning_rate=3e-2)
    return LineConfig(flow=flow, training=config)


def said_of(patches: Tensor, config: LineConfig) -> tuple[Base, Expert]:
    blocks = make_blocks(len(patches), config.scoring)
    first = learn_first_base(patches, config, seed=0)
    return first.final, flow_of(first.final, first.without, patches, blocks, config).final


def flow_of(
    base: Base,
    without: tuple[Base, Base] | None,
    patches: Tensor,
    blocks: Blocks,
    config: LineConfig,
    told: Callable[[float], None] = lambda share: None,
    other: Beside = NOBODY,
) -> Flows:
    given = (patches, patches[:0], blocks, config, 0)
    beginning = begin_flow(without or (base, base), *given, told, other)
    return finish_flow(base, beginning, *given, met=without is None)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("images", [1, 4])
def test_learning_that_ends_early_is_told_to_its_end(images, threads, monkeypatch):
    monkeypatch.setattr("moleflow.threads.usual", lambda: threads)
    told: list[float] = []
    asked: set[int] = set()

    def tell(share: float) -> None:
        told.append(share)
        asked.add(threading.get_ident())

    patches, config = product(1, images=images), line_of(early_stop=True)
    blocks = make_blocks(images, config.scoring)
    base = first_base()
    with beside(True) as other:
        flow_of(base, None, patches, blocks, config, tell, other)
    assert told == sorted(told)
    assert told[-1] == 1
    told.clear()
    learn_first_base(patches, config, seed=0, progress=tell)
    assert told == sorted(told)
    assert told[-1] == 1
    assert asked == {threading.get_ident()}  # what shows progress need not stand two threads


@pytest.mark.long
def test_a_lone_image_is_judged_by_what_the_flow_begins_with():
    lone, test = product(1, images=1), product(1, seed=50)
    base, expert = said_of(lone, line_of(early_stop=True))
    white = expert.gaussians.whiten(test)[0].norm(dim=-1)
    torch.testing.assert_close(base.score(expert, test), white, rtol=1e-4, atol=1e-4)
    base, expert = said_of(lone, line_of(early_stop=False))
    assert (base.score(expert, test) - white).abs().max() > 0.5
    base, expert = said_of(
        lone, line_of(early_stop=True, flow=LAYERED)
    )  # what that begins with is no density
    assert any(weight.any() for name, weight in expert.state_dict().items() if name.endswith("last.weight"))


@pytest.mark.long
def test_images_that_have_nothing_in_common_leave_a_flow_near_what_it_begins_with():
    apart = torch.cat([product(which, images=1) for which in range(4)])
    worth = {}
    for early_stop in (False, True):
        base, expert = said_of(apart, line_of(early_stop))
        worth[early_stop] = held_out_loss(base, expert, product(9), LONGER)
    assert worth[True] < worth[False]


# -- what is not finite ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_an_error(base, bad):
    features = product(1)
    features[3, 2, 2, 1] = bad
    with pytest.raises(TrainingError):
        learn_base(features, base.config, QUICK, seed=3)
    with pytest.raises(TrainingError):
        learn_expert(base, features, QUICK, seed=3)


def test_features_too_large_for_the_density_are_an_error():
    flow = replace(LAYERED, normalisation="none", statistics=False)
    with pytest.raises(TrainingError, match="did not stay finite"):
        learn_base(product(0) * 1e25, flow, QUICK, seed=3)
    fresh = learn_base(product(0), flow, QUICK, seed=3)
    with pytest.raises(TrainingError, match="did not stay finite"):
        learn_expert(fresh, product(0) * 1e25, QUICK, seed=3)


class Spoiled:
    """Stands in for a step's loss: spoils the chosen calls and writes down what the weights were."""

    def __init__(self, monkeypatch, bad: set[int], how: str = "nan") -> None:
        self.genuine, self.bad, self.how, self.seen = training.likelihood_loss, bad, how, []
        monkeypatch.setattr(training, "likelihood_loss", self)

    def __call__(self, base: Base, expert: Expert, *rest: object) -> Tensor:
        self.seen.append(weights(expert))
        loss = self.genuine(base, expert, *rest)
        if len(self.seen) - 1 not in self.bad:
            return loss
        if self.how == "gradient":  # a loss as before, whose gradient is not a number
            return loss + (0 * next(expert.parameters())).sqrt().sum()
        return loss * float(self.how)


def test_a_bad_step_goes_back_to_the_last_sound_state_with_half_the_rate(base, monkeypatch):
    spoiled = Spoiled(monkeypatch, {30})
    rates = []
    genuine = training._optimiser
    monkeypatch.setattr(
        training,
        "_optimiser",
        lambda owned, rate, *rest, **more: rates.append(rate) or genuine(owned, rate, *rest, **more),
    )
    expert = learn_expert(base, product(1), replace(QUICK, steps=40), seed=1)
    sound = training.CHECK_EVERY  # the last call whose weights were kept, having just shown a finite loss
    assert spoiled.seen[31] == spoiled.seen[sound]
    assert spoiled.seen[30] != spoiled.seen[sound]
    assert spoiled.seen[32] != spoiled.seen[sound]
    assert rates == [QUICK.learning_rate, QUICK.learning_rate / 2]
    assert all(torch.isfinite(value).all() for value in expert.state_dict().values())


@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "gradient"])
def test_a_bad_first_step_goes_back_to_the_start(base, monkeypatch, how):
    spoiled = Spoiled(monkeypatch, {0}, how)
    learn_expert(base, product(1), QUICK, seed=1)
    assert spoiled.seen[1] == spoiled.seen[0]
    assert spoiled.seen[2] != spoiled.seen[0]


@pytest.mark.parametrize("where", [range(5), range(2, 12, 2), range(7, 12)])
def test_retreats_are_bounded_wherever_they_fall(base, monkeypatch, where):
    spoiled = Spoiled(monkeypatch, set(where))
    with pytest.raises(TrainingError, match=f"step {where[-1]} of 12 gave loss nan after 4 retreats"):
        learn_expert(base, product(1), QUICK, seed=1)
    assert len(spoiled.seen) == where[-1] + 1


def test_as_many_retreats_as_allowed_still_learn(base, monkeypatch):
    Spoiled(monkeypatch, {2, 4, 6, 8})
    expert = learn_expert(base, product(1), QUICK, seed=1)
    assert all(torch.isfinite(value).all() for value in expert.state_dict().values())


def test_a_failed_expert_leaves_the_base_bit_identical(base, monkeypatch):
    before = weights(base)
    Spoiled(monkeypatch, set(range(3, 12)))
    with pytest.raises(TrainingError):
        learn_expert(base, product(1), QUICK, seed=1)
    assert weights(base) == before


# -- loss and windows --------------------------------------------------------------------------------


def test_loss_is_mean_tail_and_log_det_penalty():
    config = TrainingConfig(tail_weight=0.7, tail_share=0.25, log_det_weight=0.01)
    log_prob = -torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    log_det = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    expected = 0.3 * 4.5 + 0.7 * 7.5 + 0.01 * 6 / 8
    assert float(loss_of(log_prob, log_det, config)) == pytest.approx(expected)


def test_the_tail_is_never_empty():
    config = TrainingConfig(tail_weight=1.0, tail_share=0.01, log_det_weight=0.0)
    assert float(loss_of(-torch.tensor([1.0, 9.0, 2.0]), torch.zeros(3), config)) == 9.0


def test_the_tail_of_an_image_is_that_of_each_window_in_turn():
    config = TrainingConfig(tail_weight=1.0, tail_share=0.5, log_det_weight=0.0)
    log_prob = -torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[50.0, 60.0], [70.0, 80.0]]])
    nothing = torch.zeros_like(log_prob)
    assert float(loss_of(log_prob, nothing, config)) == (50 + 60 + 70 + 80) / 4
    assert float(loss_of(log_prob, nothing, replace(config, tail="image"))) == (3.5 + 75) / 2


OPTIONS = {
    "tail": ({}, {"tail": "image"}),
    "log-det": ({}, {"log_det_of": "flow", "log_det_weight": 0.1}),
    "margin": ({}, {"margin": 2}),
    "mixer": ({"mixer": Mixer(kernel="full")}, {}),
    "sphere": ({"normalisation": "sphere"}, {}),
}
PUBLISHED = {f"layer-{name}": (LAYERED, *row) for name, row in OPTIONS.items()}
PUBLISHED |= {
    f"cells-{name}": pytest.param(FLOW, *row, marks=pytest.mark.slow)
    for name, row in OPTIONS.items()
    if name != "sphere"
}


@pytest.mark.long
@pytest.mark.parametrize(("whole", "flow", "how"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_every_published_part_changes_what_is_learned_and_still_learns(whole, flow, how):
    plain = replace(LONGER, steps=40, base_steps=40, log_det_weight=how.get("log_det_weight", 1e-4))
    features = product(0, 24)

    def taught(shape: FlowConfig, training: TrainingConfig) -> tuple[Base, Expert]:
        fresh = learn_base(features, shape, training, seed=3)
        return fresh, learn_expert(fresh, features, training, seed=3)

    config = replace(plain, **how)
    fresh, expert = taught(replace(whole, **flow), config)
    untaught = Expert(fresh)
    untaught.start(fresh, fresh.prepare(features))
    held = product(0, seed=9)
    assert held_out_loss(fresh, expert, held, config) < held_out_loss(fresh, untaught, held, config)
    _, other = taught(whole, plain)
    assert weights(expert) != weights(other)


@pytest.mark.long
@every_flow
def test_the_full_mixer_learns_more_of_a_neighbourhood_than_the_symmetric_one_may(flow):
    moved = []
    for kernel in ("symmetric", "full"):
        fresh = learn_base(product(0), replace(flow, mixer=Mixer(kernel=kernel)), LONGER, seed=3)
        x = fresh.prepare(product(0, 2))
        with torch.no_grad():
            moved.append(float((fresh.mixer(x)[0] - x).square().mean().sqrt()))
    assert moved[1] > 3 * moved[0] > 0


def test_the_penalty_on_the_flow_alone_does_not_feel_the_statistics():
    """Features a hundred times as large move the statistics' log-determinant and nothing else."""
    flow = replace(LAYERED, normalisation="none", position=0.0)
    losses = {}
    for whose in ("chain", "flow"):
        config = replace(QUICK, log_det_of=whose, tail_weight=0.0, log_det_weight=1.0, noise=0.0)
        for size in (1.0, 100.0):
            features = size * product(0)
            fresh = Base(GRID, CHANNELS, flow)
            expert = Expert(fresh)
            expert.start(fresh, fresh.prepare(features))
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                loss = training.likelihood_loss(fresh, expert, features, config, generator)
            losses[whose, size] = float(loss)
    moved = CHANNELS * math.log(100)  # of the likelihood itself, in nats
    assert losses["flow", 100.0] - losses["flow", 1.0] == pytest.approx(moved, rel=1e-3)
    assert losses["chain", 100.0] - losses["chain", 1.0] > 2 * moved


def test_no_penalty_feels_how_large_the_features_are_that_cells_whiten():
    losses = {}
    for whose in ("chain", "flow"):
        config = replace(QUICK, log_det_of=whose, tail_weight=0.0, log_det_weight=1.0, noise=0.0)
        for size in (1.0, 100.0):
            features = size * product(0)
            fresh = Base(GRID, CHANNELS, FLOW)
            expert = Expert(fresh)
            expert.start(fresh, fresh.prepare(features))
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                loss = training.likelihood_loss(fresh, expert, features, config, generator)
            losses[whose, size] = float(loss)
        moved = CHANNELS * math.log(100)  # of the likelihood itself, in nats
        assert losses[whose, 100.0] - losses[whose, 1.0] == pytest.approx(moved, rel=1e-3)


@pytest.mark.parametrize("margin", [1, 2, 9])
def test_windows_with_a_margin_count_the_very_patches_of_windows_without(margin):
    features, position = addressed()
    plain = TrainingConfig(patches=360, window=3)
    draws = [
        sample_windows(features, position, config, torch.Generator().manual_seed(0))
        for config in (plain, replace(plain, margin=margin))
    ]
    assert torch.equal(draws[1].counted(draws[1].features), draws[0].features)
    assert torch.equal(draws[1].counted(draws[1].place.encoding), draws[0].place.encoding)
    assert torch.equal(draws[1].counted(draws[1].place.patches), draws[0].place.patches)
    assert torch.equal(draws[1].features[..., 1:], draws[1].place.encoding)
    assert draws[1].features.shape[1:3] == (min(5, 3 + 2 * margin), min(6, 3 + 2 * margin))


@every_flow
def test_a_patch_in_a_window_with_a_margin_sees_what_it_sees_in_the_whole_image(flow):
    """Its z and its couplings' log-determinant are the image's own, at the image's border as well."""
    flow = replace(flow, couplings=2, context=Context(kernel=5, gate=0.5), mixer=Mixer(kernel="full"))
    fresh = Base((13, 14), CHANNELS, flow)
    expert, chance = Expert(fresh), torch.Generator().manual_seed(1)
    for parameter in (*fresh.parameters(), *expert.parameters()):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=chance)
    features = torch.randn(1, 13, 14, CHANNELS, generator=chance)
    expert.start(fresh, fresh.prepare(torch.randn(20, 13, 14, CHANNELS, generator=chance)))
    agreed = {}
    with torch.no_grad():
        whole = fresh.passage(expert, fresh.prepare(features))
        for margin in (0, 2, fresh.reach):
            config = TrainingConfig(patches=16 * 60, window=4, margin=margin)
            chosen = torch.Generator().manual_seed(0)
            windows = sample_windows(features, fresh.position, config, chosen)
            own = fresh.passage(expert, fresh.prepare(windows.features), place=windows.place)
            patches = windows.counted(windows.place.patches)
            z = whole.z[0].flatten(0, 1)[patches]
            log_det = whole.log_det_flow[0].flatten()[patches]
            apart = (windows.counted(own.z) - z).abs().max()
            agreed[margin] = float(apart + (windows.counted(own.log_det_flow) - log_det).abs().max())
    assert len(patches.unique()) > 150  # borders and corners among them
    assert agreed[fresh.reach] < 1e-3
    assert agreed[0] > 100 * agreed[fresh.reach]
    assert agreed[2] > 10 * agreed[fresh.reach]


def test_the_context_of_a_patch_is_the_whole_images_with_a_margin_of_two():
    context = NeighbourContext(CHANNELS, Context(kernel=5, gate=1.0))
    context.conv.weight.data = torch.randn(
        context.conv.weight.shape, generator=torch.Generator().manual_seed(1)
    )
    features = torch.randn(1, 9, 9, CHANNELS, generator=torch.Generator().manual_seed(2))
    where = torch.arange(81.0).reshape(9, 9, 1)
    apart = []
    with torch.no_grad():
        whole = context(features)[0].flatten(0, 1)
        for margin in (0, 1, 2):
            config = TrainingConfig(patches=16 * 40, window=4, margin=margin)
            windows = sample_windows(features, where, config, torch.Generator().manual_seed(0))
            patches = windows.counted(windows.place.encoding)[..., 0].long()
            own = windows.counted(context(windows.features))
            apart.append(float((own - whole[patches]).abs().max()))
    assert apart[2] < 1e-4
    assert min(apart[:2]) > 0.1


def addressed() -> tuple[Tensor, Tensor]:
    """Features that say which image, row and column they are, and a position that says row and column."""
    image, row, column = torch.meshgrid(
        torch.arange(4.0), torch.arange(5.0), torch.arange(6.0), indexing="ij"
    )
    return torch.stack([image, row, column], dim=-1), torch.stack([row[0], column[0]], dim=-1)


@pytest.mark.parametrize(
    ("window", "shape"), [(1, (1, 1)), (3, (3, 3)), (5, (5, 5)), (6, (5, 6)), (9, (5, 6))]
)
def test_windows_are_whole_pieces_with_the_position_they_were_cut_at(window, shape):
    features, position = addressed()
    config = TrainingConfig(patches=360, window=window)
    windows, place, _ = sample_windows(features, position, config, torch.Generator().manual_seed(0))
    batch = 360 // (shape[0] * shape[1])
    assert windows.shape == (batch, *shape, 3)
    assert place.encoding.shape == (batch, *shape, 2)
    assert torch.equal(windows[..., 1:], place.encoding)
    assert torch.equal(place.patches, (6 * windows[..., 1] + windows[..., 2]).long())
    corner = windows[:, :1, :1]
    assert torch.equal(windows[..., 0], corner[..., 0].expand(batch, *shape))  # of one image
    steps = torch.stack(torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij"), -1)
    assert torch.equal(windows[..., 1:] - corner[..., 1:], steps.expand(batch, *shape, 2).float())


def test_windows_reach_every_patch_of_every_image():
    features, position = addressed()
    config = TrainingConfig(patches=9 * 600, window=3)
    windows, *_ = sample_windows(features, position, config, torch.Generator().manual_seed(0))
    assert len(windows.reshape(-1, 3).unique(dim=0)) == 4 * 5 * 6


def test_there_is_a_window_even_when_one_is_larger_than_the_patches_asked_for():
    features, position = addressed()
    config = TrainingConfig(patches=2, window=4)
    windows, *_ = sample_windows(features, position, config, torch.Generator().manual_seed(0))
    assert windows.shape == (1, 4, 4, 3)


@pytest.mark.parametrize("margin", [0, 1])
def test_windows_of_several_products_are_joined_with_all_that_belongs_to_them(margin):
    features, position = addressed()
    config = TrainingConfig(patches=90, window=3, margin=margin)
    draws = [
        sample_windows(features, position, config, torch.Generator().manual_seed(seed)) for seed in (1, 2)
    ]
    both = Windows.joined(draws)
    assert isinstance(both.place, Place)
    for i, draw in enumerate(draws):
        part = slice(10 * i, 10 * i + 10)
        assert torch.equal(both.features[part], draw.features)
        assert torch.equal(both.place.encoding[part], draw.place.encoding)
        assert torch.equal(both.place.patches[part], draw.place.patches)
        assert torch.equal(both.counted(both.features)[part], draw.counted(draw.features))
    assert not torch.equal(draws[0].features, draws[1].features)


def test_windows_depend_on_the_generator_alone():
    features, position = addressed()
    config = TrainingConfig(patches=90, window=3)
    draws = [
        sample_windows(features, position, config, torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("numbers", "threads"), [(64, 1), (SMALL, 1), (SMALL + 1, 3)])
def test_small_weights_are_learned_on_one_thread_and_large_ones_on_as_many_as_there_are(numbers, threads):
    weights = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(numbers))]
    seen, before = [], torch.get_num_threads()

    def loss(generator):
        seen.append(torch.get_num_threads())
        return sum(own.square().mean() for own in weights)

    def failing(generator):
        raise KeyboardInterrupt

    torch.set_num_threads(3)
    try:
        fit(weights, loss, TrainingConfig(), steps=2, seed=0)
        assert seen == [threads, threads]
        with pytest.raises(KeyboardInterrupt):
            fit(weights, failing, TrainingConfig(), steps=2, seed=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
