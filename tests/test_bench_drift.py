"""Drift: the same in every run, growing from step to step, and masks that stay on their defects."""

import colorsys
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from moleflow.bench.drift import DRIFTS, STEPS, Distortion, distort, distort_mask, drift, drifted
from moleflow.bench.pictures import item_image, item_mask
from moleflow.data.factory import write_product
from moleflow.data.images import resize
from moleflow.data.layouts import Item, read_dataset
from moleflow.errors import ConfigError

KINDS = tuple(DRIFTS)
SEEDS = range(12)


@pytest.fixture(scope="module")
def photo(pictures):
    return pictures("gear", 1)[0]


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    folder = write_product(
        "gear", tmp_path_factory.mktemp("data"), train=2, test_good=1, test_defective=6, size=64
    )
    return read_dataset(folder).products["gear"]


def smooth_noise(shape, seed=0):
    """A picture without edges, so that interpolation costs little, uint8 (H, W, 3)."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(*shape, 3)), (6, 6, 0))
    return np.clip(128 + 60 * values / values.std(), 0, 255).astype(np.uint8)


def change(image, kind, step):
    """Mean absolute change over seeds."""
    return np.mean([np.abs(distort(image, kind, step, s).astype(float) - image).mean() for s in SEEDS])


def test_strengths_are_those_of_the_scenario():
    assert all(len(steps) == STEPS for steps in DRIFTS.values())
    assert (DRIFTS["colour"][0], DRIFTS["colour"][-1]) == ((0, 0.05), (0.45, 0.5))
    assert DRIFTS["blur"][:3] == ((1, 0.5), (3, 1), (5, 1.5))
    assert DRIFTS["blur"][-1] == (19, 5)
    assert (DRIFTS["geometry"][0], DRIFTS["geometry"][-1]) == ((2, 1, 0.01, 1), (20, 10, 0.1, 10))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_shape_and_type_stay(kind, shape):
    image = smooth_noise(shape)
    before = image.copy()
    for step in range(1, STEPS + 1):
        found = distort(image, kind, step, 0)
        assert found.shape == image.shape
        assert found.dtype == np.uint8
        mask = distort_mask(image[..., 0] > 200, kind, step, 0)
        assert (mask.shape, mask.dtype) == (shape, bool)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", KINDS)
def test_distortion_grows(photo, kind):
    changes = [change(photo, kind, step) for step in (1, 4, 7, 10)]
    assert changes == sorted(changes)
    assert changes[-1] > 3 * changes[0]


@pytest.mark.parametrize("kind", ["colour", "geometry"])
def test_seed_and_step_decide_and_nothing_else(photo, kind):
    first = distort(photo, kind, 3, 5)
    np.random.seed(1)  # the global state must not matter
    assert np.array_equal(first, distort(photo, kind, 3, 5))
    assert not np.array_equal(first, distort(photo, kind, 3, 6))
    assert not np.array_equal(first, distort(photo, kind, 4, 5))


@pytest.mark.parametrize(
    ("kind", "step"), [("fog", 1), ("blur", 0), ("blur", 11), ("blur", 1.0), ("blur", True)]
)
def test_impossible_steps(photo, kind, step):
    for attempt in (
        lambda: distort(photo, kind, step, 0),
        lambda: distort_mask(photo[..., 0] > 0, kind, step, 0),
        lambda: Distortion(kind, step),
    ):
        with pytest.raises(ConfigError):
            attempt()


# Each kind against an independent reference


def test_colour_agrees_with_a_reference_pixel_by_pixel():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    image[0] = image[0, :, :1]  # greys have no hue
    for step, seed in ((1, 0), (5, 1), (10, 2), (10, 3)):
        rng = np.random.default_rng((seed, step))
        bright, contrast, saturation, hue = rng.uniform(*DRIFTS["colour"][step - 1], 4) * rng.choice(
            (-1, 1), 4
        )
        grey = np.array([0.299, 0.587, 0.114])
        values = np.clip(image / 255 * (1 + bright), 0, 1)
        values = np.clip((1 + contrast) * values - contrast * (values @ grey).mean(), 0, 1)
        values = np.clip((1 + saturation) * values - saturation * (values @ grey)[..., None], 0, 1)
        expected = np.empty(image.shape)
        for at in np.ndindex(6, 5):
            h, s, v = colorsys.rgb_to_hsv(*values[at])
            expected[at] = colorsys.hsv_to_rgb((h + hue) % 1, s, v)
        found = distort(image, "colour", step, seed)
        assert np.abs(found - 255 * expected).max() < 0.51


def test_blur_is_the_gaussian_of_the_step_at_256_pixels():
    point = np.zeros((256, 256, 3), np.uint8)
    point[128, 128] = 255
    for step, (kernel, sigma) in enumerate(DRIFTS["blur"], 1):
        line = np.exp(-0.5 * (np.arange(kernel) - kernel // 2) ** 2 / sigma**2)
        line /= line.sum()
        found = distort(point, "blur", step, 0)[..., 0]
        around = slice(128 - kernel // 2, 129 + kernel // 2)
        np.testing.assert_allclose(found[around, around], 255 * np.outer(line, line), atol=0.51)
        assert np.count_nonzero(found) <= kernel**2


def test_geometry_stays_within_its_bounds():
    # Where three points land gives the map; it must be a turn, a scale and a shear no larger than said.
    at = np.array([[0.3, 0.3], [0.3, 0.7], [0.7, 0.3]])
    rows, columns = (np.indices((256, 256)) + 0.5) / 256
    largest = np.zeros(3)
    for step in (1, 5, 10):
        degrees, pixels, growth, shear = DRIFTS["geometry"][step - 1]
        for seed in SEEDS:
            landed = []
            for row, column in at:
                blob = np.exp(-0.5 * ((rows - row) ** 2 + (columns - column) ** 2) / 0.02**2)
                image = np.repeat(np.round(255 * blob).astype(np.uint8)[..., None], 3, 2)
                found = distort(image, "geometry", step, seed)[..., 0].astype(float)
                landed.append([(found * rows).sum() / found.sum(), (found * columns).sum() / found.sum()])
            origin, right, down = np.array(landed)
            matrix = np.stack([(down - origin) / 0.4, (right - origin) / 0.4], axis=1)
            scale = np.linalg.det(matrix) ** 0.5
            angle = np.degrees(np.arctan2(-matrix[0, 1], matrix[1, 1]))
            centre = origin + matrix @ (0.5 - at[0]) - 0.5
            assert abs(scale - 1) < growth + 0.005
            assert abs(angle) < degrees + 0.3
            assert np.abs(centre).max() * 256 < pixels + 0.3
            slant = np.degrees(np.arctan(matrix[:, 0] @ matrix[:, 1] / scale**2))
            assert abs(slant) < shear + 0.3
            largest = np.maximum(largest, (abs(scale - 1), abs(angle), np.abs(centre).max() * 256))
    assert (largest > 0.7 * np.array((0.1, 20, 10))).all()


# Masks


def test_only_geometry_moves_masks(photo):
    mask = photo[..., 0] > 150
    for kind in KINDS:
        moved = distort_mask(mask, kind, 9, 4)
        assert np.array_equal(moved, mask) == (kind != "geometry")
        assert moved is not mask


def test_a_mask_moves_with_its_image():
    for seed in SEEDS:
        mask = np.zeros((128, 128), bool)
        mask[40:70, 50:100] = True
        image = np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(3, 2)
        seen = distort(image, "geometry", 10, seed)[..., 0] > 127
        moved = distort_mask(mask, "geometry", 10, seed)
        assert moved.any()
        assert not np.array_equal(moved, mask)
        assert np.count_nonzero(seen != moved) < 0.05 * np.count_nonzero(moved)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(256, 256), (192, 384)])
def test_resizing_and_distorting_can_change_places(kind, shape):
    """Also for pictures that are not square: a mask at its own size fits an image at the model's."""
    image = smooth_noise(shape)
    for seed in range(3):
        late = distort(resize(image, (128, 128)), kind, 10, seed).astype(float)
        early = resize(distort(image, kind, 10, seed), (128, 128)).astype(float)
        assert np.abs(late - early).mean() < 2
        assert np.abs(late - early).mean() < 0.1 * change(resize(image, (128, 128)), kind, 10) + 0.5


# Items and products


def item(path, **changes):
    return dataclasses.replace(Item(Path(path), "gear", "train", "good"), **changes)


def test_a_distortion_depends_on_the_item_and_not_on_where_it_lies(photo):
    seen = Distortion("colour", 4).image
    first = seen(photo, item("a/000.png"))
    assert np.array_equal(first, seen(photo, item("b/000.jpg", product="gear@colour-04")))
    for other in (item("a/001.png"), item("a/000.png", split="test"), item("a/000.png", kind="crack")):
        assert not np.array_equal(first, seen(photo, other))


def test_keys_name_every_step_once():
    keys = {Distortion(kind, step).key for kind in KINDS for step in range(1, STEPS + 1)}
    assert len(keys) == len(KINDS) * STEPS
    assert Distortion("colour", 3).key == "colour-03(0.1, 0.15)"


def test_a_drifted_product_is_the_same_files_seen_through_the_distortion(product):
    seen = drifted(product, "geometry", 10)
    assert seen.name == "gear@geometry-10"
    assert [one.path for one in seen.items] == [one.path for one in product.items]
    assert {one.product for one in seen.items} == {seen.name}
    assert seen.has_masks
    for before, after in zip(product.test, seen.test, strict=True):
        distortion = Distortion("geometry", 10)
        assert (after.kind, after.label, after.split) == (before.kind, before.label, before.split)
        assert np.array_equal(item_image(after), distortion.image(item_image(before), before))
        mask = item_mask(before, None)
        assert np.array_equal(item_mask(after, None), distortion.mask(mask, before))
        assert not np.array_equal(item_image(after), item_image(before))


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_of_a_drift(product, kind):
    stream, products = drift(product, kind)
    assert list(stream.products) == list(products) == [f"gear@{kind}-{step:02d}" for step in range(1, 11)]
    assert all(len(task.products) == 1 for task in stream.tasks)
    assert stream.name == f"drift-{kind}-gear"
    keys = [one.test[0].alteration.key for one in products.values()]
    assert keys == [Distortion(kind, step).key for step in range(1, 11)]
    with pytest.raises(ConfigError, match="fog"):
        drift(product, "fog")
