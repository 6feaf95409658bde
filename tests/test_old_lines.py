"""Lines of earlier formats load and say what they said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moleflow import Detector
from moleflow.features import backbones

DATA = Path(__file__).parent / "data"


@pytest.fixture
def old(tmp_path):
    """A line of format 1, taught gear and wood; a threshold of wood was set by hand."""
    return shutil.copytree(DATA / "line-format-1", tmp_path / "line")


@pytest.fixture
def probe(pictures):
    good = [*pictures("gear", 1, first=500), *pictures("wood", 1, first=500)]
    return [
        *good,
        *pictures("gear", 1, first=600, kind="missing_tooth"),
        *pictures("circuit_board", 1, first=700),
    ]


def test_a_line_of_the_first_format_says_what_it_said(old, probe):
    said = json.loads((DATA / "line-format-1-said.json").read_text())
    for found, before in zip(Detector.load(old, device="cpu").predict(probe), said, strict=True):
        assert (found.task, found.known, found.pred_label) == tuple(
            before[key] for key in ("task", "known", "pred_label")
        )
        for key in ("pred_score", "p_value", "threshold"):
            assert getattr(found, key) == pytest.approx(before[key], rel=1e-3), key
        for key in ("distance", "strangeness", "margin", "strangeness_limit"):
            assert getattr(found.routing, key) == pytest.approx(before["routing"][key], rel=1e-3), key
        assert found.patch_map.astype(np.float64).sum() == pytest.approx(before["map_sum"], rel=1e-3)
        assert int(found.pred_mask.sum()) == pytest.approx(before["pixels_above"], abs=3)
        assert found.map_threshold == found.threshold
        assert found.whole_score is None


def test_a_line_of_the_first_format_learns_by_the_rules_of_today(old, probe, pictures):
    line = Detector.load(old, device="cpu")
    before = [p.patch_map for p in line.predict(probe, task="gear")]
    line.add_task("bottle_cap", pictures("bottle_cap", 8))
    line.save()
    again = Detector.load(old, device="cpu")
    assert again.info("bottle_cap").calibration == "left-out"
    assert again.info("gear").calibration == "cross-fitted"
    assert all(p.whole_score is not None for p in again.predict(pictures("bottle_cap", 1, first=500)))
    for found, kept in zip(again.predict(probe, task="gear"), before, strict=True):
        np.testing.assert_array_equal(found.patch_map, kept)


def test_a_product_of_the_first_format_is_updated_to_the_rules_of_today(old, pictures):
    line = Detector.load(old, device="cpu")
    info = line.update_task("gear", pictures("gear", 6, first=50))
    assert (info.calibration, info.images) == ("left-out", 14)


@pytest.mark.long
def test_a_line_keeps_its_layers_side_by_side_when_its_backbones_row_changes(
    monkeypatch, quick, pictures, probe, tmp_path
):
    row = replace(backbones.get_backbone("timm:resnet18.a1_in1k@1,2"), name="small")
    monkeypatch.setitem(backbones.BACKBONES, "small", row)
    line = Detector("small", weights="random", image_size=64, device="cpu", config=quick)
    line.add_task("gear", pictures("gear", 4))
    line.save(tmp_path / "line")
    said = [p.patch_map for p in line.predict(probe)]
    monkeypatch.setitem(backbones.BACKBONES, "small", replace(row, aggregation="mean", width=96))
    assert Detector("small", weights="random", image_size=64, device="cpu").extractor.dim == 96
    again = Detector.load(tmp_path / "line", device="cpu")
    assert again.extractor.dim == line.extractor.dim == 192
    for found, kept in zip(again.predict(probe), said, strict=True):
        np.testing.assert_array_equal(found.patch_map, kept)
