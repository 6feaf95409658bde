"""What was seen of each product lately: a JSON file beside its versions, that no version depends on.

The folder `watch` may be deleted at any time; the line is the same without it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moleflow.errors import LineError

from .files import (
    DEBRIS,
    WATCH,
    discard,
    listing_of,
    make_folder,
    read_bytes,
    require_inside,
    sync_folder,
    translated,
    write_file,
)
from .index import Index, parse_json
from .names import folded_name

Change = Callable[["dict[str, Any] | None"], "dict[str, Any] | None"]


def watch_file(path: Path, name: str) -> Path:
    """Of a product whose name was checked."""
    return path / WATCH / f"{name}.json"


def read_watch(path: Path, name: str) -> dict[str, Any] | None:
    """What stands there; None where nothing does. LineError, with the path and the way out, for damage."""
    file = watch_file(path, name)
    if not os.path.lexists(file):
        return None
    try:
        return parse_json(read_bytes(path, file), file)
    except LineError as error:
        raise LineError(f"{error}; moleflow drift LINE --reset {name} begins a new watch") from error


def write_watch(path: Path, name: str, document: dict[str, Any] | None) -> None:
    """Replace a watch in one step, or delete it; under the line's lock."""
    file = watch_file(path, name)
    if document is None:
        discard(file)
        return
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    draft = path / (DEBRIS + secrets.token_hex(8))
    with translated(file, "write"):
        require_inside(path, file.parent)
        make_folder(file.parent)
        try:
            write_file(draft, text.encode())
            os.replace(draft, file)
            sync_folder(file.parent)
        except BaseException:
            discard(draft)
            raise


def sweep_watches(path: Path, index: Index) -> None:
    """Delete watches over products that are gone."""
    folder = path / WATCH
    known = {folded_name(name) for name in index.entries}
    for file in [] if folder.is_symlink() else listing_of(folder):
        if file.suffix == ".json" and folded_name(file.stem) not in known:
            discard(file)
