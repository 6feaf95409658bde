"""Near-copies: the same photograph again is found, another part of the same product is not."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from moleflow.copies import SIDE, find_copies, thumbnail
from moleflow.data.factory import PRODUCTS, make_sample
from moleflow.errors import ImageError
from moleflow.sensor import sensor_floor

PIXELS = 256


def encoded(pixels, quality):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=quality)
    return np.array(Image.open(stream))


def lit(pixels, levels):
    return np.clip(pixels.astype(int) + levels, 0, 255).astype(np.uint8)


def noisy(pixels):
    grain = np.random.default_rng(0).normal(0, 2, pixels.shape)
    return np.clip(np.rint(pixels + grain), 0, 255).astype(np.uint8)


def shifted(pixels):
    return np.pad(pixels, ((1, 0), (0, 0), (0, 0)), mode="edge")[:-1]


ALTERED = {
    "exact": lambda p: p.copy(),
    "jpeg 70": lambda p: encoded(p, 70),
    "jpeg 95": lambda p: encoded(p, 95),
    "shift": shifted,
    "lighter": lambda p: lit(p, 2),
    "darker": lambda p: lit(p, -2),
    "noise": noisy,
    "noise, light, jpeg": lambda p: encoded(lit(noisy(p), 2), 70),
    "exposure": lambda p: np.rint(p * 0.75).astype(np.uint8),
}


@pytest.fixture(scope="module")
def parts():
    return {
        product: [make_sample(product, seed, size=PIXELS).image for seed in range(8)] for product in PRODUCTS
    }


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_same_photograph_is_one(parts, product):
    photo = parts[product][0]
    missed = [name for name, alter in ALTERED.items() if len(set(copies_of([photo, alter(photo)]))) > 1]
    assert missed == []


@pytest.mark.parametrize("product", PRODUCTS)
def test_parts_are_apart(parts, product):
    assert copies_of(parts[product]) == list(range(8))


def test_a_fault_on_the_very_same_part_keeps_it_apart():
    good, bad = (
        make_sample("circuit_board", 0, kind=k, size=PIXELS).image for k in ("good", "missing_component")
    )
    assert copies_of([good, bad]) == [0, 1]


def test_groups_are_closed_and_numbered_by_first_appearance(parts):
    gear, wood = parts["gear"], parts["wood"]
    frames = [gear[0], wood[0], lit(gear[0], 1), gear[1], lit(wood[0], 2), shifted(gear[0]), gear[1]]
    assert copies_of(frames) == [0, 1, 0, 2, 1, 0, 2]
    assert copies_of(frames[::-1]) == [0, 1, 2, 0, 1, 2, 1]
    assert find_copies([]) == []


def test_a_slow_video_is_one_group():
    x = np.arange(PIXELS) / PIXELS
    field = 120 + 60 * np.sin(7 * x)[:, None] * np.cos(5 * x)[None]
    video = [np.repeat((field + 0.5 * t * x)[:, :, None], 3, 2).astype(np.uint8) for t in range(12)]
    assert len(set(copies_of([video[0], np.rot90(video[0]).copy()]))) == 2
    assert len(set(copies_of(video))) == 1


def test_empty_pictures_are_copies_of_like_ones_only():
    black, grey, white = (np.full((64, 64, 3), level, np.uint8) for level in (0, 120, 255))
    assert copies_of([black, grey, white, grey, black]) == [0, 1, 2, 1, 0]


def test_thousands_take_seconds():
    many = np.random.default_rng(0).normal(120, 40, (2000, SIDE, SIDE)).astype(np.float32)
    many[1000:1500] = many[0]
    started = time.perf_counter()
    groups = find_copies(many)
    assert time.perf_counter() - started < 6
    assert len(set(groups)) == 1500
    assert set(groups[1000:1500]) == {0}


def test_a_wrong_shape_is_said():
    with pytest.raises(ImageError, match="32"):
        find_copies(np.zeros((3, 8, 8)))


def test_thumbnail_is_small_whatever_the_picture():
    for shape in ((8, 8, 3), (64, 900, 3), (384, 384, 3)):
        seen = thumbnail(np.full(shape, 77, np.uint8))
        assert (seen.shape, seen.dtype) == ((SIDE, SIDE), np.float32)
        assert np.allclose(seen, 77)


def test_sensor_floor_alters_little_and_always_alike(parts):
    photo = parts["gear"][0]
    floor = sensor_floor(photo)
    assert len(floor) == 6
    assert all((f.shape, f.dtype) == (photo.shape, np.uint8) for f in floor)
    assert all((a == b).all() for a, b in zip(floor, sensor_floor(photo), strict=True))
    assert all((f != photo).any() for f in floor)
    assert (floor[1][:, 1:] == photo[:, :-1]).all()
    assert (floor[2][1:] == photo[:-1]).all()
    assert len(set(copies_of([photo, *floor]))) == 1
    assert (sensor_floor(np.full((8, 8, 3), 255, np.uint8))[3] == 255).all()


def copies_of(pictures):
    return find_copies([thumbnail(picture) for picture in pictures])
