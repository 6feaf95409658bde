"""Near-copies: the same photograph again is found, another part of the same product is not."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from moleflow.data.factory import PRODUCTS, make_sample
from moleflow.errors import ImageError
from moleflow.photographs.copies import SIDE, find_copies, thumbnail
from moleflow.photographs.review import review
from moleflow.photographs.sensor import sensor_floor
from moleflow.photographs.suspects import facts_of

PIXELS = 256


def encoded(pixels, quality):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=quality)
    return np.array(Image.open(stream))


def lit(pixels, levels):
    return np.clip(pixels.astype(int) + levels, 0, 255).astype(np.uint8)


def noisy(pixels, seed=0):
    grain = np.random.default_rng(seed).normal(0, 2, pixels.shape)
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


# Sheets, foils, glass: their thumbnails show the lamp and next to nothing else


def lamp(kind, size):
    down, across = np.mgrid[:size, :size] / size - 0.5
    if kind == "even":
        return np.full((size, size), 150.0)
    if kind == "lens":
        return 170 * np.cos(np.arctan(0.9 * np.hypot(down, across))) ** 4
    return 180 * (0.7**2 / ((across - 0.6) ** 2 + down**2 + 0.7**2)) ** 1.5  # beside the part, near


def sheets(count, noise, size, light="even"):
    rng = np.random.default_rng(size)
    grain = rng.normal(0, noise, (count, size, size, 1))
    levels = np.clip(np.rint(lamp(light, size)[:, :, None] + grain), 0, 255)
    return list(np.repeat(levels, 3, axis=3).astype(np.uint8))


def halved(pixels):
    small = Image.fromarray(pixels).resize((len(pixels) // 2,) * 2, Image.Resampling.BILINEAR)
    return np.array(small.resize((len(pixels),) * 2, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("light", ["even", "lens", "side"])
@pytest.mark.parametrize("size", [256, 320, 512])
@pytest.mark.parametrize("noise", [2, 4, 8])
def test_different_sheets_are_independent(noise, size, light):
    assert copies_of(sheets(6, noise, size, light)) == list(range(6))


@pytest.mark.parametrize("quality", [70, 95])
def test_different_sheets_are_independent_as_jpeg(quality):
    assert copies_of([encoded(sheet, quality) for sheet in sheets(6, 2, 320)]) == list(range(6))


def test_a_folder_of_sheets_is_as_many_photographs():
    photos = [facts_of(str(i), sheet, (320, 320)) for i, sheet in enumerate(sheets(12, 4, 320))]
    lesson = review(photos).lesson
    assert (lesson.independent, lesson.suspects) == (12, ())


@pytest.mark.parametrize("light", ["even", "lens", "side"])
@pytest.mark.parametrize("size", [256, 320, 512])
@pytest.mark.parametrize("noise", [4, 8])
def test_the_same_sheet_again_is_found_by_its_grain(noise, size, light):
    sheet, other = sheets(2, noise, size, light)
    altered = ALTERED | {"half the size": halved, "noise in both": lambda p: noisy(p, seed=1)}
    before = {"noise in both": noisy(sheet)}
    groups = {
        name: copies_of([before.get(name, sheet), alter(sheet), other]) for name, alter in altered.items()
    }
    assert {name: found for name, found in groups.items() if found != [0, 0, 1]} == {}


@pytest.mark.parametrize("noise", [0, 0.5, 2])
def test_the_same_file_is_one_however_plain(noise):
    sheet = sheets(1, noise, 320)[0]
    assert copies_of([sheet, sheet.copy(), encoded(sheet, 95), sheet])[1::2] == [0, 0]


def test_a_burst_of_a_sheet_without_grain_cannot_be_told_from_many_sheets():
    still = np.full((PIXELS, PIXELS, 3), 150, np.uint8)
    assert copies_of([noisy(still, seed) for seed in range(4)]) == [0, 1, 2, 3]


def test_without_their_grain_sheets_are_apart_but_for_the_same_file():
    first, second = map(thumbnail, sheets(2, 4, 320))
    assert find_copies([first, second, first.copy()]) == [0, 1, 0]


def test_sheets_among_others_keep_their_places(parts):
    gear, sheet = parts["gear"], sheets(3, 4, PIXELS)
    mixed = [
        gear[0],
        sheet[0],
        lit(sheet[1], 2),
        shifted(gear[0]),
        sheet[1],
        gear[1],
        sheet[2],
        shifted(sheet[0]),
    ]
    assert copies_of(mixed) == [0, 1, 2, 0, 2, 3, 4, 1]


def test_thousands_take_seconds():
    many = np.random.default_rng(0).normal(120, 40, (2000, SIDE, SIDE)).astype(np.float32)
    many[1000:1500] = many[0]
    started = time.perf_counter()
    groups = find_copies(many)
    assert time.perf_counter() - started < 6
    assert len(set(groups)) == 1500
    assert set(groups[1000:1500]) == {0}


def test_a_thousand_sheets_take_seconds():
    rng = np.random.default_rng(0)
    plain = 120 + rng.normal(0, 0.1, (1000, SIDE, SIDE)).astype(np.float32)
    grains = list(rng.normal(0, 0.2, (1000, 52, 52)).astype(np.float16))
    plain[500:750], grains[500:750] = plain[0], [grains[0]] * 250
    started = time.perf_counter()
    groups = find_copies(plain, grains)
    assert time.perf_counter() - started < 6
    assert len(set(groups)) == 750


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
    photos = [facts_of(str(i), picture, picture.shape[:2]) for i, picture in enumerate(pictures)]
    return review(photos).groups
