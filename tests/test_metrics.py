"""Metrics against scikit-learn, against slow and separate implementations, and against identities."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from moleflow import metrics
from moleflow.errors import ConfigError

SEEDS = range(6)
Case = tuple[list[np.ndarray], list[np.ndarray]]


def pixel_case(seed: int, *, levels: int = 12, images: int = 7, shape: tuple[int, int] = (9, 11)) -> Case:
    """Maps with many ties and masks with several regions; about half of the images are good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(images):
        mask = np.zeros(shape, dtype=bool) if index % 2 == 0 else rng.random(shape) < 0.15
        if index % 2:
            mask[2:4, 3:6] = True
        anomaly_map = rng.integers(0, levels, shape) + rng.integers(0, levels // 2, shape) * mask
        maps.append(anomaly_map / 7 - 0.5)
        masks.append(mask)
    return maps, masks


def pooled(case: Case) -> tuple[np.ndarray, np.ndarray]:
    maps, masks = case
    return np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])


def regions_by_flooding(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected regions, found with a queue."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        queue, region = deque([left.pop()]), []
        while queue:
            y, x = queue.popleft()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
        found.append(region)
    return found


def slow_aupro(case: Case, limit: float) -> float:
    """One threshold after the other, counting in plain loops."""
    maps, masks = case
    regions = [(m, r) for m, mask in zip(maps, masks, strict=True) for r in regions_by_flooding(mask)]
    background = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        overlaps = [np.mean([m[p] >= threshold for p in region]) for m, region in regions]
        points.append((float(np.mean(background >= threshold)), float(np.mean(overlaps))))
    points.append((1.0, 1.0))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def slow_aupimo(case: Case, bounds: tuple[float, float]) -> list[float]:
    """The staircase of each image's recall, integrated piece by piece over log rate."""
    maps, masks = case
    good = [m for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = sorted({float(v) for m in maps for v in m.ravel()}, reverse=True)
    rates = [float(np.mean([np.mean(m >= t) for m in good])) for t in thresholds]
    lower, upper = bounds
    corners = sorted({lower, upper, *(r for r in rates if lower < r < upper)})
    values = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if not mask.any():
            continue
        area = 0.0
        for left, right in pairwise(corners):
            middle = math.sqrt(left * right)
            allowed = [t for t, r in zip(thresholds, rates, strict=True) if r <= middle]
            recall = float(np.mean(anomaly_map[mask] >= min(allowed))) if allowed else 0.0
            area += recall * math.log(right / left)
        values.append(area / math.log(upper / lower))
    return values


def collect(case: Case, **options: object) -> metrics.PixelScores:
    pixels = metrics.PixelScores(**options)
    for anomaly_map, mask in zip(*case, strict=True):
        pixels.add(anomaly_map, mask)
    return pixels


# Image metrics.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("levels", [2, 9, 10**6])
def test_image_metrics_equal_scikit_learn(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 60)]
    scores = rng.integers(0, levels, 62) / 3 + labels
    assert metrics.image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert metrics.image_ap(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-9
    )
    best = metrics.image_f1_max(scores, labels)
    assert best.f1 == pytest.approx(max(f1_score(labels, scores >= t) for t in scores), abs=1e-12)
    assert best.f1 == pytest.approx(f1_score(labels, scores >= best.threshold), abs=1e-12)


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: 0 < sum(label for _, label in rows) < len(rows)
    )
)
def test_image_auroc_is_the_share_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    good = np.array([score for score, label in rows if not label])
    bad = np.array([score for score, label in rows if label])
    pairs = bad[:, None] - good[None, :]
    share = np.mean((pairs > 0) + (pairs == 0) / 2)
    scores, labels = zip(*rows, strict=True)
    assert metrics.image_auroc(scores, labels) == pytest.approx(share, abs=1e-12)
    # Only the order counts, and turning it round turns the area round.
    assert metrics.image_auroc(np.exp(scores), labels) == pytest.approx(share, abs=1e-12)
    assert metrics.image_auroc(np.negative(scores), labels) == pytest.approx(1 - share, abs=1e-12)


def test_perfect_and_constant_scores() -> None:
    labels = [0, 0, 1]
    assert metrics.image_auroc([0.0, 1.0, 2.0], labels) == 1.0
    assert metrics.image_ap([0.0, 1.0, 2.0], labels) == 1.0
    assert metrics.image_f1_max([0.0, 1.0, 2.0], labels) == metrics.F1Max(1.0, 2.0)
    assert metrics.image_auroc([4, 4, 4], labels) == 0.5
    assert metrics.image_ap([4, 4, 4], labels) == pytest.approx(1 / 3)


def test_scores_are_not_rounded_beside_an_outlier() -> None:
    scores = np.r_[np.linspace(0, 1e-9, 100), 1e8]
    labels = np.r_[np.arange(100) >= 50, True]
    assert metrics.image_auroc(scores, labels) == 1.0


@pytest.mark.parametrize("function", [metrics.image_auroc, metrics.image_ap, metrics.image_f1_max])
@pytest.mark.parametrize(
    ("scores", "labels", "text"),
    [
        ([0.0, float("nan"), 1.0], [0, 1, 1], "index 1 is nan"),
        ([0.0, 1.0, float("inf")], [0, 1, 1], "index 2 is inf"),
        ([0.0, 1.0], [0, 0], "no defective"),
        ([0.0, 1.0], [1, 1], "no good"),
        ([], [], "no good"),
        ([0.0, 1.0], [0, 2], "index 1 is 2"),
        ([0.0, 1.0], [0, 1, 1], "one length"),
    ],
)
def test_image_errors(function, scores, labels, text) -> None:
    with pytest.raises(ConfigError, match=text):
        function(scores, labels)


# Pixel metrics.


@pytest.mark.parametrize("seed", SEEDS)
def test_pixel_metrics_equal_scikit_learn(seed: int) -> None:
    case = pixel_case(seed)
    scores, labels = pooled(case)
    assert metrics.pixel_auroc(*case) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert metrics.pixel_ap(*case) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    best = metrics.pixel_f1_max(*case)
    assert best.f1 == pytest.approx(max(f1_score(labels, scores >= t) for t in set(scores)), abs=1e-12)
    assert best.f1 == pytest.approx(f1_score(labels, scores >= best.threshold), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("levels", [3, 12, 10**9])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_equals_counting(seed: int, levels: int, limit: float) -> None:
    case = pixel_case(seed, levels=levels, images=4, shape=(6, 8))
    assert metrics.aupro(*case, limit=limit) == pytest.approx(slow_aupro(case, limit), abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bounds", [(1e-2, 0.3), (1e-5, 1e-4), (1e-5, 1.0), (0.03, 0.05)])
def test_aupimo_equals_counting(seed: int, bounds: tuple[float, float]) -> None:
    maps, masks = pixel_case(seed, levels=10 if seed % 2 else 10**6)
    maps.append(np.full((3, 4), 0.4))  # a good image of another size weighs as much as the others
    masks.append(np.zeros((3, 4), dtype=bool))
    expected = slow_aupimo((maps, masks), bounds)
    found = metrics.aupimo(maps, masks, bounds=bounds)
    assert found.per_image == pytest.approx(expected, abs=1e-9)
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.resolution == pytest.approx(1 / (5 * 99))


def test_aupimo_is_close_to_the_trapezoid_of_a_fine_curve() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(0, 1, (5, 200, 200))
    bad, mask = rng.normal(0, 1, (200, 200)), np.zeros((200, 200), dtype=bool)
    mask[50:100, 50:100] = True
    bad[mask] += 2
    masks = [np.zeros((200, 200), dtype=bool)] * 5 + [mask]
    lower, upper = 1e-3, 1e-2
    thresholds = np.quantile(good, np.linspace(1 - upper, 1 - lower, 2000))
    rates = np.array([np.mean(good >= t) for t in thresholds])[::-1]
    recall = np.array([np.mean(bad[mask] >= t) for t in thresholds])[::-1]
    area = np.sum(np.diff(np.log(rates)) * (recall[1:] + recall[:-1]) / 2) / math.log(upper / lower)
    found = metrics.aupimo([*good, bad], masks, bounds=(lower, upper))
    assert found.mean == pytest.approx(area, abs=5e-3)


@pytest.mark.parametrize("levels", [1, 2, 12, 10**9])
@pytest.mark.parametrize("max_pixels", [1, 60, 99, 250])
def test_spilling_changes_nothing(levels: int, max_pixels: int, tmp_path: Path) -> None:
    case = pixel_case(3, levels=max(levels, 2))
    if levels == 1:
        case = [np.zeros_like(m) for m in case[0]], case[1]
    bounds = (1e-3, 0.5)
    with collect(case) as whole, collect(case, max_pixels=max_pixels, spill_dir=tmp_path) as spilled:
        assert list(tmp_path.iterdir())
        left, right = whole.summary(bounds=bounds), spilled.summary(bounds=bounds)
        for name in ("auroc", "ap"):
            assert getattr(left, name) == pytest.approx(getattr(right, name), abs=1e-12)
        assert left.aupro == pytest.approx(right.aupro, abs=1e-12)
        assert left.f1_max == right.f1_max
        assert left.aupimo.per_image == pytest.approx(right.aupimo.per_image, abs=1e-12)
    assert not list(tmp_path.iterdir())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_split_into_runs_gives_the_same(data: st.DataObject) -> None:
    """Runs whose value ranges are apart, equal or interleaved; ties across every seam."""
    images = data.draw(st.integers(2, 6))
    maps = [np.array(data.draw(st.lists(st.integers(0, 3), min_size=6, max_size=6))) for _ in range(images)]
    maps = [m.reshape(2, 3) + data.draw(st.integers(0, 4)) for m in maps]
    masks = [np.zeros((2, 3), dtype=bool) for _ in range(images)]
    masks[0][0, 0] = True
    masks[-1][1] = data.draw(st.booleans())
    case = maps, masks
    with collect(case, max_pixels=data.draw(st.integers(1, 20))) as pixels:
        scores, labels = pooled(case)
        assert pixels.auroc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert pixels.ap() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert pixels.aupro() == pytest.approx(slow_aupro(case, 0.3), abs=1e-12)


def test_summary_equals_the_single_metrics() -> None:
    with collect(pixel_case(1)) as pixels:
        all_at_once = pixels.summary(limits=(0.2, 0.05), bounds=(1e-3, 0.1))
        assert all_at_once.auroc == pixels.auroc()
        assert all_at_once.ap == pixels.ap()
        assert all_at_once.f1_max == pixels.f1_max()
        assert all_at_once.aupro == {0.2: pixels.aupro(0.2), 0.05: pixels.aupro(0.05)}
        assert all_at_once.aupimo == pixels.aupimo((1e-3, 0.1))


def test_maps_of_32_bits_are_neither_rounded_nor_mixed_up(tmp_path: Path) -> None:
    maps, masks = pixel_case(3, levels=10**9)
    narrow = [np.asarray(anomaly_map, np.float32) for anomaly_map in maps]
    wide = [anomaly_map.astype(np.float64) for anomaly_map in narrow]
    mixed = [(narrow if i % 2 else wide)[i] for i in range(len(maps))]
    bounds = (1e-2, 0.3)
    with collect((wide, masks)) as pixels:
        expected = pixels.summary(bounds=bounds)
    for given_maps in (narrow, mixed):
        with collect((given_maps, masks), max_pixels=150, spill_dir=tmp_path) as pixels:
            found = pixels.summary(bounds=bounds)
        assert (found.auroc, found.ap, *found.aupro.values(), *found.aupimo.per_image) == pytest.approx(
            (expected.auroc, expected.ap, *expected.aupro.values(), *expected.aupimo.per_image), abs=1e-12
        )
        assert found.f1_max == expected.f1_max


def test_images_can_be_added_after_reading() -> None:
    maps, masks = pixel_case(2)
    with collect((maps[:3], masks[:3])) as pixels:
        pixels.auroc()
        for anomaly_map, mask in zip(maps[3:], masks[3:], strict=True):
            pixels.add(anomaly_map, mask)
        assert pixels.aupro() == pytest.approx(metrics.aupro(maps, masks), abs=1e-12)


def test_the_order_of_images_does_not_matter() -> None:
    maps, masks = pixel_case(4)
    assert metrics.aupro(maps[::-1], masks[::-1]) == pytest.approx(metrics.aupro(maps, masks), abs=1e-12)
    backwards = metrics.aupimo(maps[::-1], masks[::-1], bounds=(1e-3, 0.5))
    assert backwards.per_image[::-1] == pytest.approx(
        metrics.aupimo(maps, masks, bounds=(1e-3, 0.5)).per_image
    )


def test_a_map_can_be_reused_by_the_caller() -> None:
    buffer = np.array([[0.0, 1.0], [0.0, 0.0]])
    with metrics.PixelScores() as pixels:
        pixels.add(buffer, [[0, 1], [0, 0]])
        buffer[:] = 7
        assert pixels.auroc() == 1.0


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.eye(4, dtype=bool)
    anomaly_map = np.zeros((4, 4))
    anomaly_map[0, 0] = 2
    anomaly_map[0, 1] = 1
    # One region of four pixels: overlap 1/4 before the first false alarm and until the rest crosses.
    expected = (1 / 12 * 0.25 + (0.3 - 1 / 12) * (0.25 + 0.25 + 0.75 * (0.3 - 1 / 12) / (11 / 12)) / 2) / 0.3
    assert metrics.aupro([anomaly_map], [mask]) == pytest.approx(expected, abs=1e-12)


def test_perfect_maps() -> None:
    _, masks = pixel_case(0)
    maps = [mask.astype(float) for mask in masks]
    assert metrics.aupro(maps, masks) == 1.0
    assert metrics.aupimo(maps, masks).mean == 1.0
    assert metrics.pixel_ap(maps, masks) == 1.0


def test_a_defective_image_without_mask_pixels_is_no_good_image() -> None:
    maps, masks = pixel_case(5)
    with collect((maps, masks)) as pixels:
        before = pixels.aupimo((1e-3, 0.5))
        pixels.add(np.full((9, 11), 99.0), np.zeros((9, 11)), defective=True)
        assert pixels.aupimo((1e-3, 0.5)) == before


def test_multi_valued_masks_are_binarised() -> None:
    maps, masks = pixel_case(1)
    ids = [mask * np.uint8(3) for mask in masks]
    assert metrics.aupro(maps, ids) == metrics.aupro(maps, masks)


def test_pixel_errors() -> None:
    good, bad = np.zeros((2, 2)), np.array([[0, 1], [0, 0]])
    with metrics.PixelScores() as pixels:
        with pytest.raises(ConfigError, match=r"index \(1, 0\) is nan"):
            pixels.add([[0.0, 0.0], [float("nan"), 0.0]], bad)
        with pytest.raises(ConfigError, match="one shape"):
            pixels.add(np.zeros((2, 3)), bad)
        with pytest.raises(ConfigError, match="one shape"):
            pixels.add(np.zeros((0, 2)), np.zeros((0, 2)))
        with pytest.raises(ConfigError, match="said to be good"):
            pixels.add(good, bad, defective=False)
        with pytest.raises(ConfigError, match="no good"):
            pixels.auroc()
        pixels.add(good, good)
        with pytest.raises(ConfigError, match="no defective"):
            pixels.aupro()
        with pytest.raises(ConfigError, match="no defective pixels"):
            pixels.aupimo()
        pixels.add(good, bad)
        with pytest.raises(ConfigError, match="limit"):
            pixels.aupro(0.0)
        with pytest.raises(ConfigError, match="bounds"):
            pixels.aupimo((1e-4, 1e-5))
        assert pixels.auroc() == 0.5
    with pytest.raises(ConfigError, match="closed"):
        pixels.auroc()
    with pytest.raises(ConfigError, match="closed"):
        pixels.add(good, good)
    with pytest.raises(ConfigError, match="no good images"):
        metrics.aupimo([good], [bad])
    with pytest.raises(ConfigError, match=r"image 1: .*nan"):
        metrics.aupro([good, good * float("nan")], [good, bad])
    with pytest.raises(ConfigError, match="as many masks as maps"):
        metrics.aupro([good, good], [bad])
    with pytest.raises(ConfigError, match="max_pixels"):
        metrics.PixelScores(max_pixels=0)


# Continual metrics.

NAN = float("nan")
MATRIX = [[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.8, 0.5, 0.6]]


def test_continual_metrics_by_hand() -> None:
    assert metrics.average_accuracy(MATRIX) == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert metrics.backward_transfer(MATRIX) == pytest.approx((-0.1 - 0.3) / 2)
    assert metrics.forgetting(MATRIX) == pytest.approx((0.1 + 0.3) / 2)
    assert metrics.router_gap(MATRIX, np.array(MATRIX) - 0.25) == pytest.approx(0.25)


def test_forgetting_looks_at_the_best_before_the_last() -> None:
    improved_then_lost = [[0.5, NAN, NAN], [0.9, 0.5, NAN], [0.6, 0.7, 0.5]]
    assert metrics.forgetting(improved_then_lost) == pytest.approx((0.3 - 0.2) / 2)
    assert metrics.backward_transfer(improved_then_lost) == pytest.approx((0.1 + 0.2) / 2)


def test_what_is_above_the_diagonal_is_not_read() -> None:
    filled = np.where(np.isnan(MATRIX), 55.0, MATRIX)
    assert metrics.forgetting(filled) == metrics.forgetting(MATRIX)
    assert metrics.average_accuracy(filled) == metrics.average_accuracy(MATRIX)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_model_that_never_changes_forgets_exactly_nothing(row: list[float]) -> None:
    matrix = np.tile(row, (len(row), 1))
    matrix[np.triu_indices(len(row), 1)] = NAN
    assert metrics.forgetting(matrix) == 0.0
    assert metrics.backward_transfer(matrix) == 0.0


def test_one_product() -> None:
    assert metrics.average_accuracy([[0.7]]) == 0.7
    assert metrics.forgetting([[0.7]]) == 0.0
    assert metrics.backward_transfer([[0.7]]) == 0.0


def test_products_weigh_the_same_in_tasks_of_several() -> None:
    matrix = [[0.9, 0.7, NAN], [0.8, 0.4, 0.6], [0.5, 0.5, 0.9]]
    assert metrics.average_accuracy(matrix, [0, 0, 1]) == pytest.approx((0.5 + 0.5 + 0.9) / 3)
    assert metrics.backward_transfer(matrix, [0, 0, 1]) == pytest.approx((-0.4 - 0.2 + 0.3) / 3)
    assert metrics.forgetting(matrix, [0, 0, 1]) == pytest.approx((0.4 + 0.2 - 0.3) / 3)
    assert metrics.backward_transfer(matrix, [0, 0, 2]) == pytest.approx((-0.4 - 0.2) / 2)


def test_a_product_without_the_metric_leaves_the_others_as_they_are() -> None:
    """Where the last task's product has no masks, the last row is still the last row."""
    matrix = np.array([[0.9, NAN, NAN], [0.8, 0.9, NAN], [0.2, 0.3, NAN]])[:, :2]
    assert metrics.average_accuracy(matrix, [0, 1]) == pytest.approx(0.25)
    assert metrics.forgetting(matrix, [0, 1]) == pytest.approx((0.7 + 0.6) / 2)


@pytest.mark.parametrize(
    ("matrix", "learned", "text"),
    [
        ([[0.5, 0.5]], None, r"\(1, 2\) does not fit 2 products"),
        ([[0.5, 0.5]], [0], r"does not fit 1 products"),
        ([[0.5, 0.5]], [0, 1], r"among 0 to 0"),
        (np.zeros((0, 0)), None, r"\(T, P\)"),
        ([[0.5, NAN], [NAN, 0.5]], None, r"a\[1, 0\]"),
        ([[0.5, NAN]], [0, 0], r"a\[0, 1\]"),
    ],
)
def test_continual_errors(matrix, learned, text) -> None:
    for function in (metrics.average_accuracy, metrics.backward_transfer, metrics.forgetting):
        with pytest.raises(ConfigError, match=text):
            function(matrix, learned)


def test_router_gap_needs_the_same_products() -> None:
    with pytest.raises(ConfigError, match="same products"):
        metrics.router_gap(MATRIX, [[0.5]])


def test_routing_accuracy_per_product_and_kind() -> None:
    found = metrics.routing_accuracy(
        ["nut", "nut", "nut", "cap", "cap"], ["nut", "cap", "nut", "cap", None], [0, 0, 1, 1, 1]
    )
    assert found["nut"] == metrics.RoutingAccuracy(0.5, 1.0, 0.0, 0.0, good_images=2, defective_images=1)
    assert list(found) == ["nut", "cap"]
    assert math.isnan(found["cap"].good)
    assert found["cap"].defective == found["cap"].unknown_defective == 0.5
    with pytest.raises(ConfigError, match="index 0 is 3"):
        metrics.routing_accuracy(["a"], ["a"], [3])
    with pytest.raises(ConfigError, match="as many"):
        metrics.routing_accuracy(["a"], [], [0])
