"""What a folder holds, in an order that people expect, and how messages name it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..images import EXTENSIONS, natural_key


def visible(folder: Path) -> list[Path]:
    """What is not hidden, in natural order; nothing where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))),
        key=natural_key,
    )


def folders_in(folder: Path) -> list[Path]:
    """The folders directly inside."""
    return [path for path in visible(folder) if path.is_dir()]


def images_in(folder: Path) -> list[Path]:
    """The files directly inside that are images by their names."""
    return [path for path in visible(folder) if path.suffix.lower() in EXTENSIONS and not path.is_dir()]


def holds(folder: Path) -> str:
    """What stands in a folder, for messages."""
    names = [path.name + ("/" if path.is_dir() else "") for path in visible(folder)]
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"it holds {', '.join(names[:12])}{more}"


def some_of(paths: Iterable[Path]) -> str:
    """The first of many paths, for messages."""
    listed = [str(path) for path in paths]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more
