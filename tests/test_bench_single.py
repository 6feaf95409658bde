"""One flow over all products: what each rival keeps of the past, and that nothing else differs."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from moleflow.bench.methods import single
from moleflow.bench.methods.base import Pictures, Setting, State
from moleflow.bench.methods.single import (
    EWC,
    Consolidation,
    Distillation,
    FineTuning,
    Joint,
    LwF,
    Mixture,
    Rehearsal,
    Replay,
    SingleFlow,
    Step,
    WholeFlow,
    fisher_information,
    price,
)
from moleflow.config import Context, Dia, FlowConfig, LineConfig, TrainingConfig
from moleflow.errors import ConfigError, TaskError, TrainingError
from moleflow.flow.bijections import Place
from moleflow.learning.training import some

GRID, CHANNELS = (6, 6), 12
BARE = FlowConfig(
    cells=None, normalisation="layer", couplings=0, mixer=None, lora=None, dia=None, position=0.0
)
FLOW = FlowConfig(
    cells=None,
    normalisation="layer",
    statistics=True,
    hidden=16,
    context=Context(kernel=3),
    dia=Dia(hidden=16),
)
QUICK = TrainingConfig(steps=2, base_steps=3, patches=96, window=3, noise=0.3)
LONGER = TrainingConfig(steps=12, base_steps=12, patches=180, window=3, learning_rate=3e-2, noise=0.3)
METHODS = {"fine-tuning": FineTuning, "ewc": EWC, "lwf": LwF, "replay": Replay, "joint": Joint}
SEQUENTIAL = [name for name in METHODS if name != "joint"]


def setting(training: TrainingConfig = QUICK, *, flow: FlowConfig = FLOW, seed: int = 0) -> Setting:
    config = LineConfig(flow=flow, training=training)
    return Setting(grid=GRID, channels=CHANNELS, image_size=(48, 48), seed=seed, config=config)


def product(which: int, images: int = 12, *, seed: int = 0) -> Pictures:
    """A made-up product: patches vary along three directions of its own, about a mean of each place."""
    character = torch.Generator().manual_seed(100 + which)
    mixing = torch.randn(3, CHANNELS, generator=character) / 2
    mean = 2 * torch.randn(CHANNELS, generator=character) + torch.randn(*GRID, CHANNELS, generator=character)
    chance = torch.Generator().manual_seed(seed)
    along = torch.randn(images, *GRID, 3, generator=chance) @ mixing
    raw = along + mean + 0.2 * torch.randn(images, *GRID, CHANNELS, generator=chance)
    return Pictures("ABC"[which], raw.half(), lambda i, size: None)


def made(name: str, *, seed: int = 0, flow: FlowConfig = FLOW) -> SingleFlow:
    """A method that learned nothing, quick to learn."""
    options = {"options": Consolidation(windows=3)} if name == "ewc" else {}
    return METHODS[name](setting(seed=seed, flow=flow), **options)


def taught(name: str, products: list[Pictures], **options: object) -> SingleFlow:
    """A method that learned these products one after another."""
    method = METHODS[name](setting(), **options) if options else made(name)
    for pictures in products:
        method.learn([pictures])
    return method


@functools.cache
def _well_known(name: str, count: int) -> SingleFlow:
    return taught(name, [product(0), product(1)][:count])


def well_known(name: str, count: int) -> SingleFlow:
    """A method after the first product, or after both, for tests that do not ask how it learned them."""
    return copy.deepcopy(_well_known(name, count))


def contents(state: State) -> tuple[dict[str, bytes], dict]:
    return {k: v.numpy().tobytes() for k, v in state.tensors.items()}, state.notes


def flow_of(method: SingleFlow) -> dict[str, bytes]:
    return {k: v for k, v in contents(method.state())[0].items() if k.startswith("shared/flow.")}


def said(method: SingleFlow, pictures: Pictures, task: str | None = None) -> list[tuple]:
    return [(i.task, i.known, i.score, i.patch_map.tobytes()) for i in method.inspect(pictures, task)]


def nll(method: SingleFlow, pictures: Pictures) -> float:
    with torch.no_grad():
        return float(method.flow.scores(pictures.features).mean())


# -- forgetting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """A method after A and B, and what held-out images say of it: mean -log p in nats per patch."""

    method: SingleFlow
    forgotten: float  # what A lost while B was learned
    gained: float  # what B won


@pytest.fixture(scope="module")
def courses() -> dict[str, Course]:
    held_a, held_b = product(0, 20, seed=9), product(1, 20, seed=9)
    # With so few steps the default weight of LwF would rather keep A than learn B.
    options = {"ewc": Consolidation(windows=16), "lwf": Distillation(weight=1.0)}
    found = {}
    for name, kind in METHODS.items():
        method = kind(setting(LONGER), **({"options": options[name]} if name in options else {}))
        method.learn([product(0, 20)])
        old, new = nll(method, held_a), nll(method, held_b)
        method.learn([product(1, 20)])
        found[name] = Course(method, nll(method, held_a) - old, new - nll(method, held_b))
    return found


def test_a_flow_begins_with_what_all_images_of_a_lesson_are_like():
    """Also with those that came last, as of another day."""
    pictures = product(0, images=100)
    another = Pictures("A", pictures.features.clone(), pictures.read)
    another.features[70:] += 1
    starts = [made("fine-tuning")._new([own]).state_dict() for own in (pictures, another)]
    assert any(not torch.equal(value, starts[1][name]) for name, value in starts[0].items())


def test_fine_tuning_forgets_much_more_than_every_remedy(courses):
    bare = courses["fine-tuning"].forgotten
    assert bare > 8
    assert all(courses[name].forgotten < 0.6 * bare for name in METHODS if name != "fine-tuning")


def test_penalties_lie_between_fine_tuning_and_joint(courses):
    for name in ("ewc", "lwf"):
        assert courses["joint"].forgotten < courses[name].forgotten


def test_every_method_learns_the_new_product_too(courses):
    best = courses["fine-tuning"].gained
    assert best > 10
    assert all(0.6 * best < found.gained <= best for found in courses.values())


@pytest.mark.parametrize(
    ("name", "weak", "strong"),
    [
        ("ewc", Consolidation(strength=1e-9, windows=4), Consolidation(strength=1e9, windows=4)),
        ("lwf", Distillation(weight=1e-9), Distillation(weight=1e9)),
    ],
)
def test_a_penalty_reaches_from_fine_tuning_to_standing_still(name, weak, strong):
    """With no weight the flow of fine-tuning, with all weight that of before."""
    training = replace(LONGER, steps=6, base_steps=6, learning_rate=1e-2)
    held, moved = product(0, seed=9), {}
    for label, method in (
        ("bare", FineTuning(setting(training))),
        ("weak", METHODS[name](setting(training), options=weak)),
        ("strong", METHODS[name](setting(training), options=strong)),
    ):
        method.learn([product(0)])
        before = nll(method, held)
        method.learn([product(1)])
        moved[label] = nll(method, held) - before
    assert moved["weak"] == pytest.approx(moved["bare"], rel=1e-3)
    assert abs(moved["strong"]) < 0.15 * moved["bare"]


# -- one architecture, one way to learn --------------------------------------------------------------


def test_the_first_task_is_the_same_for_all():
    flows = [flow_of(well_known(name, 1)) for name in METHODS]
    assert all(flow == flows[0] for flow in flows)


def test_joint_is_one_task_of_all_products():
    at_once = METHODS["fine-tuning"](setting())
    at_once.learn([product(0), product(1, 5)])
    assert flow_of(taught("joint", [product(0), product(1, 5)])) == flow_of(at_once)


def test_it_cannot_begin_with_the_cells_of_one_product():
    """Whatever flow the line has, this one begins with normalised features; nothing else of it changes."""
    beginning = FlowConfig(hidden=16, context=Context(kernel=3), dia=Dia(hidden=16))
    assert beginning.cells is not None
    flow = WholeFlow(setting(flow=beginning))
    assert flow.base.config == WholeFlow(setting()).base.config
    assert set(flow.state_dict()) == set(WholeFlow(setting()).state_dict())
    assert flow.expert.start_cells is None


def test_it_is_the_lines_flow_without_lora():
    names = set(well_known("fine-tuning", 1).flow.state_dict())
    assert {"base.mixer.gate", "base.couplings.1.scale.first.weight", "expert.whitening.a"} <= names
    assert "expert.dia.1.net.last.weight" in names
    assert not [name for name in names if "adapters" in name]


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_later_task_moves_every_weight_but_not_the_statistics(name):
    method = well_known(name, 1)
    before = {k: v.clone() for k, v in method.flow.state_dict().items()}
    method.learn([product(1)])
    for key, value in method.flow.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("expert.statistics."), key


def test_joint_statistics_are_of_all_products_alike():
    """However many images each has: with as much of A as of B, what one is above zero the other is below."""
    products = [product(0, 32), product(1, 320)]
    flow = taught("joint", products).flow
    x = [flow.base.prepare(p.features) + flow.base.position for p in products]
    means = [flow.expert.statistics(some(part, 32))[0].mean((0, 1, 2)) for part in x]
    assert float(means[0].abs().max()) > 0.3
    torch.testing.assert_close(means[0], -means[1], rtol=0, atol=1e-4)


def test_steps_are_the_budget_times_the_products(monkeypatch):
    taken: list[int] = []
    monkeypatch.setattr(single, "fit", lambda *given, steps, **options: taken.append(steps))
    for name, expected in {"fine-tuning": [5, 5, 10], "joint": [5, 10, 20]}.items():
        method = METHODS[name](setting())
        for task in ([product(0)], [product(1)], [product(0), product(2)]):
            method.learn(task)
        assert taken == expected
        taken.clear()


def test_a_flow_without_anything_to_learn_learns():
    flow = replace(FLOW, couplings=0, **dict.fromkeys(("whitening", "mixer", "context", "lora", "dia")))
    for name in METHODS:
        method = made(name, flow=flow)
        for which in (0, 1):
            method.learn([product(which)])
        assert math.isfinite(nll(method, product(0)))


# -- seed, state, failure ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(name):
    state = torch.get_rng_state()
    first = contents(taught(name, [product(0), product(1)]).state())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(991)  # the caller's own state plays no part
    assert contents(taught(name, [product(0), product(1)]).state()) == first
    other = made(name, seed=1)
    other.learn([product(0)])
    assert flow_of(other) != flow_of(well_known(name, 1))


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_state_says_the_same_to_the_bit(name):
    method, probe = well_known(name, 2), product(0, 3, seed=5)
    back = made(name)
    back.restore(method.state())
    assert said(back, probe) == said(method, probe)
    assert contents(back.state()) == contents(method.state())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_learned_nothing_has_a_state_too(name):
    method = well_known(name, 1)
    method.restore(made(name).state())
    with pytest.raises(TaskError, match=f"^{name}: expected at least one task"):
        next(method.inspect(product(0)))
    method.learn([product(1)])
    assert contents(method.state()) == contents(taught(name, [product(1)]).state())


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_restored_method_learns_on_as_the_first_would(name):
    method, back = well_known(name, 2), made(name)
    back.restore(method.state())
    for each in (method, back):
        each.learn([product(2)])
    assert contents(back.state()) == contents(method.state())


def test_a_restored_joint_method_says_that_it_lacks_the_images():
    back = Joint(setting())
    back.restore(well_known("joint", 2).state())
    with pytest.raises(TaskError, match="images of A, B to learn anew"):
        back.learn([product(2)])


def test_a_joint_method_that_is_reminded_learns_on_as_the_first_would():
    method, back = taught("joint", [product(0), product(1, 5)]), Joint(setting())
    back.restore(method.state())
    back.remind([product(0), product(1, 5)])
    for each in (method, back):
        each.learn([product(2)])
    assert contents(back.state()) == contents(method.state())
    assert [name for name, kind in METHODS.items() if kind.keeps_images] == ["joint"]


@pytest.mark.parametrize("name", METHODS)
def test_a_failure_leaves_the_method_as_it_was(name):
    method = well_known(name, 1)
    before, spoiled = contents(method.state()), product(1)
    spoiled.features[3, 2, 2, 1] = math.nan
    with pytest.raises(TrainingError):
        method.learn([product(2), spoiled])
    assert contents(method.state()) == before
    method.learn([product(1)])
    assert contents(method.state()) == contents(well_known(name, 2).state())


# -- inspection --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_an_image_is_judged_alone_and_whatever_product_is_named(name):
    method, probe = well_known(name, 2), product(0, 4, seed=5)
    found = said(method, probe)
    assert all(task is None and known is None for task, known, *_ in found)
    assert said(method, probe.take([2, 0])) == [found[2], found[0]]
    assert said(method, probe, "B") == found


@pytest.mark.parametrize("name", METHODS)
def test_a_defect_is_found_where_it_is(name, courses):
    method, probe = courses[name].method, product(1, 10, seed=5)
    good = list(method.inspect(probe))
    probe.features[:, 4, 1] *= -1  # what no patch at any place looks like
    faulty = list(method.inspect(probe))
    assert min(found.score for found in faulty) > max(found.score for found in good)
    assert all(found.patch_map.argmax() == 4 * GRID[1] + 1 for found in faulty)


# -- windows from several products -------------------------------------------------------------------


def addressed(images: int, source: int) -> Tensor:
    """Features that say which source, row and column they are."""
    row, column = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    return torch.stack([torch.full((5, 6), float(source)), row, column], dim=-1).expand(images, 5, 6, 3)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.8), (1.0,), (0.25, 0.0, 0.75)])
def test_windows_come_from_each_source_by_its_share_and_know_their_place(shares):
    sources = tuple(addressed(1 + 9 * i, i).half() for i in range(len(shares)))
    places = addressed(1, 0)[0, ..., 1:]
    training = TrainingConfig(patches=9 * 3000, window=3)
    windows, place, _ = Mixture(sources, shares).draw(places, training, torch.Generator().manual_seed(0))
    assert windows.shape == (3000, 3, 3, 3)
    assert windows.dtype == torch.float16
    assert torch.equal(windows[..., 1:].float(), place.encoding)
    assert torch.equal(6 * windows[..., 1].long() + windows[..., 2].long(), place.patches)
    found = windows[:, 0, 0, 0].long().bincount(minlength=len(shares)) / 3000
    torch.testing.assert_close(found, torch.tensor(shares), rtol=0, atol=0.03)
    assert all((count == 0) == (share == 0) for count, share in zip(found.tolist(), shares, strict=True))


def test_products_of_a_task_weigh_alike_whatever_their_number_of_images():
    assert FineTuning(setting()).mixture([product(0, 30), product(1, 3)]).shares == (0.5, 0.5)


# -- EWC ---------------------------------------------------------------------------------------------


def test_fisher_information_is_the_mean_squared_slope_of_a_windows_likelihood():
    """With the whitening alone, z = 2^tanh(a) x + 2 tanh(b): at 0 the slopes are log 2 (1 - x^2), -2 x."""
    training = TrainingConfig(window=2, patches=4, noise=0.0)
    method = FineTuning(setting(replace(training, steps=1, base_steps=1), flow=BARE))
    method.learn([product(0)])
    with torch.no_grad():
        for parameter in method.flow.parameters():
            parameter.zero_()
    mixture = Mixture.equal([product(0).features])
    found = fisher_information(method.flow, mixture, training, windows=50, seed=3)

    generator, slopes = torch.Generator().manual_seed(3), {"a": [], "b": []}
    for _ in range(50):
        windows, *_ = mixture.draw(method.flow.base.position, training, generator)
        torch.randn(windows.shape, generator=generator)  # the noise, drawn though its size is nought
        x = method.flow.base.prepare(windows)[0].flatten(0, 1)
        slopes["a"].append(math.log(2) * (1 - x.square()).sum(0))
        slopes["b"].append(-2 * x.sum(0))
    assert set(found) == {"expert.whitening.a", "expert.whitening.b"}
    for name, each in slopes.items():
        expected = torch.stack(each).square().mean(0) / 4  # four patches in a window
        torch.testing.assert_close(found[f"expert.whitening.{name}"], expected, rtol=1e-4, atol=1e-5)


def test_fisher_information_of_all_tasks_adds_up():
    options = Consolidation(windows=8)
    method = taught("ewc", [product(0)], options=options)
    first = method.fisher
    method.learn([product(1)])
    own = fisher_information(
        method.flow, Mixture.equal([product(1).features]), QUICK, windows=8, seed=method.setting.seed
    )
    assert set(method.fisher) == {name for name, _ in method.flow.named_parameters()}
    for name, value in method.fisher.items():
        assert torch.equal(value, own[name] + first[name]), name
    assert not any(p.requires_grad for p in method.flow.parameters())


def test_the_ewc_penalty_is_the_weighted_squared_distance():
    method = taught("ewc", [product(0)], options=Consolidation(strength=3.0, windows=4))
    moved = taught("ewc", [product(0), product(1)], options=Consolidation(strength=3.0, windows=4)).flow
    step = Step(*torch.zeros(6, 1, 1, 1, 1))
    assert float(method.penalty(method.flow, step)) == 0
    expected = 0.0
    new, old = moved.state_dict(), method.flow.state_dict()
    for name, fisher in method.fisher.items():
        expected += 1.5 * float((fisher.double() * (new[name] - old[name]).double() ** 2).sum())
    assert expected > 0
    assert float(method.penalty(moved, step)) == pytest.approx(expected, rel=1e-4)


# -- LwF ---------------------------------------------------------------------------------------------


def test_distillation_is_a_divergence_in_nats():
    method = taught("lwf", [product(0)], options=Distillation(weight=2.0))
    x = method.flow.base.prepare(product(1).features)
    place = Place(method.flow.base.position.expand(x.shape))
    with torch.no_grad():
        z, log_det = method.flow.latent(x, place)
    assert float(method.penalty(method.flow, Step(x, place, z, log_det, log_det, log_det))) == 0

    chance = torch.Generator().manual_seed(1)
    other = z + 0.1 * torch.randn(z.shape, generator=chance)
    expected = kl_divergence(Normal(z, 1.0), Normal(other, 1.0)).sum(-1).mean()
    found = method.penalty(method.flow, Step(x, place, other, log_det, log_det, log_det))
    assert float(found) == pytest.approx(2 * float(expected), rel=1e-4)

    swollen = torch.tensor(0.01)  # log-scale of each of the channels
    expected = CHANNELS * kl_divergence(Normal(0.0, 1.0), Normal(0.0, swollen.exp()))
    found = method.penalty(method.flow, Step(x, place, z, log_det + CHANNELS * swollen, log_det, log_det))
    assert float(found) == pytest.approx(2 * float(expected), rel=0.02)


# -- replay and joint --------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "kept"), [(40, 2), (100, 5), (12, 1), (1, 1)])
def test_replay_keeps_five_per_cent_and_one_image_at_least(images, kept):
    method, learned = taught("replay", [product(0, images)]), product(0, images).features
    (memory,) = method.memory
    assert memory.shape == (kept, *GRID, CHANNELS)
    assert memory.dtype == torch.float16
    found = [i for image in memory for i in range(images) if torch.equal(learned[i], image)]
    assert len(set(found)) == kept
    assert method.state().notes["kept_images"] == kept


def test_replay_pays_for_images_and_not_for_the_features_that_stand_for_them():
    tasks = [product(0, 40), product(1, 60)]
    bare, kept = taught("fine-tuning", tasks).state(), taught("replay", tasks).state()
    assert {"shared/memory.0", "shared/memory.1"} == set(kept.tensors) - set(bare.tensors)
    for owner in (None, "shared", "A"):
        assert kept.bytes_of(owner) == bare.bytes_of(owner)
        assert kept.numbers_of(owner) == bare.numbers_of(owner)
    assert (kept.notes["kept_images"], kept.notes["kept_bytes"]) == (5, 5 * 48 * 48 * 3)


def test_a_kept_image_costs_its_file_or_its_pixels_if_these_are_fewer():
    pictures = replace(product(0, 4), file_bytes=(100, 10**9, 200, 300))
    assert price(pictures, [0, 1, 3], setting()) == 100 + 48 * 48 * 3 + 300
    assert taught("joint", [pictures]).state().notes["kept_bytes"] == 100 + 48 * 48 * 3 + 200 + 300


def test_half_of_a_step_is_old_and_every_old_product_weighs_alike():
    method = taught("replay", [product(0, 40), product(1, 100)])
    mixture = method.mixture([product(2)])
    assert mixture.shares == (0.5, 0.25, 0.25)
    for source, kept in zip(mixture.sources, [product(2).features, *method.memory], strict=True):
        assert torch.equal(source, kept)
    method = taught("replay", [product(0)], options=Rehearsal(old=0.75))
    assert method.mixture([product(1), product(2)]).shares == (0.125, 0.125, 0.75)


def test_joint_keeps_no_images_in_its_state_but_says_what_it_needs():
    state = taught("joint", [product(0, 40), product(1, 10)]).state()
    assert state.notes == {
        "products": ["A", "B"],
        "kept_images": 50,
        "kept_bytes": 50 * 48 * 48 * 3,
    }
    assert state.bytes_of() == well_known("fine-tuning", 1).state().bytes_of()


def test_a_product_taught_twice_counts_twice():
    """As in a drift, where one product comes back changed."""
    again = [product(0), product(0, seed=1)]
    assert len(taught("replay", again).memory) == 2
    assert taught("joint", again).state().notes["kept_images"] == 24


# -- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: Consolidation(strength=0),
        lambda: Consolidation(windows=0),
        lambda: Distillation(weight=-1.0),
        lambda: Rehearsal(kept=0.0),
        lambda: Rehearsal(old=1.5),
    ],
)
def test_impossible_options_are_refused(build):
    with pytest.raises(ConfigError):
        build()


def test_notes_say_how_each_departs_from_the_line_and_from_its_paper():
    notes = {name: made(name).notes for name in METHODS}
    assert all("no cell Gaussians" in said[0] for said in notes.values())
    own = {name: len(said) - 1 for name, said in notes.items()}
    assert own == {"fine-tuning": 0, "ewc": 1, "lwf": 1, "replay": 0, "joint": 0}


def test_names_are_those_of_the_command_line():
    assert {kind.name: kind for kind in METHODS.values()} == METHODS
    assert not any(kind.routes for kind in METHODS.values())
    assert all(kind.localises for kind in METHODS.values())
