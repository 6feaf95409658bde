"""The bench from images to results: units, resuming, processes, streams, every layout, every scenario."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from moleflow.bench import files, methods, results, unit
from moleflow.bench.ablation import ABLATIONS, ENTRIES, FLOW_ALONE, FULL
from moleflow.bench.benchmark import benchmark, used
from moleflow.bench.files import DRAFT, alone
from moleflow.bench.methods.base import Inspection, State
from moleflow.bench.plan import Plan, Variant, Work
from moleflow.bench.runner import run
from moleflow.bench.streams import Stream, Task, streams_for
from moleflow.cli import app
from moleflow.config import LineConfig, override, to_dict
from moleflow.data.factory import write_product
from moleflow.data.layouts import MVTEC_OBJECTS, MVTEC_TEXTURES, read_dataset
from moleflow.errors import BenchError, ConfigError
from moleflow.presets import LAYERED
from trees import TREES

SIZE = 64
KILLS = 12
QUICK = {
    "flow.hidden": 16,
    "flow.dia.hidden": 16,
    "training.steps": 2,
    "scoring.coreset.patches": 60,
    "training.base_steps": 2,
    "training.patches": 128,
    "flow.cells": {"side": 2, "rank": 4, "mean_side": 4, "ridge": 0.3},
    "scoring.folds": 2,
}
NORMALISED = {name: value for name, value in LAYERED.items() if name.startswith("flow.")}
"""The only way in which a flow over all products begins; said, so that it takes the few steps above."""
ONE_FLOW = ("fine-tuning", "ewc", "lwf", "replay", "joint")


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Three procedural products in MVTec AD's layout."""
    root = tmp_path_factory.mktemp("bench") / "data"
    for product in ("gear", "wood", "bottle_cap"):
        write_product(product, root, train=10, test_good=3, test_defective=4, size=SIZE)
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def work(tree, cache, tmp_path):
    """A benchmark of some methods: `work("moleflow", "padim")`."""

    def make(*entries, streams=None, out="out", data=tree, **options):
        dataset = read_dataset(data)
        chosen = tuple(streams or streams_for(dataset, "plain"))
        plan = Plan(
            {name: Variant(name, NORMALISED if name in ONE_FLOW else {}) for name in entries},
            chosen,
            **{"seeds": (0,), "image_size": (SIZE, SIZE), "eval_size": (32, 32), "options": QUICK} | options,
        )
        return Work(plan, used(dataset, chosen), tmp_path / out, cache)

    return make


def outcome(work):
    """Every file that may hold no trace of time or of interruptions."""
    results.write(work, "command")
    return {name: (work.out / name).read_bytes() for name in ("results.json", "results.csv")}


@pytest.mark.long
def test_isolated_methods_keep_every_bit_and_sequential_ones_do_not(work):
    job = work("moleflow", "task-separated", "padim", "fine-tuning")
    assert run(job) == {}
    found = results.collect(job)
    isolated = {entry: summary["isolated"] for entry, summary in found["summary"].items()}
    assert isolated == {"moleflow": True, "task-separated": True, "padim": True, "fine-tuning": False}
    for entry in ("moleflow", "task-separated", "padim"):
        assert found["summary"][entry]["continual"]["oracle"]["image_auroc"]["fm"]["mean"] == 0
    for one in found["runs"]:
        matrix = one["matrices"]["oracle"]["image_auroc"]
        assert [[value is not None for value in row] for row in matrix] == [
            [True, False, False],
            [True, True, False],
            [True, True, True],
        ]


@pytest.mark.long
def test_an_interrupted_run_ends_with_the_same_bytes(work, monkeypatch):
    entries = ("moleflow", "fine-tuning")
    whole = work(*entries)
    assert run(whole) == {}
    parts = work(*entries, out="parts")
    genuine, left = unit.write_json, [5]

    def interrupted(path, value):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        genuine(path, value)

    for writes in (2, 5):  # two files a unit: between units, and between the two files of one
        left[0] = writes
        monkeypatch.setattr(unit, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    monkeypatch.setattr(unit, "write_json", genuine)
    done = []
    assert run(parts, done=done.append) == {}
    assert len(done) == len(list(parts.plan.units()))
    assert outcome(parts) == outcome(whole)
    assert run(parts, done=done.append) == {}  # nothing is left to do, and all of it is told
    assert len(done) == 2 * len(list(parts.plan.units()))


@pytest.mark.long
def test_side_by_side_is_as_one_after_the_other(work):
    one = work("moleflow")
    two = work("moleflow", out="two")
    assert run(one) == {} == run(two, jobs=2)
    assert outcome(one) == outcome(two)


@pytest.mark.long
def test_an_unnamed_task_gets_an_expert_for_each_product_found(tmp_path, cache):
    for product in ("gear", "circuit_board", "wood"):
        write_product(product, tmp_path / "data", train=16, test_good=3, test_defective=4, size=128)
    dataset = read_dataset(tmp_path / "data")
    streams = (Stream("pair", (Task(("circuit_board", "gear"), named=False), Task(("wood",)))),)
    plan = Plan({"moleflow": Variant("moleflow")}, streams, (0,), image_size=(128, 128), options=QUICK)
    job = Work(plan, dataset.products, tmp_path / "out", cache)
    assert run(job) == {}
    (chain,) = results.read_chains(job)
    experts = chain.steps[-1]["experts"]
    assert sorted(experts.values()) == ["circuit_board", "gear", "wood"]
    assert {"circuit_board", "gear"}.isdisjoint(experts)  # what an expert is called says nothing
    for record in chain.steps[-1]["products"].values():
        assert record["routing_good"] == record["routing_defective"] == 1
    assert chain.isolated()


def test_a_folder_belongs_to_one_benchmark(work):
    assert run(work("padim")) == {}
    with pytest.raises(BenchError, match=r"one with other .*seeds"):
        run(work("padim", seeds=(1,)))


def test_other_images_under_the_same_names_are_another_benchmark(work, tmp_path):
    job = work("padim")
    assert run(job) == {}
    moved = shutil.copytree(job.products["gear"].train[0].path.parents[3], tmp_path / "moved")
    dataset = read_dataset(moved)
    again = Work(job.plan, used(dataset, job.plan.streams), job.out, job.cache)
    assert run(again) == {}
    path = next((moved / "gear/test/good").iterdir())
    path.write_bytes(path.read_bytes() + bytes(1))
    with pytest.raises(BenchError, match="one with other images"):
        run(again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 0)}, "different seeds"),
        ({"entries": {"a/b": Variant("padim")}}, "entry 'a/b': cannot be the name of a folder"),
        ({"entries": {"x": Variant("padim"), "X": Variant("padim")}}, "entry 'X': expected different"),
        ({"streams": (Stream("../x", (Task(("gear",)),)),)}, "stream '../x': cannot be the name"),
        ({"streams": (Stream("s", (Task(("shared",)),)),)}, "no product can be called 'shared'"),
        ({"options": {"ewc.strength": 3.0}}, "a method that is not compared"),
        ({"entries": {"x": Variant("padim", {"ewc.strength": 3.0})}}, "no option of padim"),
        ({"options": {"training.steps": 2.5}}, "expected a whole number, got 2.5"),
    ],
)
def test_plans_that_cannot_work_are_refused(change, message):
    plan = {"entries": {"padim": Variant("padim")}, "streams": (Stream("s", (Task(("gear",)),)),)}
    with pytest.raises(ConfigError, match=re.escape(message)):
        Plan(**{**plan, **change})


def test_whatever_goes_wrong_ends_one_chain_alone(work, monkeypatch):
    def learn(self, products):
        raise ValueError("not thought of")

    monkeypatch.setattr(methods.METHODS["fine-tuning"], "learn", learn)
    job = work("fine-tuning", "padim")
    with pytest.raises(BenchError, match="ValueError: not thought of"):
        benchmark(job, command="moleflow benchmark")
    found = json.loads((job.out / "results.json").read_text())
    assert found["summary"]["padim"]["runs"] == 1
    text = (job.out / "report.html").read_text()
    assert "fine-tuning on plain, seed 0: 0 of 3 tasks (ValueError: not thought of)" in text


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(tree, tmp_path):
    """The workers of a killed run end with it, and leave nothing that another run would trip over."""
    settings = [f"--set={name}={json.dumps(value)}" for name, value in (QUICK | NORMALISED).items()]
    common = ("--methods", "moleflow,padim,ewc,replay,shared-coreset", "--jobs", "2", "--seeds", "0,1")
    sizes = ("--image-size", str(SIZE), "--eval-size", "32", *settings)

    def command(out):
        return [sys.executable, "-m", "moleflow", "benchmark", tree, *common, *sizes, "--out", out]

    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)
    draw, done, kills = random.Random(0), [], 0
    while not (out / "results.json").exists() and kills < KILLS:
        written, more = len(list(out.rglob("*"))), draw.randint(0, 5)
        process = subprocess.Popen(command(out), start_new_session=True, stderr=subprocess.DEVNULL)

        def time_to_kill(process=process, enough=written + more):
            return len(list(out.rglob("*"))) > enough or process.poll() is not None

        until(time_to_kill)
        time.sleep(draw.uniform(0, 0.2))
        kills += process.poll() is None
        process.kill()
        process.wait()
        until(lambda process=process: not alive(process.pid))
        done.append(len(list(out.rglob("step-*.json"))))
    assert kills > 3
    assert done == sorted(done)  # what was done stays done
    assert len(set(done)) > 3  # the kills met different moments
    subprocess.run(command(out), check=True, capture_output=True)
    for name in ("results.json", "results.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not list(out.rglob(f"{DRAFT}*"))


def until(done, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(session):
    """Whether any process of a session is left."""
    found = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True)
    return any(line.strip() and not line.startswith("Z") for line in found.stdout.splitlines())


def test_two_runs_in_one_folder_are_refused(work):
    job = work("padim")
    with alone(job.out), pytest.raises(BenchError, match="another process runs a benchmark"):
        benchmark(job, command="moleflow benchmark")


def test_a_folder_that_only_an_error_came_of_goes_again(tmp_path):
    def fail():
        raise ConfigError("no such weights")

    new, own = tmp_path / "a" / "b", tmp_path / "own"
    with pytest.raises(ConfigError), alone(new):
        fail()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError), alone(new):
        (new / "results.json").write_text("{}") and fail()
    assert (new / "results.json").exists()
    own.mkdir()
    with pytest.raises(ConfigError), alone(own):
        fail()
    assert own.is_dir()


def test_an_unknown_method_leaves_no_folder(tmp_path):
    write_product("gear", tmp_path / "data", train=2, test_good=1, test_defective=1, size=64)
    for args in (["benchmark", "--methods", "foo"], ["sweep", "--method", "foo"]):
        done = CliRunner().invoke(app, [*args, str(tmp_path / "data"), "--out", str(tmp_path / "out")])
        assert done.exit_code == 1
        assert "unknown method 'foo'; known are " in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_named_and_leaves_no_draft(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    for write, value in ((files.write_json, {}), (files.write_state, State({}))):
        with pytest.raises(BenchError, match=r"figures\.x: cannot be written: .*No space left"):
            write(tmp_path / "figures.x", value)
    assert not list(tmp_path.iterdir())


def test_a_failing_method_does_not_stop_the_others(work, monkeypatch):
    class Broken(methods.METHODS["padim"]):
        name = "broken"

        def learn_part(self, pictures):
            raise BenchError("it broke")

    monkeypatch.setitem(methods.METHODS, "broken", Broken)
    job = work("broken", "padim")
    with pytest.raises(BenchError, match=r"1 units failed.*broken, plain, seed 0, step 1: it broke"):
        benchmark(job, command="moleflow benchmark")
    found = json.loads((job.out / "results.json").read_text())
    assert [one["entry"] for one in found["runs"] if one["complete"]] == ["padim"]


@pytest.mark.long
def test_left_out_products_are_tried(work):
    job = work("moleflow", "padim", "fine-tuning")
    assert run(job) == {}
    found = {one["entry"]: one["rejected"] for one in results.collect(job)["runs"]}
    assert found["fine-tuning"] is None
    for entry in ("moleflow", "padim"):
        assert sorted(found[entry]) == ["bottle_cap", "gear", "wood"]
        assert min(found[entry].values()) > 0.5, found[entry]  # drawn products look nothing like each other


@pytest.mark.long
def test_costs_are_those_of_the_state(work):
    job = work("moleflow", "padim", "fine-tuning", "joint")
    assert run(job) == {}
    costs = {one["entry"]: one for one in results.collect(job)["runs"]}
    assert costs["padim"]["shared_bytes"] == 0
    assert costs["fine-tuning"]["bytes_per_task"] == [0, 0, 0]
    assert costs["moleflow"]["shared_bytes"] > 0
    for entry in ("moleflow", "padim"):
        own = costs[entry]
        assert own["bytes"] == own["shared_bytes"] + sum(own["bytes_per_task"])
    assert costs["joint"]["kept_bytes"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entries": {"x": Variant("nobody")}}, "unknown method 'nobody'"),
        ({"entries": {"../x": Variant("padim")}}, "cannot be the name of a folder"),
        ({"entries": {}}, "at least one method"),
        ({"seeds": ()}, "at least one seed"),
        ({"options": {"training.stepz": 1}}, "no option 'training.stepz'"),
        ({"options": {"ewc.power": 1}, "entries": {"ewc": Variant("ewc")}}, "unknown option 'power'"),
        ({"options": {"joint.x": 1}, "entries": {"joint": Variant("joint")}}, "no options of its own"),
    ],
)
def test_plans_refuse_what_cannot_run(change, said):
    plan = Plan({"padim": Variant("padim")}, (Stream("s", (Task(("a",)),)),))
    with pytest.raises(ConfigError, match=said):
        replace(plan, **change)


def test_options_reach_the_line_and_the_method():
    plan = Plan(
        {"ewc": Variant("ewc", {"training.steps": 7})},
        (Stream("s", (Task(("a",)),)),),
        options={"training.steps": 5, "training.base_steps": 6, "ewc.strength": 2.0},
    )
    assert (plan.config("ewc").training.steps, plan.config("ewc").training.base_steps) == (7, 6)
    assert plan.own("ewc") == {"strength": 2.0}


def test_figures_of_a_step_are_measured_once_for_the_same_maps(work, monkeypatch):
    measured = []
    genuine = unit.examine

    def counted(products, inspections, size, **options):
        measured.append(tuple(product.name for product in products))
        return genuine(products, inspections, size, **options)

    monkeypatch.setattr(unit, "examine", counted)
    job = work("padim", leave_out=False)
    assert run(job) == {}
    chain = results.read_chains(job)[0]
    for record in chain.steps[-1]["products"].values():  # none is taken for another product
        assert record["routing_good"] + record["unknown_good"] == pytest.approx(1)
        assert record["routing_defective"] + record["unknown_defective"] == pytest.approx(1)
    assert sorted(measured, key=len) == sorted(
        [*((name,) for name in chain.steps[-1]["products"]), tuple(chain.steps[-1]["products"])], key=len
    )  # the oracle view is the routed one, pooled too


def test_the_product_given_corrects_what_the_router_sent_astray(work, monkeypatch):
    """With a router that always says wood, the oracle view still judges every product as itself."""
    astray = work("padim")
    genuine = methods.METHODS["padim"].inspect

    def inspect(self, pictures, task=None):
        for found in genuine(self, pictures, task or "bottle_cap"):
            yield found if task else replace_task(found, "bottle_cap")

    def replace_task(found, name):
        return Inspection(name, True, found.score, found.patch_map)

    right = work("padim", out="right")
    assert run(right) == {}
    monkeypatch.setattr(methods.METHODS["padim"], "inspect", inspect)
    assert run(astray) == {}
    given, found = (results.collect(job)["runs"][0] for job in (right, astray))
    assert given["matrices"]["oracle"] == found["matrices"]["oracle"]
    assert found["products"]["wood"]["routing_good"] == 0
    assert found["matrices"]["routed"]["image_auroc"] != given["matrices"]["routed"]["image_auroc"]


FEW = QUICK | {"training.steps": 4, "training.base_steps": 4}  # of which a half can take two
ROUTER_ALONE, FIRST_PRODUCT_ALIKE = "covariance per product", "whole flow for longer"


@pytest.mark.slow
def test_every_ablation_learns_and_reports_and_is_another_density(tree, cache, tmp_path):
    dataset = read_dataset(tree)
    streams = (Stream("one", (Task(("gear",)),)),)
    some = {row: FLOW_ALONE[row] for row in (FULL, "cells alone")}
    for name, table in (("all", ABLATIONS), ("flow", some)):
        plan = Plan(brief(table), streams, (0,), image_size=(SIZE, SIZE), eval_size=(32, 32), options=FEW)
        job = Work(plan, dataset.products, tmp_path / name, cache)
        found = benchmark(job, command="moleflow ablate")
        assert all(one["complete"] for one in found["runs"])
        alike: dict[tuple, set[str]] = {}
        for chain in results.read_chains(job):
            records = chain.steps[-1]["products"].values()
            alike.setdefault(tuple(record["oracle"]["digest"] for record in records), set()).add(chain.entry)
        # No two say the same, but for the row that changes the router alone, the one that is the line on its
        # first product, and those that are about what is not here: a base for this shape of flow in the
        # library, and a flow that gets worse.
        alone = {FULL, ROUTER_ALONE, FIRST_PRODUCT_ALIKE, "base from the first product", "no early stop"}
        expected = alone & set(table)
        assert [rows for rows in alike.values() if len(rows) > 1] == ([expected] if len(expected) > 1 else [])


def brief(table):
    """The same rows in next to no steps, of which some have a number of their own."""
    steps = {"training.steps": 2, "training.base_steps": 2}
    return {
        row: Variant(one.method, {name: steps.get(name, value) for name, value in one.options.items()})
        for row, one in table.items()
    }


@pytest.mark.parametrize("table", [ABLATIONS, FLOW_ALONE], ids=["whole", "flow alone"])
def test_no_two_rows_of_an_ablation_are_the_same(table):
    learned = {row: (one.method, override(LineConfig(), one.options)) for row, one in table.items()}
    for row, one in learned.items():
        assert [other for other, options in learned.items() if options == one] == [row]


@pytest.mark.parametrize("table", [ABLATIONS, FLOW_ALONE], ids=["whole", "flow alone"])
def test_whatever_a_row_says_is_another_than_the_defaults(table):
    """A row that names what is so anyway would be told to leave out what is not there."""
    whole = flat(to_dict(LineConfig()))
    for row, one in table.items():
        assert one.options or one.method != "moleflow" or row == FULL, row
        for name, value in one.options.items():
            beside = table is FLOW_ALONE and name == "scoring.cells"  # which other wholes than ours have
            assert beside or whole[name] != value, (row, name)


def flat(table, prefix=""):
    """Every option by its dotted path, parts as a whole among them."""
    told = {}
    for name, value in table.items():
        told[f"{prefix}{name}"] = value
        if isinstance(value, dict):
            told |= flat(value, f"{prefix}{name}.")
    return told


def test_the_flow_alone_has_nothing_beside_it():
    for row, one in FLOW_ALONE.items():
        scoring = override(LineConfig(), one.options).scoring
        assert (scoring.cells, scoring.coreset, scoring.whole) == (None, None, None), row
    alone = (override(LineConfig(), table.options) for table in (ABLATIONS["flow alone"], FLOW_ALONE[FULL]))
    assert len({str(config) for config in alone}) == 1


@pytest.mark.slow
def test_a_variant_named_after_its_method_is_told_with_its_title():
    entries = {**ENTRIES, "no DIA": ABLATIONS["no DIA"]}
    told = {name: results.title_of(Plan(entries, (Stream("s", (Task(("a",)),)),)), name) for name in entries}
    assert told["moleflow"] == "MoLE-Flow"
    assert told["moleflow-flow-alone"] == "MoLE-Flow, flow alone"
    assert told["no DIA"] == "no DIA"
    assert len(set(told.values())) == len(told)


# Layouts and scenarios


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("layout", TREES)
@pytest.mark.slow
def test_every_layout_runs_end_to_end(layout, tmp_path):
    root = TREES[layout][0](tmp_path / "data")
    quick = [word for key, value in QUICK.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    done = cli(
        "benchmark", root, "--methods", "moleflow,padim", "--seeds", "0", "--image-size", "64", "--jobs", "1",
        "--out", tmp_path / "out", *quick,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for one in found["runs"]:
        for record in one["products"].values():
            assert None not in record["oracle"].values()
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


@pytest.fixture(scope="session")
def fifteen(tmp_path_factory):
    """A tree with the names of MVTec AD's products, each a plain colour with a texture of its own."""
    root = tmp_path_factory.mktemp("fifteen")
    rng = np.random.default_rng(0)
    for name in (*MVTEC_TEXTURES, *MVTEC_OBJECTS):
        colour, grain = rng.integers(40, 215, 3), rng.integers(2, 40)
        for part, count in (("train/good", 3), ("test/good", 2), ("test/dent", 2)):
            for i in range(count):
                picture = np.clip(colour + rng.normal(0, grain, (32, 32, 3)), 0, 255).astype(np.uint8)
                if "dent" in part:
                    picture[8:16, 8:16] = 255 - picture[8:16, 8:16]
                    mark = np.zeros((32, 32), np.uint8)
                    mark[8:16, 8:16] = 255
                    save(root / name / "ground_truth" / "dent" / f"{i:03}_mask.png", mark)
                save(root / name / part / f"{i:03}.png", picture)
    return root


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("scenario", "streams", "tasks"),
    [
        ("A", 1, 5),
        pytest.param("B", 1, 15, marks=pytest.mark.slow),
        pytest.param("C", 5, 15, marks=pytest.mark.slow),
        pytest.param("D", 3, None, marks=pytest.mark.slow),
    ],
)
def test_scenarios_of_fifteen_products(scenario, streams, tasks, fifteen, cache, tmp_path):
    dataset = read_dataset(fifteen)
    chosen = tuple(streams_for(dataset, scenario))
    assert [len(stream.tasks) for stream in chosen] == (
        [15, 15, 13] if scenario == "D" else [tasks] * streams
    )
    # The whole of one stream, and of the others their first two tasks: they differ in nothing but order.
    short = (chosen[0], *(Stream(one.name, one.tasks[:2]) for one in chosen[1:]))
    plan = Plan(
        {"padim": Variant("padim")}, short, (0,), image_size=(32, 32), eval_size=(16, 16), options=QUICK
    )
    job = Work(plan, used(dataset, short), tmp_path / "out", cache)
    assert run(job) == {}
    found = results.collect(job)
    assert [one["complete"] for one in found["runs"]] == [True] * streams
    matrix = found["runs"][0]["matrices"]["routed"]["image_auroc"]
    assert np.shape(matrix) == (len(chosen[0].tasks), len(chosen[0].products))


# The command


def test_check_says_what_is_wrong(tree, tmp_path):
    assert "nothing wrong was found" in cli("benchmark", tree, "--check").output
    damaged = shutil.copytree(tree, tmp_path / "damaged")
    twin = next((damaged / "gear" / "train" / "good").iterdir())
    shutil.copy(twin, damaged / "gear" / "test" / "good" / "twin.png")
    done = cli("benchmark", damaged, "--check")
    assert done.exit_code == 1
    assert "twin.png: the same image is learned from" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "nobody"), "unknown method 'nobody'; known are moleflow"),
        (("--scenario", "A"), "expected 15 products, found 3"),
        (("--scenario", "Z"), "unknown scenario 'Z'"),
        (("--seeds", "a"), "expected seeds such as 0,1,2"),
        (("--set", "training.steps"), "expected KEY=VALUE"),
        (("--set", "nothing.at.all=1"), "no option 'nothing.at.all'"),
        (("--order", "gear,lid"), "unknown product 'lid'"),
        (("--stream", "absent.yaml"), "absent.yaml"),
    ],
)
def test_wrong_wishes_are_refused_in_a_sentence(tree, tmp_path, arguments, said):
    done = cli("benchmark", tree, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 1
    assert said in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["benchmark", "ablate", "sweep"])
@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_nothing_is_written_among_the_images(tree, command, option):
    before = sorted(tree.rglob("*"))
    done = cli(command, tree, option, tree / "out")
    assert done.exit_code == 1
    assert f"out: expected a folder outside of {tree}" in done.output.replace("\n", " ")
    assert sorted(tree.rglob("*")) == before


@pytest.mark.slow
def test_ablate_and_sweep_from_the_command(tree, tmp_path):
    quick = [word for key, value in QUICK.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    common = (
        "--order",
        "gear",
        "--seeds",
        "0",
        "--image-size",
        "64",
        "--eval-size",
        "32",
        "--jobs",
        "1",
    )
    done = cli(
        "ablate", tree, "--flow-alone", "--only", "no DIA", "--out", tmp_path / "ablation", *common, *quick
    )
    assert done.exit_code == 0, done.output
    assert "no DIA" in done.output
    assert "no LoRA" not in done.output
    (tmp_path / "space.yaml").write_text("training.noise: [0.1, 0.5]\n")
    done = cli(
        "sweep", tree, "--space", tmp_path / "space.yaml", "--out", tmp_path / "sweep", *common, *quick
    )
    assert done.exit_code == 0, done.output
    assert "2 trials; lost by choosing without labels" in done.output
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert {trial["options"]["training.noise"] for trial in found["trials"]} == {0.1, 0.5}
    assert (tmp_path / "sweep" / "sweep.html").stat().st_size > 5_000


def test_a_sweep_without_labels_needs_none(tmp_path):
    write_product("gear", tmp_path / "data", train=8, test_good=1, test_defective=1, size=SIZE)
    shutil.rmtree(tmp_path / "data/gear/test")
    shutil.rmtree(tmp_path / "data/gear/ground_truth")
    (tmp_path / "space.yaml").write_text("padim.ridge: [1e-2, 0.1]\n")
    quick = [word for key, value in QUICK.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    common = ("--out", tmp_path / "out", "--image-size", "64", "--eval-size", "32", "--jobs", "1", *quick)
    done = cli(
        *("sweep", tmp_path / "data", "--method", "padim", "--no-oracle"),
        *("--space", tmp_path / "space.yaml", *common),
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [trial["options"] for trial in found["trials"]] == [{"padim.ridge": r} for r in (0.01, 0.1)]
    assert found["unchanged"]["options"] == {"padim.ridge": 0.1}
    assert found["best_by_oracle"] is None


def test_what_says_what_is_learned_twice_is_refused(tree):
    for words, message in (
        (("--drift", "gear", "--scenario", "orders"), "got --drift and --scenario"),
        (("--drift", "gear", "--order", "wood"), "--drift says already"),
    ):
        done = cli("benchmark", tree, *words)
        assert done.exit_code == 1
        assert message in done.output
