"""Maps one can compare: one colour scale a product, its legend, and files that other programs read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from moleflow import Prediction, maps
from moleflow.bench import showcase
from moleflow.bench.methods.base import State
from moleflow.errors import MoleFlowError
from moleflow.maps.files import Counts
from moleflow.maps.legend import Entry, draw_legend, with_legend
from moleflow.maps.overlay import draw_prediction, overlay, save_overlay
from moleflow.maps.scale import OUTLINE, Scale, painted
from moleflow.report import greyed


def make(patch_map, *, threshold=3.0, size=(40, 60), **more):
    patch_map = np.asarray(patch_map, np.float32)
    about = {"source": 0, "task": "cable", "known": True, "pred_score": float(patch_map.max())}
    about |= {"p_value": 0.5, "pred_label": patch_map.max() > threshold} | more
    about |= {"place_score": float(patch_map.max()), "whole_score": None, "map_threshold": threshold}
    return Prediction(threshold=threshold, patch_map=patch_map, image_size=size, **about)


@pytest.fixture
def prediction():
    return make(np.random.default_rng(0).normal(1, 3, (5, 7)))


def grey(height, width):
    return np.full((height, width, 3), 90, np.uint8)


# Colours


def test_a_score_has_one_colour_in_all_images_of_a_product():
    scores = np.linspace(-1, 9, 60, dtype=np.float32)
    quiet, loud = np.tile(scores[:20], (3, 1)), np.tile(scores, (3, 1))
    loud[2, -1] = 1e5
    one, other = (overlay(grey(*m.shape), m, threshold=20.0) for m in (quiet, loud))
    np.testing.assert_array_equal(one, other[:, :20])


@pytest.mark.parametrize("scale", [Scale(4.0), Scale(0.0), Scale(-2.5), Scale(8.0, typical=5.0)])
def test_the_threshold_is_half_of_the_scale(scale):
    ends = np.array([scale.low - 1, scale.low, scale.threshold, scale.high, scale.high + 1])
    assert scale.levels(ends).tolist() == [0, 0, 127, 255, 255]
    assert scale.low < scale.threshold < scale.high


@pytest.mark.parametrize("threshold", [3.0, 0.0, -1.0])
def test_heat_covers_what_exceeds_the_threshold(threshold):
    anomaly_map = np.full((8, 8), threshold - 10.0, np.float32)
    anomaly_map[2:6, 2:6] = threshold + 10.0
    drawn = overlay(grey(8, 8), anomaly_map, threshold)
    np.testing.assert_array_equal(drawn[0, 0], [90, 90, 90])
    assert tuple(drawn[2, 2]) == OUTLINE
    assert drawn[3, 3].astype(int).sum() > 3 * 90


def test_a_greyed_photograph_has_no_colours():
    photo = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert (np.ptp(greyed(photo), axis=2) == 0).all()
    np.testing.assert_array_equal(greyed(grey(4, 4)), grey(4, 4))


# Legend


@pytest.mark.parametrize("size", [(64, 64), (30, 700), (700, 30), (900, 1200)])
def test_a_legend_stands_below_the_photograph_and_covers_none_of_it(size):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    drawn = with_legend(photo, Scale(4.0), Entry("cable", 7.0, "defective"))
    np.testing.assert_array_equal(drawn[: size[0], : size[1]], photo)
    assert drawn.shape[0] > size[0] + 60
    assert drawn.shape[1] >= max(size[1], 200)  # wide enough to be read


def test_a_legend_shows_the_colours_that_scores_have():
    scale = Scale(4.0)
    drawn = draw_legend(scale)
    pixels = {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}
    light = np.full((1, 4, 3), 225, np.uint8)
    shown = painted(light, scale.levels(np.array([[0.0, 1.0, 6.0, 8.0]])))
    for colour in (*shown[0].tolist(), OUTLINE):  # the outline's colour marks the threshold
        assert min(np.abs(np.subtract(pixel, colour)).max() for pixel in pixels) <= 1


def test_a_legend_says_product_score_and_verdict():
    def differs(one, other):
        a, b = (draw_legend(Scale(4.0), entry, width=500) for entry in (one, other))
        return a.shape == b.shape and (a != b).any()

    told = Entry("cable", 7.0, "defective")
    assert differs(told, Entry("plugs", 7.0, "defective"))
    assert differs(told, Entry("cable", 1.0, "defective"))
    assert differs(told, Entry("cable", 7.0, "good"))


def test_letters_the_font_lacks_are_no_boxes():
    plain, accented, other = (
        draw_legend(Scale(4.0), Entry(name, 1.0, "good"), width=500) for name in ("Große", "Grösse", "产")
    )
    np.testing.assert_array_equal(accented, draw_legend(Scale(4.0), Entry("Grosse", 1.0, "good"), width=500))
    np.testing.assert_array_equal(plain, accented)
    np.testing.assert_array_equal(other, draw_legend(Scale(4.0), Entry("?", 1.0, "good"), width=500))


def test_an_overlay_is_saved_with_its_legend_or_without(prediction, tmp_path):
    photo = grey(40, 60)
    save_overlay(prediction, tmp_path / "with.png", image=photo)
    save_overlay(prediction, tmp_path / "without.png", image=photo, legend=False)
    assert Image.open(tmp_path / "with.png").height > 40
    bare = np.array(Image.open(tmp_path / "without.png"))
    np.testing.assert_array_equal(bare, draw_prediction(prediction, photo))


# Files


def test_a_tiff_decodes_to_the_scores(prediction, tmp_path):
    maps.save_tiff(prediction, tmp_path / "m.tiff")
    with Image.open(tmp_path / "m.tiff") as image:
        values, about = np.asarray(image), json.loads(image.tag_v2[270])
    assert (values.dtype, values.shape) == (np.uint16, (40, 60))
    decoded = about["offset"] + values * about["scale"]
    assert np.abs(decoded - prediction.anomaly_map).max() <= about["scale"] / 2
    assert (about["threshold"], about["task"]) == (3.0, "cable")


def test_one_rule_of_values_serves_all_images_of_a_product(tmp_path):
    def rule(patch_map):
        maps.save_tiff(make(patch_map), tmp_path / "m.tiff")
        with Image.open(tmp_path / "m.tiff") as image:
            about = json.loads(image.tag_v2[270])
        return about["offset"], about["scale"]

    assert rule(np.zeros((3, 3))) == rule(np.full((3, 3), 1e7)) == (-256.0, 1 / 64)


@pytest.mark.parametrize("threshold", [-5.0, 3.0, 97.0, 46_004.0, 1e20])
def test_values_reach_well_beyond_any_threshold(threshold):
    counts = Counts.of(threshold)
    reach = np.array([0.0, threshold, 7 * threshold])
    kept = counts.decode(counts.encode(reach[reach >= counts.offset]))
    np.testing.assert_allclose(kept, reach[reach >= counts.offset], rtol=0, atol=counts.scale / 2)
    assert counts.encode(np.array([0.0])) == 16384
    assert counts.encode(np.array([-1e30, 1e30])).tolist() == [0, 65535]


def test_an_npy_file_is_the_map_and_a_mask_the_mask(prediction, tmp_path):
    maps.save_npy(prediction, tmp_path / "m.npy")
    maps.save_mask(prediction, tmp_path / "m.png")
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), prediction.anomaly_map)
    mask = np.asarray(Image.open(tmp_path / "m.png"))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.where(prediction.pred_mask, 255, 0))


@pytest.mark.parametrize("save", [maps.save_tiff, maps.save_npy, maps.save_mask])
def test_a_file_that_cannot_be_written_is_named(save, prediction, tmp_path):
    with pytest.raises(MoleFlowError, match=r"none.*cannot be written"):
        save(prediction, tmp_path / "none" / "m")


def test_a_rival_without_a_threshold_is_drawn_from_its_good_patches():
    maps_shown = {"gear/good": torch.tensor([[-500.0, -490.0, -480.0]]), "gear/hit": torch.tensor([[9.0]])}
    state = State(maps_shown, {})
    assert showcase._scale(state, "gear", {"threshold": None}) == Scale(-480.0, typical=-490.0)
    assert showcase._scale(state, "gear", {"threshold": 3.5}) == Scale(3.5)
