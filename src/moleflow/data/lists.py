"""Lists of images in text and CSV files: which file, on which line of the list, with which other columns."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import ImageError, reason_of

LIST_ENDINGS = frozenset({".csv", ".txt"})
"""Endings (lower case) of files that are lists of images."""

PATH_COLUMNS = ("path", "image", "file")
"""Headers (in any case) of a CSV's column of images; the first of them that is there counts."""

Missing = Literal["raise", "keep"]
"""What becomes of a path in a list where there is nothing."""

_DELIMITERS = ",;\t"  # which of them a CSV uses depends on the country of the office program that wrote it


@dataclass(frozen=True)
class Entry:
    """One image that was found: its path and, where it came from a CSV list, the row's other columns."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)


def is_list(path: Path) -> bool:
    """Whether a file's name says that it lists images."""
    return path.suffix.lower() in LIST_ENDINGS


def read_list(path: Path, *, missing: Missing = "raise") -> list[Entry]:
    """The images that a list names, in its order, with paths relative to the list's folder.

    A text file has a path on each line; blank lines and those that begin with `#` are skipped. A CSV file has
    a header with one of `PATH_COLUMNS`, and commas, semicolons or tabs between the columns.

    Args:
        path: the list, UTF-8.
        missing: "raise" refuses a path where there is nothing, "keep" leaves it to whoever reads the image.

    Raises:
        ImageError: with the list and the line, where it is no such list or names no image.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ImageError(f"{path}, line {line}: expected a list in UTF-8, found other bytes") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {reason_of(error)}") from error
    rows = _rows(path, text) if path.suffix.lower() == ".csv" else _lines(text)
    entries = [_entry(path, line, name, columns, missing) for line, name, columns in rows]
    if not entries:
        raise ImageError(f"{path}: expected a list of images, it names none")
    return entries


_Row = tuple[int, str, dict[str, str]]  # line, name of the image, other columns


def _lines(text: str) -> list[_Row]:
    stripped = [line.strip() for line in text.split("\n")]
    return [(i, name, {}) for i, name in enumerate(stripped, 1) if name and not name.startswith("#")]


def _rows(path: Path, text: str) -> list[_Row]:
    header, _, _ = text.partition("\n")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=header.count))
    try:
        names = [name.strip() for name in next(reader, [])]
        at = _path_column(path, names)
        return [_row(path, reader.line_num, names, at, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise ImageError(f"{path}, line {reader.line_num}: not a row of a CSV: {error}") from error


def _path_column(path: Path, names: list[str]) -> int:
    folded = [name.casefold() for name in names]
    for wanted in PATH_COLUMNS:
        if wanted in folded:
            return folded.index(wanted)
    expected, found = " or ".join(PATH_COLUMNS), ", ".join(names) or "nothing"
    raise ImageError(f"{path}, line 1: expected a header with a column {expected}, found {found}")


def _row(path: Path, line: int, names: list[str], at: int, row: list[str]) -> _Row:
    if len(row) > len(names):
        raise ImageError(f"{path}, line {line}: expected {len(names)} columns as in line 1, found {len(row)}")
    values = [value.strip() for value in row] + [""] * (len(names) - len(row))
    if not values[at]:
        raise ImageError(f"{path}, line {line}: expected a path in column {names[at]!r}, found none")
    columns = {name: value for i, (name, value) in enumerate(zip(names, values, strict=True)) if i != at}
    return line, values[at], columns


def _entry(path: Path, line: int, name: str, columns: dict[str, str], missing: Missing) -> Entry:
    if "\0" in name:
        raise ImageError(f"{path}, line {line}: expected a path, found a null character in {name!r}")
    image = path.parent / name
    pattern = glob.has_magic(name) and not os.path.lexists(image)
    if pattern and missing == "keep":  # or an image that is gone and called so
        pattern = bool(glob.glob(name, root_dir=path.parent))
    if os.path.isdir(image) or is_list(image) or pattern:  # results are told and drawn row by row
        found = "a pattern" if pattern else "a list" if is_list(image) else "a folder"
        raise ImageError(f"{path}, line {line}: {image}: expected an image, this is {found}")
    if missing == "raise" and not os.path.lexists(image):
        raise ImageError(f"{path}, line {line}: {image}: no such file")
    return Entry(image, columns)
