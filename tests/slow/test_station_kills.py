"""A station outlives being killed under load: what was answered is recorded, and the line is whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra station is not installed")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "station_kills.py"
KILLS = 8


@pytest.mark.slow
def test_a_killed_station_lost_nothing_that_it_answered(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--kills", str(KILLS), "--json", figures]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads(figures.read_text())
    assert result["failures"] == []
    assert result["kills"] == KILLS
    assert result["answered"] > KILLS
