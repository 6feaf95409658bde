"""VisA, whose one table lists the images of all products."""

from __future__ import annotations

import csv
from pathlib import Path

from ...errors import DatasetError
from .records import GOOD, Item, Product
from .tables import grouped, inside


def has_table(root: Path) -> bool:
    """Whether the table is where it is unpacked."""
    return _table(root).is_file()


def read(root: Path) -> list[Product]:
    """Products as the table of one class each lists them."""
    table = _table(root)
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
            items = [_item(root, row, f"{table}, line {rows.line_num}") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read as a table: {error}") from error
    return grouped(items, table)


def _table(root: Path) -> Path:
    return root / "split_csv" / "1cls.csv"


def _item(root: Path, row: dict[str, str], source: str) -> Item:
    split, label = row["split"], row["label"]
    if split not in ("train", "test") or label not in ("normal", "anomaly") or not row["object"]:
        raise DatasetError(
            f"{source}: expected an object, split train or test and label normal or anomaly, "
            f"not {row['object']!r}, {split!r}, {label!r}"
        )
    defective = label == "anomaly"
    return Item(
        inside(root, row["image"], source),
        row["object"],
        "train" if split == "train" else "test",
        "anomaly" if defective else GOOD,
        masks=(inside(root, row["mask"], source),) if defective and row["mask"] else (),
    )
