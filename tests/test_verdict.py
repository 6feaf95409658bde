"""From patch scores to a verdict: p-values, thresholds, calibration over the image, and the rate kept."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from moleflow.config import ScoringConfig
from moleflow.errors import CalibrationError
from moleflow.verdict.calibration import ScoreCalibration, upper_limit
from moleflow.verdict.maps import PositionCalibration, image_scores, smooth

RATES = (0.5, 0.2, 0.05, 0.01, 0.001)


def calibration(scores, kind="cross-fitted"):
    return ScoreCalibration(kind, tuple(sorted(float(score) for score in scores)))


def normal_scores(count, seed=0):
    return np.random.default_rng(seed).normal(5.0, 2.0, count)


CALIBRATIONS = {
    "one image": calibration([3.0], "in-sample"),
    "two images": calibration([3.0, 3.5]),
    "five images": calibration(normal_scores(5)),
    "a hundred images": calibration(normal_scores(100), "held-out"),
    "negative scores": calibration(normal_scores(20) - 50),
    "long tail": calibration(np.random.default_rng(1).lognormal(0, 1, 40)),
    "equal scores": calibration([7.0] * 6),
}
every_calibration = pytest.mark.parametrize("good", CALIBRATIONS.values(), ids=CALIBRATIONS.keys())


# Verdicts


@every_calibration
def test_p_value_falls_strictly_with_the_score(good):
    scores = np.linspace(-5, 5, 201) if good.scores[0] == good.scores[-1] else np.linspace(-10, 100, 201)
    values = np.array([good.p_value(score) for score in scores])
    assert (values >= 0).all()
    assert (values <= 1).all()
    seen = values > 0  # far out a double holds no smaller number
    assert seen[0]
    assert (np.diff(values) <= 0).all()
    strict = np.diff(values[seen & (values < 1 - 1e-12)])
    assert len(strict) > 10
    assert (strict < 0).all()


@every_calibration
@pytest.mark.parametrize("rate", RATES)
def test_p_value_of_the_threshold_is_the_rate(good, rate):
    if len(good.scores) <= 2 and rate < 0.01:
        assert good.threshold(rate) > 1e20  # cut short of infinity, where no score comes
        return
    assert good.p_value(good.threshold(rate)) == pytest.approx(rate, rel=1e-6)


@every_calibration
def test_thresholds_grow_as_the_rate_shrinks(good):
    thresholds = [good.threshold(rate) for rate in RATES]
    assert all(low < high for low, high in itertools.pairwise(thresholds))
    assert all(map(math.isfinite, thresholds))


@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9])
@every_calibration
def test_extreme_rates_give_finite_thresholds(good, rate):
    assert math.isfinite(good.threshold(rate))


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate):
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        CALIBRATIONS["five images"].threshold(rate)


def test_fewer_images_give_wider_thresholds():
    # The same shape of scores at every count, so that only the count differs.
    quantiles = {
        n: np.sqrt(2) * torch.erfinv(torch.linspace(-1, 1, n + 2)[1:-1]).numpy() for n in (4, 12, 100)
    }
    limits = {n: calibration(q / q.std(ddof=1)).threshold(0.01) for n, q in quantiles.items()}
    assert limits[4] > 1.2 * limits[12] > 1.2 * limits[100]


def test_a_single_image_calls_nearly_nothing_defective_but_does_not_say_never():
    single = CALIBRATIONS["one image"]
    assert single.threshold(0.01) > 100
    assert single.p_value(0.0) == pytest.approx(0.5)


# What the rate comes to, as a share of the nominal one. The model stands between the two kinds of scores:
# normal ones get a threshold on the wide side, skewed ones on the narrow side.
SHAPES = {
    "normal": (lambda rng, count: rng.normal(5.0, 2.0, count), (0.15, 1.2)),
    "skewed": (lambda rng, count: rng.gamma(4.0, 1.0, count), (0.7, 2.2)),
}


@pytest.mark.parametrize("count", [10, 30])
@pytest.mark.parametrize(("draw", "bounds"), SHAPES.values(), ids=SHAPES.keys())
def test_false_alarms_on_good_images_come_near_the_nominal_rate(draw, bounds, count):
    rng = np.random.default_rng(count)
    alarms = {0.2: [], 0.05: [], 0.01: []}
    for _ in range(300):
        good = calibration(draw(rng, count))
        fresh = good.standardise(torch.from_numpy(draw(rng, 400))).numpy()
        for rate, shares in alarms.items():
            shares.append((fresh > good.threshold(rate)).mean())
    for rate, shares in alarms.items():
        assert bounds[0] < np.mean(shares) / rate < bounds[1], rate


def test_standardised_scores_are_spreads_above_the_typical_good_image():
    good = CALIBRATIONS["a hundred images"]
    unit = good.standardise(torch.tensor(good.scores, dtype=torch.float64))
    assert float(unit.quantile(0.5)) == pytest.approx(0, abs=1e-12)
    assert float(unit.std()) == pytest.approx(1)


def test_standardised_scores_of_equal_good_images_stay_finite():
    good = CALIBRATIONS["equal scores"]
    assert torch.isfinite(good.standardise(torch.tensor([6.0, 7.0, 8.0]))).all()


def test_verdicts_do_not_depend_on_the_unit_of_raw_scores():
    raw = normal_scores(15)
    plain, scaled = calibration(raw), calibration(1000 * raw - 70)
    assert scaled.threshold(0.01) == pytest.approx(plain.threshold(0.01), rel=1e-9)


@every_calibration
def test_calibration_survives_json_to_the_bit(good):
    assert ScoreCalibration.from_dict(json.loads(json.dumps(good.to_dict()))) == good


# Over the image


def uneven_scores(count=400, seed=0):
    """Scores whose spread grows from left to right, (count, 12, 12)."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.linspace(1, 6, 12)
    return 40 + slope * torch.randn(count, 12, 12, generator=generator)


def test_position_calibration_evens_out_the_spread():
    scores = uneven_scores()
    calibrated = PositionCalibration.fit(scores, ScoringConfig())(scores)
    before, after = (values.std(0).mean(0) for values in (scores, calibrated))
    assert before[-1] / before[0] > 5
    # Half-way only, by design: a place is drawn towards the average.
    assert after[-1] / after[0] < 0.7 * before[-1] / before[0]


@pytest.mark.parametrize("position_calibration", [True, False])
def test_calibrated_scores_have_level_zero_and_spread_one(position_calibration):
    scores = uneven_scores()
    config = ScoringConfig(position_calibration=position_calibration)
    calibrated = PositionCalibration.fit(scores, config)(scores)
    assert calibrated.shape == scores.shape
    assert float(calibrated.mean()) == pytest.approx(0, abs=0.01)
    assert float(calibrated.std()) == pytest.approx(1, abs=0.01)


def test_position_calibration_can_be_left_out():
    flat = PositionCalibration.fit(uneven_scores(), ScoringConfig(position_calibration=False))
    assert flat.spread.shape == (12, 12)
    assert len(flat.spread.unique()) == 1


def test_a_single_image_has_one_spread_everywhere():
    single = PositionCalibration.fit(uneven_scores(1), ScoringConfig())
    assert len(single.spread.unique()) == 1
    assert torch.isfinite(single(uneven_scores(1))).all()


@pytest.mark.parametrize(
    "scores",
    [
        uneven_scores(),
        torch.full((5, 4, 4), 3.0),
    ],
    ids=["uneven", "equal"],
)
def test_position_calibration_keeps_what_is_stored(scores):
    calibration = PositionCalibration.fit(scores, ScoringConfig())
    assert torch.equal(calibration.spread.half().float(), calibration.spread)
    assert float(torch.tensor([calibration.level])[0]) == calibration.level


@pytest.mark.parametrize("shape", [(5, 4, 4), (1, 4, 4), (3, 1, 1)])
def test_position_calibration_of_equal_scores_stays_finite(shape):
    scores = torch.full(shape, 3.0)
    assert torch.isfinite(PositionCalibration.fit(scores, ScoringConfig())(scores)).all()


# Smoothing and the image's score


GRIDS = [(1, 1), (1, 5), (2, 3), (3, 2), (7, 8), (40, 28)]


@pytest.mark.parametrize("sigma", [0, 0.5, 2.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_smoothing_keeps_shape_and_constants(grid, sigma):
    maps = torch.full((2, *grid), 3.25)
    smoothed = smooth(maps, sigma)
    assert smoothed.shape == maps.shape
    torch.testing.assert_close(smoothed, maps)


@pytest.mark.parametrize("grid", [(9, 9), (9, 15)])
def test_smoothing_spreads_a_peak_like_a_gaussian(grid):
    maps = torch.zeros(1, *grid)
    maps[0, 4, 4] = 1
    smoothed = smooth(maps, 1.0)[0]
    assert float(smoothed.sum()) == pytest.approx(1, abs=1e-5)
    assert smoothed.argmax() == 4 * grid[1] + 4
    assert float(smoothed[4, 5] / smoothed[4, 4]) == pytest.approx(math.exp(-0.5), rel=1e-5)
    assert float(smoothed[5, 5] / smoothed[4, 4]) == pytest.approx(math.exp(-1), rel=1e-5)


def test_smoothing_does_not_mix_images():
    maps = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    together = smooth(maps, 1.0)
    for i in range(3):
        torch.testing.assert_close(smooth(maps[i : i + 1], 1.0)[0], together[i])


@pytest.mark.parametrize(
    ("grid", "share", "least", "expected"),
    [
        ((10, 10), 0.05, 3, np.mean([99, 98, 97, 96, 95])),
        ((10, 10), 0.001, 3, np.mean([99, 98, 97])),
        ((1, 2), 0.005, 3, np.mean([1, 0])),
        ((1, 1), 0.005, 3, 0.0),
    ],
)
def test_image_score_is_the_mean_of_the_highest_patches(grid, share, least, expected):
    count = grid[0] * grid[1]
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)).float()
    maps = torch.stack([shuffled.view(grid), torch.zeros(grid)])
    scores = image_scores(maps, ScoringConfig(top_share=share, top_least=least))
    assert scores.tolist() == pytest.approx([expected, 0.0])


# One-sided limits


def test_upper_limit_is_exceeded_at_the_rate():
    rng = np.random.default_rng(0)
    limits = [upper_limit(rng.normal(2.0, 3.0, 8).tolist(), 0.05) for _ in range(4000)]
    assert (rng.normal(2.0, 3.0, 4000) > limits).mean() == pytest.approx(0.05, abs=0.012)


def test_upper_limit_needs_two_values():
    assert upper_limit([1.0], 0.01) == math.inf
    assert upper_limit([], 0.01) == math.inf
    assert upper_limit([1.0, 1.0], 0.01) == 1.0


def test_upper_limit_grows_as_the_rate_shrinks():
    values = [1.0, 2.0, 4.0]
    assert upper_limit(values, 0.1) < upper_limit(values, 0.01) < upper_limit(values, 0.001)
