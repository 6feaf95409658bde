"""Real-IAD, with a table for every product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import DatasetError
from .listing import some_of, visible
from .records import GOOD, Item, Product, Split
from .tables import grouped, inside

_SIZES = ("", "realiad_1024", "realiad_512", "realiad_256", "realiad_raw")


def read(root: Path) -> list[Product]:
    """Products as their tables list them."""
    return [product for table in tables(root) for product in _read_table(root, table)]


def tables(root: Path) -> list[Path]:
    """One json per product; some copies of the data have a second folder of the same name inside."""
    for folder in (root / "realiad_jsons", root / "realiad_jsons" / "realiad_jsons"):
        if found := [path for path in visible(folder) if path.suffix.lower() == ".json"]:
            return found
    return []


def _read_table(root: Path, table: Path) -> list[Product]:
    try:
        content = json.loads(table.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{table}: cannot be read as json: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(s), list) for s in ("train", "test")):
        raise DatasetError(f"{table}: expected an object with the lists train and test")
    folder = _images_of(root, table.stem)
    splits: tuple[Split, ...] = ("train", "test")
    items = [
        _item(folder, row, table.stem, split=split, source=f"{table}, {split}[{index}]")
        for split in splits
        for index, row in enumerate(content[split])
    ]
    return grouped(items, table)


def _images_of(root: Path, product: str) -> Path:
    """The product's images; of several image sizes that were unpacked side by side the largest."""
    candidates = [root / size / product for size in _SIZES]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DatasetError(f"{root}: no images of {product!r}; looked for {some_of(candidates)}")


def _item(folder: Path, row: Any, product: str, *, split: Split, source: str) -> Item:
    if not isinstance(row, dict) or not isinstance(row.get("anomaly_class"), str):
        raise DatasetError(f"{source}: expected an object with image_path, mask_path and anomaly_class")
    defective = row["anomaly_class"] != "OK"
    mask = row.get("mask_path")
    return Item(
        inside(folder, row.get("image_path"), source),
        product,
        split,
        row["anomaly_class"] if defective else GOOD,
        masks=(inside(folder, mask, source),) if defective and mask else (),
        # Masks of this set were resized and compressed, so their edges are grey.
        mask_above=127,
    )
