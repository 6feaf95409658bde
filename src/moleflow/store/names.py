"""Which names a product may have: they become folders on every system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from moleflow.errors import TaskError

NO_PRODUCT = "unknown"
"""What stands for the product of an image that looks like none, and is its status."""

_MAX_NAME_BYTES = 80
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)


def check_task_name(name: Any) -> str:
    """Return the NFC form of a product's name, or raise `TaskError`.

    The name becomes a folder on any system: no separators and none of `<>:"|?*`, no control or invisible
    characters, no leading dot, no space at either end, no trailing dot, no name Windows reserves, at most 80
    bytes of UTF-8. Letters of any script, inner spaces and inner dots are welcome.
    """
    if not isinstance(name, str):
        raise TaskError(f"a product's name must be text, got {type(name).__name__}")
    name = unicodedata.normalize("NFC", name)
    problem = _name_problem(name)
    if problem:
        raise TaskError(f"{name!r} cannot name a product: {problem}")
    return name


def check_new_name(name: Any) -> str:
    """`check_task_name` for a product that is to be; `TaskError` as well for the word that stands for none.

    A product of a saved line may have it, and is read and changed under it.
    """
    name = check_task_name(name)
    if folded_name(name) == NO_PRODUCT:
        raise TaskError(f"{name!r} cannot name a product: it is what an image of no product is called")
    return name


def _name_problem(name: str) -> str | None:
    if not name:
        return "it is empty"
    if any(_unprintable(character) for character in name):
        return "it holds a control or invisible character"
    if any(character in '<>:"/\\|?*' for character in name):
        return 'it holds one of < > : " / \\ | ? *'
    if name != name.strip():
        return "it begins or ends with a space"
    if name.startswith(".") or name.endswith("."):
        return "it begins or ends with a dot"
    if _RESERVED.fullmatch(name.split(".")[0].rstrip()):
        return "Windows reserves it"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"it takes {len(name.encode())} bytes, at most {_MAX_NAME_BYTES} are allowed"
    return None


def _unprintable(character: str) -> bool:
    # Zero-width (non-)joiners are part of the spelling of several scripts.
    return (
        unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in "\u200c\u200d"
    )


def folded_name(name: str) -> str:
    """Two names with one folded form are one folder on systems that ignore case."""
    return unicodedata.normalize("NFC", name.casefold())


def some_of(names: Iterable[str]) -> str:
    """A few names for an error message."""
    names = sorted(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
