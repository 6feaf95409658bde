"""What a caller passes in as images, one at a time, each with the name it is reported under."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import ImageError
from .images import find_entries
from .lists import Entry, Missing

T = TypeVar("T")

Source = Path | int
"""A file's path, or the position of an array among those that were passed in."""


Errors = Literal["raise", "yield"]
"""What a bad image does: it is raised, or takes its place among the results."""


def list_sources(images: Any, *, errors: Errors = "raise") -> list[tuple[Source, Any]]:
    """Every image of `images` with its source: a folder, a pattern, a file, a list of them, arrays, or
    files' bytes.

    Files that end in `.txt` or `.csv` are lists of images, see `read_list`. With `errors` "yield" a listed
    file that is not there stays among the images, so that reading it fails by name; with "raise" it is an
    error at once.

    Raises ImageError where there is no image.
    """
    missing: Missing = "keep" if errors == "yield" else "raise"
    if isinstance(images, str | Path):
        return _of_paths(find_entries(images, missing=missing))
    if isinstance(images, bytes):
        return [(0, images)]
    if isinstance(images, np.ndarray) or _is_tensor(images):
        items = list(images) if images.ndim == 4 else [images]
    else:
        try:
            items = list(images)
        except TypeError:
            items = [images]
    paths = [item for item in items if isinstance(item, str | Path)]
    if items and len(paths) == len(items):
        return _of_paths([entry for path in paths for entry in _entries(path, missing)])
    if not items:
        raise ImageError("expected at least one image, got none")
    return list(enumerate(items))


def _entries(path: str | Path, missing: Missing) -> list[Entry]:
    # What a folder was found to hold comes as a Path, and is no pattern however it is called.
    named = isinstance(path, Path) or not glob.has_magic(path)
    if missing == "keep" and str(path) and named and not os.path.exists(path):
        return [Entry(Path(path))]
    return find_entries(path, missing=missing)


def _of_paths(entries: Sequence[Entry]) -> list[tuple[Source, Any]]:
    return [(entry.path, entry.path) for entry in entries]


def name_of(source: Source) -> str:
    """How an error names a source."""
    return f"image {source}" if isinstance(source, int) else str(source)


def text_of(name: str | Path) -> str:
    """A file's name may hold bytes that are no text in any encoding, which JSON cannot hold."""
    return str(name).encode("utf-8", "replace").decode()


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor can only have come if torch is imported
    return torch is not None and isinstance(value, torch.Tensor)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread over all of them."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[place] for place in places]
