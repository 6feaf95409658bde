"""Sixteen couplings learn as soundly as two, at the widths of the published backbones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "depth.py"


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "deck-main"])
def test_sixteen_couplings_do_not_diverge(preset, tmp_path):
    figures = tmp_path / "figures.json"
    short = ["--couplings", "16", "--steps", "20", "--patches", "256", "--preset", preset]
    command = [sys.executable, SCRIPT, "--channels", "768", "1024", *short, "--json", figures]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    records = json.loads(figures.read_text())
    assert {(r["channels"], r["what"]) for r in records} == {
        (channels, what) for channels in (768, 1024) for what in ("base", "expert")
    }
    assert all(r["not_finite"] == 0 and r["last"] < r["first"] for r in records)
