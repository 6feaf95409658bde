"""Threads wait for each other asleep, which has to be settled before torch comes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moleflow.station import teaching
from moleflow.waiting import TURNS, waiting_asleep

UNTIL_TORCH = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch meets", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder())
from moleflow.cli import main
main()
"""


@pytest.fixture
def undecided(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


def met(*args):
    """How threads are told to wait when a command comes to torch."""
    command = [sys.executable, "-c", UNTIL_TORCH, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "good.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    return path


def test_a_lesson_settles_it_before_torch_and_the_user_before_it(
    undecided, photograph, monkeypatch, tmp_path
):
    assert met("add", tmp_path / "line", "gear", photograph) == TURNS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert met("add", tmp_path / "line", "gear", photograph) == "7"


def test_so_does_an_inspection(undecided, photograph, new_line, pictures, tmp_path):
    line = new_line()
    line.add_task("gear", pictures("gear", 2))
    line.save(tmp_path / "line")
    assert met("predict", tmp_path / "line", photograph) == TURNS


def test_what_the_user_decided_stands():
    assert waiting_asleep({}) == {"GOMP_SPINCOUNT": TURNS}
    assert waiting_asleep({"OMP_WAIT_POLICY": "active"}) == waiting_asleep({"GOMP_SPINCOUNT": "5"}) == {}


def test_a_lesson_of_the_station_waits_asleep_whatever_began_the_station(undecided, monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: begun.append(more["env"]))
    teaching._start(tmp_path)
    assert begun[0]["GOMP_SPINCOUNT"] == TURNS
    assert "GOMP_SPINCOUNT" not in os.environ
