"""Pose: how an object lies is found, undone only where it helps, and kept out of what the user sees."""

import functools
import json
import math

import numpy as np
import pytest
import torch

from moleflow import Cells, Detector, Dia, FlowConfig, LineConfig, ScoringConfig, TrainingConfig
from moleflow.data.factory import make_sample
from moleflow.errors import ConfigError
from moleflow.intake import Intake
from moleflow.learning.pose import _window, mean_template, settle_pose
from moleflow.pose import Placement, Pose, PoseReport, find, local_contrast, thumbnail

SIZE = 96
IMAGES = 12


@functools.cache
def drawn(product, seed, kind="good", size=SIZE):
    return make_sample(product, seed, kind=kind, size=size)


def laid(pixels, angle, shift):
    """The picture with its object turned clockwise by `angle` degrees and moved by `shift`."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = shift
    back = Placement(-angle, (-(cos * x + sin * y), sin * x - cos * y))
    return back.aligned(pixels, pixels.shape[:2])


def poses(count, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.uniform(-180, 180), tuple(rng.uniform(-0.1, 0.1, 2))) for _ in range(count)]


@functools.cache
def lying_anywhere(product, count, first=0):
    drawings = [drawn(product, first + i).image for i in range(count)]
    return [laid(image, *pose) for image, pose in zip(drawings, poses(count, first), strict=True)]


def new_line():
    config = LineConfig(
        flow=FlowConfig(cells=Cells(side=4, rank=8, mean_side=12), hidden=32, dia=Dia(hidden=32)),
        training=TrainingConfig(steps=2, base_steps=2, patches=128),
        scoring=ScoringConfig(folds=2),
    )
    return Detector(image_size=SIZE, device="cpu", config=config)


@pytest.fixture(scope="module")
def line():
    """One product that lies anywhere, and one that is a texture."""
    line = new_line()
    line.add_task("cap", lying_anywhere("bottle_cap", IMAGES))
    line.add_task("wood", [drawn("wood", seed).image for seed in range(IMAGES)])
    return line


@pytest.mark.parametrize("product", ["gear", "bottle_cap", "circuit_board", "blister_pack"])
@pytest.mark.parametrize("pose", [(0.0, (0.0, 0.0)), (73.4, (0.08, -0.05)), (-151.2, (-0.1, 0.07))])
def test_a_known_turn_and_shift_are_found(product, pose):
    image = drawn(product, 1).image
    template = local_contrast(image, (SIZE, SIZE))
    found = find(template, local_contrast(laid(image, *pose), (SIZE, SIZE))[None], 180.0)[0]
    assert abs(math.remainder(found.angle - pose[0], 360)) < 1
    assert found.shift == pytest.approx(pose[1], abs=0.01)
    assert found.match > 0.8


def test_in_an_oblong_picture_a_turn_is_a_turn():
    """The line sees it squeezed to a square; the angle is that of the picture as it came."""
    wide = np.full((SIZE, 2 * SIZE, 3), 120, np.uint8)
    wide[:, SIZE // 2 : -SIZE // 2] = drawn("gear", 3).image
    moved = laid(wide, 30.0, (0.04, 0.02))
    squeezed = [np.ascontiguousarray(image[:, ::2]) for image in (wide, moved)]
    looks = [local_contrast(image, wide.shape[:2]) for image in squeezed]
    found = find(looks[0], looks[1][None], 180.0)[0]
    assert found.angle == pytest.approx(30, abs=1)
    assert found.shift == pytest.approx((0.04, 0.02), abs=0.01)


def test_aligned_pictures_lie_alike():
    images = lying_anywhere("bottle_cap", 8)
    looks = np.stack([local_contrast(image, (SIZE, SIZE)) for image in images])
    template = mean_template(looks, 180.0)
    placements = find(template, looks, 180.0)
    turned = [p.aligned(image, (SIZE, SIZE)) for p, image in zip(placements, images, strict=True)]
    again = find(template, np.stack([local_contrast(image, (SIZE, SIZE)) for image in turned]), 180.0)
    assert max(abs(p.angle) for p in again) < 1.5
    assert max(math.hypot(*p.shift) for p in again) < 0.01


def test_the_mean_lies_in_the_middle_of_the_images():
    """Whatever image it began with, objects are moved to the middle and not out of the picture."""
    image = drawn("gear", 1).image
    moved = [laid(image, angle, (0.1, 0.0)) for angle in (0, 90, 180, -90)]
    looks = np.stack([local_contrast(m, (SIZE, SIZE)) for m in moved])
    placements = find(mean_template(looks, 180.0), looks, 180.0)
    assert np.mean([p.shift for p in placements], 0) == pytest.approx((0.1, 0.0), abs=0.02)


def share_shown(wide, high, *, by):
    """Share of a picture, `wide` x `high`, that this share of its turns about the middle shows.

    How many turns show a place depends on its distance from the middle alone.
    """
    across, down = np.meshgrid(*(((np.arange(300) + 0.5) / 300) * side for side in (wide, high)))
    far = np.hypot(across, down)  # a quarter of the picture: the others are the same
    # Turned all around, a place stands beside a strip as wide as the picture within these angles.
    beside = [np.arccos(np.minimum(side / far, 1)) / (math.pi / 2) for side in (wide, high)]
    return float((1 - sum(beside) >= by).mean())


@pytest.mark.parametrize(("wide", "high"), [(96, 96), (128, 96), (96, 128), (128, 72)])
def test_nine_of_ten_good_images_show_what_their_own_shape_lets_them(wide, high):
    """What a thumbnail has beside an oblong picture is no part of it, and shows nothing."""
    turns = [Placement(12.0 * number, (0.0, 0.0)) for number in range(30)]
    look = thumbnail(np.full((high, wide, 3), 120, np.uint8), (high, wide))  # plain, and shown all the same
    window = _window(np.stack([look] * len(turns)), turns)
    assert window[look[3] == 1].mean() == pytest.approx(share_shown(wide, high, by=0.9), abs=0.015)


def test_a_picture_that_is_moved_shows_its_own_part():
    """To the pixel: upright, moved to the right and down, and turned by a quarter."""
    look = thumbnail(np.full((SIZE // 2, SIZE, 3), 120, np.uint8), (SIZE // 2, SIZE))
    for placement, rows, columns in [
        (Placement(0.0, (0.0, 0.0)), (24, 72), (0, 96)),
        (Placement(0.0, (0.25, 0.125)), (12, 60), (0, 72)),
        (Placement(90.0, (0.0, 0.0)), (0, 96), (24, 72)),
    ]:
        wanted = np.zeros((96, 96), bool)
        wanted[slice(*rows), slice(*columns)] = True
        assert np.array_equal(_window(look[None], [placement]), wanted), placement


@pytest.mark.long
def test_of_a_wide_picture_that_turns_only_the_middle_is_inspected():
    """From images to what the backbone sees: their turns are found, and what they do not share is covered."""
    wide = np.full((SIZE, 2 * SIZE, 3), 120, np.uint8)
    wide[:, SIZE // 2 : -SIZE // 2] = drawn("circuit_board", 3).image
    line = new_line()
    line.add_task("board", [laid(wide, angle, (0.0, 0.0)) for angle in (0, 60, 120)], pose="on")
    window = line._line.products["board"].pose.window
    white = np.full_like(wide, 255)
    white[[0, -1]] = white[:, [0, -1]] = 0  # what is covered has the colour of the border
    seen = Placement(0.0, (0.0, 0.0)).aligned(white, wide.shape[:2], window=window).mean() / 255
    hexagon = math.sqrt(3) / 2  # of the picture's height: what three such strips have in common
    assert seen == pytest.approx(hexagon / 2, abs=0.02)


@pytest.mark.parametrize("size", [(64, 96), (300, 200)])
def test_a_map_is_turned_back_to_where_the_image_is(size):
    """Painting a spot, aligning and mapping back end where the spot was, in any shape of picture."""
    image = np.zeros((*size, 3), np.uint8)
    row, column = int(0.4 * size[0]), int(0.55 * size[1])
    image[row - 3 : row + 4, column - 3 : column + 4] = 255
    placement = Placement(37.0, (0.06, -0.03))
    aligned = placement.aligned(image, size)
    back = placement.map_back(aligned[..., 0].astype(np.float32), size, image_size=size)
    peak = np.argwhere(back > 0.5 * back.max()).mean(0)
    assert peak == pytest.approx((row, column), abs=1.5)


def test_a_product_that_lies_anywhere_is_aligned(line):
    report = line.info("cap").pose
    assert report.aligned
    assert report.degrees > 90
    assert report.after < 0.9 * report.before
    assert str(report).startswith("varies by up to")


def test_textures_and_products_that_lie_still_are_left_alone(line):
    assert not line.info("wood").pose.aligned
    noise = np.random.default_rng(0).normal(0, 3, (IMAGES, SIZE, SIZE, 3))
    board = (drawn("circuit_board", 1).image + noise).clip(0, 255).astype(np.uint8)

    def never(*_):
        raise AssertionError("the backbone is not asked about a product that lies still")

    looks = np.stack([thumbnail(image, (SIZE, SIZE)) for image in board])
    pose = settle_pose(
        "auto", torch.zeros(IMAGES, 12, 12, 4), cells=Cells(), thumbnails=lambda n: looks[n], see=never
    )
    assert (pose.template, pose.report.reason) == (None, "lies still")


def test_a_product_that_is_not_aligned_passes_the_backbone_once(line, monkeypatch):
    passes = []
    see = line.extractor.see
    monkeypatch.setattr(line.extractor, "see", lambda batch: passes.append(len(batch)) or see(batch))
    line.predict([drawn("wood", 50).image], task="wood")
    assert passes == [1]
    passes.clear()
    assert line.predict(lying_anywhere("bottle_cap", 1, first=50), task="cap")[0].placement is not None
    assert passes == [1, 1]


def test_a_defect_is_shown_where_it_is_in_the_image(line):
    """Whichever way the object lies; without a turn back of the map the peak would be elsewhere."""
    for pose in poses(3, seed=7):
        image = drawn("bottle_cap", 60).image.copy()
        image[44:54, 60:70] = (20, 240, 20)
        mark = np.zeros_like(image)
        mark[44:54, 60:70] = 255
        where = np.argwhere(laid(mark, *pose)[..., 0] > 127).mean(0)
        found = line.predict([laid(image, *pose)], task="cap")[0]
        peak = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
        assert found.placement is not None  # though it matches worse than any good image
        assert np.hypot(*(np.array(peak) - where)) < 12  # a patch is 8 pixels wide


def test_another_product_is_left_as_it_is(line):
    found = line.predict([drawn("gear", 70).image, lying_anywhere("bottle_cap", 1, first=70)[0]], task="cap")
    assert [p.placement is None for p in found] == [True, False]
    assert json.loads(json.dumps(found[1].to_dict()))["placement"]["match"] > 0.5


def test_a_saved_line_says_the_same_to_the_bit(line, tmp_path):
    images = [*lying_anywhere("bottle_cap", 2, first=80), drawn("wood", 80).image]
    before = line.predict(images)
    line.save(tmp_path / "line")
    loaded = Detector.load(tmp_path / "line", device="cpu")
    for a, b in zip(before, loaded.predict(images), strict=True):
        assert a.to_dict() == b.to_dict()
        assert np.array_equal(a.anomaly_map, b.anomaly_map)
    assert loaded.info("cap").pose == line.info("cap").pose


def settled(images):
    """A pose settled with tiny pictures for features."""
    looks = np.stack([thumbnail(image, (SIZE, SIZE)) for image in images])

    def pooled(pictures):
        cells = [picture.reshape(12, 8, 12, 8, 3).mean((1, 3)) for picture in pictures]
        return torch.from_numpy(np.stack(cells)).float()

    def see(numbers, placements, window):
        return pooled(
            p.aligned(images[n], (SIZE, SIZE), window=window)
            for n, p in zip(numbers, placements, strict=True)
        )

    cells = Cells(side=4, rank=2, mean_side=12)
    return settle_pose("auto", pooled(images), cells=cells, thumbnails=lambda n: looks[n], see=see)


@pytest.mark.slow
def test_settling_twice_gives_the_same_pose():
    one, two = (settled(lying_anywhere("bottle_cap", IMAGES)) for _ in range(2))
    assert one.report.aligned
    assert one.info() == two.info()
    for name, array in one.arrays().items():
        assert np.array_equal(array, two.arrays()[name]), name


def test_the_router_meets_images_as_they_come(line):
    known = [p.task for p in line.predict([*lying_anywhere("bottle_cap", 3, 90), drawn("wood", 90).image])]
    assert known == ["cap", "cap", "cap", "wood"]


@pytest.mark.long
def test_an_update_keeps_the_mean():
    line = new_line()
    line.add_task("cap", lying_anywhere("bottle_cap", 4), pose="on")
    before = line._line.products["cap"].pose
    line.update_task("cap", lying_anywhere("bottle_cap", 4, first=20))
    assert line._line.products["cap"].pose is before
    assert before.report.reason == "asked for"


def test_wishes_are_kept(pictures):
    line = new_line()
    images = [drawn("gear", seed).image for seed in range(2)]
    assert line.add_task("off", images, pose="off").pose == PoseReport(False, "switched off")
    assert line.add_task("few", images).pose == PoseReport(False, "too few images")
    assert line.add_task("on", images, pose="on").pose.aligned
    with pytest.raises(ConfigError, match="expected a pose among auto, on, off"):
        line.add_task("maybe", images, pose="perhaps")


def test_a_blank_picture_is_placed_nowhere(line):
    pose: Pose = line._line.products["cap"].pose
    assert pose.place(np.full((SIZE, SIZE, 3), 90, np.uint8), (SIZE, SIZE)) is None


def test_a_line_from_before_has_no_pose(line, tmp_path):
    line.save(tmp_path / "line")
    product = line._line.products["wood"]
    info = {key: value for key, value in product.info().items() if key != "pose"}
    old = type(product).from_saved(line._line.base, product.config, product.tensors(), info)
    assert old.pose is None


def test_a_picture_with_a_border_is_turned_within_it():
    image = drawn("bottle_cap", 5).image[16:-16]  # 64 x 96
    picture = Intake((SIZE, SIZE), fit="letterbox", cell=8).read(0, image)
    placement = Placement(180.0, (0.0, 0.0))
    turned = picture.aligned(placement, None)
    assert turned.area == picture.area
    assert turned.pixels.shape == picture.pixels.shape
    away = np.abs(turned.own.astype(int) - picture.own[::-1, ::-1].astype(int))
    assert np.median(away) <= 1
    assert np.array_equal(turned.pixels[0], turned.own[0])  # the border goes on from the turned image


@pytest.mark.long
def test_what_is_left_out_and_grouped_stays_with_its_image():
    images = [*lying_anywhere("bottle_cap", 6), np.full((SIZE, SIZE, 3), 7, np.uint8)]
    line = new_line()
    found = line.add_task("cap", images, groups=list("aabbccc"), drop_suspicious=True, pose="on")
    assert (found.images, found.pose.aligned) == (6, True)
    assert [suspect.source for suspect in found.suspects if suspect.source in found.lesson.dropped]
    product = line._line.products["cap"]
    assert product.calibration.blocks == (0, 0, 1, 1, 2, 2)
    assert product.reference.norms["light"].blocks == 3
    told = line.update_task("cap", lying_anywhere("bottle_cap", 4, first=30)).changes
    assert told.taught == 4
