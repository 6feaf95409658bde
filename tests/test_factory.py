"""Procedural products: the same call draws the same picture, and a mask is where the fault is, exactly."""

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moleflow.data.factory import PRODUCTS, defect_kinds, make_sample, write_product
from moleflow.errors import ConfigError

FAULTS = [(product, kind) for product in PRODUCTS for kind in defect_kinds(product)]


def test_seven_products_with_at_least_three_kinds_each():
    assert len(PRODUCTS) == len(set(PRODUCTS)) == 7
    for product in PRODUCTS:
        kinds = defect_kinds(product)
        assert len(kinds) == len(set(kinds)) >= 3
        assert "good" not in kinds


@pytest.mark.parametrize(("product", "kind"), FAULTS)
def test_a_fault_changes_its_mask_and_nothing_else(product, kind):
    for seed in range(3):
        good, faulty = make_sample(product, seed, size=96), make_sample(product, seed, kind=kind, size=96)
        changed = (good.image != faulty.image).any(axis=2)
        assert faulty.kind == kind
        assert not (changed & ~faulty.mask).any()
        assert 4 <= faulty.mask.sum() < 0.35 * faulty.mask.size
        assert changed[faulty.mask].mean() > 0.5
        assert not good.mask.any()


@pytest.mark.parametrize("product", PRODUCTS)
def test_equal_arguments_give_equal_bytes(product):
    kind = defect_kinds(product)[0]
    first, second = (make_sample(product, 7, kind=kind, size=80) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_another_process_draws_the_same_picture():
    code = (
        "import zlib; from moleflow.data.factory import make_sample;"
        "print(zlib.crc32(make_sample('gear', 3, kind='rust', size=64).image.tobytes()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == zlib.crc32(make_sample("gear", 3, kind="rust", size=64).image.tobytes())


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_two_good_pictures_are_alike(product):
    images = [make_sample(product, seed, size=64).image.astype(float) for seed in range(6)]
    for i, image in enumerate(images):
        for other in images[:i]:
            assert np.abs(image - other).mean() > 3
    # The light differs too, and no picture is burnt out or black.
    means = [image.mean() for image in images]
    assert np.std(means) > 1
    assert 30 < min(means) < max(means) < 220


@pytest.mark.parametrize("size", [64, 100, 127, 128, 512])
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_size_shows_the_same_product(product, size):
    sample = make_sample(product, 1, kind=defect_kinds(product)[-1], size=size)
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.image.flags.c_contiguous
    assert sample.mask.shape == (size, size)
    assert sample.mask.dtype == np.bool_
    coarse = np.asarray(Image.fromarray(sample.image).resize((8, 8), Image.Resampling.BOX), float)
    reference = Image.fromarray(make_sample(product, 1, size=256).image)
    expected = np.asarray(reference.resize((8, 8), Image.Resampling.BOX), float)
    assert np.abs(coarse - expected).mean() < 12


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_written_layout_is_mvtec_ads(tmp_path):
    folder = write_product("wood", tmp_path, train=3, test_good=2, test_defective=7, size=64)
    assert folder == tmp_path / "wood"
    kinds = defect_kinds("wood")
    assert {p.name for p in (folder / "test").iterdir()} == {"good", *kinds}
    assert sorted(p.name for p in (folder / "train" / "good").iterdir()) == ["000.png", "001.png", "002.png"]
    assert len(list((folder / "test" / "good").iterdir())) == 2
    counts = [len(list((folder / "test" / kind).iterdir())) for kind in kinds]
    assert sum(counts) == 7
    assert max(counts) - min(counts) <= 1
    for kind in kinds:
        for path in (folder / "test" / kind).iterdir():
            mask = np.asarray(Image.open(folder / "ground_truth" / kind / f"{path.stem}_mask.png"))
            assert Image.open(path).size == (64, 64)
            assert Image.open(path).mode == "RGB"
            assert mask.shape == (64, 64)
            assert set(np.unique(mask)) == {0, 255}
    images = [content for name, content in _files(folder).items() if "ground_truth" not in name]
    assert len(set(images)) == len(images) == 12


def test_a_file_depends_on_its_name_not_on_how_many_are_written(tmp_path):
    few = _files(write_product("gear", tmp_path / "few", train=1, test_good=1, test_defective=6, size=64))
    more = _files(write_product("gear", tmp_path / "more", train=3, test_good=2, test_defective=8, size=64))
    other = _files(
        write_product("gear", tmp_path / "o", train=3, test_good=2, test_defective=8, size=64, seed=1)
    )
    assert few.items() <= more.items()
    assert not set(more.values()) & set(other.values())


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: defect_kinds("sofa"), "woven_cloth.*'sofa'"),
        (lambda: make_sample("sofa", 0), "woven_cloth.*'sofa'"),
        (lambda: make_sample("gear", 0, kind="knot"), "missing_tooth.*'knot'"),
        (lambda: make_sample("gear", 0, size=63), "64 to 512.*63"),
        (lambda: make_sample("gear", 0, size=513), "64 to 512.*513"),
        (lambda: make_sample("gear", 0, size=100.0), r"whole number.*100\.0"),
        (lambda: make_sample("gear", -1), "0 or more.*-1"),
        (lambda: write_product("gear", "unused", train=-1), "train.*-1"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, named):
    with pytest.raises(ConfigError, match=named):
        call()
