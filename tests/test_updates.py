"""Learning more of a product: what may not be lost by it, and what speaks of images it has not seen."""

from __future__ import annotations

import pytest
import torch

from moleflow.config import LineConfig, override
from moleflow.densities.whole import WholeGaussian
from moleflow.errors import CalibrationError
from moleflow.features.extractor import Features
from moleflow.flow.expert import Base
from moleflow.learning import lesson
from moleflow.learning.blocks import make_blocks
from moleflow.learning.left_out import whole_left_out
from moleflow.learning.product import calibrated_without_own, learn_product
from moleflow.photographs.review import Lesson
from moleflow.verdict.maps import PositionCalibration
from saying import snapshot

CONFIG = override(
    LineConfig(),
    {
        "flow.hidden": 8,
        "flow.couplings": 0,
        "flow.mixer": None,
        "flow.dia": None,
        "flow.lora": None,
        "training.steps": 1,
        "scoring.coreset": None,
    },
)
GRID, CHANNELS, POOLED = (4, 4), 8, 60
SCORING = CONFIG.scoring


@pytest.fixture(scope="module")
def base():
    return Base(GRID, CHANNELS, CONFIG.flow).requires_grad_(False).eval()


def good(count, seed=0):
    """Features of one made-up product, every number of mean 5 and spread 1."""
    chance = torch.Generator().manual_seed(seed)
    patches = 5 + torch.randn(count, *GRID, CHANNELS, generator=chance)
    return Features(patches.half(), 5 + torch.randn(count, POOLED, generator=chance))


# Few images


@pytest.mark.parametrize("few", [1, 2, 3])
def test_an_update_of_fewer_than_four_images_is_refused_and_nothing_moves(loaded, probe, pictures, few):
    before = snapshot(loaded, probe)
    said = rf"'gear'.*from 8 independent.*at least 4 .*got {few} among {few} images; nothing changed"
    with pytest.raises(CalibrationError, match=said):
        loaded.update_task("gear", pictures("gear", few, first=50))
    assert snapshot(loaded, probe) == before


def test_near_copies_and_what_is_known_count_for_nothing_in_an_update(loaded, pictures):
    new = pictures("gear", 3, first=50)
    again = [picture.copy() for picture in new]
    for picture in again:
        picture[0, 0] ^= 1
    with pytest.raises(CalibrationError, match=r"got 3 among 14 images, of which 8 were left out"):
        loaded.update_task("gear", [*pictures("gear", 8), *new, *again])


def test_what_scores_accuse_may_leave_too_few(loaded, pictures, monkeypatch):
    def accused(material, product, *, drop_suspicious):
        return material.take([0, 1, 2], Lesson(3, 3), [0, 1, 2])

    monkeypatch.setattr(lesson, "_accused_by_scores", accused)
    with pytest.raises(CalibrationError, match=r"got 3 among 4 images, of which 1 were left out"):
        loaded.update_task("gear", pictures("gear", 4, first=50), drop_suspicious=True)


def test_a_product_of_three_images_learns_from_three_more(new_line, pictures):
    line = new_line()
    line.add_task("gear", pictures("gear", 3))
    assert line.update_task("gear", pictures("gear", 3, first=20)).images == 6
    with pytest.raises(CalibrationError, match="expected at least 3"):
        line.update_task("gear", pictures("gear", 2, first=40))


def test_what_is_known_of_the_picture_as_a_whole_outlives_an_update_without_a_voice(base):
    taught = learn_product(base, good(12), CONFIG, seed=0)
    bursts = [0, 0, 0, 1, 1, 2]
    silent = learn_product(base, good(6, seed=1), CONFIG, seed=0, previous=taught, copies=bursts)
    assert silent.calibration.whole is None
    assert torch.equal(silent.whole.mean, taught.whole.mean)
    one = good(1, seed=2)
    assert silent.inspect(base, one).whole is None, "it has no scale to speak in"
    again = learn_product(base, good(8, seed=3), CONFIG, seed=0, previous=silent)
    assert again.inspect(base, one).whole is not None


# Memory


def test_update_after_update_the_remembered_keep_their_spread(base):
    """Not drawn from the same noise, which the density that learned it takes out of what it draws."""
    product = learn_product(base, good(32), CONFIG, seed=0)
    for update in range(1, 4):
        product = learn_product(base, good(8, seed=update), CONFIG, seed=0, previous=product)
    assert float(product.whole.spread.mean()) == pytest.approx(1, abs=0.08)


# What was not seen


@pytest.mark.parametrize("count", [5, 40])
def test_a_picture_as_a_whole_is_judged_by_those_of_other_blocks(count):
    pooled, memory = good(count).pooled, good(6, seed=1).pooled
    blocks = make_blocks(count, SCORING)
    _, said = whole_left_out(pooled, memory, blocks, SCORING)
    for i, own in enumerate(blocks.left_out):
        others = [other for other, block in enumerate(blocks.left_out) if block != own]
        judge = WholeGaussian.fit(torch.cat([pooled[others], memory]), SCORING.whole)
        assert float(said[i]) == pytest.approx(float(judge(pooled[i : i + 1])), rel=1e-6)


@pytest.mark.parametrize("count", [5, 40])
def test_an_image_has_no_part_in_the_places_that_calibrate_it(count):
    scores = torch.randn(count, *GRID, generator=torch.Generator().manual_seed(0))
    blocks = make_blocks(count, SCORING)
    odd = scores.clone()
    odd[1, 2, 3] += 100
    before, after = (calibrated_without_own([given], blocks, SCORING)[0] for given in (scores, odd))
    own = blocks.images_of(blocks.left_out[1])
    rest = [i for i in range(count) if i not in own]
    elsewhere = torch.ones(GRID, dtype=torch.bool)
    elsewhere[2, 3] = False
    assert torch.equal(after[1, elsewhere], before[1, elsewhere])
    assert torch.equal(after[[i for i in own if i != 1]], before[[i for i in own if i != 1]])
    assert not torch.equal(after[rest], before[rest])
    assert torch.equal(after[own], PositionCalibration.fit(scores[rest], SCORING)(odd[own]))
