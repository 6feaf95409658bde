"""What is computed side by side, and on how many threads."""

import threading
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor

from moleflow import Detector, threads
from moleflow.bases import shipped
from moleflow.config import LineConfig, override, with_layers
from moleflow.features import backbones
from moleflow.features.extractor import Extractor, Features
from moleflow.flow.expert import Base
from moleflow.learning import left_out
from moleflow.learning.product import learn_product
from moleflow.line import archive
from moleflow.threads import Beside, beside, one_thread, seeded, side_by_side, usual

GRID, CHANNELS = (8, 8), 16


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_both_are_computed_at_the_same_time_on_one_thread_each():
    meeting = threading.Barrier(2, timeout=20)  # each waits for the other

    def here() -> tuple[int, int]:
        meeting.wait()
        return threading.get_ident(), torch.get_num_threads()

    (first, own), (second, others) = side_by_side(here, here, at_once=True)
    assert first == threading.get_ident() != second
    assert own == others == 1
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("threads", "at_once"), [(1, True), (3, False)])
def test_they_are_computed_in_turn_where_there_is_one_thread_or_it_is_not_worth_it(threads, at_once):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        told = side_by_side(
            lambda: seen.append(torch.get_num_threads()) or threading.get_ident(),
            lambda: seen.append(torch.get_num_threads()) or threading.get_ident(),
            at_once=at_once,
        )
    finally:
        torch.set_num_threads(before)
    assert told == (threading.get_ident(), threading.get_ident())
    assert seen == [threads, threads]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("which", ["first", "second", "both"])
def test_an_error_comes_through_once_the_other_has_ended(which):
    ended = []

    def computed(name: str) -> None:
        ended.append(name)
        if which in (name, "both"):
            raise ValueError(name)

    with pytest.raises(ValueError, match="second" if which == "second" else "first"):
        side_by_side(lambda: computed("first"), lambda: computed("second"), at_once=True)
    # What the other thread had not come to by then is left undone, if the first failed.
    assert sorted(ended) == ["first", "second"] or ended == ["first"]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_what_the_other_thread_has_not_come_to_is_done_by_the_one_that_asks():
    done: list[tuple[str, int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(name: str) -> str:
        done.append((name, threading.get_ident()))
        begun.set()
        assert name != "first" or go_on.wait(20)
        return name

    with beside(True) as other:
        first, second = (other.begin(lambda name=name: work(name)) for name in ("first", "second"))
        other.begin(lambda: work("nobody asks"))
        assert begun.wait(20)
        assert second() == "second"
        go_on.set()
        assert first() == "first"
    here = threading.get_ident()
    assert done[1] == ("second", here)
    assert done[0][0] == "first"
    assert done[0][1] != here


@pytest.mark.usefixtures("three_threads")
def test_what_one_thread_took_upon_itself_is_not_done_again_by_the_other():
    """Neither where the other one needs it for what comes after."""
    go_on, asked, done = threading.Event(), threading.Event(), []

    def needed() -> int:
        go_on.set()  # the other thread goes on to what needs this, while this is being done
        assert asked.wait(20)
        done.append(threading.get_ident())
        return 7

    def after() -> int:
        asked.set()
        return 2 * outcome()

    with beside(True) as other:
        other.begin(lambda: go_on.wait(20))
        outcome = other.begin(needed)
        later = other.begin(after)
        assert outcome() == 7
        assert later() == 14
    assert done == [threading.get_ident()]


def test_where_there_is_no_other_thread_work_is_done_when_it_is_asked_about():
    done: list[int] = []
    asked = Beside(None).begin(lambda: done.append(threading.get_ident()))
    assert not done
    asked()
    asked()
    assert done == [threading.get_ident()]


@pytest.mark.usefixtures("three_threads")
def test_a_thread_that_comes_in_meanwhile_goes_back_to_what_there_was():
    """Also where it began while another one computed on one thread, which is what it then begins with."""
    inside, over = threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with one_thread():
            inside.set()
            over.wait(20)
        seen.append(torch.get_num_threads())

    def second() -> None:
        inside.wait(20)
        with one_thread():
            seen.append(usual())
            over.set()
            other.join()
            with one_thread():
                pass
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    other = threading.Thread(target=first)
    other.start()
    inside.wait(20)
    late = threading.Thread(target=second)
    late.start()
    late.join()
    assert seen == [3, 3, 1, 3]
    assert torch.get_num_threads() == usual() == 3
    begun = []
    after = threading.Thread(target=lambda: begun.append(torch.get_num_threads()))
    after.start()
    after.join()
    assert begun == [3]


def test_where_more_threads_are_wished_for_nothing_is_put_back():
    before = torch.get_num_threads()
    try:
        with one_thread(only=False):
            torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_weights_drawn_in_two_threads_are_those_of_their_seeds():
    def drawn(seed: int) -> list[Tensor]:
        values = []
        for _ in range(200):
            with seeded(seed):
                values.append(torch.rand(64))
        return values

    state = torch.get_rng_state()
    both = side_by_side(lambda: drawn(1), lambda: drawn(2), at_once=True)
    for seed, values in zip((1, 2), both, strict=True):
        expected = torch.rand(64, generator=torch.Generator().manual_seed(seed))
        assert all(torch.equal(value, expected) for value in values)
    assert torch.equal(torch.get_rng_state(), state)


def loads_a_line(saved):
    Detector.load(saved, device="cpu")


def builds_a_backbone(saved):
    backbones.build_network(backbones.get_backbone("efficientnet_lite0"))


def begins_a_line(saved):
    extractor = Extractor(image_size=64)
    assert shipped.shipped_base(extractor.weights_hash, extractor.grid, extractor.dim, LineConfig().flow)


@pytest.mark.parametrize(
    ("asked", "where", "name"),
    [
        (loads_a_line, archive, "Base"),
        (builds_a_backbone, timm, "create_model"),
        (begins_a_line, shipped, "Base"),
    ],
    ids=["line", "backbone", "shipped base"],
)
def test_no_lesson_draws_its_weights_while_others_are_constructed(monkeypatch, saved, asked, where, name):
    """Both would take their numbers from the one generator there is."""
    waits, construct = [], getattr(where, name)

    def watched(*args, **more):
        lesson = threading.Thread(target=lambda: free.append(threads._seeding.acquire(blocking=False)))
        free: list[bool] = []
        lesson.start()
        lesson.join()
        waits.append(free == [False])
        return construct(*args, **more)

    monkeypatch.setattr(where, name, watched)
    state = torch.get_rng_state()
    asked(saved)
    assert waits
    assert all(waits)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("three_threads")
def test_a_product_learned_side_by_side_is_the_one_learned_in_turn(monkeypatch):
    config = with_layers(
        override(LineConfig(), {"training.steps": 12, "scoring.coreset.patches": 20}), (CHANNELS,)
    )
    generator = torch.Generator().manual_seed(0)
    seen = Features(
        torch.randn(10, *GRID, CHANNELS, generator=generator).half(), torch.randn(10, 6, generator=generator)
    )
    with seeded(0):
        base = Base(GRID, CHANNELS, config.flow).requires_grad_(False).eval()
    threads: set[str] = set()
    genuine, short_flow = torch.randperm, left_out._short_flow  # only the coreset draws with the first
    meeting = threading.Barrier(2, timeout=20)  # each waits for the other

    def spy(*args, **more):
        threads.add(threading.current_thread().name)
        return genuine(*args, **more)

    def met(*args, **more):
        meeting.wait()
        return short_flow(*args, **more)

    with monkeypatch.context() as watched:
        watched.setattr(torch, "randperm", spy)
        watched.setattr(left_out, "_short_flow", met)
        together = learn_product(base, seen, config, seed=3)
    assert all(name.startswith("beside") for name in threads)
    assert threads
    torch.set_num_threads(1)
    in_turn = learn_product(base, seen, config, seed=3)
    for one, other in zip(together.parts().items(), in_turn.parts().items(), strict=True):
        assert one == other
    assert together.calibration == in_turn.calibration
    assert together.familiarity == in_turn.familiarity
    for name, tensor in together.densities.expert.kept().items():
        assert torch.equal(tensor, in_turn.densities.expert.kept()[name]), name
    assert torch.equal(together.densities.coreset.codes, in_turn.densities.coreset.codes)
    maps = [product.maps(base, seen.patches.float())[0] for product in (together, in_turn)]
    assert torch.equal(*maps)


@pytest.mark.usefixtures("three_threads")
def test_a_large_flow_learns_on_all_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "moleflow.learning.product.beside", lambda at_once: asked.append(at_once) or beside(False)
    )
    monkeypatch.setattr("moleflow.learning.training.SMALL", 2**12)
    seen = Features(torch.randn(4, 4, 4, 8), torch.randn(4, 6))
    for hidden in (8, 1 + 2**12 // 8):
        config = with_layers(override(LineConfig(), {"training.steps": 1, "flow.hidden": hidden}), (8,))
        with seeded(0):
            base = Base((4, 4), 8, config.flow).requires_grad_(False).eval()
        learn_product(base, seen, config, seed=0)
    assert asked == [True, False]
