"""Synthetic defects: what is drawn, where the mask is, and that only training images are ever used."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from moleflow.bench.pictures import AlteredItem, has_masks, item_image, item_mask
from moleflow.bench.synthetic import DEFECTS_PER_IMAGE, KINDS, VISIBLE, SyntheticDefect, draw, validation_of
from moleflow.data.factory import make_sample, write_product
from moleflow.data.images import read_image
from moleflow.data.layouts import Item, read_dataset
from moleflow.errors import ConfigError, DatasetError

SEEDS = range(12)


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_product("wood", root, train=12, test_good=1, test_defective=1, size=96)
    return read_dataset(root).products["wood"]


@pytest.fixture(scope="module")
def good():
    return [make_sample(name, 3, size=128).image for name in ("gear", "wood")]


@pytest.fixture(scope="module", params=KINDS)
def drawn(request, good):
    """Of one kind: good images, the same with defects, and the masks."""
    return [(image, *draw(image, request.param, (seed, 7))) for seed in SEEDS for image in good]


def test_the_mask_is_where_the_image_visibly_changed_and_nowhere_else(drawn):
    for before, after, mask in drawn:
        difference = np.abs(after.astype(int) - before.astype(int)).max(axis=2)
        assert after.dtype == np.uint8
        assert after.shape == before.shape
        assert not difference[~mask].any()
        assert mask[difference >= VISIBLE].all()
        near = ndimage.binary_dilation(difference >= VISIBLE, np.ones((3, 3)))
        assert near[mask].all()  # slits between changed pixels, no wider than that
        assert (difference[mask] >= VISIBLE).mean() > 0.5


def test_sizes_span_from_tiny_to_a_few_hundredths_of_the_area(drawn):
    areas = np.array([mask.mean() for _, _, mask in drawn])
    assert areas.min() >= 0.0002
    assert areas.max() <= 0.04
    assert np.median(areas) < 0.02
    assert areas.max() > 3 * areas.min()


def test_contrast_is_moderate(drawn):
    """Neither the whole defect is black on white, nor hidden in the sensor's noise."""
    changes = [np.abs(a.astype(int) - b)[m].mean() for b, a, m in drawn]
    assert 8 < np.median(changes) < 90


def test_equal_stems_give_equal_bytes_and_other_stems_other_defects(good):
    image = good[0]
    for kind in KINDS:
        first, again, other = (draw(image, kind, stem) for stem in ((1, 2), (1, 2), (1, 3)))
        assert np.array_equal(first[0], again[0])
        assert np.array_equal(first[1], again[1])
        assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_image_gets_a_visible_defect_too(kind, level):
    image = np.full((40, 60, 3), level, np.uint8)
    after, mask = draw(image, kind, (5,))
    assert np.abs(after.astype(int) - level).max(axis=2)[mask].max() >= VISIBLE


def test_a_grey_image_stays_grey(good):
    grey = np.repeat(good[0].mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    for kind in KINDS:
        after, mask = draw(grey, kind, (6,))
        assert mask.any()
        assert (after == after[..., :1]).all()


def test_tall_and_wide_images(good):
    for image in (good[0][:40], good[1][:, :24]):
        for kind in KINDS:
            after, mask = draw(np.ascontiguousarray(image), kind, (4,))
            assert after.shape == image.shape
            assert mask.any()


def test_a_defect_does_not_depend_on_folders_or_on_listing_order(product, tmp_path):
    item = product.train[0]
    moved = dataclasses.replace(item, path=shutil.copy(item.path, tmp_path) and tmp_path / item.path.name)
    defect, other = SyntheticDefect("scratch", 0), SyntheticDefect("scratch", 1)
    image = read_image(item.path)
    assert np.array_equal(defect.image(image, item), defect.image(image, moved))
    assert not np.array_equal(defect.image(image, item), other.image(image, item))
    assert defect.key != other.key != SyntheticDefect("spots", 1).key
    turned = dataclasses.replace(product, train=product.train[::-1])
    assert {i.path for i in validation_of(turned).train} == {i.path for i in validation_of(product).train}
    assert set(validation_of(turned).test) == set(validation_of(product).test)


def test_validation_is_made_from_training_images_alone(product):
    made = validation_of(product, share=0.5, seed=3)
    held, defective = [i for i in made.test if not i.label], [i for i in made.test if i.label]
    assert len(made.train) == len(held) == 6
    assert {i.path for i in made.train} | {i.path for i in held} == {i.path for i in product.train}
    assert not {i.path for i in made.train} & {i.path for i in made.test}
    assert {i.path for i in defective} == {i.path for i in held}
    assert len(defective) == DEFECTS_PER_IMAGE * len(held)
    assert {i.kind for i in defective} == {f"synthetic-{kind}" for kind in KINDS}
    assert len({(i.path, i.kind) for i in defective}) == len(defective)
    assert made.validation == ()
    assert has_masks(made)
    assert {i.path for i in validation_of(product, share=0.5, seed=4).train} != {i.path for i in made.train}


def test_items_read_as_the_defect_was_drawn(product):
    for item in validation_of(product).test:
        image, mask = item_image(item), item_mask(item, None)
        changed = (image != read_image(item.path)).any(axis=2)
        assert not changed[~mask].any()
        assert changed.any() == mask.any() == bool(item.label)
        if item.label:
            assert item_mask(item, (48, 48)).shape == (48, 48)


@dataclasses.dataclass(frozen=True)
class Mirrored:
    key: str = "mirrored"

    def image(self, image, item):
        return np.ascontiguousarray(image[:, ::-1])

    def mask(self, mask, item):
        return mask[:, ::-1]


def test_a_defect_goes_over_what_was_done_to_the_image_before(product):
    train = tuple(
        AlteredItem(i.path, i.product, "train", "good", alteration=Mirrored()) for i in product.train
    )
    made = validation_of(dataclasses.replace(product, train=train))
    for item in made.test:
        before, mask = read_image(item.path)[:, ::-1], item_mask(item, None)
        assert np.array_equal(item_image(item)[~mask], before[~mask])
        assert mask.any() == bool(item.label)
        assert item.alteration.key.startswith("mirrored")


def test_what_cannot_be_is_refused(product, tmp_path):
    with pytest.raises(ConfigError, match="'dent'"):
        SyntheticDefect("dent", 0)
    with pytest.raises(ConfigError, match="-1"):
        SyntheticDefect("scar", -1)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            validation_of(product, share=share)
    few = dataclasses.replace(product, train=product.train[:4])
    with pytest.raises(DatasetError, match="found 4 in all"):
        validation_of(few)
    speck = tmp_path / "speck.png"
    Image.new("RGB", (2, 2)).save(speck)
    with pytest.raises(DatasetError, match="room"):
        SyntheticDefect("spots", 0).image(read_image(speck), Item(speck, "a", "train", "good"))
