"""What layouts share in which a table says what an image is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...errors import DatasetError
from ..images import natural_key
from .listing import some_of
from .records import Item, Product, Split


def inside(root: Path, written: object, source: str) -> Path:
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


def grouped(items: list[Item], source: Path) -> list[Product]:
    """Sort listed images into products and splits."""
    counts = Counter(item.path for item in items)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise DatasetError(f"{some_of(twice)}: listed more than once in {source}")
    by_product: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: natural_key(item.path)):
        by_product.setdefault(item.product, []).append(item)
    return [_assembled(name, found) for name, found in by_product.items()]


def _assembled(name: str, items: list[Item]) -> Product:
    if bad := [item.path for item in items if item.label and item.split == "train"]:
        raise DatasetError(f"{some_of(bad)}: a defective image is listed for training; only good ones can be")
    defective = [item for item in items if item.label]
    missing = [item.path for item in defective if not item.masks]
    if missing and len(missing) < len(defective):
        raise DatasetError(f"{some_of(missing)}: no mask is listed for this defective image")

    def part(split: Split) -> tuple[Item, ...]:
        return tuple(item for item in items if item.split == split)

    return Product(name, train=part("train"), validation=part("validation"), test=part("test"))
