"""Data set layouts on small generated trees: one per layout, and what must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moleflow.data import images
from moleflow.data.layouts import (
    LAYOUTS,
    Item,
    Product,
    check_dataset,
    load_mask,
    read_dataset,
)
from moleflow.errors import ConfigError, DatasetError
from trees import (
    SHAPE,
    TREES,
    bmad_others,
    bmad_tree,
    folder_tree,
    image,
    loco_tree,
    mask,
    mega_table,
    mega_tree,
    mvtec_tree,
    real_iad_table,
    real_iad_tree,
    visa_table,
    visa_tree,
)


def defect_rows(item: Item) -> list[int]:
    return np.flatnonzero(load_mask(item).any(axis=1)).tolist()


def names(items: tuple[Item, ...]) -> list[str]:
    return [item.path.name for item in items]


def test_every_layout_is_tested() -> None:
    assert set(TREES) == set(LAYOUTS)


@pytest.mark.parametrize("layout", TREES)
def test_layout_is_recognised_and_read(layout: str, tmp_path: Path) -> None:
    make, kind, rows = TREES[layout]
    dataset = read_dataset(make(tmp_path))
    assert dataset.layout == layout
    assert dataset == read_dataset(str(tmp_path), layout=layout)
    assert dataset.licence == LAYOUTS[layout].licence
    for product in dataset.products.values():
        assert product.has_masks
        assert {item.label for item in product.train + product.validation} == {0}
        assert {item.label for item in product.test} == {0, 1}
        assert all(item.product == product.name and item.path.is_file() for item in product.items)
        assert all(not item.masks for item in product.items if item.label == 0)
        first = next(item for item in product.test if item.label)
        assert first.kind == kind
        assert defect_rows(first) == rows
    assert check_dataset(dataset) == []


@pytest.mark.parametrize("layout", ["mvtec-loco", "mvtec-ad-2"])
def test_validation_images_are_apart(layout: str, tmp_path: Path) -> None:
    (product,) = read_dataset(TREES[layout][0](tmp_path)).products.values()
    assert len(product.train) == len(product.validation) == 1
    assert product.validation[0].split == "validation"


def test_masks_go_by_stem_not_by_position(tmp_path: Path) -> None:
    mvtec_tree(tmp_path)
    mask(tmp_path / "bottle" / "ground_truth" / "scratch" / "0000_mask.png", rows=slice(7, 8))
    test = read_dataset(tmp_path).products["bottle"].test
    assert [defect_rows(item) for item in test if item.label] == [[2, 3], [5]]


def test_natural_order_and_foreign_files(tmp_path: Path) -> None:
    for name in ("10.png", "2.PNG", "1.Jpeg"):
        image(tmp_path / "lid" / "train" / "good" / name)
    for name in ("Thumbs.db", ".hidden.png", "._1.png", "notes.txt"):
        (tmp_path / "lid" / "train" / "good" / name).write_text("no image")
    image(tmp_path / "lid10" / "good" / "0.png")
    image(tmp_path / "lid2" / "good" / "0.png")
    image(tmp_path / ".cache" / "good" / "0.png")
    (tmp_path / "readme.md").write_text("text")
    dataset = read_dataset(tmp_path)
    assert list(dataset.products) == ["lid", "lid2", "lid10"]
    assert names(dataset.products["lid"].train) == ["1.Jpeg", "2.PNG", "10.png"]


def test_one_product_given_as_the_root(tmp_path: Path) -> None:
    folder_tree(tmp_path)
    dataset = read_dataset(tmp_path / "lid")
    assert dataset.layout == "folder"
    assert list(dataset.products) == ["lid"]


def test_own_products_in_a_public_sets_layout_keep_their_licence(tmp_path: Path) -> None:
    assert "owner" in read_dataset(mvtec_tree(tmp_path, "my_part")).licence


def test_several_masks_of_different_value_are_one_defect(tmp_path: Path) -> None:
    (product,) = read_dataset(loco_tree(tmp_path)).products.values()
    defective = product.test[-1]
    assert len(defective.masks) == 2
    union = load_mask(defective)
    assert union.dtype == bool
    assert union.shape == SHAPE
    assert union.sum() == 4


# Masks.


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I"])
def test_masks_of_any_mode(mode: str, tmp_path: Path) -> None:
    grey = np.zeros(SHAPE, dtype=np.uint8)
    grey[2:4, 1:3] = 1
    if mode == "1":
        picture = Image.fromarray(grey * 255).convert("1")
    elif mode == "P":
        picture = Image.fromarray(grey).convert("P")
        picture.putpalette([0, 0, 0, 128, 0, 0])
    elif mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16))
    elif mode == "I":
        picture = Image.fromarray(grey.astype(np.int32))
    else:
        picture = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("m.tif" if mode == "I" else "m.png")
    picture.save(path)
    item = Item(tmp_path / "i.png", "p", "test", "dent", (path,))
    assert defect_rows(item) == [2, 3]


def test_masks_are_resized_to_the_nearest_pixel(tmp_path: Path) -> None:
    path = mask(tmp_path / "m.png")
    item = Item(tmp_path / "i.png", "p", "test", "dent", (path,))
    twice = load_mask(item, shape=(16, 12))
    assert np.array_equal(twice, load_mask(item).repeat(2, axis=0).repeat(2, axis=1))
    assert np.array_equal(load_mask(item, shape=SHAPE), load_mask(item))
    assert load_mask(item, shape=(4, 6)).any(axis=1).tolist() == [False, True, False, False]
    assert not load_mask(item, shape=(1, 1)).any()


def test_the_mask_of_a_good_image_is_empty(tmp_path: Path) -> None:
    item = Item(image(tmp_path / "i.png"), "p", "test", "good")
    assert load_mask(item).shape == SHAPE
    assert not load_mask(item).any()
    assert load_mask(item, shape=(3, 5)).shape == (3, 5)
    with pytest.raises(DatasetError, match=r"absent\.png"):
        load_mask(Item(tmp_path / "absent.png", "p", "test", "good"))


def test_mask_errors_name_the_file(tmp_path: Path) -> None:
    def item(*masks: Path) -> Item:
        return Item(tmp_path / "i.png", "p", "test", "dent", masks)

    with pytest.raises(DatasetError, match=r"i\.png.*no mask"):
        load_mask(item())
    with pytest.raises(DatasetError, match=r"empty\.png.*is empty"):
        load_mask(item(mask(tmp_path / "empty.png", value=0)), shape=(2, 2))
    with pytest.raises(DatasetError, match=r"b\.png.*another of this image"):
        load_mask(item(mask(tmp_path / "a.png"), mask(tmp_path / "b.png", shape=(9, 9))))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"text\.png.*cannot be read"):
        load_mask(item(tmp_path / "text.png"))


def test_masks_keep_to_the_limits_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item(tmp_path / "i.png", "p", "test", "dent", (mask(tmp_path / "m.png"),))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # of the process, which is others' to set
    assert load_mask(item).any()
    monkeypatch.setattr(images, "MAX_PIXELS", 1)
    with pytest.raises(DatasetError, match=r"m\.png: cannot be read as a mask: .* more than the limit of 1$"):
        load_mask(item)


# What the readers refuse.


def test_missing_masks_are_named(tmp_path: Path) -> None:
    mvtec_tree(tmp_path)
    (tmp_path / "bottle" / "ground_truth" / "scratch" / "001_mask.PNG").unlink()
    with pytest.raises(DatasetError, match=r"scratch.001\.PNG: no mask"):
        read_dataset(tmp_path)
    image(tmp_path / "bottle" / "test" / "hole" / "000.png")
    mask(tmp_path / "bottle" / "ground_truth" / "scratch" / "001_mask.png")
    with pytest.raises(DatasetError, match=r"hole.000\.png: no mask"):
        read_dataset(tmp_path)


def test_an_empty_mask_folder_of_an_image_is_a_missing_mask(tmp_path: Path) -> None:
    loco_tree(tmp_path)
    for path in (tmp_path / "juice" / "ground_truth" / "logical_anomalies" / "000").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="no mask"):
        read_dataset(tmp_path)


def test_no_ground_truth_at_all_is_allowed(tmp_path: Path) -> None:
    image(tmp_path / "lid" / "train" / "good" / "0.png")
    image(tmp_path / "lid" / "test" / "good" / "0.png")
    image(tmp_path / "lid" / "test" / "dent" / "0.png")
    dataset = read_dataset(tmp_path)
    assert not dataset.products["lid"].has_masks
    assert [item.label for item in dataset.products["lid"].test] == [1, 0]
    assert [str(p) for p in check_dataset(dataset)] == ["lid: no masks: pixel metrics cannot be computed"]


def test_ambiguous_masks(tmp_path: Path) -> None:
    mvtec_tree(tmp_path)
    extra = mask(tmp_path / "bottle" / "ground_truth" / "scratch" / "000.png")
    with pytest.raises(DatasetError, match="several masks for image '000'"):
        read_dataset(tmp_path)
    extra.unlink()
    image(tmp_path / "bottle" / "test" / "scratch" / "000.bmp")
    with pytest.raises(DatasetError, match="cannot be told apart"):
        read_dataset(tmp_path)


def test_a_product_without_training_folder_is_not_skipped(tmp_path: Path) -> None:
    mvtec_tree(tmp_path)
    image(tmp_path / "cable" / "test" / "good" / "0.png")
    with pytest.raises(DatasetError, match=r"cable: expected good images in train/good.*it holds test/"):
        read_dataset(tmp_path)


def test_nothing_recognised_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError) as error:
        read_dataset(tmp_path)
    assert "it holds photos/" in str(error.value)
    assert all(f"{name}: " in str(error.value) for name in LAYOUTS)
    for layout in LAYOUTS:
        with pytest.raises(DatasetError, match="no product in layout"):
            read_dataset(tmp_path, layout=layout)
    with pytest.raises(DatasetError, match="there is none"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(ConfigError, match="unknown layout 'mvtek'"):
        read_dataset(tmp_path, layout="mvtek")


def test_a_half_product_as_root_is_not_taken_for_several(tmp_path: Path) -> None:
    image(tmp_path / "test" / "good" / "0.png")
    image(tmp_path / "ground_truth" / "good" / "0.png")
    with pytest.raises(DatasetError, match="no known layout"):
        read_dataset(tmp_path)


OUTSIDE = [
    "../out.png",
    "candle/../../out.png",
    "/etc/hostname",
    "..\\out.png",
    "C:\\out.png",
    "C:out.png",
]


@pytest.mark.parametrize(
    ("column", "written"), [("image", w) for w in (*OUTSIDE, "")] + [("mask", w) for w in OUTSIDE]
)
def test_visa_paths_stay_inside(column: str, written: str, tmp_path: Path) -> None:
    root = visa_tree(tmp_path / "root")
    image(tmp_path / "out.png")
    image_path = written if column == "image" else "candle/Data/Images/Anomaly/0.JPG"
    visa_table(root, [("candle", "test", "anomaly", image_path, written)])
    with pytest.raises(DatasetError, match=r"1cls\.csv, line 2: .*(leads out|expected the path)"):
        read_dataset(root)


@pytest.mark.parametrize("written", [*OUTSIDE, "", None, 3, "a\0b"])
def test_real_iad_paths_stay_inside(written: object, tmp_path: Path) -> None:
    root = real_iad_tree(tmp_path / "root")
    image(tmp_path / "root" / "realiad_1024" / "out.png")
    real_iad_table(root, train=[{"image_path": written, "anomaly_class": "OK"}], test=[])
    with pytest.raises(DatasetError, match=r"toy\.json, train\[0\]: .*(leads out|expected the path)"):
        read_dataset(root)


GOOD_PATH = "candle/Data/Images/Normal/0.JPG"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([("candle", "train", "normal", "candle/absent.JPG", "")], "no such file"),
        ([("candle", "dev", "normal", GOOD_PATH, "")], "line 2.*'dev'"),
        ([("candle", "train", "fine", GOOD_PATH, "")], "line 2.*'fine'"),
        ([("candle", "train", "anomaly", GOOD_PATH, "")], "listed for training"),
        (
            [("candle", "train", "normal", GOOD_PATH, ""), ("candle", "test", "normal", GOOD_PATH, "")],
            "more than",
        ),
        ([("candle",)], "line 2"),
        ([], "no product"),
    ],
)
def test_visa_table_errors(rows: list[tuple[str, ...]], text: str, tmp_path: Path) -> None:
    visa_table(visa_tree(tmp_path), rows)
    with pytest.raises(DatasetError, match=text):
        read_dataset(tmp_path)


def test_visa_masks_are_all_or_none(tmp_path: Path) -> None:
    visa_tree(tmp_path)
    second = image(tmp_path / "candle" / "Data" / "Images" / "Anomaly" / "1.JPG").relative_to(tmp_path)
    with (tmp_path / "split_csv" / "1cls.csv").open("a") as file:
        file.write(f"candle,test,anomaly,{second.as_posix()},\n")
    with pytest.raises(DatasetError, match=r"1\.JPG: no mask is listed"):
        read_dataset(tmp_path)


def test_visa_table_that_is_no_table(tmp_path: Path) -> None:
    table = visa_tree(tmp_path) / "split_csv" / "1cls.csv"
    table.write_text("object,split\ncandle,train\n")
    with pytest.raises(DatasetError, match="missing label, image, mask"):
        read_dataset(tmp_path)
    table.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DatasetError, match="cannot be read as a table"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"train": []}', '{"train": [3], "test": []}', "[" * 100_000])
def test_real_iad_table_that_is_no_table(text: str, tmp_path: Path) -> None:
    table = real_iad_tree(tmp_path) / "realiad_jsons" / "toy.json"
    table.write_text(text)
    with pytest.raises(DatasetError, match=r"toy\.json"):
        read_dataset(tmp_path)


def test_real_iad_without_its_images(tmp_path: Path) -> None:
    real_iad_table(tmp_path, train=[], test=[])
    with pytest.raises(DatasetError, match=r"no images of 'toy'; looked for .*realiad_512"):
        read_dataset(tmp_path)


# Checking the contents.


def problems(root: Path) -> list[str]:
    return [str(problem) for problem in check_dataset(read_dataset(root))]


def test_check_reports_what_is_wrong(tmp_path: Path) -> None:
    root = mvtec_tree(tmp_path)
    product = root / "bottle"
    (product / "train" / "good" / "000.png").write_bytes(b"no image")
    mask(product / "ground_truth" / "scratch" / "000_mask.png", value=0)
    mask(product / "ground_truth" / "scratch" / "001_mask.PNG", shape=(4, 6))
    image(product / "test" / "good" / "007.png", seed=7)
    image(product / "train" / "good" / "008.bmp", seed=7)  # the same picture in another kind of file
    found = problems(root)
    assert len(found) == 4
    assert any("good/000.png: not an image" in text.replace("\\", "/") for text in found)
    assert any("000_mask.png" in text and "is empty" in text for text in found)
    assert any("001_mask.PNG: mask of (4, 6) for an image of (8, 6)" in text for text in found)
    assert any("007.png: the same image is learned from" in text and "008.bmp" in text for text in found)


def test_check_reports_missing_parts(tmp_path: Path) -> None:
    image(tmp_path / "lid" / "test" / "ok" / "0.png")
    (tmp_path / "lid" / "good").mkdir()
    assert problems(tmp_path) == ["lid: no training images", "lid: no defective test images"]


def test_duplicates_across_products_and_validation(tmp_path: Path) -> None:
    image(tmp_path / "a" / "train" / "good" / "0.png")
    image(tmp_path / "a" / "validation" / "good" / "0.png", seed=1)
    image(tmp_path / "b" / "train" / "good" / "0.png")
    image(tmp_path / "b" / "test" / "good" / "0.png", seed=1)
    repeated = [text for text in problems(tmp_path) if "learned from" in text]
    assert len(repeated) == 1
    assert "validation" in repeated[0]


def test_products_and_items_are_values() -> None:
    item = Item(Path("i.png"), "p", "train", "good")
    assert item == Item(Path("i.png"), "p", "train", "good")
    product = Product("p", train=(item,), validation=(), test=())
    assert product.items == (item,)
    assert not product.has_masks


# BMAD and Continual-MEGA


def test_the_sets_of_bmad_lie_in_ways_of_their_own(tmp_path: Path) -> None:
    dataset = read_dataset(bmad_others(bmad_tree(tmp_path)))
    assert dataset.layout == "bmad"
    assert list(dataset.products) == ["Brain_AD", "Chest_AD", "Liver_AD", "Retina_RESC_AD"]
    for name, product in dataset.products.items():
        assert (len(product.train), [item.label for item in product.test]) == (1, [0, 1])
        assert product.has_masks == (name != "Chest_AD")
        assert [item.label for item in product.validation] == (
            [0] if name in ("Brain_AD", "Chest_AD") else []
        )
        if product.has_masks:
            assert defect_rows(product.test[1]) == [2, 3]
    alone = read_dataset(tmp_path / "Brain_AD" / "BraTS2021_slice")
    assert (alone.layout, list(alone.products)) == ("bmad", ["BraTS2021_slice"])


def test_a_mask_of_bmad_that_is_missing(tmp_path: Path) -> None:
    folder = bmad_tree(tmp_path) / "Brain_AD" / "BraTS2021_slice" / "test" / "Ungood"
    image(folder / "img" / "late.png")
    with pytest.raises(DatasetError, match=r"late\.png: no mask"):
        read_dataset(tmp_path)


def test_continual_mega_leaves_defective_training_images_out(tmp_path: Path) -> None:
    dataset = read_dataset(mega_tree(tmp_path))
    assert list(dataset.products) == ["Apple", "bottle"]
    for product in dataset.products.values():
        assert names(product.train) == ["train0.jpg"]
        assert names(product.test) == ["test0.jpg", "test1.jpg"]


def test_continual_mega_is_read_one_scenario_at_a_time(tmp_path: Path) -> None:
    mega_table(mega_tree(tmp_path), "scenario1_10classes_tasks", {})
    with pytest.raises(DatasetError, match=r"expected the tables of one scenario.*10classes_tasks"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected objects train and test"),
        ({"train": {}, "test": {"a": 1}}, "a list for every class"),
        ({"train": {"a": [{"anomaly": 2}]}, "test": {}}, r"train, a\[0\]: expected an object with img_path"),
        ({"train": {"a": [{"anomaly": 0, "img_path": "../x"}]}, "test": {}}, "leads out"),
        ({"train": {"a": [{"anomaly": 0, "img_path": "x.png"}]}, "test": {}}, "no such file"),
    ],
)
def test_a_table_of_continual_mega_that_cannot_be_read(content: object, message: str, tmp_path: Path) -> None:
    mega_table(tmp_path, "scenario2_base", content)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)
