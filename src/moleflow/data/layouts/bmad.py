"""BMAD, whose six sets differ in depth, in order and in upper and lower case."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .folders import with_masks
from .listing import folders_in, images_in
from .records import GOOD, Item, Product, Split

_SPLITS = {"train": ("train",), "validation": ("valid", "val"), "test": ("test",)}
_PARTS = {GOOD: ("good",), "ungood": ("ungood",)}
_DEPTH = 2  # folders between the root and train: <organ>, or <organ>/<source>


def _child(folder: Path | None, names: Iterable[str]) -> Path | None:
    """The first folder inside of one of these names, whatever their case."""
    wanted = tuple(names)
    inside = [] if folder is None else folders_in(folder)
    return next((path for name in wanted for path in inside if path.name.casefold() == name), None)


def product_folders(root: Path) -> dict[str, Path]:
    """By the names of the folders under the root, the folder that holds train and test of each."""
    found: dict[str, Path] = {}
    level = {root.name or root.resolve().name: root} if _is_bmad(root) else {}
    if level:
        return level
    for top in folders_in(root):
        candidates = [top]
        for _ in range(_DEPTH):
            if own := next((folder for folder in candidates if _is_bmad(folder)), None):
                found[top.name] = own
                break
            candidates = [inner for folder in candidates for inner in folders_in(folder)]
    return found


def _is_bmad(folder: Path) -> bool:
    """Whether train holds good images and test "Ungood" ones."""
    return all(
        _part(_child(folder, _SPLITS[split]), split, part) is not None
        for split, part in (("train", GOOD), ("test", "ungood"))
    )


def _part(split: Path | None, name: str, part: str) -> Path | None:
    """Where the good or the defective images of a split are: below it, or one folder further."""
    if direct := _child(split, _PARTS[part]):
        return _child(direct, ("img",)) or direct
    return _child(_child(split, ("img", *_SPLITS[name])), _PARTS[part])


def _masks(split: Path | None) -> Path | None:
    """Where the masks of a split's defective images are; None for a set without any."""
    if direct := _child(split, _PARTS["ungood"]):
        return _child(direct, ("label",))
    return _child(_child(split, ("label", "test_label")), _PARTS["ungood"])


def read(root: Path) -> list[Product]:
    """A product for every set that is there."""
    return [_read_product(name, folder) for name, folder in product_folders(root).items()]


def _read_product(name: str, folder: Path) -> Product:
    def good(split: Split) -> tuple[Item, ...]:
        place = _part(_child(folder, _SPLITS[split]), split, GOOD)
        return tuple(Item(path, name, split, GOOD) for path in (images_in(place) if place else ()))

    test = _child(folder, _SPLITS["test"])
    place, masks = _part(test, "test", "ungood"), _masks(test)
    defective = [Item(path, name, "test", "ungood") for path in (images_in(place) if place else ())]
    if masks is not None:
        defective = with_masks(defective, masks)
    # Defective validation images have no place here: nothing is chosen by defects.
    return Product(name, good("train"), good("validation"), (*good("test"), *defective))
