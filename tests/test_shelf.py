"""Products of a saved line: made ready when they are needed, as many held as fit, the same to the bit."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from moleflow import Detector, RouterConfig
from moleflow.errors import LineError
from moleflow.routing.gaussian import DescriptorStatistics
from moleflow.routing.router import Router
from moleflow.store import LineStore
from moleflow.store.derived import DERIVED


def said(line, images):
    return [
        (p.task, p.pred_score, p.threshold, p.patch_map.tobytes(), p.routing) for p in line.predict(images)
    ]


def by_product(line, images):
    return {name: [p.pred_score for p in line.predict(images, task=name)] for name in line.tasks}


def held(line):
    return line._line.products._memory


@pytest.fixture
def images(pictures):
    return [*pictures("gear", 1, first=300), *pictures("wood", 1, first=300)]


def test_an_expert_is_made_ready_when_an_image_needs_it(saved, images):
    line = Detector.load(saved, device="cpu")
    assert held(line)._filled == 0
    line.predict(images[0], task="gear")
    one = held(line)._filled
    assert one == line._line.products["gear"].memory()
    line.predict(images, task="gear")
    assert held(line)._filled == one
    line.predict(images[0], task="wood")
    assert held(line)._filled > one


def test_what_is_held_fits_and_what_is_said_does_not_depend_on_it(saved, images):
    roomy, narrow = Detector.load(saved, device="cpu"), Detector.load(saved, device="cpu", memory=1)
    expected = by_product(roomy, images)
    for _ in range(2):
        assert by_product(narrow, images) == expected
        assert len(held(narrow)._held) == 1
    assert len(held(roomy)._held) == len(roomy.tasks)
    with ThreadPoolExecutor(4) as threads:
        assert all(found == expected for found in threads.map(lambda _: by_product(narrow, images), range(8)))
    assert held(narrow)._filled == sum(size for _, size in held(narrow)._held.values())


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_memory_of_a_product_covers_its_numbers(saved, images, runtime):
    line = Detector.load(saved, device="cpu", runtime=runtime)
    line.predict(images, task="gear")
    product = line._line.products["gear"]
    gaussians = product.densities.gaussians
    if runtime != "torch":  # what is worked out stands among the network's inputs instead
        _, given = line._line.asks._known[product]
        assert gaussians._known is None
        assert product.memory() >= given["cells.mean"].nbytes + given["cells.axes"].nbytes
        return
    whitening = sum(part.nbytes for part in gaussians._known[2]) + gaussians._places[2].nbytes
    assert product.memory() >= whitening + sum(p.nbytes for p in product.densities.expert.parameters())


def test_a_line_that_is_held_outlasts_its_folder_and_one_that_is_not_says_what_is_gone(saved, images):
    kept, lean = Detector.load(saved, device="cpu"), Detector.load(saved, device="cpu", memory=1)
    expected = by_product(Detector.load(saved, device="cpu"), images)
    shutil.rmtree(saved)
    assert by_product(kept, images) == expected
    with pytest.raises(LineError, match=r"gear.*expert\.safetensors: expected a file"):
        lean.predict(images[0], task="gear")


def test_inspecting_leaves_torchs_random_state_alone(saved, images):
    line = Detector.load(saved, device="cpu")
    state = torch.get_rng_state()
    line.predict(images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("harm", ["missing", "damaged", "cut", "of another line", "a link"])
def test_the_router_kept_beside_a_line_counts_only_where_it_is_sound(saved, tmp_path, images, harm, capsys):
    expected = said(Detector.load(saved, device="cpu"), images)
    file = saved / DERIVED
    data = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "damaged":
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 255]) + data[-8:])
    elif harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif harm == "of another line":
        store = LineStore(saved)
        store.remove("wood")
        expected = None
    else:
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    again = Detector.load(saved, device="cpu")
    found = said(again, images)
    if expected is None:
        assert {one[0] for one in found} <= set(again.tasks)
        assert "wood" not in again.tasks
    else:
        assert found == expected
    again.save()
    assert said(Detector.load(saved, device="cpu"), images) == found


def test_a_kept_router_is_the_router(saved, images, monkeypatch):
    line = Detector.load(saved, device="cpu")
    (saved / DERIVED).unlink()
    computed = Detector.load(saved, device="cpu")
    assert said(line, images) == said(computed, images)
    kept, fresh = line._line.router.tensors(), computed._line.router.tensors()
    assert kept.keys() == fresh.keys()
    assert all(torch.equal(kept[name], fresh[name]) for name in kept)


@pytest.mark.parametrize("metric", ["shared", "product"])
def test_the_quick_way_to_the_nearest_product_finds_the_same(metric):
    draw = torch.Generator().manual_seed(0)
    products = {}
    for number in range(7):
        rows = torch.randn(40, 12, generator=draw, dtype=torch.float64) + 3 * torch.randn(
            12, generator=draw, dtype=torch.float64
        )
        products[f"p{number}"] = DescriptorStatistics.fit(rows[:30], rows[30:], rank=5)
    router = Router(products, RouterConfig(metric=metric))
    rows = 4 * torch.randn(500, 12, generator=draw, dtype=torch.float64)
    assert router.nearest(rows) == [decision.task for decision in router.decide(rows)]
    again = Router.from_tensors(router.tensors(), router.names, router.config)
    assert [d.distances for d in again.decide(rows[:20])] == [d.distances for d in router.decide(rows[:20])]
    assert (again.limits, again.typical) == (router.limits, router.typical)
