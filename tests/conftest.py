"""What several test files share: small procedural products, options that learn in a second, a taught line."""

import functools
import os
import shutil
import tempfile

import pytest
import torch
import typer.testing

from moleflow import Cells, Coreset, Detector, Dia, FlowConfig, LineConfig, ScoringConfig, TrainingConfig
from moleflow.data.factory import make_sample
from moleflow.line.archive import Archive

SIZE = 64


# Every call of the command line would build all its commands anew.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def pytest_configure(config):
    # The pictures are too small to share among threads, and xdist starts a process per core already.
    torch.set_num_threads(1)
    if not hasattr(config, "workerinput"):  # workers inherit it
        config.own_cache = os.environ["MOLEFLOW_CACHE"] = tempfile.mkdtemp(prefix="moleflow-tests-")


def pytest_unconfigure(config):
    if hasattr(config, "own_cache"):
        shutil.rmtree(config.own_cache, ignore_errors=True)


@functools.cache
def _picture(product, seed, kind):
    image = make_sample(product, seed, kind=kind, size=SIZE).image
    image.flags.writeable = False  # every test sees the same array
    return image


@pytest.fixture(scope="session")
def pictures():
    """Photographs of a product as uint8 arrays: `pictures("gear", 8, first=100)`."""

    def take(product, count, *, first=0, kind="good"):
        return [_picture(product, seed, kind) for seed in range(first, first + count)]

    return take


@pytest.fixture(scope="session")
def quick():
    """Options with every part of the method in place, and few steps."""
    return LineConfig(
        flow=FlowConfig(cells=Cells(side=2, rank=8, mean_side=4), hidden=32, dia=Dia(hidden=32)),
        training=TrainingConfig(steps=2, base_steps=2, patches=128),
        scoring=ScoringConfig(coreset=Coreset(patches=60), folds=2),
    )


@pytest.fixture(scope="session")
def new_line(quick):
    """An empty line: `new_line()`, `new_line(seed=1)`."""

    def make(**options):
        return Detector(**{"image_size": SIZE, "device": "cpu", "config": quick} | options)

    return make


@pytest.fixture(scope="session")
def taught_line(new_line, pictures):
    """A line that was taught so many images of each, a new one each time: `taught_line(gear=6, wood=8)`.

    What a lesson leaves is never changed, only replaced; so each lesson is learned once for all tests that do
    not ask how it goes.
    """

    @functools.cache
    def learned(lessons):
        *before, (product, count) = lessons
        line = begun(tuple(before))
        line.add_task(product, pictures(product, count))
        return line

    def begun(lessons):
        line = new_line()
        if lessons:
            line.extractor, line._line = learned(lessons).extractor, learned(lessons)._line
        return line

    return lambda **lessons: begun(tuple(lessons.items()))


@pytest.fixture(scope="session")
def line(taught_line):
    """A line of three products, for tests that only look."""
    return taught_line(gear=8, wood=8, bottle_cap=8)


@pytest.fixture(scope="session")
def probe(pictures):
    """Mixed images of the three products that none of them was learned from, good ones and a faulty one."""
    good = [pictures(product, 1, first=500)[0] for product in ("gear", "wood", "bottle_cap")]
    return [*good, *pictures("gear", 1, first=600, kind="missing_tooth")]


@pytest.fixture(scope="session")
def _saved_line(line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("session") / "line"
    line.save(folder)
    # The fixture `line` stays as one that was never saved.
    line._archive = Archive()
    return folder


@pytest.fixture
def saved(_saved_line, tmp_path):
    """The folder of that line, this test's own copy."""
    return shutil.copytree(_saved_line, tmp_path / "line")


@pytest.fixture
def loaded(saved):
    """That line loaded from `saved`, for tests that change it."""
    return Detector.load(saved, device="cpu")
