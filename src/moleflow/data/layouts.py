"""Data sets on disk: known layouts are read into products of training, validation and test images.

Nothing is downloaded. Files are matched by stem, never by sorted position; extensions may be upper
case; hidden files and files that are no images are ignored.

Licences of the public sets: MVTec AD, MVTec LOCO, MVTec AD 2, MPDD and Real-IAD are CC BY-NC-SA 4.0
(no commercial use), VisA is CC BY 4.0, BTAD is CC BY-SA; BMAD and Continual-MEGA are made of other sets,
each under its own.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moleflow.data.images import EXTENSIONS, read_image, read_values
from moleflow.errors import ConfigError, DatasetError, ImageError

Split = Literal["train", "validation", "test"]
Mask = NDArray[np.bool_]

GOOD = "good"


@dataclass(frozen=True)
class Item:
    """One image. ``kind`` is "good" or the defect's name; ``masks`` are empty where there are none.

    Where there are several masks the defect is their union; a pixel belongs to it when its value is
    above ``mask_above``.
    """

    path: Path
    product: str
    split: Split
    kind: str
    masks: tuple[Path, ...] = ()
    mask_above: int = 0

    @property
    def label(self) -> int:
        """0 for a good image, 1 for a defective one."""
        return int(self.kind != GOOD)


@dataclass(frozen=True)
class Product:
    """The images of one product, each tuple in natural order (2 before 10)."""

    name: str
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All images: training, validation, test."""
        return self.train + self.validation + self.test

    @property
    def has_masks(self) -> bool:
        """Whether pixel metrics can be computed: some defective image has a mask, and then all have."""
        return any(item.masks for item in self.test)


@dataclass(frozen=True)
class Dataset:
    """What was found under ``root``: products by name, in natural order, and the data's licence."""

    layout: str
    root: Path
    products: dict[str, Product]
    licence: str


@dataclass(frozen=True)
class Layout:
    """How one data set lies on disk; ``looked_for`` says in words what ``detect`` wants to see."""

    licence: str
    looked_for: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], list[Product]]


@dataclass(frozen=True)
class Problem:
    """Something :func:`check_dataset` found; ``path`` is the file, or None if it is about a product."""

    product: str
    path: Path | None
    message: str

    def __str__(self) -> str:
        return f"{self.product}: {self.message}" if self.path is None else f"{self.path}: {self.message}"


def read_dataset(root: str | Path, *, layout: str = "auto") -> Dataset:
    """List the images of a data set; only names are looked at, no image is opened.

    ``layout`` is a key of :data:`LAYOUTS`, or "auto" for the first that fits. Raises ConfigError for an
    unknown layout, and DatasetError where the folder does not hold what the layout promises: nothing
    recognised, a defective image without its mask among others that have one, a listed file that is
    absent, or a listed path that leads out of ``root``.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; known are auto, {', '.join(LAYOUTS)}")
    folder = Path(root)
    try:
        return _read_dataset(folder, layout)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed: {error}") from error


def load_mask(item: Item, *, shape: tuple[int, int] | None = None) -> Mask:
    """The defect of one image as (H, W) bool: the union of its masks, all False for a good image.

    ``shape`` (H, W) resizes to the nearest pixel; left out, masks keep their size and a good image
    gives its own. Shrinking may lose a thin defect, so the result can be empty although the mask is
    not. Raises DatasetError, with the path, for a defective image without masks, and for masks that
    cannot be read, differ in size or hold no defect at all.
    """
    if item.label == 0:
        return np.zeros(shape if shape is not None else _image_shape(item), dtype=bool)
    if not item.masks:
        raise DatasetError(f"{item.path}: this defective image has no mask")
    union = _read_mask(item.masks[0], item.mask_above)
    for path in item.masks[1:]:
        mask = _read_mask(path, item.mask_above)
        if mask.shape != union.shape:
            raise DatasetError(f"{path}: mask of {mask.shape}, but another of this image is {union.shape}")
        union |= mask
    if not union.any():
        names = ", ".join(str(path) for path in item.masks)
        raise DatasetError(f"{names}: the mask of a defective image ({item.path}) is empty")
    return union if shape is None else nearest(union, shape)


def check_dataset(dataset: Dataset) -> list[Problem]:
    """Open every image and mask and list what is wrong; an empty list means nothing was found.

    Looks for products without training, good test or defective test images, for defective images
    without masks, for images and masks that cannot be read, are empty or differ in size, and for test
    images whose pixels also occur in training or validation, of whatever product.
    """
    problems: list[Problem] = []
    learned: dict[bytes, Path] = {}
    tested: list[tuple[Item, bytes]] = []
    for product in dataset.products.values():
        problems += _count_problems(product)
        for item in product.items:
            try:
                content, shape = _fingerprint(item.path)
            except ImageError as error:
                problems.append(_problem(item, item.path, str(error)))
                continue
            problems += _mask_problems(item, shape)
            if item.split == "test":
                tested.append((item, content))
            else:
                learned.setdefault(content, item.path)
    for item, content in tested:
        if content in learned:
            problems.append(_problem(item, item.path, f"the same image is learned from: {learned[content]}"))
    return problems


def _read_dataset(root: Path, layout: str) -> Dataset:
    if not root.is_dir():
        raise DatasetError(f"{root}: expected the folder of a data set, but there is none")
    name = _detect(root) if layout == "auto" else layout
    chosen = LAYOUTS[name]
    products = chosen.read(root)
    if not products:
        raise DatasetError(
            f"{root}: no product in layout {name!r}; looked for {chosen.looked_for}; {_holds(root)}"
        )
    products.sort(key=lambda product: _natural(product.name))
    return Dataset(name, root, {product.name: product for product in products}, chosen.licence)


# Looking for problems


def _problem(item: Item, path: Path, message: str) -> Problem:
    """Errors begin with their path; a problem carries it beside the message."""
    return Problem(item.product, path, message.removeprefix(f"{path}: "))


def _count_problems(product: Product) -> Iterator[Problem]:
    defective = sum(item.label for item in product.test)
    counts = {
        "training images": len(product.train),
        "good test images": len(product.test) - defective,
        "defective test images": defective,
    }
    for what, count in counts.items():
        if count == 0:
            yield Problem(product.name, None, f"no {what}")
    if defective and not product.has_masks:
        yield Problem(product.name, None, "no masks: pixel metrics cannot be computed")


def _mask_problems(item: Item, shape: tuple[int, int]) -> Iterator[Problem]:
    if not item.masks:
        return
    try:
        mask = load_mask(item)
    except DatasetError as error:
        yield _problem(item, item.masks[0], str(error))
        return
    if mask.shape != shape:
        yield _problem(item, item.masks[0], f"mask of {mask.shape} for an image of {shape}")


def _fingerprint(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A digest of the decoded pixels, the same for the same picture in another file, and (H, W)."""
    image = read_image(path)
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest(), (image.shape[0], image.shape[1])


# Masks


def _image_shape(item: Item) -> tuple[int, int]:
    try:
        height, width = read_image(item.path).shape[:2]
    except ImageError as error:
        raise DatasetError(str(error)) from error
    return height, width


def _read_mask(path: Path, above: int) -> Mask:
    try:
        values = read_values(path)
    except ImageError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DatasetError(f"{path}: cannot be read as a mask: {reason}") from error
    marked = values if values.dtype == bool else np.greater(values, above)
    return np.asarray(marked.any(axis=2) if marked.ndim == 3 else marked)


def nearest(mask: Mask, shape: tuple[int, int]) -> Mask:
    """A mask (H, W) at another size: each new pixel is the old one under its centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


# Listing folders


def _natural(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sorting key by which 2 comes before 10."""
    pieces = re.split(r"([0-9]+)", text)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces if p], text


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))),
        key=lambda path: _natural(path.name),
    )


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _images(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and not path.is_dir()]


def _holds(folder: Path) -> str:
    """What stands in a folder, for messages."""
    names = [path.name + ("/" if path.is_dir() else "") for path in _visible(folder)]
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"it holds {', '.join(names[:12])}{more}"


def _some(paths: Iterable[Path]) -> str:
    """The first of many paths, for messages."""
    listed = [str(path) for path in paths]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more


# Layouts in which folders say what an image is

_GOOD_NAMES = ("good", "ok")
_PARTS = ("train", "validation", "test", "test_public", "ground_truth")


def _read_folders(root: Path) -> list[Product]:
    """Products as folders with train, validation and test folders inside; one reader for all of these.

    They differ only in names that do not collide: "good" or "ok"; a test folder, or "test_public"
    with its own ground truth; masks as files or, one folder per image, as several files.
    """
    return [_read_product(folder) for folder in _product_folders(root)]


def _product_folders(root: Path) -> list[Path]:
    """Folders with a product's parts inside; ``root`` itself when it is one product."""
    if _train_folders(root):
        return [root]
    return [folder for folder in _folders(root) if folder.name not in _PARTS and _has_parts(folder)]


def _has_parts(folder: Path) -> bool:
    return any((folder / part).is_dir() for part in (*_PARTS, *_GOOD_NAMES))


def _train_folders(product: Path) -> list[Path]:
    """Where the good images to learn from are: under train, or directly in the product's folder."""
    within_train = [product / "train" / name for name in _GOOD_NAMES]
    directly = [product / name for name in _GOOD_NAMES]
    for candidates in (within_train, directly):
        if found := [folder for folder in candidates if folder.is_dir()]:
            return found
    return []


def _read_product(folder: Path) -> Product:
    name = folder.name or folder.resolve().name
    trained_on = _train_folders(folder)
    if not trained_on:
        raise DatasetError(
            f"{folder}: expected good images in train/good, train/ok or good; {_holds(folder)}"
        )
    checked_on = [folder / "validation" / good for good in _GOOD_NAMES]
    return Product(
        name,
        train=tuple(Item(path, name, "train", GOOD) for part in trained_on for path in _images(part)),
        validation=tuple(
            Item(path, name, "validation", GOOD) for part in checked_on for path in _images(part)
        ),
        test=tuple(_read_test(folder, name)),
    )


def _read_test(folder: Path, product: str) -> list[Item]:
    public = folder / "test_public"
    test = public if public.is_dir() else folder / "test"
    truth = next((t for t in (test / "ground_truth", folder / "ground_truth") if t.is_dir()), None)
    items = []
    for kind in _folders(test):
        if kind.name == "ground_truth":
            continue
        name = GOOD if kind.name in _GOOD_NAMES else kind.name
        found = [Item(path, product, "test", name) for path in _images(kind)]
        items += found if name == GOOD or truth is None else _with_masks(found, truth / kind.name)
    return items


def _with_masks(items: list[Item], folder: Path) -> list[Item]:
    """Give each defective image of one kind its mask; every one must have one."""
    stems = Counter(item.path.stem for item in items)
    if twice := [item.path for item in items if stems[item.path.stem] > 1]:
        raise DatasetError(f"{_some(twice)}: images of one name cannot be told apart by their masks' names")
    masks = _masks_by_stem(folder)
    given = [replace(item, masks=masks.get(item.path.stem, ())) for item in items]
    if missing := [item.path for item in given if not item.masks]:
        raise DatasetError(f"{_some(missing)}: no mask for this defective image in {folder}")
    return given


def _masks_by_stem(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Masks by the stem of their image: files ``stem`` or ``stem_mask``, or a folder ``stem``."""
    masks: dict[str, tuple[Path, ...]] = {
        part.name: files for part in _folders(folder) if (files := tuple(_images(part)))
    }
    for path in _images(folder):
        stem = path.stem.removesuffix("_mask")
        if stem in masks:
            raise DatasetError(
                f"{_some([*masks[stem], path])}: several masks for image {stem!r}; expected one"
            )
        masks[stem] = (path,)
    return masks


# Layouts in which a table says what an image is


def _inside(root: Path, written: object, source: str) -> Path:
    """The file a table names, below ``root``; what points elsewhere is refused.

    Judged by the path as written: links that lie inside the data set were put there by its owner.
    """
    if not isinstance(written, str) or not written or "\0" in written:
        raise DatasetError(f"{source}: expected the path of a file, not {written!r}")
    path = PurePosixPath(written.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(written).drive or ".." in path.parts:
        raise DatasetError(f"{source}: the path {written!r} leads out of the data set")
    found = root / path
    if not found.is_file():
        raise DatasetError(f"{found}: no such file, but {source} lists it")
    return found


def _grouped(items: list[Item], source: Path) -> list[Product]:
    """Sort listed images into products and splits."""
    counts = Counter(item.path for item in items)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise DatasetError(f"{_some(twice)}: listed more than once in {source}")
    by_product: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: _natural(item.path.as_posix())):
        by_product.setdefault(item.product, []).append(item)
    return [_assembled(name, found) for name, found in by_product.items()]


def _assembled(name: str, items: list[Item]) -> Product:
    if bad := [item.path for item in items if item.label and item.split == "train"]:
        raise DatasetError(f"{_some(bad)}: a defective image is listed for training; only good ones can be")
    defective = [item for item in items if item.label]
    missing = [item.path for item in defective if not item.masks]
    if missing and len(missing) < len(defective):
        raise DatasetError(f"{_some(missing)}: no mask is listed for this defective image")

    def part(split: Split) -> tuple[Item, ...]:
        return tuple(item for item in items if item.split == split)

    return Product(name, train=part("train"), validation=part("validation"), test=part("test"))


def _read_visa(root: Path) -> list[Product]:
    table = root / "split_csv" / "1cls.csv"
    columns = ("object", "split", "label", "image", "mask")
    if not table.is_file():
        return []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            absent = [column for column in columns if column not in (rows.fieldnames or ())]
            if absent:
                raise DatasetError(
                    f"{table}: expected columns {', '.join(columns)}; missing {', '.join(absent)}"
                )
            items = [_visa_item(root, row, f"{table}, line {rows.line_num}") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read as a table: {error}") from error
    return _grouped(items, table)


def _visa_item(root: Path, row: dict[str, str], source: str) -> Item:
    split, label = row["split"], row["label"]
    if split not in ("train", "test") or label not in ("normal", "anomaly") or not row["object"]:
        raise DatasetError(
            f"{source}: expected an object, split train or test and label normal or anomaly, "
            f"not {row['object']!r}, {split!r}, {label!r}"
        )
    defective = label == "anomaly"
    return Item(
        _inside(root, row["image"], source),
        row["object"],
        "train" if split == "train" else "test",
        "anomaly" if defective else GOOD,
        masks=(_inside(root, row["mask"], source),) if defective and row["mask"] else (),
    )


_REAL_IAD_SIZES = ("", "realiad_1024", "realiad_512", "realiad_256", "realiad_raw")


def _read_real_iad(root: Path) -> list[Product]:
    return [product for table in _real_iad_tables(root) for product in _read_real_iad_table(root, table)]


def _real_iad_tables(root: Path) -> list[Path]:
    """One json per product; some copies of the data have a second folder of the same name inside."""
    for folder in (root / "realiad_jsons", root / "realiad_jsons" / "realiad_jsons"):
        if tables := [path for path in _visible(folder) if path.suffix.lower() == ".json"]:
            return tables
    return []


def _read_real_iad_table(root: Path, table: Path) -> list[Product]:
    try:
        content = json.loads(table.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{table}: cannot be read as json: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(s), list) for s in ("train", "test")):
        raise DatasetError(f"{table}: expected an object with the lists train and test")
    folder = _real_iad_images(root, table.stem)
    splits: tuple[Split, ...] = ("train", "test")
    items = [
        _real_iad_item(folder, row, table.stem, split=split, source=f"{table}, {split}[{index}]")
        for split in splits
        for index, row in enumerate(content[split])
    ]
    return _grouped(items, table)


def _real_iad_images(root: Path, product: str) -> Path:
    """The product's images; of several image sizes that were unpacked side by side the largest."""
    candidates = [root / size / product for size in _REAL_IAD_SIZES]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DatasetError(f"{root}: no images of {product!r}; looked for {_some(candidates)}")


def _real_iad_item(folder: Path, row: Any, product: str, *, split: Split, source: str) -> Item:
    if not isinstance(row, dict) or not isinstance(row.get("anomaly_class"), str):
        raise DatasetError(f"{source}: expected an object with image_path, mask_path and anomaly_class")
    defective = row["anomaly_class"] != "OK"
    mask = row.get("mask_path")
    return Item(
        _inside(folder, row.get("image_path"), source),
        product,
        split,
        row["anomaly_class"] if defective else GOOD,
        masks=(_inside(folder, mask, source),) if defective and mask else (),
        # Masks of this set were resized and compressed, so their edges are grey.
        mask_above=127,
    )


# BMAD, whose six sets differ in depth, in order and in upper and lower case

_BMAD_SPLITS = {"train": ("train",), "validation": ("valid", "val"), "test": ("test",)}
_BMAD_PARTS = {GOOD: ("good",), "ungood": ("ungood",)}
_BMAD_DEPTH = 2  # folders between the root and train: <organ>, or <organ>/<source>


def _child(folder: Path | None, names: Iterable[str]) -> Path | None:
    """The first folder inside of one of these names, whatever their case."""
    wanted = tuple(names)
    inside = [] if folder is None else _folders(folder)
    return next((path for name in wanted for path in inside if path.name.casefold() == name), None)


def _bmad_products(root: Path) -> dict[str, Path]:
    """By the names of the folders under the root, the folder that holds train and test of each."""
    found: dict[str, Path] = {}
    level = {root.name or root.resolve().name: root} if _is_bmad(root) else {}
    if level:
        return level
    for top in _folders(root):
        candidates = [top]
        for _ in range(_BMAD_DEPTH):
            if own := next((folder for folder in candidates if _is_bmad(folder)), None):
                found[top.name] = own
                break
            candidates = [inner for folder in candidates for inner in _folders(folder)]
    return found


def _is_bmad(folder: Path) -> bool:
    """Whether train holds good images and test "Ungood" ones."""
    return all(
        _bmad_part(_child(folder, _BMAD_SPLITS[split]), split, part) is not None
        for split, part in (("train", GOOD), ("test", "ungood"))
    )


def _bmad_part(split: Path | None, name: str, part: str) -> Path | None:
    """Where the good or the defective images of a split are: below it, or one folder further."""
    if direct := _child(split, _BMAD_PARTS[part]):
        return _child(direct, ("img",)) or direct
    return _child(_child(split, ("img", *_BMAD_SPLITS[name])), _BMAD_PARTS[part])


def _bmad_masks(split: Path | None) -> Path | None:
    """Where the masks of a split's defective images are; None for a set without any."""
    if direct := _child(split, _BMAD_PARTS["ungood"]):
        return _child(direct, ("label",))
    return _child(_child(split, ("label", "test_label")), _BMAD_PARTS["ungood"])


def _read_bmad(root: Path) -> list[Product]:
    return [_read_bmad_product(name, folder) for name, folder in _bmad_products(root).items()]


def _read_bmad_product(name: str, folder: Path) -> Product:
    def good(split: Split) -> tuple[Item, ...]:
        place = _bmad_part(_child(folder, _BMAD_SPLITS[split]), split, GOOD)
        return tuple(Item(path, name, split, GOOD) for path in (_images(place) if place else ()))

    test = _child(folder, _BMAD_SPLITS["test"])
    place, masks = _bmad_part(test, "test", "ungood"), _bmad_masks(test)
    defective = [Item(path, name, "test", "ungood") for path in (_images(place) if place else ())]
    if masks is not None:
        defective = _with_masks(defective, masks)
    # Defective validation images have no place here: nothing is chosen by defects.
    return Product(name, good("train"), good("validation"), (*good("test"), *defective))


# Continual-MEGA, whose tables say which images of several data sets are of one scenario


def _mega_tables(root: Path) -> list[Path]:
    """Of one scenario, the table of its base classes and one of its tasks."""
    tables = [path for path in _visible(root / "meta_files") if path.suffix.lower() == ".json"]
    return [path for path in tables if path.stem.endswith(("_base", "classes_tasks"))]


def _read_mega(root: Path) -> list[Product]:
    tables = _mega_tables(root)
    scenarios = {path.stem.split("_")[0] for path in tables}
    tasks = [path for path in tables if not path.stem.endswith("_base")]
    if len(scenarios) > 1 or len(tasks) > 1:
        raise DatasetError(
            f"{root / 'meta_files'}: expected the tables of one scenario, <scenario>_base.json and one "
            f"<scenario>_<n>classes_tasks.json, for their splits differ; found {_some(tables)}"
        )
    return _grouped([item for table in tables for item in _mega_items(root, table)], root / "meta_files")


def _mega_items(root: Path, table: Path) -> Iterator[Item]:
    """Images of a table: of its classes, or of the classes of every task in it."""
    try:
        content = json.loads(table.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{table}: cannot be read as json: {error}") from error
    tasks = [content] if table.stem.endswith("_base") else content
    tasks = list(tasks.values()) if isinstance(tasks, dict) else tasks
    splits: tuple[Split, ...] = ("train", "test")
    for task in tasks if isinstance(tasks, list) else [None]:
        for split in splits:
            classes = task.get(split) if isinstance(task, dict) else None
            if not isinstance(classes, dict) or not all(isinstance(rows, list) for rows in classes.values()):
                raise DatasetError(f"{table}: expected objects train and test with a list for every class")
            for product, rows in classes.items():
                for index, row in enumerate(rows):
                    source = f"{table}, {split}, {product}[{index}]"
                    item = _mega_item(root, row, product, split=split, source=source)
                    # The set shows its methods ten defective images of each class; ours learn from good ones.
                    if item.split == "test" or not item.label:
                        yield item


def _mega_item(root: Path, row: Any, product: str, *, split: Split, source: str) -> Item:
    if not isinstance(row, dict) or row.get("anomaly") not in (0, 1):
        raise DatasetError(f"{source}: expected an object with img_path, mask_path and anomaly 0 or 1")
    defective, mask = bool(row["anomaly"]), row.get("mask_path")
    return Item(
        _inside(root, row.get("img_path"), source),
        product,
        split,
        "anomaly" if defective else GOOD,
        masks=(_inside(root, mask, source),) if defective and mask else (),
    )


# Recognising a layout

MVTEC_TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
MVTEC_OBJECTS = (
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush"),
    *("transistor", "zipper"),
)
_MVTEC = frozenset((*MVTEC_TEXTURES, *MVTEC_OBJECTS))
_MPDD = frozenset(("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"))
_BTAD = frozenset(("01", "02", "03"))


def _only_names(names: frozenset[str], train: str) -> Callable[[Path], bool]:
    """Own products may lie as a public set does, so the set is known by its products' names."""

    def detect(root: Path) -> bool:
        found = _product_folders(root)
        return bool(found) and all(f.name in names and (f / train).is_dir() for f in found)

    return detect


def _any_product_has(*inside: str) -> Callable[[Path], bool]:
    def detect(root: Path) -> bool:
        return any((folder / part).is_dir() for folder in _product_folders(root) for part in inside)

    return detect


def _has_visa_table(root: Path) -> bool:
    return (root / "split_csv" / "1cls.csv").is_file()


def _detect(root: Path) -> str:
    for name, layout in LAYOUTS.items():
        if layout.detect(root):
            return name
    wanted = "".join(f"\n  {name}: {layout.looked_for}" for name, layout in LAYOUTS.items())
    raise DatasetError(f"{root}: no known layout; {_holds(root)}; looked for{wanted}")


_BY_NC_SA = "CC BY-NC-SA 4.0"

LAYOUTS: dict[str, Layout] = {
    "visa": Layout("CC BY 4.0", "split_csv/1cls.csv", _has_visa_table, _read_visa),
    "real-iad": Layout(
        _BY_NC_SA, "realiad_jsons/<product>.json", lambda root: bool(_real_iad_tables(root)), _read_real_iad
    ),
    "continual-mega": Layout(
        "each of its data sets' own",
        "meta_files/<scenario>_base.json beside the data sets' folders",
        lambda root: bool(_mega_tables(root)),
        _read_mega,
    ),
    "bmad": Layout(
        "each of its six sources' own, some of them for research only",
        "<organ>/[<source>/]{train/good,test/{good,Ungood}}",
        lambda root: bool(_bmad_products(root)),
        _read_bmad,
    ),
    "mvtec-ad-2": Layout(
        _BY_NC_SA,
        "<product>/train/good and <product>/test_public/{good,bad,ground_truth}",
        _any_product_has("test_public"),
        _read_folders,
    ),
    "mvtec-loco": Layout(
        _BY_NC_SA,
        "<product>/train/good and <product>/test/{logical_anomalies,structural_anomalies}",
        _any_product_has("test/logical_anomalies", "test/structural_anomalies"),
        _read_folders,
    ),
    "btad": Layout("CC BY-SA", "{01,02,03}/train/ok", _only_names(_BTAD, "train/ok"), _read_folders),
    "mpdd": Layout(
        _BY_NC_SA,
        "<product>/train/good with this set's product names (connector, tubes, ...)",
        _only_names(_MPDD, "train/good"),
        _read_folders,
    ),
    "mvtec-ad": Layout(
        _BY_NC_SA,
        "<product>/train/good with this set's product names (bottle, cable, ...)",
        _only_names(_MVTEC, "train/good"),
        _read_folders,
    ),
    "folder": Layout(
        "not stated: the data's owner decides",
        "<product>/train/good or <product>/good, and perhaps test/<kind> and ground_truth/<kind>",
        lambda root: bool(_product_folders(root)),
        _read_folders,
    ),
}
"""Layouts by name, in the order in which they are tried."""
