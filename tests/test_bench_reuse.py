"""What a run finds once it does not find again, which changes no bit; intervals of a run; the time left."""

import importlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moleflow.bench import figures, results
from moleflow.bench.benchmark import benchmark, used
from moleflow.bench.files import read_json, read_state
from moleflow.bench.methods import METHODS, line, make
from moleflow.bench.methods.banks import MemoryBank
from moleflow.bench.methods.base import PerProduct
from moleflow.bench.methods.line import MoleFlow
from moleflow.bench.methods.padim import PaDiM
from moleflow.bench.methods.single import SingleFlow
from moleflow.bench.plan import Plan, Unit, Variant, Work
from moleflow.bench.reuse import FOLDER, IMAGES
from moleflow.bench.runner import run
from moleflow.bench.streams import Stream, Task
from moleflow.bench.unit import unit_folder
from moleflow.data.factory import write_product
from moleflow.data.layouts import read_dataset
from moleflow.flow.expert import Base
from moleflow.metrics.resampling import REPLICATES
from moleflow.presets import LAYERED
from rows import SMALL, faulty, of_all_products, setting_of, taught, tell

pytestmark = pytest.mark.long

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
SIZE = 64
QUICK = {
    "flow.hidden": 16,
    "flow.dia.hidden": 16,
    "training.steps": 2,
    "scoring.coreset.patches": 60,
    "training.base_steps": 2,
    "training.patches": 64,
    "flow.cells": {"side": 2, "rank": 4, "mean_side": 4, "ridge": 0.3},
}
NORMALISED = {name: value for name, value in LAYERED.items() if name.startswith("flow.")} | {
    "scoring.cells": QUICK["flow.cells"]
}
"""The only way in which a flow over all products begins; said, so that it takes the few steps above."""
NAMES = ("gear", "wood")
ORDERS = tuple(
    Stream(name, tuple(Task((product,)) for product in order))
    for name, order in (("there", NAMES), ("back", NAMES[::-1]))
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("reuse")
    for product in NAMES:
        write_product(product, root / "data", train=8, test_good=3, test_defective=3, size=SIZE)
    return root


def job(data, out, *entries, streams=ORDERS, seeds=(0,)):
    plan = Plan(
        {name: Variant(name, NORMALISED if of_all_products(name) else {}) for name in entries},
        streams,
        seeds,
        image_size=(SIZE, SIZE),
        eval_size=(32, 32),
        options=QUICK | {f"{name}.windows": 4 for name in entries if name.startswith("ewc")},
    )
    return Work(plan, used(read_dataset(data / "data"), streams), out, data / "features")


@pytest.fixture(scope="module")
def both(data):
    """Two orders and two seeds of some methods in one folder."""
    work = job(data, data / "both", "memory-bank", "padim", "moleflow", "ewc", "replay", seeds=(0, 1))
    assert run(work) == {}
    return work, results.collect(work)


def test_what_is_reused_is_the_same_to_the_bit(data, both, tmp_path):
    _, found = both
    for stream in ORDERS:
        alone = job(data, tmp_path / stream.name, "memory-bank", "ewc", streams=(stream,))
        assert run(alone) == {}
        for one in results.collect(alone)["runs"]:
            key = (one["entry"], stream.name, 0)
            (same,) = [r for r in found["runs"] if (r["entry"], r["stream"], r["seed"]) == key]
            assert one == same


def test_parts_are_learned_and_inspected_once_whatever_the_order(data, tmp_path, monkeypatch):
    learned, asked = [], []
    learn, inspect = MemoryBank.learn_part, MemoryBank.inspect_part

    def counted(self, pictures):
        learned.append(pictures.product)
        time.sleep(0.2)
        return learn(self, pictures)

    def watched(self, part, seen):
        asked.append(1)
        time.sleep(0.02)
        return inspect(self, part, seen)

    monkeypatch.setattr(MemoryBank, "learn_part", counted)
    monkeypatch.setattr(MemoryBank, "inspect_part", watched)
    work = job(data, tmp_path / "out", "memory-bank")
    assert run(work) == {}
    assert sorted(learned) == sorted(NAMES)
    assert len(asked) == sum(len(product.test) for product in work.products.values())
    times = [
        read_json(unit_folder(work, Unit("memory-bank", stream, 0, step)) / f"time-{step:02}.json")
        for stream, step in ((0, 0), (1, 1))
    ]
    assert times[1]["learn"] >= 0.2  # what was taken is charged for
    assert times[1]["inspect_image"] >= 0.02


@pytest.mark.parametrize("comes_along", [True, False])
def test_experts_are_learned_once_for_all_orders_where_no_product_teaches_the_base(
    data, tmp_path, monkeypatch, comes_along
):
    learned, learn = [], MoleFlow.learn_part

    def counted(self, pictures):
        learned.append(pictures.product)
        return learn(self, pictures)

    def shipped(weights_hash, grid, channels, flow):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return Base(grid, channels, flow).requires_grad_(False).eval()

    monkeypatch.setattr(MoleFlow, "learn_part", counted)
    if comes_along:
        monkeypatch.setattr(line, "shipped_base", shipped)
    together = job(data, tmp_path / "out", "moleflow")
    assert run(together) == {}
    assert sorted(learned) == sorted(NAMES * (1 if comes_along else 2))
    alone = job(data, tmp_path / "alone", "moleflow", streams=ORDERS[1:])
    assert run(alone) == {}
    (again,) = results.collect(alone)["runs"]
    assert again == results.collect(together)["runs"][1]


def test_all_methods_of_one_flow_begin_alike(data, tmp_path, monkeypatch):
    """Which is why they may share a first flow."""
    singles = [name for name, method in METHODS.items() if issubclass(method, SingleFlow)]
    first = (Stream("one", (Task((NAMES[0],)),)),)
    flows, fitted = [], []
    genuine = SingleFlow._fitted

    def counted(self, known, products):
        fitted.append(self.name)
        return genuine(self, known, products)

    for name in singles:
        work = job(data, tmp_path / name, name, streams=first)
        assert run(work) == {}
        state = read_state(unit_folder(work, Unit(name, 0, 0, 0)) / "state-00.safetensors")
        flows.append({k: v for k, v in state.tensors.items() if k.startswith("shared/flow.")})
    for flow in flows[1:]:
        assert flow.keys() == flows[0].keys()
        assert all(flow[key].equal(flows[0][key]) for key in flow)
    monkeypatch.setattr(SingleFlow, "_fitted", counted)
    assert run(job(data, tmp_path / "all", *singles, streams=first)) == {}
    assert len(fitted) == 1


PER_PRODUCT = [name for name, method in METHODS.items() if issubclass(method, PerProduct)]


@pytest.mark.parametrize("name", PER_PRODUCT)
def test_what_a_part_says_follows_from_the_part_and_not_from_the_seed(name):
    first = taught(name)
    other = make(name, replace(setting_of(name), seed=5), SMALL.get(name, {}))
    other.restore(first.state())
    pictures = faulty("a")
    for i in range(len(pictures)):
        said = [m.inspect_part(m.parts["a"], pictures.seen_of(i)) for m in (first, other)]
        assert tell(said[:1]) == tell(said[1:])


def test_a_method_without_chance_inspects_once_for_all_seeds(data, tmp_path, monkeypatch):
    asked, inspect = [], PaDiM.inspect_part

    def watched(self, part, seen):
        asked.append(1)
        return inspect(self, part, seen)

    monkeypatch.setattr(PaDiM, "inspect_part", watched)
    work = job(data, tmp_path / "out", "padim", seeds=(0, 1))
    assert run(work) == {}
    assert len(asked) == sum(len(product.test) for product in work.products.values())


@pytest.mark.slow
def test_a_row_with_something_beside_it_takes_what_it_shares(data, tmp_path, monkeypatch):
    fitted, learned = [], []
    fit, learn = SingleFlow._fitted, PaDiM.learn_part

    def counted(self, known, products):
        fitted.append(self.name)
        return fit(self, known, products)

    def watched(self, pictures):
        learned.append(len(pictures))
        return learn(self, pictures)

    monkeypatch.setattr(SingleFlow, "_fitted", counted)
    monkeypatch.setattr(PaDiM, "learn_part", watched)
    work = job(data, tmp_path / "out", "padim", "ewc", "ewc-with-cells", "padim-with-image")
    assert run(work) == {}
    monkeypatch.undo()
    assert fitted == ["ewc"] * 4  # two products in two orders
    assert learned.count(8) == len(NAMES)  # of all images once; held-out ones are not learned from
    for entry in ("ewc-with-cells", "padim-with-image"):
        alone = job(data, tmp_path / entry, entry, streams=ORDERS[1:])
        assert run(alone) == {}
        (one,) = results.collect(alone)["runs"]
        key = (entry, ORDERS[1].name)
        assert one in [r for r in results.collect(work)["runs"] if (r["entry"], r["stream"]) == key]


def test_a_finished_benchmark_keeps_images_and_drops_what_only_units_need(data, tmp_path):
    work = job(data, tmp_path / "out", "padim", streams=ORDERS[:1])
    benchmark(work, command="x")
    assert not (work.out / FOLDER).exists()
    files = list((work.out / IMAGES).iterdir())
    assert len(files) == len(NAMES)
    kept = read_state(files[0]).tensors
    assert len(kept["score"]) == len(kept["label"]) == 6
    assert kept["again.pixel_ap"].shape == (REPLICATES,)
    page = (work.out / "report.html").read_text(encoding="utf-8")
    assert "How sure the figures are" in page
    assert "Bars: 95 % intervals over test images and seeds." in page
    before = (work.out / "results.json").read_bytes()
    benchmark(work, command="x")
    assert (work.out / "results.json").read_bytes() == before


def test_intervals_hold_their_means_and_orders_stand_apart_from_seeds(both):
    _, found = both
    sure = found["uncertainty"]
    json.dumps(sure, allow_nan=False)
    for entry, own in sure["means"].items():
        for name, one in own.items():
            acc = found["summary"][entry]["continual"]["routed"][name]["acc"]["mean"]
            assert one["mean"] == pytest.approx(acc, abs=1e-12)
            low, high = one["these products"]
            assert low - 1e-12 <= one["mean"] <= high + 1e-12
    assert sure["means"]["padim"]["image_auroc"]["orders"] == 0  # it does the same in every order
    assert sure["means"]["padim"]["image_auroc"]["seeds"] is not None
    assert sure["first"] == "memory-bank"
    assert "memory-bank" not in sure["gaps"]
    gap = sure["gaps"]["padim"]["pixel_ap"]["these products"]
    assert gap["low"] <= gap["gap"] <= gap["high"]
    assert 0 < gap["p"] <= 1
    assert max(sure["bins"].values()) < 1e-3


def test_published_tables_hold_intervals_and_gaps(both, data, monkeypatch):
    work, _ = both
    results.write(work, "the command")
    monkeypatch.syspath_prepend(BENCHMARKS)
    text = importlib.import_module("publish").tables(work.out)
    assert text.startswith("`the command`")
    assert "less memory bank, these products" in text
    assert "less memory bank, such products" in text
    rows = re.findall(r"^\| PaDiM \|.*$", text, re.MULTILINE)
    assert len(rows) == 5  # all figures, by product, intervals, gaps of two kinds
    assert re.search(r"\[\+?-?\d+\.\d, [+-]?\d+\.\d\], p \d\.\d{3}", rows[-1])


def test_figures_with_every_image_once_are_the_exact_ones(both):
    work, found = both
    for path in (work.out / IMAGES).iterdir():
        kept = {name: tensor.numpy() for name, tensor in read_state(path).tensors.items()}
        for name in figures.NAMES:
            if f"figure.{name}" in kept:
                middle = kept[f"again.{name}"].mean()
                assert middle == pytest.approx(float(kept[f"figure.{name}"]), abs=0.2)  # of six images
    assert found["uncertainty"]["replicates"] == REPLICATES


def test_the_time_left_follows_from_what_is_done(data, both, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    work, _ = both
    large = Work(
        Plan(work.plan.entries, ORDERS, (0, 1), image_size=(2 * SIZE, 2 * SIZE)),
        work.products,
        tmp_path / "large",
        work.cache,
    )
    left = importlib.import_module("remaining").Remaining([work, large], jobs=2)
    assert left.seconds() is None
    units = list(work.plan.units())
    took = {unit: read_json(unit_folder(work, unit) / f"time-{unit.step:02}.json")["unit"] for unit in units}
    for unit in units:
        left.finished(0, unit)
    assert (left.done, left.total) == (len(units), 2 * len(units))
    assert left.seconds() == pytest.approx(4 * sum(took.values()) / 2)
