"""What learns lets what inspects beside it go first: how its threads wait is settled before torch comes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moleflow.sharing import TURNS, giving_way
from moleflow.station import teaching

UNTIL_TORCH = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch meets", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder())
from moleflow.cli import app
app(sys.argv[1:])
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


def test_add_settles_it_before_torch_and_the_user_before_it(undecided, photograph, monkeypatch, tmp_path):
    assert met("add", tmp_path / "line", "gear", photograph) == TURNS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert met("add", tmp_path / "line", "gear", photograph) == "7"


@pytest.mark.parametrize(("command", "turns"), [("update", TURNS), ("correct", TURNS), ("predict", None)])
def test_other_lessons_do_and_inspection_does_not(
    undecided, photograph, new_line, pictures, tmp_path, command, turns
):
    line = new_line()
    line.add_task("gear", pictures("gear", 2))
    line.save(tmp_path / "line")
    more = {"update": ["gear"], "correct": ["gear", "--missed", photograph], "predict": []}[command]
    assert met(command, tmp_path / "line", *more, photograph) == str(turns)


def test_what_the_user_decided_stands():
    assert giving_way({}) == {"GOMP_SPINCOUNT": TURNS}
    assert giving_way({"OMP_WAIT_POLICY": "active"}) == giving_way({"GOMP_SPINCOUNT": "5"}) == {}


def test_a_lesson_of_the_station_gives_way_and_the_station_itself_does_not(undecided, monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: begun.append(more["env"]))
    teaching._start(tmp_path)
    assert begun[0]["GOMP_SPINCOUNT"] == TURNS
    assert "GOMP_SPINCOUNT" not in os.environ
