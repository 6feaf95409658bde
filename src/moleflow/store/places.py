"""A folder that is written beside its place, and put there once it is whole."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path

from moleflow.errors import MoleFlowError

ABANDONED = 86_400.0  # seconds after which nobody writes there any more
NUMBER = 8  # hexadecimal digits by which names beside a place differ


def require_apart(line: Path, place: Path, error: type[MoleFlowError]) -> None:
    """Refuses a place in the line's folder, or around it: one of both would go with the other."""
    home, out = Path(os.path.realpath(line)), Path(os.path.realpath(place))
    if home.is_relative_to(out) or out.is_relative_to(home):
        raise error(f"{place}: expected a folder apart from that of the line, which is {home}")


def beside(place: Path, end: str = "") -> Path:
    """A new name beside a place; nothing is made there."""
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:NUMBER]}{end}")


def left_beside(place: Path, end: str = "") -> list[Path]:
    """What lies under such names, the oldest first: of living writers as well as of killed ones."""
    return _changed_last(place.parent.glob(f".{escape(place.name)}.{NUMBER * '[0-9a-f]'}{escape(end)}"))


def left_among(folder: Path, end: str) -> list[Path]:
    """The same of all places in a folder, for names that end so."""
    return _changed_last(folder.glob(f".*.{NUMBER * '[0-9a-f]'}{escape(end)}"))


def clear(left: Iterable[Path], place: Path, end: str = "") -> None:
    """Deletes what nobody has written to for a day."""
    for path in left:
        if time.time() - _changed(path) > ABANDONED:
            delete(path, beside(place, end))


def delete(path: Path, gone: Path) -> None:
    """Deletes a folder under another name: what is deleted by half is not taken for what it was."""
    with suppress(OSError):
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _changed_last(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=_changed)


def _changed(path: Path) -> float:
    """When; just now where it is gone, as when another writer clears it too."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
