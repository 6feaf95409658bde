"""Intervals and gaps: draws of images against the metrics themselves, what pairing is worth, coverage."""

import numpy as np
import pytest

from moleflow.errors import ConfigError
from moleflow.metrics import PixelScores, image_ap, image_auroc, image_f1_max
from moleflow.metrics.bootstrap import (
    Draws,
    compare,
    compare_products,
    interval,
    interval_of_products,
)
from moleflow.metrics.resampling import (
    PixelCounts,
    Sample,
    edges_of,
    image_replicates,
    image_weights,
    mean_replicates,
)

LABELS = [0] * 6 + [1] * 5


def maps_and_masks(rng, size=24):
    """Eleven images, the last five with one or two defects that score higher."""
    maps, masks = [], []
    for label in LABELS:
        mask = np.zeros((size, size), bool)
        for _ in range(label * rng.integers(1, 3)):
            top, left = rng.integers(0, size - 8, 2)
            mask[top : top + rng.integers(2, 8), left : left + rng.integers(2, 8)] = True
        masks.append(mask)
        maps.append((rng.normal(size=mask.shape) + 1.5 * mask).astype(np.float32))
    return maps, masks


def exact(maps, masks, counts):
    """The metrics themselves, every image as often as its count says."""
    with PixelScores() as pixels:
        for one, mask, count in zip(maps, masks, counts, strict=True):
            for _ in range(count):
                pixels.add(one, mask)
        found = pixels.summary(limits=(0.3, 0.05))
    return {
        "pixel_auroc": found.auroc,
        "pixel_ap": found.ap,
        "aupro 0.3": found.aupro[0.3],
        "aupro 0.05": found.aupro[0.05],
    }


def test_images_counted_several_times_are_images_that_are_there_several_times():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, len(LABELS)).astype(float)  # with ties
    counts = rng.integers(0, 4, (8, len(LABELS)))
    counts[:, [0, -1]] += 1
    again = image_replicates(scores, LABELS, counts.astype(float))
    for row, count in enumerate(counts):
        drawn, labels = np.repeat(scores, count), np.repeat(LABELS, count)
        assert again["image_auroc"][row] == pytest.approx(image_auroc(drawn, labels), abs=1e-12)
        assert again["image_ap"][row] == pytest.approx(image_ap(drawn, labels), abs=1e-12)
        assert again["image_f1_max"][row] == pytest.approx(image_f1_max(drawn, labels).f1, abs=1e-12)


@pytest.mark.parametrize("outlier", [1.0, 1e8])
def test_binned_pixels_are_within_the_bin_error_of_the_metrics(outlier):
    rng = np.random.default_rng(1)
    maps, masks = maps_and_masks(rng)
    maps[0][0, 0] = maps[-1][0, 0] = outlier
    counts = PixelCounts(edges_of([Sample.of(m, k) for m, k in zip(maps, masks, strict=True)]))
    for one, mask in zip(maps, masks, strict=True):
        counts.add(one, mask)
    times = np.vstack([np.ones(len(LABELS), int), rng.integers(0, 3, (4, len(LABELS)))])
    times[:, [0, -1]] += 1
    found = counts.replicates(times.astype(float), (0.3, 0.05))
    for row, count in enumerate(times):
        for name, value in exact(maps, masks, count).items():
            assert found[name][row] == pytest.approx(value, abs=2e-3), name


def test_draws_are_the_same_for_all_methods_and_keep_the_share_of_defects():
    weights = image_weights("gear", LABELS, 200)
    assert np.array_equal(weights, image_weights("gear", LABELS, 200))
    assert not np.array_equal(weights, image_weights("wood", LABELS, 200))
    assert np.allclose(weights[:, :6].sum(1), 6)
    assert np.allclose(weights[:, 6:].sum(1), 5)
    assert (image_weights("x", [0, 1, 1], 50)[:, 0] == 1).all()  # the only one of its kind is always there


def test_spread_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(2).normal(size=30)
    drawn = mean_replicates(values, image_weights("gear", [1] * 30, 4000))
    assert drawn.std() == pytest.approx(values.std(ddof=1) / np.sqrt(30), rel=0.05)


def test_products_are_all_there_in_every_draw():
    replicates = np.random.default_rng(3).normal(size=(2, 3, 50))
    constant = np.broadcast_to(np.array([1.0, 2.0, 6.0])[None, :, None], (1, 3, 50))
    assert np.allclose(Draws.make(1, 3, 50).means(constant), 3)
    assert Draws.make(2, 3, 50).means(replicates).shape == (50,)


def scored(rng, count, skill):
    """Scores of as many good and defective images; `skill` sets apart what is common to methods."""
    labels = np.repeat([0, 1], count)
    return labels, rng.normal(size=2 * count) + skill * labels


def auroc_again(name, labels, scores):
    return image_replicates(scores, labels, image_weights(name, labels, 400))["image_auroc"]


def test_identical_methods_have_no_gap_and_nothing_around_it():
    labels, scores = scored(np.random.default_rng(4), 30, 1.0)
    one = auroc_again("gear", labels, scores)
    judged = compare([0.0, 0.1], np.stack([one - one, one * 0 + 0.1]))
    assert (judged[0].gap, judged[0].low, judged[0].high, judged[0].p) == (0, 0, 0, 1)
    assert judged[1].p < 0.01  # the same gap in every draw


def test_paired_draws_are_narrower_than_unpaired_ones():
    rng = np.random.default_rng(5)
    labels, common = scored(rng, 40, 1.0)
    a, b = (common + 0.2 * rng.normal(size=len(labels)) for _ in range(2))
    paired = auroc_again("gear", labels, a) - auroc_again("gear", labels, b)
    unpaired = auroc_again("gear", labels, a) - auroc_again("wood", labels, b)
    assert paired.std() < 0.5 * unpaired.std()


def test_intervals_of_the_image_auroc_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(6)
    truth = 0.7602  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    inside = 0
    for run in range(150):
        labels, scores = scored(rng, 40, 1.0)
        low, high = interval(image_auroc(scores, labels), auroc_again(f"{run}", labels, scores))
        inside += low <= truth <= high
    assert 0.88 <= inside / 150 <= 0.99


@pytest.mark.parametrize("products", [2, 3, 10])
def test_intervals_over_products_cover_the_mean_of_all_such_products(products):
    """Products drawn from many, each known up to the noise of its images."""
    rng = np.random.default_rng(7)
    inside, narrow = 0, 0
    for _ in range(400):
        found = 0.8 + 0.05 * rng.normal(size=products) + 0.02 * rng.normal(size=products)
        low, high = interval_of_products(found)
        inside += low <= 0.8 <= high
        again = found[None, :, None] + 0.02 * rng.normal(size=(1, products, 100))
        low, high = interval(found.mean(), Draws.make(1, products, 100).means(again))
        narrow += low <= 0.8 <= high
    assert 0.93 <= inside / 400 <= 0.98
    assert narrow / 400 < 0.7  # images alone say nothing of other products


@pytest.mark.parametrize("products", [2, 3, 15])
@pytest.mark.parametrize("comparisons", [1, 30])
def test_no_gap_over_such_products_is_seldom_taken_for_one(products, comparisons):
    """Methods as good as the first on average over many products, on each of which they differ."""
    rng = np.random.default_rng(10)
    alarms = 0
    for _ in range(400):
        judged = compare_products(list(0.05 * rng.normal(size=(comparisons, products))))
        alarms += any(one.p <= 0.05 for one in judged)
        assert all((one.low <= 0 <= one.high) or one.p <= 0.05 for one in judged)
    assert alarms / 400 <= 0.08


def test_a_gap_on_all_of_many_products_is_found():
    rng = np.random.default_rng(11)
    judged = compare_products(
        [rng.normal(0.1, 0.02, 15), np.zeros(15), np.full(15, 0.1), rng.normal(0, 0.02, 15)]
    )
    assert [one.p < 0.05 for one in judged] == [True, False, True, False]
    assert judged[0].low > 0
    assert (judged[1].low, judged[1].high, judged[1].p) == (0, 0, 1)


def test_many_comparisons_without_a_gap_rarely_find_one():
    """Twelve methods as good as the first: one of them seems better in about one study of twenty."""
    rng = np.random.default_rng(8)
    alarms, naive = 0, 0
    for _ in range(200):
        replicates = 0.02 * rng.normal(size=(12, 300))
        gaps = 0.02 * rng.normal(size=12)
        judged = compare(list(gaps), replicates)
        alarms += any(one.p <= 0.05 for one in judged)
        naive += bool((np.abs(gaps) > 1.96 * 0.02).any())
        for one in judged:
            assert (one.low <= 0 <= one.high) or one.p <= 0.06  # bounds and p tell one story
    assert alarms / 200 <= 0.1 < naive / 200


def test_a_large_gap_is_found_among_many_and_p_follows_the_size():
    rng = np.random.default_rng(9)
    replicates = 0.02 * rng.normal(size=(12, 500))
    gaps = [0.2, *(0.001 * i for i in range(11))]
    judged = compare(gaps, replicates)
    assert judged[0].p < 0.01 < 0.05 < judged[0].low
    sizes = [abs(one.gap) / one.error for one in judged]
    by_size = [judged[i].p for i in np.argsort(sizes)[::-1]]
    assert by_size == sorted(by_size)
    with pytest.raises(ConfigError, match=r"expected replicates \(2, R > 1\)"):
        compare([0.0, 0.0], replicates)
