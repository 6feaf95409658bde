"""From patch scores to a verdict: p-values, thresholds, calibration over the image, and the rate kept."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moleflow.config import ScoringConfig
from moleflow.errors import CalibrationError
from moleflow.learning.blocks import make_blocks
from moleflow.learning.left_out import whole_left_out
from moleflow.verdict.calibration import (
    Predictive,
    ScoreCalibration,
    TwoVoices,
    Voice,
    calibration_from_dict,
    upper_limit,
)
from moleflow.verdict.maps import PositionCalibration, image_scores, smooth
from moleflow.verdict.promise import promise
from moleflow.verdict.unknown import ORDINARY, Familiarity

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
    again = PositionCalibration.from_kept(calibration.kept())
    assert torch.equal(again.spread, calibration.spread)
    assert again.level == calibration.level


def test_position_calibration_of_an_earlier_line_is_kept_as_it_was():
    spread = (1 + torch.rand(12, 12)).half()
    earlier = PositionCalibration.from_kept({"level": torch.tensor([2.0]), "spread": spread})
    assert torch.equal(earlier.spread, spread.float())
    assert torch.equal(earlier.kept()["spread"], spread)


def test_the_spread_of_a_quiet_place_beside_a_wild_one_is_kept_apart_from_nothing():
    scores = uneven_scores()
    scores[:, 3, 3] += 1e4 * torch.randn(len(scores))
    calibration = PositionCalibration.fit(scores, ScoringConfig())
    assert float(calibration.spread.min()) > float(calibration.spread.max()) / 128


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


# Two voices


def two_voices(place, whole=None, *, blocks=None, floors=(0.0, 0.0)):
    place = tuple(map(float, place))
    return TwoVoices(
        Voice(place, floors[0]),
        None if whole is None else Voice(tuple(map(float, whole)), floors[1]),
        tuple(blocks if blocks is not None else [i * 8 // len(place) for i in range(len(place))]),
    )


def sessions(rng, blocks, each, *, between):
    """Good scores of several sessions, and the session of each."""
    level = rng.normal(0, between, blocks)
    return rng.normal(level.repeat(each), 1.0), np.arange(blocks).repeat(each)


def test_two_voices_survive_json_to_the_bit():
    rng = np.random.default_rng(0)
    good = two_voices(rng.normal(5, 2, 40), rng.gamma(4, 1, 40), floors=(0.1, 0.2))
    again = calibration_from_dict(json.loads(json.dumps(good.to_dict())))
    assert again == good
    assert again.threshold(0.01) == good.threshold(0.01)


@pytest.mark.parametrize("rate", RATES)
def test_the_p_value_of_two_voices_at_their_threshold_is_the_rate(rate):
    rng = np.random.default_rng(1)
    good = two_voices(rng.normal(5, 2, 60), rng.gamma(4, 1, 60))
    assert good.p_value(good.threshold(rate)) == pytest.approx(rate, rel=1e-6)


def test_the_score_is_the_same_in_whatever_unit_a_voice_speaks():
    rng = np.random.default_rng(2)
    place, whole = rng.normal(5, 2, 40), rng.gamma(4, 1, 40)
    one, other = two_voices(place, whole), two_voices(100 * place - 3, whole / 7)
    assert other.score(100 * 9 - 3, 12 / 7) == pytest.approx(one.score(9, 12), rel=1e-9)
    assert other.threshold(0.01) == pytest.approx(one.threshold(0.01), rel=1e-9)


def test_either_voice_alone_raises_the_score():
    rng = np.random.default_rng(3)
    good = two_voices(rng.normal(0, 1, 200), rng.normal(0, 1, 200))
    usual = good.score(0, 0)
    assert good.score(10, 0) > good.threshold(0.001)
    assert good.score(0, 10) > good.threshold(0.001)
    assert abs(usual) < 0.5


@pytest.mark.parametrize("between", [0.0, 1.0])
@pytest.mark.parametrize(("blocks", "each"), [(8, 25), (8, 4)])
def test_the_rate_is_kept_on_another_session(between, blocks, each):
    """The next image comes from a session that was not taught."""
    rng = np.random.default_rng(blocks * each)
    kept, naive = [], []
    for _ in range(400):
        scores, of = sessions(rng, blocks, each, between=between)
        good, alike = two_voices(scores, blocks=of), two_voices(scores, blocks=[0] * len(scores))
        fresh = rng.normal(rng.normal(0, between, 200), 1.0)
        units = np.array([good.score(value, None) for value in fresh])
        kept.append((units > good.threshold(0.01)).mean())
        naive.append((units > alike.threshold(0.01)).mean())
    assert np.mean(kept) < 0.013
    if between:
        assert np.mean(kept) <= np.mean(naive) + 1e-9


@pytest.mark.long
@pytest.mark.parametrize("skew", [0.01, 0.3])
@pytest.mark.parametrize("images", [4, 5, 6, 8, 10, 12, 20])
def test_the_rate_is_kept_by_a_handful_of_photographs(images, skew):
    rng = np.random.default_rng(images)
    exceeded = []
    for _ in range(400):
        good = two_voices(
            np.exp(skew * rng.normal(0, 1, images)), blocks=make_blocks(images, ScoringConfig()).sessions
        )
        fresh = np.exp(skew * rng.normal(0, 1, 50))
        exceeded.append(np.mean([good.score(value, None) > good.threshold(0.01) for value in fresh]))
    assert np.mean(exceeded) < 0.015


def test_a_few_odd_images_do_not_set_the_threshold():
    rng = np.random.default_rng(4)
    scores = rng.normal(0, 1, 200)
    plain = two_voices(scores).threshold(0.01)
    odd = scores.copy()
    odd[100:104] = 500.0
    assert two_voices(odd).threshold(0.01) < 1.6 * plain


def test_a_dozen_images_borrow_their_tail():
    """Less than what Student's t of so few would ask for, and still no more false alarms than promised."""
    rng = np.random.default_rng(5)
    alarms, limits = [], []
    for _ in range(300):
        good = two_voices(rng.normal(0, 1, 12), blocks=[0] * 12)
        limits.append(good.threshold(0.01))
        fresh = [good.score(value, None) for value in rng.normal(0, 1, 200)]
        alarms.append(np.mean(np.array(fresh) > limits[-1]))
    assert np.mean(alarms) < 0.01
    assert np.median(limits) < ScoreCalibration("held-out", tuple(rng.normal(0, 1, 12))).threshold(0.001)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_two_to_four_images_borrow_nothing(count):
    rng = np.random.default_rng(6)
    alarms = []
    for _ in range(300):
        good = two_voices(rng.normal(0, 1, count), blocks=[0] * count)
        alarms.append(np.mean([good.score(v, None) > good.threshold(0.01) for v in rng.normal(0, 1, 50)]))
    assert np.mean(alarms) < 0.01


@pytest.mark.parametrize("count", [4, 5, 8, 9, 12, 40])
def test_no_spread_is_smaller_than_what_the_sensor_makes(count):
    good = two_voices([3.0] * count, [1.0] * count, floors=(0.5, 0.25))
    assert good.place.units(3.5) == pytest.approx(1)
    assert good.score(3.5, 1.25) == pytest.approx(1)
    assert good.threshold(0.01) > 2
    assert good.place_threshold(0.01) > 2
    assert good.p_value(1) > 0.1
    assert good.p_value(1) == pytest.approx(two_voices([3.0] * count, floors=(0.5, 0)).p_value(1))


def pooled_of(count, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def test_the_picture_as_a_whole_speaks_of_four_independent_pictures_or_not_at_all():
    scoring, remembered = ScoringConfig(), pooled_of(64)
    for count in (2, 3, 4):
        blocks = make_blocks(count, scoring)
        for memory in (remembered[:0], remembered):
            whole, said = whole_left_out(pooled_of(count), memory, blocks, scoring)
            assert (whole is None) == (said is None) == (count < 4)
    bursts = make_blocks(15, scoring, copies=[i // 5 for i in range(15)])
    assert whole_left_out(pooled_of(15), remembered[:0], bursts, scoring) == (None, None)


def test_images_of_a_few_sessions_that_differ_borrow_no_more_than_the_sessions_are_worth():
    rng = np.random.default_rng(5)
    three, many = np.repeat([0, 1, 2], 10), np.arange(30)
    within = rng.normal(0, 1, 30)
    apart = Predictive.fit(within + 4.0 * three, three)
    assert apart.freedom < 4  # of three sessions, two
    assert apart.independent < 5
    alike = Predictive.fit(within, three)
    assert alike.independent > 16
    assert Predictive.fit(within, many).independent == 30
    assert apart.grown(30, 300).freedom < 60
    assert apart.grown(30, 300).freedom > apart.freedom


def test_more_images_of_the_same_kind_lower_the_threshold():
    rng = np.random.default_rng(7)
    for good in (two_voices(rng.normal(0, 1, 12)), calibration(normal_scores(12))):
        now, later, much_later = (good.threshold(0.01, images=n) for n in (None, 50, 200))
        assert now > later > much_later


def test_a_promise_says_what_so_many_images_support():
    rng = np.random.default_rng(8)
    good = two_voices(rng.normal(0, 1, 12))
    told = promise(good, 0.01, good.threshold(0.01))
    assert told.least_rate == pytest.approx(1 / 13)
    assert [images for images, _ in told.later] == [24, 200]
    words = " ".join(told.sentences())
    assert "12 independent photographs" in words
    assert "7.69%" in words
    assert "1.00% follows from a model" in words
    many = two_voices(rng.normal(0, 1, 200))
    assert "1.00% follows from a model" in " ".join(promise(many, 0.01, many.threshold(0.01)).sentences())
    assert "with 12 more" in words
    assert promise(good, None, 3.0).later == ()
    assert "0.001% follows" in " ".join(promise(good, 1e-5, 3.0).sentences())
    lower = replace(told, later=((2 * told.images, 0.9 * told.threshold),))
    alike = replace(told, later=((2 * told.images, 0.99 * told.threshold),))
    assert "missed today" in lower.sentences()[-1]
    assert "hardly be lower" in alike.sentences()[-1]
    assert "hardly anything alarms" in " ".join(promise(two_voices([1.0]), 0.01, 50.0).sentences())


# Unknown


def test_no_defect_makes_a_known_product_unknown():
    good = torch.rand(20, 12, 12, generator=torch.Generator().manual_seed(0))
    known = Familiarity(ORDINARY, tuple(Familiarity(ORDINARY, ()).of(good).tolist()))
    faulty = good[:1].clone()
    faulty[:, :6] = 50.0  # half of the picture
    assert known.knows(float(known.of(faulty)[0]), near=False)
    assert not known.knows(float(known.of(good[:1] + 5)[0]), near=True)


@pytest.mark.parametrize("images", [2, 3, 5, 12, 100])
def test_hardly_a_good_image_is_called_unknown_however_few_there_were(images):
    rng = np.random.default_rng(images)
    drawn = rng.normal(0, 1, (1500, images + 1))
    known = [Familiarity(ORDINARY, tuple(row[1:]), few=0.01).knows(row[0], near=False) for row in drawn]
    assert 1 - np.mean(known) < 0.02
    alike = Familiarity(ORDINARY, tuple(drawn[0, 1:]), floor=0.2, few=0.01)
    assert Familiarity.from_dict(alike.to_dict(), rate=0.01) == alike
    if images >= 12:  # it is the strangest one that counts then
        assert alike.limit == replace(alike, few=None).limit


def test_a_single_image_knows_everything():
    assert Familiarity(ORDINARY, (0.3,)).limit == math.inf
