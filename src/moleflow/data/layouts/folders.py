"""Layouts in which folders say what an image is; one reader for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...errors import DatasetError
from .listing import folders_in, holds, images_in, some_of
from .records import GOOD, Item, Product

_GOOD_NAMES = ("good", "ok")
_PARTS = ("train", "validation", "test", "test_public", "ground_truth")


def read(root: Path) -> list[Product]:
    """Products as folders with train, validation and test folders inside.

    They differ only in names that do not collide: "good" or "ok"; a test folder, or "test_public"
    with its own ground truth; masks as files or, one folder per image, as several files.
    """
    return [_read_product(folder) for folder in product_folders(root)]


def product_folders(root: Path) -> list[Path]:
    """Folders with a product's parts inside; ``root`` itself when it is one product."""
    if _train_folders(root):
        return [root]
    return [folder for folder in folders_in(root) if folder.name not in _PARTS and _has_parts(folder)]


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
        raise DatasetError(f"{folder}: expected good images in train/good, train/ok or good; {holds(folder)}")
    checked_on = [folder / "validation" / good for good in _GOOD_NAMES]
    return Product(
        name,
        train=tuple(Item(path, name, "train", GOOD) for part in trained_on for path in images_in(part)),
        validation=tuple(
            Item(path, name, "validation", GOOD) for part in checked_on for path in images_in(part)
        ),
        test=tuple(_read_test(folder, name)),
    )


def _read_test(folder: Path, product: str) -> list[Item]:
    public = folder / "test_public"
    test = public if public.is_dir() else folder / "test"
    truth = next((t for t in (test / "ground_truth", folder / "ground_truth") if t.is_dir()), None)
    items = []
    for kind in folders_in(test):
        if kind.name == "ground_truth":
            continue
        name = GOOD if kind.name in _GOOD_NAMES else kind.name
        found = [Item(path, product, "test", name) for path in images_in(kind)]
        items += found if name == GOOD or truth is None else with_masks(found, truth / kind.name)
    return items


def with_masks(items: list[Item], folder: Path) -> list[Item]:
    """Give each defective image of one kind its mask; every one must have one."""
    stems = Counter(item.path.stem for item in items)
    if twice := [item.path for item in items if stems[item.path.stem] > 1]:
        raise DatasetError(f"{some_of(twice)}: images of one name cannot be told apart by their masks' names")
    masks = _masks_by_stem(folder)
    given = [replace(item, masks=masks.get(item.path.stem, ())) for item in items]
    if missing := [item.path for item in given if not item.masks]:
        raise DatasetError(f"{some_of(missing)}: no mask for this defective image in {folder}")
    return given


def _masks_by_stem(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Masks by the stem of their image: files ``stem`` or ``stem_mask``, or a folder ``stem``."""
    masks: dict[str, tuple[Path, ...]] = {
        part.name: files for part in folders_in(folder) if (files := tuple(images_in(part)))
    }
    for path in images_in(folder):
        stem = path.stem.removesuffix("_mask")
        if stem in masks:
            raise DatasetError(
                f"{some_of([*masks[stem], path])}: several masks for image {stem!r}; expected one"
            )
        masks[stem] = (path,)
    return masks


def only_names(names: frozenset[str], train: str) -> Callable[[Path], bool]:
    """Own products may lie as a public set does, so the set is known by its products' names."""

    def detect(root: Path) -> bool:
        found = product_folders(root)
        return bool(found) and all(f.name in names and (f / train).is_dir() for f in found)

    return detect


def any_product_has(*inside: str) -> Callable[[Path], bool]:
    """Whether some product has one of these folders."""

    def detect(root: Path) -> bool:
        return any((folder / part).is_dir() for folder in product_folders(root) for part in inside)

    return detect
