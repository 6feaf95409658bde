"""The line as the bench runs it is the line as a user runs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moleflow.bench.methods.base import Inspection, Setting
from moleflow.bench.methods.line import MoleFlow
from moleflow.bench.pictures import Shelf
from moleflow.config import LineConfig
from moleflow.data.factory import write_product
from moleflow.data.layouts import read_dataset
from moleflow.features.cache import FeatureCache
from moleflow.results import Prediction

PRODUCTS = ("gear", "wood")


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Procedural products on disk, by name."""
    root = tmp_path_factory.mktemp("line") / "data"
    for name in PRODUCTS:
        write_product(name, root, train=8, test_good=2, test_defective=2, size=64)
    return read_dataset(root).products


@pytest.fixture
def shelf(new_line, tmp_path):
    """Cached features of the line's own extractor."""
    return Shelf(FeatureCache(tmp_path, new_line().extractor))


def setting(shelf: Shelf, config: LineConfig) -> Setting:
    extractor = shelf.cache.extractor
    return Setting(extractor.grid, extractor.dim, extractor.image_size, seed=3, config=config)


def of_bench(found: Inspection) -> tuple:
    return found.task, found.known, found.score, found.threshold, found.patch_map.tobytes()


def of_line(found: Prediction) -> tuple:
    return found.task, found.known, found.pred_score, found.threshold, found.patch_map.tobytes()


@pytest.mark.parametrize("single", [4, 32])
def test_the_bench_says_what_the_detector_says(single, products, shelf, quick, new_line, monkeypatch):
    """Whether images are left out one by one or in blocks; on features rounded to 16 bits alike."""
    scoring = replace(quick.scoring, single_up_to=single)
    config = replace(quick, scoring=scoring)
    line, method = new_line(config=config, seed=3), MoleFlow(setting(shelf, config))
    exact = line.extractor.see

    def rounded(images):
        seen = exact(images)
        return replace(seen, patches=seen.patches.half().float())

    monkeypatch.setattr(line.extractor, "see", rounded)
    for name in PRODUCTS:
        line.add_task(name, [item.path for item in products[name].train])
        method.learn([shelf.pictures(products[name], "train")])
    for name in PRODUCTS:
        paths = [item.path for item in products[name].test]
        probe = shelf.pictures(products[name], "test")
        for task in (None, *PRODUCTS):
            found = [of_bench(one) for one in method.inspect(probe, task)]
            expected = [of_line(one) for one in line.predict(paths, task=task)]
            if task is not None:  # the bench leaves open what is not asked; the line answers "known"
                found = [(one[0], True, *one[2:]) for one in found]
            assert found == expected
