"""The line as the bench runs it is the line as a user runs it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moleflow.bench.methods.base import Inspection, Pictures, Setting
from moleflow.bench.methods.line import MoleFlow, TaskSeparated
from moleflow.bench.pictures import Shelf
from moleflow.config import LineConfig
from moleflow.data.factory import write_product
from moleflow.data.layouts import read_dataset
from moleflow.features.cache import FeatureCache
from moleflow.product import split
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


@pytest.mark.parametrize("held_out", [False, True])
def test_the_bench_says_what_the_detector_says(held_out, products, shelf, quick, new_line, monkeypatch):
    """Whether all images calibrate in turn or some are held out; on features rounded to 16 bits alike."""
    scoring = replace(quick.scoring, cross_fit_below=4, holdout_least=2) if held_out else quick.scoring
    config = replace(quick, scoring=scoring)
    line, method = new_line(config=config, seed=3), MoleFlow(setting(shelf, config))
    exact = line._features
    monkeypatch.setattr(line, "_features", lambda pictures: exact(pictures).half().float())
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


@pytest.mark.parametrize("kind", [MoleFlow, TaskSeparated])
def test_images_that_calibrate_play_no_part_in_the_base(kind, products, shelf, quick):
    config = replace(quick, scoring=replace(quick.scoring, cross_fit_below=4, holdout_least=2))
    method = kind(setting(shelf, config))
    pictures = shelf.pictures(products["gear"], "train")
    _, folds, _ = split(len(pictures), config, method.setting.seed)
    other = pictures.features.clone()
    other[folds[0]] += 1
    bases = [
        method.learn_base(Pictures("gear", features, pictures.read)).state_dict()
        for features in (pictures.features, other)
    ]
    assert all(torch.equal(bases[0][name], bases[1][name]) for name in bases[0])
