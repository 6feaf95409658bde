"""The scripts whose figures stand on the first page run, on small data."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from moleflow.data.factory import write_product

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
SIZE = 64


@pytest.fixture
def script(monkeypatch):
    """A script of `benchmarks/` by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def test_the_command_of_the_first_page_judges_a_line_of_products(script, tmp_path, monkeypatch, capsys):
    for product in ("gear", "wood"):
        write_product(product, tmp_path / "data", train=8, test_good=3, test_defective=3, size=SIZE)
    told = tmp_path / "told.json"
    given = [tmp_path / "data", "--seeds", 0, "--few", 0, "--no-tomorrow", "--image-size", SIZE]
    own = ["--steps", 1, "--threads", 1, "--cache", tmp_path / "features", "--json", told]
    monkeypatch.setattr("sys.argv", ["false_alarms.py", *map(str, [*given, *own])])
    script("false_alarms").main()
    rows = json.loads(told.read_text())
    assert [(row["kind"], row["product"], row["seed"]) for row in rows] == [
        ("test", "gear", 0),
        ("test", "wood", 0),
    ]
    for row in rows:
        assert row["routed right"] == 100
        assert row["image AUROC"] in [pytest.approx(100 * i / 9) for i in range(10)]
        assert 0 <= row["left out: unknown"] <= 100
    assert "gear" in capsys.readouterr().out


@pytest.mark.long
def test_what_a_product_takes_is_told_where_everything_is_learned_and_where_nothing_is(
    script, monkeypatch, capsys
):
    given = ["--backbones", "efficientnet_lite0", "--presets", "lean", "layered", "--images", "20"]
    monkeypatch.setattr("sys.argv", ["presets.py", *given])
    script("presets").main()
    *_, lean, layered = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lean.split("|")[-3:-1]] == ["0", "0"]
    assert all(float(cell.replace(",", "")) > 0 for cell in layered.split("|")[-3:-1])


@pytest.mark.long
def test_what_a_flow_learns_of_few_images_is_judged_by_others(script, tmp_path, monkeypatch, capsys):
    for product, count in (("gear", 6), ("wood", 3)):
        write_product(product, tmp_path / "data", train=count, test_good=1, test_defective=1, size=SIZE)
    given = [tmp_path / "data", "--images", 2, 4, "--seeds", 0, "--image-size", SIZE]
    monkeypatch.setattr("sys.argv", ["few.py", *map(str, given)])
    monkeypatch.setattr(script("few"), "HELD", 1)
    script("few").main()
    rows = [[cell.strip() for cell in row.split("|")] for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1:3] for row in rows] == [["2", "gear"], ["2", "wood"], ["4", "gear"]]
    assert all(math.isfinite(float(cell)) for row in rows for cell in row[3:6])
    assert all(row[6] in ("0.0 of 2", "1.0 of 2", "2.0 of 2") for row in rows)
