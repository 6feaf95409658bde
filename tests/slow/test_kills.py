"""A line outlives processes that are killed while they change it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"
KILLS = 60


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
def test_a_killed_change_leaves_the_line_as_before_or_after(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--kills", str(KILLS), "--json", figures]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads(figures.read_text())
    assert result["failures"] == []
    assert result["kills"] == KILLS
    # Kills that all fall into one phase, or on one operation, would show nothing.
    assert all(sum(phases.values()) > 0 for phases in result["by_operation"].values())
    phases = {phase for hits in result["by_operation"].values() for phase, count in hits.items() if count}
    assert len(phases) >= 3
    assert result["line_as_before"] > 0
