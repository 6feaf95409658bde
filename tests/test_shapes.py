"""Sizes that follow from the first images, fits that keep a shape, and lines that hold to both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moleflow import Detector
from moleflow.data.images import as_image, size_of
from moleflow.data.shapes import MOST_TIMES, OBLONG, one_shape, propose, squeezed_by
from moleflow.errors import ConfigError, ImageError, LineError
from moleflow.intake import Intake, Picture, without_border
from moleflow.line.beginning import Wishes, better_fit, see
from moleflow.routing.gaussian import describe

OWN = (384, 384)
STEP, CELL = 16, 8


def proposed(*sizes: tuple[int, int], **more: Any) -> Any:
    return propose(sizes, OWN, step=STEP, cell=CELL, **more)


def wide(pictures: Any, count: int, *, first: int = 0, times: int = 3) -> list[np.ndarray]:
    """Pictures of 64 x 192: one beside the other."""
    found = pictures("wood", count * times, first=first)
    return [np.concatenate(found[i * times : (i + 1) * times], 1) for i in range(count)]


# Which size


@pytest.mark.parametrize("size", [(384, 384), (1000, 1400), (1400, 1000), (64, 64)])
def test_images_near_a_square_change_nothing(size: tuple[int, int]) -> None:
    found = proposed(size, size)
    assert (found.size, found.wanted, found.alike) == (OWN, None, True)


def test_images_of_many_shapes_change_nothing() -> None:
    sizes = [(100, 100), (100, 250), (250, 100), (100, 180), (90, 240)]
    assert not one_shape(sizes)
    assert proposed(*sizes).size == OWN


def test_one_odd_image_of_many_is_no_shape_of_its_own() -> None:
    assert one_shape([(100, 400)] * 19 + [(100, 100)])


def test_a_line_scan_gets_an_oblong_size() -> None:
    assert proposed((100, 2500)).size == (96, 1536)
    assert proposed((2500, 100)).size == (1536, 96)


@pytest.mark.parametrize("ratio", [1.6, 2.0, 3.0, 5.0, 8.0, 16.0, 40.0])
def test_oblong_sizes_cost_about_what_the_square_does(ratio: float) -> None:
    height, width = proposed((500, round(500 * ratio))).size
    assert height % STEP == width % STEP == 0
    assert 0.85 < height * width / (OWN[0] * OWN[1]) < 1.15
    squeezed = squeezed_by([(500, round(500 * ratio))], (height, width))
    assert squeezed < (1.15 if ratio <= 16 else OBLONG * 2)


@pytest.mark.parametrize("size", [(1000, 1000), (300, 1200), (2000, 500)])
@pytest.mark.parametrize("defect", [2.0, 12, 30, 200])
def test_the_smallest_defect_covers_two_cells_or_it_is_said(size: tuple[int, int], defect: float) -> None:
    found, plain = proposed(size, smallest_defect=defect), proposed(size)
    cells = [defect * side / own / CELL for side, own in zip(found.size, size, strict=True)]
    pixels = found.size[0] * found.size[1]
    assert pixels <= MOST_TIMES * OWN[0] * OWN[1]
    assert (min(cells) >= 2) == (found.wanted is None)
    if found.wanted is None:
        assert all(new >= old for new, old in zip(found.size, plain.size, strict=True))
    else:
        assert pixels > 0.9 * MOST_TIMES * OWN[0] * OWN[1]
    assert all(side % STEP == 0 for side in found.size)


def test_tiles_share_the_image() -> None:
    assert proposed((400, 1600), parts=(1.0, 4.0)).size == OWN


def test_size_of_says_what_decoding_finds(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=turned)
    values = [
        tmp_path / "turned.jpg",
        np.zeros((5, 7), np.uint8),
        torch.zeros(3, 5, 7),
        Image.new("L", (7, 5)),
    ]
    for value in values:
        assert size_of(value) == as_image(value).shape[:2]
    assert size_of(values[0]) == (30, 20)
    with pytest.raises(ImageError, match=r"\(H, W\)"):
        size_of(np.zeros((5, 7, 2), np.uint8))


# Fit


@pytest.mark.parametrize("size", [(64, 192), (192, 64), (64, 64), (50, 51), (10, 640), (333, 100)])
def test_letterboxing_keeps_the_ratio_and_ends_with_a_cell(size: tuple[int, int]) -> None:
    intake = Intake((96, 128), fit="letterbox", cell=8)
    picture = intake.read(0, np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    assert picture.area is not None
    top, left, height, width = picture.area
    assert picture.pixels.shape == (96, 128, 3)
    assert all(value % 8 == 0 for value in picture.area)
    scale = min(96 / size[0], 128 / size[1])
    assert max(abs(height - size[0] * scale), abs(width - size[1] * scale)) <= max(4, 8 - 10 * scale)
    inside = picture.pixels[top : top + height, left : left + width]
    rows = np.clip(np.arange(96) - top, 0, height - 1)
    columns = np.clip(np.arange(128) - left, 0, width - 1)
    assert np.array_equal(picture.pixels, inside[rows][:, columns])  # the border continues the edge


def test_a_border_tells_the_router_nothing_and_holds_a_mean() -> None:
    features = torch.rand(2, 6, 8, 3)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pictures = [
        Picture(0, pixels, (9, 9), area=(8, 0, 24, 64)),
        Picture(1, pixels, (9, 9), area=(0, 0, 48, 64)),
    ]
    found = without_border(features, pictures)
    assert torch.equal(found[1], features[1])
    assert torch.equal(found[0, 1:4], features[0, 1:4])
    own = features[0, 1:4].mean((0, 1))
    assert torch.allclose(found[0, [0, 4, 5]], own)
    assert np.allclose(describe(found)[0], own.double().numpy(), atol=1e-6)


def test_squeezing_is_what_it_was() -> None:
    features = torch.rand(1, 6, 8, 3)
    picture = Intake((48, 64)).read(0, np.zeros((9, 9, 3), np.uint8))
    assert picture.area is None
    assert picture.cells((6, 8)) == (slice(0, 6), slice(0, 8))
    assert without_border(features, [picture]) is features


def test_a_line_from_before_squeezes() -> None:
    kept = Intake((48, 64)).settings()
    before = {"intensity": kept["intensity"]}
    assert Intake.from_settings((48, 64), None) == Intake((48, 64))
    assert Intake.from_settings((48, 64), before) == Intake((48, 64))
    with pytest.raises(ConfigError, match="squeeze, letterbox"):
        Intake.from_settings((48, 64), kept | {"fit": "crop"})


@pytest.mark.parametrize(
    ("squeezed", "letterboxed", "chosen"),
    [(0.5, 0.3, "letterbox"), (0.5, 0.49, "squeeze"), (0.3, 0.5, "squeeze")],
)
def test_a_fit_is_chosen_by_what_is_left_unexplained(
    new_line: Any,
    pictures: Any,
    monkeypatch: pytest.MonkeyPatch,
    squeezed: float,
    letterboxed: float,
    chosen: str,
) -> None:
    line = new_line()

    def left(extractor: Any, seen: Any) -> float:
        return squeezed if seen[0].area is None else letterboxed

    monkeypatch.setattr("moleflow.line.beginning.unexplained", left)
    sources = list(enumerate(pictures("wood", 8)))
    assert better_fit(line.extractor, line.intake, sources) == chosen
    assert better_fit(line.extractor, line.intake, sources[:7]) == "squeeze"  # too few to say


def test_places_speak_for_the_fit_in_which_things_have_theirs(new_line: Any, pictures: Any) -> None:
    """Gears in frames of many shapes: squeezed, every tooth is where it was; letterboxed, none is."""
    line = new_line()
    shapes = [(64, 64), (64, 160), (160, 64), (80, 128), (128, 80)]
    gears = [np.array(Image.fromarray(p).resize(shapes[i % 5])) for i, p in enumerate(pictures("gear", 10))]
    assert better_fit(line.extractor, line.intake, list(enumerate(gears))) == "squeeze"
    assert line.settle(gears).alike is False
    assert (line.intake.fit, line.extractor.image_size) == ("squeeze", (64, 64))


# Lines


@pytest.mark.parametrize(
    "options",
    [
        {"smallest_defect": 0.5},
        {"smallest_defect": 8, "image_size": 64},
        {"smallest_defect": float("nan")},
        {"smallest_defect": True},
        {"fit": "crop"},
    ],
)
def test_impossible_wishes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Wishes(**options)


def test_an_oblong_product_settles_an_oblong_line(pictures: Any) -> None:
    line = Detector(device="cpu")
    assert line.extractor.image_size == (512, 512)
    assert line.settle(wide(pictures, 2)).images == (64, 192)
    assert line.extractor.image_size == line.intake.size == (288, 912)
    assert line.extractor.grid == (36, 114)
    with pytest.raises(LineError, match="settled already"):
        line.settle(wide(pictures, 2))


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{"fit": "letterbox", "image_size": 128}, {"tiles": (1, 2)}, {"image_size": (32, 96)}],
    ids=["letterbox", "tiles", "oblong"],
)
def test_a_line_of_any_shape_finds_its_place_and_comes_back(
    new_line: Any, pictures: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    line = new_line(**options)
    line.add_task("planks", wide(pictures, 6))
    spoiled = wide(pictures, 1, first=50)[0].copy()
    spoiled[24:40, 144:160] = (255, 0, 255)
    (found,) = line.predict(spoiled)
    assert found.anomaly_map.shape == found.image_size == (64, 192)
    row, column = np.unravel_index(int(found.anomaly_map.argmax()), found.image_size)
    assert 16 <= row < 48
    assert 128 <= column < 176
    line.save(tmp_path / "line")
    again = Detector.load(tmp_path / "line", device="cpu")
    assert again.intake == line.intake
    assert again.extractor.describe() == line.extractor.describe()
    (same,) = again.predict(spoiled)
    assert np.array_equal(same.patch_map, found.patch_map)
    assert same.pred_score == found.pred_score


def test_an_image_is_seen_alike_whatever_border_it_has(new_line: Any, pictures: Any) -> None:
    line = new_line(fit="letterbox")
    intake = replace(line.intake, fit="letterbox")
    (picture,) = wide(pictures, 1)
    high = np.concatenate([picture[:1].repeat(63, 0), picture, picture[-1:].repeat(63, 0)])  # 190 x 192
    alone, continued = intake.read(0, picture), intake.read(0, high)
    rows, columns = alone.cells(line.extractor.grid)
    found, wanted = (see(line.extractor, [one]).patches[0] for one in (alone, continued))
    assert float((found - wanted)[rows, columns].abs().mean()) < 0.25 * float(wanted[rows, columns].std())


def test_what_stops_the_first_lesson_leaves_the_line_as_it_was(
    new_line: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = new_line(smallest_defect=4, image_size=None)
    before = line.extractor, line.intake

    def stop(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moleflow.learning.lesson._gather", stop)
    with pytest.raises(KeyboardInterrupt):
        line.add_task("planks", pictures("wood", 2))
    assert (line.extractor, line.intake) == before
