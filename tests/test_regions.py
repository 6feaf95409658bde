"""Regions: what a robot is told agrees with the mask, in the image's own pixels."""

import json
import time

import numpy as np
import pytest
from scipy import ndimage

from moleflow import Prediction, Region
from moleflow.errors import MoleFlowError
from moleflow.verdict import regions
from moleflow.verdict.regions import find_regions


def noise(shape, sigma, seed=0):
    """A smooth random map of unit spread."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (field / field.std()).astype(np.float32)


def enclosed(region):
    """Area within the contours: outer borders count positive, holes negative."""
    return sum(regions._signed_area(np.array(polygon)) for polygon in region.contours)


def ellipse(shape, centre, radii):
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1


MAPS = [noise((90, 140), 2), noise((200, 120), 6, seed=1), noise((33, 64), 1, seed=2)]


@pytest.mark.parametrize("anomaly_map", MAPS)
def test_areas_add_up_to_the_mask(anomaly_map):
    found = find_regions(anomaly_map, 1.0, most=10_000)
    assert sum(region.area for region in found) == (anomaly_map > 1).sum()
    large = find_regions(anomaly_map, 1.0, most=10_000, least_area=5)
    assert large == tuple(region for region in found if region.area >= 5)


@pytest.mark.parametrize("anomaly_map", MAPS)
def test_centre_contours_and_peak_lie_in_the_box(anomaly_map):
    for region in find_regions(anomaly_map, 1.0, most=10_000):
        left, top, width, height = region.box
        corners = np.concatenate([np.array(polygon) for polygon in region.contours])
        for x, y in [region.centre, *corners]:
            assert left <= x <= left + width
            assert top <= y <= top + height
        column, row = region.peak_at
        assert anomaly_map[row, column] == region.peak == anomaly_map[top:, left:][:height, :width].max()


@pytest.mark.parametrize("anomaly_map", MAPS)
def test_contours_enclose_the_area(anomaly_map):
    for region in find_regions(anomaly_map, 1.0, most=10_000):
        if len(region.contours) <= regions.HOLES:  # all its holes are there
            assert enclosed(region) == pytest.approx(region.area, rel=0.15, abs=1)


def test_the_highest_come_first_and_the_larger_of_equals():
    anomaly_map = np.zeros((10, 30), np.float32)
    anomaly_map[1:3, 1:3], anomaly_map[1:6, 10:15], anomaly_map[8, 25] = 5, 5, 9
    found = find_regions(anomaly_map, 1.0)
    assert [(region.peak, region.area) for region in found] == [(9, 1), (5, 25), (5, 4)]
    assert find_regions(anomaly_map, 1.0, most=2) == found[:2]


def test_an_oblong_region_keeps_its_place_and_its_axes():
    anomaly_map = np.where(ellipse((100, 400), (300, 40), (60, 20)), 4.0, 0.0)
    (region,) = find_regions(anomaly_map, 1.0)
    assert region.box == (240, 20, 120, 40)
    assert region.centre == (300.0, 40.0)
    x, y = np.array(region.contours[0]).T
    assert (x.min(), x.max(), y.min(), y.max()) == (240, 360, 20, 60)
    assert enclosed(region) == pytest.approx(np.pi * 60 * 20, rel=0.03)
    assert len(region.contours[0]) < 60


def test_a_simplified_border_stays_within_a_pixel():
    mask = ellipse((300, 300), (150, 150), (140, 70))
    (region,) = find_regions(mask.astype(np.float32), 0.5)
    exact = max(regions._borders(mask), key=len)
    ring = np.array([*region.contours[0], region.contours[0][0]])
    for corner in exact:
        steps, offset = np.diff(ring, axis=0), corner - ring[:-1]
        share = np.clip((offset * steps).sum(1) / (steps**2).sum(1), 0, 1)[:, None]
        assert np.hypot(*(offset - share * steps).T).min() <= regions.DEPARTURE + 1e-6


def test_pixels_that_touch_at_a_corner_are_one_region():
    (region,) = find_regions(np.eye(6), 0.5)
    assert region.area == 6
    assert len(region.contours) == 1
    assert enclosed(region) == pytest.approx(6)


def test_a_ring_has_a_hole():
    mask = ellipse((80, 80), (40, 40), (30, 30)) & ~ellipse((80, 80), (40, 40), (15, 15))
    (region,) = find_regions(mask.astype(np.float32), 0.5)
    outer, hole = region.contours
    assert regions._signed_area(np.array(outer)) > 0 > regions._signed_area(np.array(hole))
    assert enclosed(region) == pytest.approx(region.area, rel=0.06)


def test_any_map_gives_few_regions_of_few_points():
    for anomaly_map in (noise((300, 400), 0), noise((300, 400), 3), np.indices((101, 99)).sum(0) % 2):
        found = find_regions(np.asarray(anomaly_map, np.float32), 0.0)
        assert 1 <= len(found) <= regions.MOST_REGIONS
        for region in found:
            assert sum(len(polygon) for polygon in region.contours) <= 100
            assert all(len(polygon) >= 3 for polygon in region.contours)


def test_nothing_above_the_threshold_is_no_region():
    assert find_regions(np.full((5, 5), 2.0), 2.0) == ()
    with pytest.raises(MoleFlowError, match=r"\(H, W\)"):
        find_regions(np.zeros((1, 5, 5)), 0.0)


# Of a prediction


def predicted(patch_map, size, threshold=2.0):
    about = {"source": 0, "task": "cable", "known": True, "pred_score": 0.0, "p_value": 1.0}
    about |= {"place_score": about["pred_score"], "whole_score": None, "map_threshold": threshold}
    return Prediction(threshold=threshold, pred_label=False, patch_map=patch_map, image_size=size, **about)


def spot(row, column, grid=(24, 24)):
    patch_map = np.zeros(grid, np.float32)
    patch_map[row, column] = 9.0
    return patch_map


def test_regions_are_those_of_the_mask():
    prediction = predicted(noise((24, 24), 2), (150, 260), threshold=1.0)
    assert sum(region.area for region in prediction.regions) == prediction.pred_mask.sum()
    assert all(isinstance(region, Region) for region in prediction.regions)


def test_a_large_picture_gives_the_regions_of_a_small_one_scaled():
    (small,) = predicted(spot(4, 15), (900, 1200)).regions
    large = predicted(spot(4, 15), (9000, 12000))
    begun = time.perf_counter()
    (found,) = large.regions
    assert time.perf_counter() - begun < 5  # not minutes; without the reduced map it takes many seconds
    assert found.area == pytest.approx(100 * small.area, rel=0.02)
    for name in ("centre", "box", "peak_at"):
        np.testing.assert_allclose(getattr(found, name), np.multiply(getattr(small, name), 10), atol=25)
    assert enclosed(found) == pytest.approx(found.area, rel=0.05)
    assert found.peak == pytest.approx(9.0, abs=0.1)


def test_a_region_is_plain_json():
    (region,) = predicted(spot(3, 3), (64, 96)).regions
    read = json.loads(json.dumps(region.to_dict()))
    assert read["box"] == list(region.box)
    assert list(read) == ["area", "centre", "box", "peak", "peak_at", "contours"]
    assert [tuple(map(tuple, polygon)) for polygon in read["contours"]] == list(region.contours)
