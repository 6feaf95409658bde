"""Which product is in the picture: statistics that come back to the bit, and a metric that fits all."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf

from moleflow.config import RouterConfig
from moleflow.line.record import rerouted_by
from moleflow.routing.gaussian import WITNESSES, DescriptorStatistics, describe, ledoit_wolf
from moleflow.routing.router import Router

METRICS = ("shared", "product")


def gaussian(mean, count=30, *, scale=1.0, seed=0, dim=8):
    """Descriptors around a mean that share one elongated covariance, (count, dim) float64."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 2, dim, dtype=torch.float64)
    noise = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return torch.as_tensor(mean, dtype=torch.float64) + scale * spread * noise


def statistics(rows, *, rank=4, witnesses=10):
    return DescriptorStatistics.fit(rows[:-witnesses], rows[-witnesses:], rank=rank)


def corner(*at, dim=8, size=10.0):
    mean = torch.full((dim,), 1.0, dtype=torch.float64)
    mean[list(at)] += size
    return mean


MEANS = {"a": corner(0), "b": corner(1), "c": corner(2, 3), "d": corner()}


@pytest.fixture(scope="module")
def products():
    return {name: statistics(gaussian(mean, seed=i)) for i, (name, mean) in enumerate(MEANS.items())}


# Statistics


def test_descriptor_is_the_spatial_mean_in_double_precision():
    features = torch.rand(3, 4, 5, 6)
    described = describe(features)
    assert described.dtype == torch.float64
    np.testing.assert_allclose(described, features.double().numpy().mean((1, 2)), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_statistics_come_back_to_the_bit(count):
    rows = gaussian(corner(0), count)
    fitted = DescriptorStatistics.fit(rows, rows, rank=4)
    again = DescriptorStatistics.from_tensors(fitted.tensors())
    assert torch.equal(again.mean, fitted.mean)
    assert torch.equal(again.factor, fitted.factor)
    assert torch.equal(again.witnesses, fitted.witnesses)
    assert again.noise == fitted.noise
    assert torch.equal(again.covariance(), fitted.covariance())


def test_statistics_of_an_earlier_line_are_kept_as_they_were():
    half = torch.randn(4, 8).half()
    stored = statistics(gaussian(corner(0), 100), rank=4).tensors()
    earlier = {name: tensor for name, tensor in stored.items() if not name.startswith("factor")}
    again = DescriptorStatistics.from_tensors(earlier | {"factor": half})
    assert torch.equal(again.factor, half.double())
    assert torch.equal(again.tensors()["factor"], half)


def test_stored_statistics_are_small():
    stored = statistics(gaussian(corner(0), 100), rank=4, witnesses=60).tensors()
    assert stored["factor.codes"].dtype == torch.int8
    assert stored["factor.codes"].shape == (4, 8)
    assert stored["witnesses"].shape == (WITNESSES, 8)


@pytest.mark.parametrize("shape", [(2, 5), (12, 5), (12, 40), (300, 20)])
def test_ledoit_wolf_agrees_with_scikit_learn(shape):
    rng = np.random.default_rng(shape[0])
    rows = rng.normal(size=shape) * np.linspace(0.1, 3, shape[1])
    rows -= rows.mean(0)
    expected, weight = sklearn_ledoit_wolf(rows, assume_centered=True)
    assert (weight > 0) == (shape[0] > 2)  # two centred rows are mirror images: nothing to shrink
    np.testing.assert_allclose(ledoit_wolf(torch.from_numpy(rows)).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_moments_of_two_lessons_are_pooled():
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    rows = torch.randn(340, 12, generator=generator, dtype=torch.float64) @ mixing + 5
    old, new = rows[:320], rows[320:] + 0.3
    first = DescriptorStatistics.fit(old, old[:32], rank=8)
    both = DescriptorStatistics.fit(new, new, rank=8, earlier=(first, 320))
    at_once = DescriptorStatistics.fit(torch.cat([old, new]), new, rank=8)
    assert torch.allclose(both.mean, at_once.mean, atol=1e-3)
    assert (both.covariance() - at_once.covariance()).norm() < 0.1 * at_once.covariance().norm()
    assert both.noise == pytest.approx(at_once.noise, rel=0.3)
    one = DescriptorStatistics.fit(new[:1], new[:1], rank=8, earlier=(first, 320))
    assert (one.covariance() - first.covariance()).norm() < 0.05 * first.covariance().norm()


def test_after_an_update_a_good_image_is_as_near_as_before():
    rows = torch.randn(400, 152, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 5
    rows *= torch.linspace(0.2, 1, 152)
    first = DescriptorStatistics.fit(rows[:320], rows[:32], rank=48)
    updated = DescriptorStatistics.fit(rows[320:340], rows[320:340], rank=48, earlier=(first, 320))
    at_once = DescriptorStatistics.fit(rows[:340], rows[:32], rank=48)
    near = {}
    for name, known in {"updated": updated, "at once": at_once}.items():
        router = Router({"a": known}, RouterConfig())
        near[name] = np.median([found.distance for found in router.decide(rows[340:])])
    assert near["updated"] == pytest.approx(near["at once"], rel=0.2)


def test_ledoit_wolf_of_a_single_row_is_zero():
    assert not ledoit_wolf(torch.zeros(1, 6, dtype=torch.float64)).any()


@pytest.mark.parametrize("count", [3, 30])
def test_covariance_of_full_rank_is_the_shrunk_one(count):
    rows = gaussian(torch.zeros(8), count)
    fitted = DescriptorStatistics.fit(rows, rows, rank=8)
    expected = ledoit_wolf(rows - rows.mean(0))
    torch.testing.assert_close(fitted.covariance(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_near_identical_images_keep_a_believable_spread(count):
    rows = corner(0).repeat(count, 1)
    fitted = DescriptorStatistics.fit(rows, rows, rank=4)
    assert torch.linalg.eigvalsh(fitted.covariance()).min() > 1e-4 * corner(0).square().mean()


# Decisions


@pytest.mark.parametrize("metric", METRICS)
def test_well_separated_products_are_told_apart(products, metric):
    router = Router(products, RouterConfig(metric=metric))
    for i, (name, mean) in enumerate(MEANS.items()):
        decisions = router.decide(gaussian(mean, 50, seed=100 + i))
        assert {decision.task for decision in decisions} == {name}
        assert all(decision.margin > 1 for decision in decisions)
        near = sum(decision.distance <= router.limits[name] for decision in decisions)
        assert near >= 45
        for decision in decisions:
            in_typical_ones = decision.distances[name] / router.typical[name]
            assert decision.distance == pytest.approx(in_typical_ones, rel=1e-12)
        assert all(set(decision.distances) == set(MEANS) for decision in decisions)


@pytest.mark.parametrize("metric", METRICS)
def test_what_lies_far_from_every_product_exceeds_the_limit(products, metric):
    router = Router(products, RouterConfig(metric=metric))
    for decision in router.decide(gaussian(corner(0, 1, 2, 3, size=-60), 5)):
        assert decision.distance > router.limits[decision.task]


@pytest.mark.parametrize("metric", METRICS)
def test_the_metric_does_not_depend_on_the_order_of_products(products, metric):
    rows = torch.cat([gaussian(mean, 3, seed=7) for mean in MEANS.values()])
    reference = Router(products, RouterConfig(metric=metric))
    for order in itertools.permutations(products):
        router = Router({name: products[name] for name in order}, RouterConfig(metric=metric))
        assert router.names == reference.names
        assert torch.equal(router.distances(rows), reference.distances(rows))
        assert router.limits == reference.limits
        assert router.typical == reference.typical


def test_shared_distance_is_mahalanobis_in_the_average_covariance(products):
    rows = gaussian(MEANS["a"], 4, seed=3)
    precision = np.linalg.inv(np.mean([p.covariance().numpy() for p in products.values()], axis=0))
    router = Router(products, RouterConfig())
    for column, name in enumerate(router.names):
        gap = (rows - products[name].mean).numpy()
        expected = np.sqrt(np.einsum("bi,ij,bj->b", gap, precision, gap) / 8)
        np.testing.assert_allclose(router.distances(rows)[:, column], expected, rtol=1e-9)


def test_own_metric_chooses_the_likelier_of_two_scales():
    wide, narrow = gaussian(corner(), 400, scale=5.0), gaussian(corner(), 400, scale=0.5, seed=1)
    products = {"wide": statistics(wide, rank=7), "narrow": statistics(narrow, rank=7)}
    router = Router(products, RouterConfig(metric="product"))
    for name, scale in (("wide", 5.0), ("narrow", 0.5)):
        decisions = router.decide(gaussian(corner(), 100, scale=scale, seed=5))
        assert sum(decision.task == name for decision in decisions) >= 97


def test_look_alikes_of_another_scale_are_told_apart_by_their_means():
    """A product with a large spread must not swallow its near neighbour with a small one."""
    shift = corner(0, 1, 2, size=2.5)
    wide, narrow = gaussian(corner(), 60, scale=1.5), gaussian(shift, 60, scale=0.3, seed=1)
    router = Router({"wide": statistics(wide), "narrow": statistics(narrow)}, RouterConfig())
    narrow_again = router.decide(gaussian(shift, 100, scale=0.3, seed=5))
    assert sum(decision.task == "narrow" for decision in narrow_again) >= 98


@pytest.mark.parametrize("metric", METRICS)
def test_a_single_product_takes_everything_and_still_says_what_is_far(products, metric):
    router = Router({"a": products["a"]}, RouterConfig(metric=metric))
    near, far = router.decide(torch.stack([MEANS["a"], corner(4, size=500)]))
    assert near.task == far.task == "a"
    assert near.margin == far.margin == float("inf")
    assert near.distance < router.limits["a"] < far.distance


@pytest.mark.parametrize("metric", METRICS)
def test_products_of_one_descriptor_are_routed(metric):
    rows = {name: mean[None] for name, mean in MEANS.items()}
    fitted = {name: DescriptorStatistics.fit(row, row, rank=4) for name, row in rows.items()}
    router = Router(fitted, RouterConfig(metric=metric))
    decisions = router.decide(torch.cat(list(rows.values())) + 0.01)
    assert [decision.task for decision in decisions] == list(MEANS)
    assert all(np.isfinite(decision.distance) for decision in decisions)


def test_nothing_nearer_than_the_least_distance_is_unknown(products):
    tight, loose = (Router(products, RouterConfig(least_distance=least)) for least in (1e-3, 50.0))
    assert set(loose.limits.values()) == {50.0}
    assert all(1 < limit < 50 for limit in tight.limits.values())


def test_a_smaller_rate_of_rejection_widens_the_limits(products):
    wide, narrow = (
        Router(products, RouterConfig(false_rejection_rate=rate, least_distance=1e-3))
        for rate in (0.001, 0.1)
    )
    assert all(wide.limits[name] > narrow.limits[name] for name in products)


def test_deciding_together_equals_deciding_alone(products):
    router = Router(products, RouterConfig())
    rows = gaussian(MEANS["b"], 9, seed=11)
    for row, together in zip(rows, router.decide(rows), strict=True):
        (alone,) = router.decide(row[None])
        assert alone.task == together.task
        assert alone.distance == pytest.approx(together.distance, rel=1e-12)


def test_only_what_goes_to_a_wrong_product_counts_as_rerouted():
    """Its witnesses in turn: home again, from one wrong product to another, astray as before, astray now."""

    def routed(*nearest):
        known = SimpleNamespace(witnesses=["witness"] * 4)
        products = Products(old=known, new=SimpleNamespace(descriptors=known))
        asked = {"old": list(nearest)}
        router = SimpleNamespace(nearest=lambda rows: asked.pop("old", ["new"] * 4))
        return SimpleNamespace(router=router, products=products)

    class Products(dict):
        def statistics(self):
            return {"old": self["old"]}

    before, after = routed("new", "third", "new", "old"), routed("old", "new", "new", "new")
    assert rerouted_by("new", before, after) == {"old": 2}
