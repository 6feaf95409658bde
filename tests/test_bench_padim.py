"""PaDiM against distances written out, with many images and with fewer than channels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moleflow.bench.methods import padim
from moleflow.bench.methods.base import Pictures, Setting
from moleflow.bench.methods.padim import GaussianOptions, PaDiM
from moleflow.config import LineConfig, ScoringConfig
from moleflow.errors import ConfigError, TrainingError

GRID, CHANNELS = (6, 5), 12
SETTING = Setting(grid=GRID, channels=CHANNELS, image_size=(48, 40))
RAW = replace(SETTING, config=LineConfig(scoring=ScoringConfig(smoothing=0)))
SUBSET = GaussianOptions(channels=7)
PLACE = (2, 3)


def no_pixels(image, size):
    raise AssertionError("Gaussians need no pixels")


def features(product, count, seed=0):
    """Good images whose mean and covariance differ from place to place, (count, 6, 5, 12) float16."""
    character = torch.Generator().manual_seed(sum(map(ord, product)))
    mean = 3 * torch.randn(*GRID, CHANNELS, generator=character)
    mixing = torch.randn(*GRID, CHANNELS, CHANNELS, generator=character) / 4
    noise = torch.randn(count, *GRID, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return (mean + torch.einsum("nhwc,hwcd->nhwd", noise, mixing)).half()


def images(product, count=12, seed=0):
    return Pictures(product, features(product, count, seed), no_pixels)


def faulty(product, count=4, seed=7):
    values = features(product, count, seed)
    values[:, PLACE[0], PLACE[1]] += 4
    return Pictures(product, values, no_pixels)


def taught(products=("a",), count=12, setting=SETTING, options=SUBSET):
    made = PaDiM(setting, options)
    for product in products:
        made.learn([images(product, count)])
    return made


def tell(inspections):
    return [(i.task, i.known, i.score, i.patch_map.tobytes(), i.alarm) for i in inspections]


def reference(train, test, chosen, share=0.1):
    """Mahalanobis distances place by place, float64 (n, h, w)."""
    train, test = (x.double().numpy()[..., chosen] for x in (train, test))
    variance = train.var(0, ddof=1).mean() if len(train) > 1 else 0.0
    ridge = max(share * variance, padim.LEAST_RIDGE)
    distance = np.empty(test.shape[:3])
    for row, column in np.ndindex(*GRID):
        good = train[:, row, column]
        centred = good - good.mean(0)
        covariance = centred.T @ centred / max(len(good) - 1, 1) + ridge * np.eye(len(chosen))
        offset = test[:, row, column] - good.mean(0)
        squared = (offset @ np.linalg.pinv(covariance, hermitian=True) * offset).sum(1)
        distance[:, row, column] = np.sqrt(squared)
    return distance


def maps(made, pictures, task="a"):
    return np.stack([i.patch_map for i in made.inspect(pictures, task)])


@pytest.mark.parametrize("count", [1, 2, 5, 12, 80])
@pytest.mark.parametrize("options", [SUBSET, GaussianOptions(), GaussianOptions(channels=5, ridge=0.3)])
def test_the_map_is_the_mahalanobis_distance_of_every_place(count, options):
    made, probe = taught(count=count, setting=RAW, options=options), faulty("a")
    chosen = made.parts["a"].chosen.tolist()
    assert len(chosen) == (options.channels or CHANNELS)
    expected = reference(images("a", count).features, probe.features, chosen, options.ridge)
    np.testing.assert_allclose(maps(made, probe), expected, rtol=5e-3)  # 16 bits


@pytest.mark.parametrize("numbers", [1, 7 * 12 * 4, 10**9])
def test_memory_at_hand_does_not_change_what_is_learned(monkeypatch, numbers):
    expected = taught().state()
    monkeypatch.setattr(padim, "NUMBERS", numbers)
    assert same_bytes(taught().state(), expected)


def test_places_looked_at_together_do_not_change_the_map(monkeypatch):
    made = taught()
    expected = maps(made, faulty("a"))
    monkeypatch.setattr(padim, "PLACES", 7)
    np.testing.assert_allclose(maps(made, faulty("a")), expected, rtol=1e-6)


def test_large_features_with_little_spread_are_no_trouble():
    steady = 500 + 0.25 * torch.randint(
        0, 4, (30, *GRID, CHANNELS), generator=torch.Generator().manual_seed(0)
    )
    made = PaDiM(RAW, GaussianOptions())
    made.learn([Pictures("a", steady.half(), no_pixels)])
    probe = Pictures("a", steady[:3].half() + 1, no_pixels)
    expected = reference(steady, probe.features, list(range(CHANNELS)))
    np.testing.assert_allclose(maps(made, probe), expected, rtol=5e-3)


def test_a_defect_scores_above_every_good_image_and_at_its_place():
    made = taught(count=30)
    good = [i.score for i in made.inspect(images("a", 8, seed=5), "a")]
    found = list(made.inspect(faulty("a"), "a"))
    assert min(i.score for i in found) > max(good)
    for inspection in found:
        assert inspection.patch_map.shape == GRID
        assert inspection.patch_map.dtype == np.float32
        assert np.unravel_index(inspection.patch_map.argmax(), GRID) == PLACE


def test_the_score_is_the_maximum_of_the_smoothed_map():
    found = list(taught().inspect(faulty("a"), "a"))
    assert [i.score for i in found] == [float(i.patch_map.max()) for i in found]
    assert maps(taught(), faulty("a")).max() < maps(taught(setting=RAW), faulty("a")).max()


def test_channels_are_drawn_by_the_seed_and_alike_for_every_product():
    made = taught(("a", "b"))
    chosen = made.parts["a"].chosen.tolist()
    assert chosen == sorted(set(chosen))
    assert set(chosen) < set(range(CHANNELS))
    assert made.parts["b"].chosen.tolist() == chosen
    others = {tuple(taught(setting=replace(SETTING, seed=s)).parts["a"].chosen.tolist()) for s in range(4)}
    assert len(others) > 1


# State


def same_bytes(one, other):
    assert one.notes == other.notes
    assert one.tensors.keys() == other.tensors.keys()
    return all(
        t.dtype == other.tensors[name].dtype and torch.equal(t, other.tensors[name])
        for name, t in one.tensors.items()
    )


def test_a_state_comes_back_to_the_bit():
    made = taught(("a", "b"))
    again = PaDiM(SETTING, SUBSET)
    again.restore(made.state())
    for task in ("a", None):
        assert tell(again.inspect(faulty("a"), task)) == tell(made.inspect(faulty("a"), task))
    assert same_bytes(again.state(), made.state())


def test_the_state_is_half_a_matrix_of_halves_per_place():
    state = taught().state()
    assert state.tensors["a/whitening"].shape == (30, 7 * 8 // 2)
    own = sum(state.tensors[f"a/{n}"].nbytes for n in ("chosen", "mean", "whitening"))
    assert own == 30 * (28 * 2 + 7 * 4) + 7 * 2


def test_the_same_seed_gives_the_same_bytes():
    assert same_bytes(taught().state(), taught().state())


def test_another_product_leaves_the_first_alone():
    alone, both = taught(), taught(("a", "b"))
    after = both.state()
    assert all(torch.equal(value, after.tensors[name]) for name, value in alone.state().tensors.items())
    assert tell(alone.inspect(faulty("a"), "a")) == tell(both.inspect(faulty("a"), "a"))


def test_an_image_is_judged_without_its_neighbours():
    made, probe = taught(("a", "b")), faulty("a")
    together = tell(made.inspect(probe))
    assert [tell(made.inspect(probe.take([i])))[0] for i in range(len(probe))] == together


def test_the_ridge_follows_the_scale_of_the_features():
    pictures, probe = images("a"), faulty("a")
    plain, wide = PaDiM(RAW), PaDiM(RAW)
    plain.learn([pictures])
    wide.learn([replace(pictures, features=8 * pictures.features)])
    # A power of two, so that nothing but the last bit of 16 may differ.
    scaled = maps(wide, replace(probe, features=8 * probe.features))
    np.testing.assert_allclose(scaled, maps(plain, probe), rtol=5e-3)


def test_one_ridge_serves_quiet_and_lively_places():
    pictures = images("a", 40)
    pictures.features[:, 0] = pictures.features[:1, 0]  # a row that never changes
    made = PaDiM(RAW, GaussianOptions(channels=CHANNELS))
    made.learn([pictures])
    ridge = 0.1 * float(pictures.features.double().var(0).mean())
    probe = pictures.features[:1].clone()
    probe[0, 0, 2, 4] += 1
    step = float(probe[0, 0, 2, 4] - pictures.features[0, 0, 2, 4])
    found = maps(made, Pictures("a", probe, no_pixels))
    assert found[0, 0, 2] == pytest.approx(step / ridge**0.5, rel=1e-3)


@pytest.mark.parametrize(("available", "drawn"), [(64, 64), (448, 448), (550, 550), (2000, 550)])
def test_all_channels_count_up_to_as_many_as_the_paper_draws(available, drawn):
    assert GaussianOptions().width(available) == drawn
    assert GaussianOptions(channels=30).width(available) == 30


def test_the_report_hears_of_ridge_and_channels():
    ridge, channels = PaDiM(SETTING, SUBSET).notes
    assert "0.1 of a product's mean variance" in ridge
    assert channels == "7 of 12 channels, layers 2, 3 of efficientnet_lite0"


def test_constant_features_are_judged_by_the_ridge_alone():
    made = PaDiM(RAW, GaussianOptions(channels=4))
    made.learn([Pictures("a", torch.ones(5, *GRID, CHANNELS).half(), no_pixels)])
    probe = Pictures("a", torch.full((1, *GRID, CHANNELS), 1.5).half(), no_pixels)
    np.testing.assert_allclose(maps(made, probe), 0.5 * 2 / padim.LEAST_RIDGE**0.5, rtol=1e-3)


def test_impossible_options_images_and_features_are_refused():
    for wrong in ({"channels": 0}, {"channels": 2.5}, {"ridge": -1.0}, {"ridge": None}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            GaussianOptions(**wrong)
    broken = images("a")
    broken.features[3, 0, 0, 0] = torch.inf
    with pytest.raises(TrainingError, match="finite"):
        PaDiM(SETTING).learn([broken])
    with pytest.raises(TrainingError, match="'a'"):
        PaDiM(SETTING).learn([images("a", 0)])
