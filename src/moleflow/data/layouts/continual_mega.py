"""Continual-MEGA, whose tables say which images of several data sets are of one scenario."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import DatasetError
from .listing import some_of, visible
from .records import GOOD, Item, Product, Split
from .tables import grouped, inside


def tables(root: Path) -> list[Path]:
    """Of one scenario, the table of its base classes and one of its tasks."""
    found = [path for path in visible(root / "meta_files") if path.suffix.lower() == ".json"]
    return [path for path in found if path.stem.endswith(("_base", "classes_tasks"))]


def read(root: Path) -> list[Product]:
    """Products as the tables of one scenario list them."""
    found = tables(root)
    scenarios = {path.stem.split("_")[0] for path in found}
    tasks = [path for path in found if not path.stem.endswith("_base")]
    if len(scenarios) > 1 or len(tasks) > 1:
        raise DatasetError(
            f"{root / 'meta_files'}: expected the tables of one scenario, <scenario>_base.json and one "
            f"<scenario>_<n>classes_tasks.json, for their splits differ; found {some_of(found)}"
        )
    return grouped([item for table in found for item in _items(root, table)], root / "meta_files")


def _items(root: Path, table: Path) -> Iterator[Item]:
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
                    item = _item(root, row, product, split=split, source=source)
                    # The set shows its methods ten defective images of each class; ours learn from good ones.
                    if item.split == "test" or not item.label:
                        yield item


def _item(root: Path, row: Any, product: str, *, split: Split, source: str) -> Item:
    if not isinstance(row, dict) or row.get("anomaly") not in (0, 1):
        raise DatasetError(f"{source}: expected an object with img_path, mask_path and anomaly 0 or 1")
    defective, mask = bool(row["anomaly"]), row.get("mask_path")
    return Item(
        inside(root, row.get("img_path"), source),
        product,
        split,
        "anomaly" if defective else GOOD,
        masks=(inside(root, mask, source),) if defective and mask else (),
    )
