"""The peers' benchmark without the peers: its exchange files, how it goes on, what it says."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from moleflow.data.factory import write_product
from moleflow.data.layouts import load_mask, read_dataset

pytestmark = pytest.mark.long

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
MODULES = ("exchange", "environment", "table", "run")
SIDE = 64
PRODUCTS = ("gear", "wood")
METHODS = ("moleflow", "patchcore", "efficientad")


@pytest.fixture(scope="module")
def peers():
    """The benchmark's modules by name; they lie in no package, as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PEERS))
        yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("peers") / "data"
    for product in PRODUCTS:
        write_product(product, root, train=6, test_good=3, test_defective=3, size=SIDE)
    return root


@pytest.fixture
def job(peers):
    return peers["exchange"].Job(
        **{"method": "patchcore", "product": "gear", "train": ("a",), "test": ("b", "c"), "first": ()},
        **{"size": SIDE, "eval_size": SIDE, "batches": (1, 4), "rounds": 2, "epochs": 1, "steps": 1},
        **{"threads": 1, "seed": 0, "backbone": "n", "weights": "w.npz", "mean": (0.5,), "std": (0.25,)},
        **{"layers": (2, 3), "start": None, "keep": "kept"},
    )


def record(peers, *, ms=10.0, kept=1_000_000, seconds=3.0, estimated="", more=None):
    return peers["exchange"].Record(
        **{"learn_seconds": seconds, "learn_estimated": estimated, "bytes": kept, "shared_bytes": 5_000_000},
        **{"ms": {"1": [9 * ms, ms, ms], "16": [ms / 2] * 3}, "backbone": "a network", "load": (0.5, 1.0)},
        **{"versions": {"anomalib": "2.7.0"}, "peak_bytes": 10**9, "more": more or {}},
    )


# Exchange


def test_a_job_and_an_outcome_come_back_as_they_were(peers, job, tmp_path):
    exchange = peers["exchange"]
    exchange.write_job(tmp_path / "job.json", job)
    assert exchange.read_job(tmp_path / "job.json") == job
    told, arrays = record(peers), {"scores": np.arange(3, dtype=np.float32), "maps": np.ones((3, 2, 2))}
    exchange.write_outcome(tmp_path, told, arrays)
    back, found = exchange.read_outcome(tmp_path)
    assert back == told
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype
        for name, array in arrays.items()
    )


def test_nothing_that_needs_pickle_is_written_or_read(peers, tmp_path):
    exchange = peers["exchange"]
    with pytest.raises(ValueError, match="objects in names"):
        exchange.write_outcome(tmp_path, record(peers), {"names": np.array([{}], dtype=object)})
    assert not (tmp_path / "record.json").exists()  # no record without its arrays
    np.savez(tmp_path / "foreign.npz", names=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        exchange.read_arrays(tmp_path / "foreign.npz")


def test_every_round_inspects_whole_batches_and_the_first_is_left_out(peers, job):
    seen = []
    took = peers["exchange"].timings(seen.append, job)
    assert {batch: len(rounds) for batch, rounds in took.items()} == {"1": job.rounds, "4": job.rounds}
    assert [len(paths) for paths in seen] == [1] * 8 * 3 + [4] * 2 * 3
    assert set(seen[0] + seen[1]) == set(job.test)


def test_what_runs_in_the_peers_environment_imports_nothing_of_ours(peers):
    for script in ("measure", "networks", "exchange"):
        tree = ast.parse((PEERS / f"{script}.py").read_text(encoding="utf-8"))
        names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names += [
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        ]
        assert not [name for name in names if name.partition(".")[0] in ("moleflow", "table", "run")]


def test_every_peer_has_a_row(peers):
    source = (PEERS / "networks.py").read_text(encoding="utf-8")
    rows = re.search(r"^PEERS.*?^}", source, re.MULTILINE | re.DOTALL)
    assert rows
    assert re.findall(r'"(.+?)":', rows[0]) == [name for name in peers["table"].NAMES if name != "moleflow"]


# The environment


def test_another_version_and_no_version_are_missing(peers, monkeypatch, tmp_path):
    environment = peers["environment"]
    pins = tmp_path / "requirements.txt"
    monkeypatch.setattr(environment, "REQUIREMENTS", pins)
    pins.write_text(f"numpy=={np.__version__}\npillow==0.1\nno-such-package==1.0\n")
    assert environment.missing(Path(sys.executable)) == ["pillow==0.1", "no-such-package==1.0"]


# A run


@pytest.fixture
def ran(peers, data, tmp_path, monkeypatch):
    """Runs it with drawn outcomes in the place of measuring processes; which ran, how it ended, where."""
    run = peers["run"]
    monkeypatch.setattr(run.environment, "prepare", lambda folder: Path("python-of-the-peers"))

    def command(*more, broken=()):
        jobs, ended = [], None

        def measure(words, **rest):
            job = peers["exchange"].read_job(Path(words[-2]))
            jobs.append((job.method, job.product, words[0]))
            if (job.method, job.product) in broken:
                rest["stdout"].write("no such layer")
                return subprocess.CompletedProcess(words, 1)
            peers["exchange"].write_outcome(Path(words[-1]), *drawn(peers, job, data))
            return subprocess.CompletedProcess(words, 0)

        monkeypatch.setattr(run.subprocess, "run", measure)
        words = [str(data), "--out", str(tmp_path / "out"), "--size", str(SIDE), "--eval-size", str(SIDE)]
        monkeypatch.setattr(sys, "argv", ["run.py", *words, "--methods", *METHODS, "--train", "4", *more])
        try:
            run.main()
        except SystemExit as end:
            ended = end.code
        return jobs, ended, tmp_path / "out"

    return command


def drawn(peers, job, data):
    """Outcomes as of a method that knows all answers; peers turn the first product's round later."""
    found = read_dataset(data).products
    items = {str(item.path.resolve()): item for product in found.values() for item in product.test}
    mine, first = [items[path] for path in job.test], [items[path] for path in job.first]
    more = {"first to the bit": 1.0, "first routed right": 1.0} if job.method == "moleflow" else {}
    if job.method == "efficientad":
        return record(peers, ms=100.0, estimated="steps"), {}
    arrays = {
        "scores": np.array([item.label for item in mine], dtype=np.float32),
        "maps": np.stack([load_mask(item, shape=(SIDE, SIDE)).astype(np.float32) for item in mine]),
    }
    if first:
        wrong = job.method != "moleflow"
        arrays["first_scores"] = np.array([item.label != wrong for item in first], dtype=np.float32)
    return record(peers, ms=10.0 if job.method == "moleflow" else 20.0, more=more), arrays


def test_a_run_measures_everybody_alike_and_judges_by_our_metrics(ran):
    jobs, ended, out = ran()
    assert ended is None
    assert [(method, product) for method, product, _ in jobs] == [(m, p) for p in PRODUCTS for m in METHODS]
    assert [python for _, _, python in jobs] == [sys.executable, *["python-of-the-peers"] * 2] * 2
    told = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert told["results"]["patchcore"]["wood"]["figures"] == {"I": 100.0, "AP": 100.0, "first I": 0.0}
    assert told["results"]["moleflow"]["wood"]["figures"]["first I"] == 100.0
    assert told["results"]["efficientad"]["gear"]["figures"] == {}
    assert told["run"]["train"] == {"gear": [4, 6], "wood": [4, 6]}
    assert not list(out.rglob("arrays.npz"))  # maps are large, and judged


def test_a_killed_run_goes_on_and_other_options_measure_anew(ran):
    _, _, out = ran()
    (out / "work" / "patchcore-wood" / "result.json").unlink()
    assert [unit[:2] for unit in ran()[0]] == [("patchcore", "wood")]
    assert ran()[0] == []
    assert len(ran("--seed", "1")[0]) == len(PRODUCTS) * len(METHODS)


def test_a_peer_that_fails_is_named_and_the_others_are_told(ran, capsys):
    _, ended, out = ran(broken=[("patchcore", "gear")])
    assert "PatchCore on gear" in ended
    assert "no such layer" in capsys.readouterr().out
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "Failed: PatchCore on gear." in text
    assert re.search(r"^\| wood \| PatchCore ", text, re.MULTILINE)
    assert len(ran()[0]) == 1  # only what failed is tried again


def test_products_are_found_by_the_end_of_their_name(peers):
    named, names = peers["run"].named, ["mvtec3d_tire", "magnetic_tile", "tile"]
    assert [named(wish, names) for wish in ("tire", "tile")] == ["mvtec3d_tire", "tile"]
    with pytest.raises(SystemExit, match="found none"):
        named("cable", names)


# The table


def test_the_table_says_ratios_and_what_became_of_the_first_product(ran):
    text = (ran()[2] / "table.md").read_text(encoding="utf-8")
    cells = {row[0]: row for row in rows_of(text, "Means")}
    assert cells["MoLE-Flow"][3:7] == ["10.0", "5.0", "1", "1"]  # medians: the slow first rounds do not count
    assert cells["PatchCore"][3:7] == ["20.0", "10.0", "2.0", "2.0"]
    assert cells["EfficientAD-S"][2] == "≈ 3.0"
    assert cells["EfficientAD-S"][-2:] == ["–", "–"]
    fates = {row[0]: row for row in rows_of(text, "What adding")}
    assert fates["PatchCore"][3:5] == ["100.0", "0.0"]
    assert fates["PatchCore"][5].startswith("lost")
    assert "100 % of its images say the same to the bit" in fates["MoLE-Flow"][5]
    assert "lost" not in fates["EfficientAD-S"][5]  # nobody measured that


def test_all_rows_of_a_table_are_as_wide_as_its_head(ran):
    text = (ran()[2] / "table.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_ratios_are_over_the_products_that_both_were_measured_on(peers):
    def result(ms):
        return {"ms": {"1": [ms]}}

    table = peers["table"]
    found = {"moleflow": {"a": result(1), "b": result(100)}, "padim": {"a": result(5)}}
    assert table.ratio(found, "padim", partial(table.ms, 1)) == "5.0"
    assert table.ratio({"padim": found["padim"]}, "padim", partial(table.ms, 1)) == "–"


def rows_of(text, heading):
    part = re.search(rf"^## {heading}.*?\n\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    lines = part[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
