"""Products found without names: as many as there are, in any order of the images, and never by light."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import davies_bouldin_score

from moleflow.data.factory import PRODUCTS
from moleflow.features.extractor import Extractor
from moleflow.routing.clusters import LEAST_IMAGES, find_products
from moleflow.routing.gaussian import describe

DIM = 40


def group(centre, count, *, spread=1.0, seed=0):
    """Descriptors of one product, (count, DIM); `centre` picks the axis, 10 radii from any other."""
    rng = np.random.default_rng((centre, seed))
    mean = np.zeros(DIM)
    mean[centre] = 10 * np.sqrt(DIM)
    return torch.from_numpy(mean + spread * rng.normal(size=(count, DIM)))


def expected(*counts):
    ends = np.cumsum(counts)
    return [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]


@pytest.mark.parametrize("counts", [(30,), (30, 30), (6, 60), (20, 20, 20), (8,) * 9])
def test_every_product_is_found(counts):
    rows = torch.cat([group(i, count) for i, count in enumerate(counts)])
    assert find_products(rows) == expected(*counts)


@pytest.mark.parametrize("count", [0, 1, 2, LEAST_IMAGES, 2 * LEAST_IMAGES, 100])
@pytest.mark.parametrize("spread", [0.0, 1.0, 1000.0])
def test_one_product_stays_one(count, spread):
    assert find_products(group(0, count, spread=spread)) == ([list(range(count))] if count else [])


def test_one_product_of_long_shape_stays_one():
    rows = group(0, 80)
    rows[:, 1] += torch.linspace(-40, 40, 80)
    assert len(find_products(rows)) == 1


def test_unequal_spreads_do_not_tear_the_broad_product():
    rows = torch.cat([group(0, 40, spread=3.0), group(1, 40, spread=0.3), group(2, 40, spread=0.3)])
    assert find_products(rows) == expected(40, 40, 40)


def test_too_few_images_are_strays_of_the_nearest_product():
    few = LEAST_IMAGES - 1
    near = group(1, few)
    near[:, 0] += 30  # between the first two products, nearer to the second
    rows = torch.cat([group(0, 20), group(1, 20), near])
    assert find_products(rows) == [list(range(20)), list(range(20, 40 + few))]


def test_the_same_image_many_times_does_not_found_a_product():
    rows = torch.cat([group(0, 30), group(0, 1).expand(30, DIM)])
    assert len(find_products(rows)) == 1


def test_a_fixed_rig_whose_lamp_was_changed_shows_one_product():
    still, other = group(0, 20, spread=0.01), group(1, 20, spread=0.01)
    relit = 1.2 * group(0, 20, spread=0.01, seed=1)
    assert find_products(torch.cat([still, relit, other])) == expected(40, 20)


def test_order_of_images_decides_only_the_order_of_products():
    rows = torch.cat([group(i, 15) for i in range(4)])
    order = np.random.default_rng(0).permutation(60)
    found = find_products(rows[order])
    assert [min(images) for images in found] == sorted(min(images) for images in found)
    back = sorted(sorted(order[images].tolist()) for images in found)
    assert back == find_products(rows) == expected(15, 15, 15, 15)


def test_scale_of_the_features_decides_nothing():
    rows = torch.cat([group(0, 20), group(1, 20), group(1, 20, seed=1)])
    assert find_products(rows) == find_products(1e-4 * rows) == find_products(1e4 * rows) == expected(20, 40)


@pytest.mark.parametrize("distance", [1.5, 2.0, 3.0, 4.0])
def test_two_products_are_those_that_davies_and_bouldin_tell_apart(distance):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, DIM))
    rows[200:, 0] += distance * np.sqrt(DIM)
    overlap = davies_bouldin_score(rows, np.repeat([0, 1], 200))
    assert abs(overlap - 0.8) > 0.1
    assert len(find_products(torch.from_numpy(rows))) == (2 if overlap < 0.8 else 1)


# Photographs


@pytest.fixture(scope="module")
def extractor():
    return Extractor(image_size=64)


@pytest.fixture(scope="module")
def described(extractor, pictures):
    return {name: describe(extractor.features(extractor.stack(pictures(name, 12)))) for name in PRODUCTS}


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_photographed_product_alone_is_one(described, product):
    assert len(find_products(described[product])) == 1


def test_photographed_products_are_told_apart(described):
    for chosen in itertools.chain(itertools.combinations(PRODUCTS, 2), [PRODUCTS]):
        rows = torch.cat([described[name] for name in chosen])
        assert find_products(rows) == expected(*[12] * len(chosen)), chosen


@pytest.mark.parametrize("gain", [0.7, 1.3])
@pytest.mark.parametrize("product", ["gear", "bottle_cap", "brushed_metal"])
def test_another_exposure_is_no_other_product(extractor, described, pictures, product, gain):
    lit = [np.clip(gain * image, 0, 255).astype(np.uint8) for image in pictures(product, 12, first=50)]
    rows = torch.cat([described[product], describe(extractor.features(extractor.stack(lit)))])
    assert len(find_products(rows)) == 1
