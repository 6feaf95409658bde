"""Choosing options without labels: what is tried, what chooses, and that a kill changes nothing."""

from __future__ import annotations

import builtins
import functools
import itertools
import shutil
import sys

import pytest

from moleflow.bench import runner
from moleflow.bench.files import DRAFT, read_json, write_json
from moleflow.bench.sweep import (
    CRITERIA,
    Choice,
    Range,
    Space,
    choosing,
    default_space,
    read_space,
    search,
    sweep,
    trials,
)
from moleflow.config import LineConfig, override
from moleflow.data.factory import write_product
from moleflow.data.layouts import read_dataset
from moleflow.errors import BenchError, ConfigError

pytestmark = pytest.mark.long

SIZE = 96
SMALL = {
    "training.base_steps": 1,
    "training.steps": 2,
    "scoring.coreset.patches": 60,
    "training.patches": 64,
    "flow.hidden": 16,
    "flow.mixer": None,
    "flow.context": None,
    "flow.couplings": 1,
    "flow.cells": {"side": 2, "rank": 4, "mean_side": 3, "ridge": 0.3},
    "scoring.folds": 2,
}
GRID = Space.from_dict({"scoring.top_share": [0.01, 1.0], "scoring.coreset.weight": [0.1, 1.0]})
RANGES = Space.from_dict(
    {
        "scoring.smoothing": {"low": 0.1, "high": 2.0},
        "scoring.top_least": {"low": 1, "high": 9},
        "flow.mixer": [None, {"kernel": "symmetric", "gate_limit": 0.5}],
    }
)


EXTRACTOR = functools.cache(runner.Extractor)


@pytest.fixture(scope="module", autouse=True)
def one_backbone():
    """Every run builds the backbone anew, which would take most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        for where in (runner, trials):
            patch.setattr(where, "Extractor", EXTRACTOR)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("wood", "gear"):
        write_product(name, root, train=8, test_good=3, test_defective=4, size=SIZE)
    return root


@pytest.fixture(scope="module")
def products(data):
    return list(read_dataset(data).products.values())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def tried(products, cache):
    """`tried(space, out)` with everything small, on the first product alone unless others are given."""

    def call(space, out, *, of=products[:1], **options):
        return sweep(space, of, out, cache, **{"options": SMALL, "image_size": (SIZE, SIZE)} | options)

    return call


@pytest.fixture(scope="module")
def whole(tried, tmp_path_factory):
    """A finished sweep over the grid: its folder."""
    out = tmp_path_factory.mktemp("whole")
    tried(GRID, out)
    return out


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def kill_after(monkeypatch):
    def arrange(units):
        left, learn = iter(range(units)), runner.run_unit

        def run_unit(*arguments):
            if next(left, None) is None:
                raise Killed
            learn(*arguments)

        monkeypatch.setattr(runner, "run_unit", run_unit)

    return arrange


def test_a_grid_is_tried_as_a_whole_and_the_best_chosen_by_the_criterion(whole):
    results = read_json(whole / "sweep.json")
    trials = results["trials"]
    assert [t["options"] for t in trials] == [
        {"scoring.top_share": a, "scoring.coreset.weight": b}
        for a, b in itertools.product((0.01, 1.0), (0.1, 1.0))
    ]
    assert results["unchanged"]["options"] == {"scoring.top_share": 0.01, "scoring.coreset.weight": 1.0}
    assert results["unchanged"]["criterion"] == trials[1]["criterion"]  # the very same options
    assert results["best"]["criterion"] == max(t["criterion"] for t in trials)
    assert results["best_by_oracle"]["oracle"] == max(t["oracle"] for t in trials)
    assert results["loss"] == results["best"]["oracle"] - results["best_by_oracle"]["oracle"] <= 0
    assert len({t["criterion"] for t in trials}) > 1
    assert -1 <= results["rank_correlation"] <= 1
    for trial in trials:
        for value, side in (("criterion", "synthetic"), ("oracle", "oracle")):
            figures = trial["figures"][side]
            assert trial[value] == pytest.approx((figures["image_auroc"] + figures["pixel_ap"]) / 2)
            assert trial["seeds"][0][value] == trial[value]


@pytest.mark.slow
def test_a_killed_grid_ends_with_the_same_bytes(whole, tried, tmp_path, kill_after, monkeypatch):
    kill_after(3)
    with pytest.raises(Killed):
        tried(GRID, tmp_path)
    monkeypatch.undo()
    kill_after(7)  # what was done is not done again
    tried(GRID, tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == (whole / "sweep.json").read_bytes()


def test_finished_trials_are_read_and_another_criterion_costs_nothing(whole, tried, tmp_path, kill_after):
    out = shutil.copytree(whole, tmp_path / "copy")
    kill_after(0)
    results = tried(GRID, out, criterion="max_image_auroc")
    for trial in results["trials"]:
        assert trial["criterion"] == trial["figures"]["synthetic"]["image_auroc"]
        assert trial["oracle"] == trial["figures"]["oracle"]["image_auroc"]
    again = tried(GRID, out)
    assert again == read_json(whole / "sweep.json")


def test_the_oracle_changes_nothing_and_without_it_no_test_image_is_read(whole, tried, data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    of = list(read_dataset(root).products.values())[:1]
    shutil.rmtree(root / of[0].name / "test")
    shutil.rmtree(root / of[0].name / "ground_truth")
    out = tmp_path / "out"
    blind, seeing = tried(GRID, out, of=of, oracle=False), read_json(whole / "sweep.json")
    assert [t["criterion"] for t in blind["trials"]] == [t["criterion"] for t in seeing["trials"]]
    assert [t["figures"]["synthetic"] for t in blind["trials"]] == [
        t["figures"]["synthetic"] for t in seeing["trials"]
    ]
    assert blind["best"]["options"] == seeing["best"]["options"]
    assert blind["best_by_oracle"] is blind["loss"] is blind["rank_correlation"] is None
    assert {t["oracle"] for t in blind["trials"]} == {None}


@pytest.mark.slow
def test_tpe_asks_the_same_after_a_kill_and_goes_on_after_fewer_trials(
    tried, tmp_path, kill_after, monkeypatch
):
    pytest.importorskip("optuna")
    options = {"sampler": "tpe", "oracle": False, "seed": 3, "share": 0.5}
    monkeypatch.setattr(search, "_optuna", lambda: _eager(optuna_module()))
    tried(RANGES, tmp_path / "once", trials=4, **options)
    tried(RANGES, tmp_path / "fewer", trials=2, **options)
    kill_after(1)
    with pytest.raises(Killed):
        tried(RANGES, tmp_path / "fewer", trials=4, **options)
    monkeypatch.undo()
    monkeypatch.setattr(search, "_optuna", lambda: _eager(optuna_module()))
    results = tried(RANGES, tmp_path / "fewer", trials=4, **options)
    assert (tmp_path / "fewer/sweep.json").read_bytes() == (tmp_path / "once/sweep.json").read_bytes()
    assert len(results["trials"]) == 4
    for trial in results["trials"]:
        assert 0.1 <= trial["options"]["scoring.smoothing"] <= 2.0
        assert isinstance(trial["options"]["scoring.top_least"], int)


def optuna_module():
    import optuna

    return optuna


class _eager:
    """Optuna whose TPE begins to model after the second trial, so that few trials test it."""

    def __init__(self, optuna):
        self.logging, self.trial, self.create_study = optuna.logging, optuna.trial, optuna.create_study
        self.samplers = self
        self._sampler = optuna.samplers.TPESampler

    def TPESampler(self, seed):
        return self._sampler(seed=seed, n_startup_trials=2)


def test_a_trial_that_fails_is_told_and_not_chosen(tried, tmp_path, monkeypatch):
    learn = runner.run_unit

    def run_unit(work, shelf, unit):
        if work.plan.config("trial").scoring.top_share == 1.0:
            raise BenchError("not finite")
        learn(work, shelf, unit)

    monkeypatch.setattr(runner, "run_unit", run_unit)
    results = tried(GRID, tmp_path)
    failed = [t for t in results["trials"] if t["options"]["scoring.top_share"] == 1.0]
    assert len(failed) == 2
    assert all(t["criterion"] is t["oracle"] is None for t in failed)
    assert all("not finite" in error for t in failed for error in t["errors"])
    assert results["best"]["options"]["scoring.top_share"] == 0.01
    assert results["loss"] is not None
    with pytest.raises(BenchError, match="all 1 failed"):
        tried(Space({"scoring.top_share": Choice((1.0,))}), tmp_path)


ONE = Space({"scoring.coreset.weight": Choice((0.1,))})


def test_seeds_and_products_are_averaged(tried, products, tmp_path):
    results = tried(ONE, tmp_path, of=products, seeds=(0, 1), oracle=False)
    (trial,) = results["trials"]
    assert results["products"] == [p.name for p in products]
    assert [s["seed"] for s in trial["seeds"]] == [0, 1]
    assert trial["criterion"] == pytest.approx(sum(s["criterion"] for s in trial["seeds"]) / 2)
    folders = list((tmp_path / "trials").iterdir())
    assert len(folders) == 2  # the trial, and the unchanged options
    (folder,) = [
        f for f in folders if any("scoring.coreset.weight" in p.read_text() for p in f.rglob("plan.json"))
    ]
    for left in ("state-*", "reused", f"{DRAFT}*"):
        assert not list((tmp_path / "trials").rglob(left))
    for path in folder.rglob("step-01.json"):
        records = [read_json(path)["products"][p.name]["routed"]["figures"] for p in products]
        expected = sum(r["image_auroc"] + r["pixel_ap"] for r in records) / 4
        number = int(path.parent.name.removeprefix("seed-"))
        assert trial["seeds"][number]["criterion"] == pytest.approx(expected)
    more = tried(ONE, tmp_path, of=products, seeds=(0,), oracle=False)
    assert more["trials"][0]["seeds"] == trial["seeds"][:1]


@pytest.mark.slow
def test_processes_change_nothing(whole, tried, tmp_path):
    told = []
    tried(GRID, tmp_path, jobs=2, done=lambda *a: told.append(a))
    assert told == [(n, 10) for n in range(1, 11)]
    assert (tmp_path / "sweep.json").read_bytes() == (whole / "sweep.json").read_bytes()


def test_part_of_a_large_grid_is_drawn_without_repetition_and_grows():
    grid = default_space()
    assert grid.size == 3**10
    few, more = (search._combinations(grid, count, 5) for count in (6, 20))
    assert more[:6] == few
    assert len({str(options) for options in more}) == 20
    assert search._combinations(grid, 6, 6) != few
    for options in more:
        config = override(LineConfig(), options)
        assert config.flow.lora.alpha == config.flow.lora.rank


def test_a_space_from_yaml(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "training.learning_rate: {low: 3e-4, high: 3e-3, log: true}\n"
        "training.steps: {low: 100, high: 500}\n"
        "flow.dia: [null, {blocks: 2, hidden: 64}]\n"
        "training.log_det_weight: [1e-5, 0]\n"
    )
    space = read_space(path)
    assert space.options["training.learning_rate"] == Range(3e-4, 3e-3, log=True)
    assert space.options["training.steps"] == Range(100, 500)
    assert space.options["flow.dia"] == Choice((None, {"blocks": 2, "hidden": 64}))
    assert space.options["training.log_det_weight"] == Choice((1e-5, 0))
    assert space.size is None
    assert Space.from_dict(space.to_dict()) == space
    write_json(path, space.to_dict())
    assert read_space(path) == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table"),
        ("{}", "at least one option"),
        ("training.speed: [1]", "training.speed"),
        ("training.steps: []", "training.steps: expected at least one value"),
        ("training.steps: [5, 5]", "different values"),
        ("training.steps: [-1]", "above 0"),
        ("training.steps: 5", "list of values"),
        ("training.steps: {low: 1, top: 2}", "list of values"),
        ("training.steps: {low: 9, high: 1}", "low < high"),
        ("scoring.smoothing: {low: 0, high: 1, log: true}", "above 0"),
        ("scoring.smoothing: {low: a, high: 1}", "two numbers"),
        ("training.tail_share: {low: 0.5, high: 1.5}", "share"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_what_is_no_space_is_refused_with_its_file(tmp_path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_space(path)
    assert "space.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "random"}, "sampler"),
        ({"criterion": "best"}, "criterion"),
        ({"method": "magic"}, "method"),
        ({"trials": 0}, "trial"),
        ({"jobs": 0}, "job"),
        ({"seeds": ()}, "seed"),
        ({"seeds": (1, 1)}, "seed"),
        ({"of": []}, "product"),
        ({"share": 2.0}, "share"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_run(tried, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        tried(GRID, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_grid_of_ranges_a_missing_optuna_and_missing_masks_are_refused(
    tried, products, data, tmp_path, monkeypatch
):
    with pytest.raises(ConfigError, match="use sampler tpe"):
        tried(RANGES, tmp_path)
    root = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(root / "gear" / "ground_truth")
    unmarked = [read_dataset(root).products["gear"]]
    with pytest.raises(ConfigError, match="masks"):
        tried(GRID, tmp_path / "out", of=unmarked)
    for kind in (root / "gear" / "test").iterdir():
        if kind.name != "good":
            shutil.rmtree(kind)
    with pytest.raises(ConfigError, match="leave it out"):
        tried(GRID, tmp_path / "out", of=[read_dataset(root).products["gear"]])
    kept = builtins.__import__

    def absent(name, *rest):
        if name == "optuna":
            raise ImportError(name)
        return kept(name, *rest)

    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install moleflow\[sweep\]"):
        tried(RANGES, tmp_path / "out", sampler="tpe")


def test_rank_correlation():
    assert choosing._rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 50.0]) == pytest.approx(1)
    assert choosing._rank_correlation([1.0, 2.0, 3.0], [5.0, 4.0, 1.0]) == pytest.approx(-1)
    assert choosing._rank_correlation([1.0, 2.0, 2.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.9**0.5)
    for a, b in (([], []), ([1.0, 2.0], [3.0, 4.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])):
        assert choosing._rank_correlation(a, b) is choosing._rank_correlation(b, a) is None


def test_criteria_name_figures():
    assert set(itertools.chain(*CRITERIA.values())) <= set(trials.NAMES)
