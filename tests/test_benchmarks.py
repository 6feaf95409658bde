"""The scripts whose figures stand on the first page run, on small data."""

import importlib
import json
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
