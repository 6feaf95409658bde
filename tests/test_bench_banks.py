"""Banks of patches: selection and scores against brute force, states that come back, products left alone."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from moleflow.bench.methods import banks
from moleflow.bench.methods.banks import (
    Bank,
    BankOptions,
    CalibratedBankOptions,
    CalibratedMemoryBank,
    MemoryBank,
    candidates,
    select,
)
from moleflow.bench.methods.base import Pictures, Setting, split
from moleflow.bench.methods.shared import SharedBankOptions, SharedCoreset, _exchanged
from moleflow.config import LineConfig, ScoringConfig
from moleflow.densities.coreset import greedy_centres
from moleflow.errors import ConfigError, TaskError, TrainingError
from moleflow.features.backbones import get_backbone
from moleflow.verdict.maps import PositionCalibration, image_scores, smooth

GRID, CHANNELS = (6, 6), 12
SETTING = Setting(grid=GRID, channels=CHANNELS, image_size=(48, 48))
SMALL = BankOptions(share=0.1, least=20, most=60, candidates=300, projection=8)
EXACT = replace(SMALL, candidates=10_000, projection=CHANNELS)
METHODS = (MemoryBank, CalibratedMemoryBank, SharedCoreset)
KINDS = dict(zip(METHODS, (BankOptions, CalibratedBankOptions, SharedBankOptions), strict=True))
every_method = pytest.mark.parametrize("method", METHODS)
PLACE = (2, 3)  # of the defect


def no_pixels(image, size):
    raise AssertionError("a bank needs no pixels")


def features(product, count, seed=0):
    """Good images: a texture of the product's own around its own level, (count, 6, 6, 12) float16."""
    character = torch.Generator().manual_seed(sum(map(ord, product)))
    level = 3 * torch.randn(CHANNELS, generator=character)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=character) / 4
    noise = torch.randn(count, *GRID, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return (level + noise @ mixing).half()


def images(product, count=12, seed=0):
    return Pictures(product, features(product, count, seed), no_pixels)


def faulty(product, count=4, seed=7):
    values = features(product, count, seed)
    values[:, PLACE[0], PLACE[1]] += 4
    return Pictures(product, values, no_pixels)


def suited(method, options=SMALL):
    """The options that a method has of these; a shared bank is as large as a product's may be."""
    if method is SharedCoreset:
        return SharedBankOptions(options.candidates, options.projection, options.most, options.neighbours)
    return KINDS[method](**{f.name: getattr(options, f.name) for f in fields(KINDS[method])})


def taught(method, products=("a",), options=SMALL, setting=SETTING):
    made = method(setting, suited(method, options))
    for product in products:
        made.learn([images(product)])
    return made


def tell(inspections):
    return [(i.task, i.known, i.score, i.patch_map.tobytes(), i.alarm) for i in inspections]


# Selection


def reference_centres(points, count, first):
    """Greedy k-centre with every distance written out, float64."""
    points, chosen = points.double().numpy(), [first]
    while len(chosen) < count:
        table = np.linalg.norm(points[:, None] - points[chosen][None], axis=2)
        chosen.append(int(table.min(1).argmax()))
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_greedy_centres_are_those_of_brute_force(seed):
    points = torch.randn(120, 5, generator=torch.Generator().manual_seed(seed))
    assert greedy_centres(points, 30, [4]) == reference_centres(points, 30, 4)


def test_greedy_centres_reach_every_cluster_before_any_twice():
    corners = 100 * torch.eye(6).repeat(50, 1)
    points = corners + torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    assert len({index % 6 for index in greedy_centres(points, 6, [0])}) == 6


def test_greedy_centres_end_where_every_point_is_chosen():
    points = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).repeat(20, 1) + 5
    chosen = greedy_centres(points, 50, [3])
    assert sorted(index % 7 for index in chosen) == list(range(7))


def test_selection_in_a_projection_covers_nearly_as_well_and_far_better_than_chance():
    generator = torch.Generator().manual_seed(0)
    # A crowd and a few rare patches: what a random bank would miss.
    crowd, rare = (
        torch.randn(2000, CHANNELS, generator=generator),
        torch.randn(20, CHANNELS, generator=generator),
    )
    patches = torch.cat([crowd, 8 * rare]).half()

    def radius(bank):
        return float(Bank(bank).nearest(patches.float()).distance.max())

    exact = radius(select(patches, 100, SETTING, EXACT).patches)
    projected = radius(select(patches, 100, SETTING, SMALL).patches)
    chance = radius(patches[:100].float())
    assert exact <= projected < 1.8 * exact < chance


def test_candidates_are_distinct_patches_of_the_given_images_alone():
    values = torch.arange(5 * 36).reshape(5, 6, 6, 1).half().expand(5, 6, 6, CHANNELS)
    drawn = candidates(values, [0, 3, 4], SETTING, 50)
    assert drawn.shape == (50, CHANNELS)
    assert drawn.dtype == torch.float16
    numbers = drawn[:, 0].long().tolist()
    assert len(set(numbers)) == 50
    assert {number // 36 for number in numbers} == {0, 3, 4}


def test_candidates_of_many_images_come_from_all_of_them():
    values = torch.arange(40).reshape(40, 1, 1, 1).half().expand(40, *GRID, CHANNELS)
    everything = candidates(values, range(40), SETTING, 10_000)
    assert everything[:, 0].long().bincount().tolist() == [36] * 40


@pytest.mark.parametrize(("patches", "size"), [(10, 20), (400, 40), (9000, 60)])
def test_size_follows_the_share_between_its_bounds(patches, size):
    assert SMALL.size(patches) == size


@pytest.mark.parametrize(
    "wrong", [{"share": 0}, {"share": 1.5}, {"least": 61}, {"neighbours": True}, {"projection": 64.5}]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


# Scores


def test_patch_scores_are_brute_force_distances_even_of_large_features():
    generator = torch.Generator().manual_seed(0)
    bank = (200 + torch.randn(500, CHANNELS, generator=generator)).half().float()
    x = torch.cat([bank[:3], 200 + torch.randn(300, CHANNELS, generator=generator)])
    table = torch.cdist(x.double(), bank.double())
    found = Bank(bank).nearest(x)
    np.testing.assert_allclose(found.distance, table.min(1).values, rtol=0.02, atol=1e-6)
    assert (found.distance[:3] == 0).all()


def reference_score(x, bank, neighbours):
    """Equation 7 of the paper written out in float64."""
    table = np.linalg.norm(x[:, None] - bank[None], axis=2)
    star = table.min(1).argmax()
    nearest = table[star].argmin()
    around = np.argsort(np.linalg.norm(bank - bank[nearest], axis=1))[:neighbours]
    weight = 1 - np.exp(table[star, nearest]) / np.exp(table[star, around]).sum()
    return weight * table[star, nearest]


@pytest.mark.parametrize("neighbours", [2, 5, 9, 30])
def test_image_score_is_the_papers(neighbours):
    generator = torch.Generator().manual_seed(1)
    bank, x = torch.randn(30, 4, generator=generator), torch.randn(36, 4, generator=generator)
    got = Bank(bank).image_score(x, Bank(bank).nearest(x), neighbours)
    assert got == pytest.approx(
        reference_score(x.double().numpy(), bank.double().numpy(), neighbours), rel=1e-4
    )


def test_image_score_stays_finite_where_exponentials_do_not():
    bank = torch.eye(10) * 1000
    x = torch.full((36, 10), 5000.0)
    score = Bank(bank).image_score(x, Bank(bank).nearest(x), 9)
    assert 1000 < score < 20_000


def test_a_bank_of_one_patch_scores_by_distance_alone():
    bank = Bank(torch.zeros(1, 4))
    x = torch.zeros(36, 4)
    x[5] = 3.0
    assert bank.image_score(x, bank.nearest(x), 9) == pytest.approx(6.0)


@every_method
def test_a_defect_scores_above_every_good_image_and_at_its_place(method):
    made = taught(method)
    good = [i.score for i in made.inspect(images("a", 8, seed=5), "a")]
    found = list(made.inspect(faulty("a"), "a"))
    assert min(i.score for i in found) > max(good)
    for inspection in found:
        assert inspection.patch_map.shape == GRID
        assert inspection.patch_map.dtype == np.float32
        assert np.unravel_index(inspection.patch_map.argmax(), GRID) == PLACE


def test_transformer_patches_are_averaged_and_convolutional_ones_were_already():
    values = images("a", 3).features
    token = replace(SETTING, backbone="vit_base_patch16")
    assert get_backbone(SETTING.backbone).pool
    assert not get_backbone(token.backbone).pool
    assert torch.equal(candidates(values, range(3), SETTING, 10_000), values.flatten(0, 2))
    averaged = candidates(values, range(3), token, 10_000).unflatten(0, (3, *GRID)).float()
    x = values.float()
    torch.testing.assert_close(averaged[1, 2, 3], x[1, 1:4, 2:5].mean((0, 1)), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(averaged[1, 0, 0], x[1, :2, :2].mean((0, 1)), rtol=1e-2, atol=1e-2)


def test_the_calibrated_bank_is_selected_from_images_that_do_not_calibrate():
    config = LineConfig(scoring=ScoringConfig(cross_fit_below=5, holdout_least=4))
    setting = replace(SETTING, config=config)
    learn, folds, kind = split(12, config, 0)
    assert kind == "held-out"
    pictures = images("a")
    pictures.features[folds[0]] += 50  # unlike anything to learn from
    made = CalibratedMemoryBank(setting, suited(CalibratedMemoryBank, EXACT))
    made.learn([pictures])
    part = made.parts["a"]
    known = {tuple(row) for row in pictures.features[learn].flatten(0, 2).tolist()}
    assert {tuple(row) for row in part.bank.patches.tolist()} <= known
    assert part.position.level > 50


def test_with_few_images_calibration_takes_distances_to_images_that_were_left_out():
    options = replace(EXACT, least=10_000, most=10_000)  # every patch is in the bank
    made = taught(CalibratedMemoryBank, options=options)
    learn, folds, kind = split(12, SETTING.config, 0)
    assert kind == "cross-fitted"
    values = images("a").features
    expected = []
    for fold in folds:
        bank = Bank(values[sorted(set(learn) - set(fold))].flatten(0, 2).float())
        expected.append(bank.nearest(values[fold].flatten(0, 2).float()).distance)
    assert made.parts["a"].position.level == pytest.approx(float(torch.cat(expected).mean()), rel=1e-5)
    assert len(made.parts["a"].bank.patches) == 12 * 36


def test_a_place_where_good_images_differ_is_judged_milder():
    setting = replace(SETTING, config=LineConfig(scoring=ScoringConfig(smoothing=0)))
    pictures, probe = images("a", 30), images("a", 1, seed=9)
    pictures.features[:, :, 4:] += 2 * torch.randn(
        30, 6, 2, CHANNELS, generator=torch.Generator().manual_seed(3)
    )
    probe.features[0, 3, 1] += 4
    probe.features[0, 3, 5] += 4
    made = CalibratedMemoryBank(setting, suited(CalibratedMemoryBank))
    made.learn([pictures])
    found = next(made.inspect(probe, "a"))
    part = made.parts["a"]
    distance = part.bank.nearest(probe.features.float().flatten(0, 2)).distance.reshape(GRID)
    expected = part.calibration.standardise((distance - part.position.level) / part.position.spread)
    np.testing.assert_allclose(found.patch_map, expected, rtol=1e-4)
    raw = (found.patch_map - part.calibration.standardise(torch.tensor(0.0)).item()) / distance.numpy()
    assert raw[3, 5] < 0.9 * raw[3, 1]
    assert found.score == pytest.approx(float(np.sort(found.patch_map, axis=None)[-3:].mean()), rel=1e-4)


def test_the_calibrated_bank_keeps_held_out_scores_and_calls_defects():
    made = taught(CalibratedMemoryBank)
    calibration = made.parts["a"].calibration
    assert calibration.kind == "cross-fitted"
    assert list(calibration.scores) == sorted(calibration.scores)
    assert len(calibration.scores) == 12
    good, bad = (list(made.inspect(pictures, "a")) for pictures in (images("a", 20, seed=5), faulty("a")))
    assert {i.threshold for i in good} == {calibration.threshold(0.01)}
    assert all(i.alarm for i in bad)
    assert sum(i.alarm for i in good) <= 2
    assert abs(np.mean([i.score for i in good])) < 2  # spreads from the typical good image


def test_a_held_out_image_is_scored_without_its_own_share_in_the_calibration():
    """Against a plain loop that leaves out one image at a time."""
    maps = torch.rand(9, *GRID, generator=torch.Generator().manual_seed(0))
    scoring = SETTING.config.scoring
    expected = []
    for i in range(9):
        position = PositionCalibration.fit(torch.cat([maps[:i], maps[i + 1 :]]), scoring)
        expected.append(float(image_scores(smooth(position(maps[i : i + 1]), scoring.smoothing), scoring)))
    assert banks._left_out_scores(maps, SETTING) == pytest.approx(expected)


@every_method
def test_the_report_hears_how_patches_were_chosen(method):
    notes = "; ".join(method(SETTING, suited(method)).notes)
    assert "candidates: 300 patches at random at most" in notes
    assert "random projection to 8 dimensions" in notes
    assert "projection" not in "; ".join(method(SETTING, suited(method, EXACT)).notes)
    assert ("not PatchCore's" in notes) == (method is CalibratedMemoryBank)
    assert ("CADIC's update" in notes) == (method is SharedCoreset)
    assert ("10 % of the patches kept, 20 to 60" in notes) == (method is not SharedCoreset)


# State


@every_method
def test_a_state_comes_back_to_the_bit(method):
    made = taught(method, ("a", "b"))
    again = method(SETTING, suited(method))
    again.restore(made.state())
    for task in ("a", None):
        assert tell(again.inspect(faulty("a"), task)) == tell(made.inspect(faulty("a"), task))
    assert same_bytes(again.state(), made.state())


def same_bytes(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    return one.notes == other.notes and all(
        t.dtype == other.tensors[name].dtype and torch.equal(t, other.tensors[name])
        for name, t in one.tensors.items()
    )


@every_method
def test_learning_goes_on_from_a_state_as_it_would_have(method):
    halfway = method(SETTING, suited(method))
    halfway.restore(taught(method).state())
    halfway.learn([images("b")])
    assert same_bytes(halfway.state(), taught(method, ("a", "b")).state())


@every_method
def test_the_seed_decides_every_byte(method):
    assert same_bytes(taught(method).state(), taught(method).state())
    assert not same_bytes(taught(method).state(), taught(method, setting=replace(SETTING, seed=1)).state())


@pytest.mark.parametrize("method", [MemoryBank, CalibratedMemoryBank])
def test_another_product_leaves_the_first_alone(method):
    alone, both = taught(method), taught(method, ("a", "b"))
    before, after = alone.state(), both.state()
    assert all(torch.equal(value, after.tensors[name]) for name, value in before.tensors.items())
    assert tell(alone.inspect(faulty("a"), "a")) == tell(both.inspect(faulty("a"), "a"))


@every_method
def test_an_image_is_judged_without_its_neighbours(method):
    made, probe = taught(method, ("a", "b")), faulty("a")
    together = tell(made.inspect(probe))
    assert [tell(made.inspect(probe.take([i])))[0] for i in range(len(probe))] == together


def test_a_bank_costs_two_bytes_a_number():
    state = taught(MemoryBank).state()
    bank = state.tensors["a/bank"]
    assert bank.dtype == torch.float16
    assert bank.shape == (43, CHANNELS)  # a tenth of 12 x 36 patches


@every_method
def test_features_that_are_no_numbers_and_no_images_are_refused(method):
    broken = images("a")
    broken.features[3, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match="finite"):
        method(SETTING, suited(method)).learn([broken])
    with pytest.raises(TrainingError, match="'a'"):
        method(SETTING, suited(method)).learn([images("a", 0)])


@every_method
@pytest.mark.parametrize("count", [1, 2])
def test_one_image_is_enough_and_equal_patches_do_no_harm(method, count):
    for pictures in (images("a", count), Pictures("a", torch.ones(count, *GRID, CHANNELS).half(), no_pixels)):
        made = method(SETTING, suited(method))
        made.learn([pictures])
        for inspection in made.inspect(faulty("a"), "a"):
            assert np.isfinite(inspection.score)
            assert np.isfinite(inspection.patch_map).all()


# The shared coreset


def test_the_shared_bank_never_grows_and_holds_patches_of_every_product():
    made, seen = SharedCoreset(SETTING, suited(SharedCoreset)), set()
    for product in "abcd":
        made.learn([images(product)])
        seen |= {tuple(row) for row in images(product).features.flatten(0, 2).tolist()}
        assert made.bank.patches.shape == (SMALL.most, CHANNELS)
        assert {tuple(row) for row in made.bank.patches.tolist()} <= seen
    for product in "abcd":
        own = {tuple(row) for row in images(product).features.flatten(0, 2).tolist()}
        assert sum(tuple(row) in own for row in made.bank.patches.tolist()) >= 3
    assert list(made.state().tensors) == ["shared/bank"]
    assert made.state().bytes_of() == 2 * SMALL.most * CHANNELS


def test_old_patches_are_taken_from_the_bank_not_from_images():
    made = taught(SharedCoreset)
    old = {tuple(row) for row in made.bank.patches.tolist()}
    first = {tuple(row) for row in images("a").features.flatten(0, 2).tolist()}
    made.learn([images("b")])
    kept = {tuple(row) for row in made.bank.patches.tolist()} & first
    assert kept
    assert kept <= old


def reference_exchange(points, kept, waiting):
    """CADIC's update with every distance written out."""
    points, kept, waiting = points.double(), list(kept), list(waiting)
    while waiting:
        table = torch.cdist(points[kept], points[kept]) + torch.diag(torch.full((len(kept),), torch.inf))
        outside = torch.cdist(points[waiting], points[kept]).amin(1)
        if outside.max() <= table.min():
            break
        pair = divmod(int(table.argmin()), len(kept))
        kept[min(pair)] = waiting.pop(int(outside.argmax()))
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_an_update_exchanges_as_brute_force_does(seed):
    points = torch.randn(150, 4, generator=torch.Generator().manual_seed(seed))
    found = _exchanged(points, list(range(30)), list(range(30, 150)))
    assert sorted(found) == sorted(reference_exchange(points, range(30), range(30, 150)))
    assert len(set(found) - set(range(30))) > 5


def test_the_closest_two_of_a_full_bank_only_move_apart():
    made, least = SharedCoreset(SETTING, suited(SharedCoreset, EXACT)), []
    for product in "abc":
        made.learn([images(product)])
        table = torch.cdist(made.bank.patches, made.bank.patches)
        least.append(float(table.fill_diagonal_(torch.inf).min()))
    assert least == sorted(least)


def test_the_shared_coreset_knows_no_products():
    made = taught(SharedCoreset, ("a", "b"))
    assert not SharedCoreset.routes
    assert tell(made.inspect(faulty("a"), "b")) == tell(made.inspect(faulty("a")))
    assert all(i.task is None and i.known is None for i in made.inspect(faulty("a")))


def test_the_shared_coreset_says_that_nothing_was_learned():
    empty = SharedCoreset(SETTING)
    with pytest.raises(TaskError, match="none"):
        next(empty.inspect(images("a", 1)))
    empty.restore(empty.state())
    assert empty.bank is None


def test_products_of_one_task_have_equal_parts_of_the_candidates():
    made = SharedCoreset(SETTING, suited(SharedCoreset, replace(SMALL, candidates=40)))
    made.learn([images("a"), images("b", 30)])
    first = {tuple(row) for row in images("a").features.flatten(0, 2).tolist()}
    assert len(made.bank.patches) == 40
    assert sum(tuple(row) in first for row in made.bank.patches.tolist()) == 20
