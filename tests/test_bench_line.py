"""The line as the bench runs it is the line as a user runs it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moleflow.bench.methods.base import Inspection, Setting
from moleflow.bench.methods.line import MoleFlow
from moleflow.bench.pictures import Shelf
from moleflow.bench.plan import Plan, Unit, Variant, Work
from moleflow.bench.streams import Stream, Task, at_once
from moleflow.bench.unit import run_unit
from moleflow.config import LineConfig
from moleflow.data.factory import write_product
from moleflow.data.layouts import read_dataset
from moleflow.features.cache import FeatureCache
from moleflow.learning import left_out as learning
from moleflow.learning.blocks import make_blocks
from moleflow.line.judges import EagerJudge
from moleflow.results import Prediction

PRODUCTS = ("gear", "wood")


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Procedural products on disk, by name."""
    root = tmp_path_factory.mktemp("line") / "data"
    for name in PRODUCTS:
        write_product(name, root, train=6, test_good=1, test_defective=1, size=64)
    return read_dataset(root).products


@pytest.fixture
def shelf(new_line, tmp_path):
    """Cached features of the line's own extractor."""
    return Shelf(FeatureCache(tmp_path, new_line().extractor))


def setting(shelf: Shelf, config: LineConfig) -> Setting:
    extractor = shelf.cache.extractor
    return Setting(
        extractor.grid,
        extractor.dim,
        extractor.image_size,
        seed=3,
        config=config,
        widths=extractor.widths,
    )


def of_bench(found: Inspection) -> tuple:
    return found.task, found.known, found.score, found.threshold, found.patch_map.tobytes()


def of_line(found: Prediction) -> tuple:
    return found.task, found.known, found.pred_score, found.threshold, found.patch_map.tobytes()


@pytest.mark.parametrize("single", [4, 32])
def test_the_bench_says_what_the_detector_says(single, products, shelf, quick, new_line, monkeypatch):
    """Whether images are left out one by one or in blocks; on features rounded to 16 bits alike."""
    scoring = replace(quick.scoring, single_up_to=single)
    config = replace(quick, scoring=scoring)
    line, method = new_line(config=config, seed=3), MoleFlow(setting(shelf, config))
    line._line = replace(line._line, asks=EagerJudge())  # as the bench does
    exact = line.extractor.see

    def rounded(images):
        seen = exact(images)
        return replace(seen, patches=seen.patches.half().float())

    monkeypatch.setattr(line.extractor, "see", rounded)
    for name in PRODUCTS:
        line.add_task(name, [item.path for item in products[name].train])
        method.learn([shelf.pictures(products[name], "train")])
    for name in PRODUCTS:
        paths = [item.path for item in products[name].test]
        probe = shelf.pictures(products[name], "test")
        for task in (None, *PRODUCTS):
            found = [of_bench(one) for one in method.inspect(probe, task)]
            expected = [of_line(one) for one in line.predict(paths, task=task)]
            if task is not None:  # the bench leaves open what is not asked; the line answers "known"
                found = [(one[0], True, *one[2:]) for one in found]
            assert found == expected


def weights(base) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in base.state_dict().values()]


@pytest.mark.long
def test_the_base_is_learned_from_all_products_of_the_first_task(products, shelf, quick):
    """And in halves that leave out half of every one of them, by which all of them are calibrated."""
    lessons = [shelf.pictures(products[name], "train") for name in PRODUCTS]
    together, alone = (MoleFlow(setting(shelf, quick)) for _ in range(2))
    together.learn(lessons)
    alone.learn(lessons[:1])
    alone.learn(lessons[1:])
    assert weights(together.base) != weights(alone.base)
    turned = MoleFlow(setting(shelf, quick))
    turned.learn(lessons[::-1])
    assert weights(turned.base) != weights(alone.base)


def test_no_image_is_left_out_by_a_flow_whose_base_has_seen_it(products, shelf, quick, monkeypatch):
    lessons = [shelf.pictures(products[name], "train") for name in PRODUCTS]
    seen = []
    exact = learning.learn_base

    def watched(features, **options):
        base = exact(features, **options)
        seen.append((base, {image.numpy().tobytes() for image in features}))
        return base

    monkeypatch.setattr(learning, "learn_base", watched)
    method = MoleFlow(setting(shelf, quick))
    method.learn(lessons)
    halves, final = seen[:2], seen[2]
    assert final[0] is method.base
    assert len(final[1]) == sum(map(len, lessons))
    for parity, (_, images) in enumerate(halves):
        for own in lessons:
            for i in make_blocks(len(own), quick.scoring).half(parity):
                assert own.features[i].numpy().tobytes() not in images
        assert len(images) == sum(map(len, lessons)) / 2


@pytest.mark.long
@pytest.mark.parametrize("stream", [at_once("s", PRODUCTS), Stream("s", tuple(Task((p,)) for p in PRODUCTS))])
def test_products_inspected_together_are_learned_one_after_the_other(
    products, shelf, quick, tmp_path, stream
):
    """What an ablation learns is what a line learns: one product, then the next."""
    entries, size = {"moleflow": Variant("moleflow")}, {"image_size": (64, 64), "eval_size": (16, 16)}
    plan = Plan(entries, (stream,), (3,), leave_out=False, **size)
    work = Work(plan, products, tmp_path / "out", tmp_path / "cache")
    bases = []

    class Watched(MoleFlow):
        def learn(self, products):
            super().learn(products)
            bases.append((len(products), self.base))

    expected = MoleFlow(setting(shelf, quick))
    expected.learn([shelf.pictures(products["gear"], "train")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moleflow.bench.unit.make", lambda *arguments: Watched(setting(shelf, quick)))
        for step in range(len(stream.tasks)):
            run_unit(work, shelf, Unit("moleflow", 0, 3, step))
    assert [count for count, _ in bases] == [1, 1]
    for _, base in bases:
        assert all(
            torch.equal(a, b) for a, b in zip(base.parameters(), expected.base.parameters(), strict=True)
        )
