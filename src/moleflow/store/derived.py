"""What follows from a line's products and is kept beside them, so that it need not be computed again.

The file may be deleted at any time; the line is the same without it. It says what it was made from, and
counts for nothing where that has changed or where it is damaged.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from moleflow.errors import LineError

from .files import DEBRIS, discard, write_file
from .tensors import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

DERIVED = "derived.safetensors"


def read_derived(path: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors that were made from what `key` names; None where there are none."""
    from safetensors import SafetensorError, safe_open

    file = path / DERIVED
    try:
        if file.is_symlink() or not file.is_file():
            return None
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            if said.get("key") != key:
                return None
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return tensors if said.get("sha256") == fingerprint(tensors) else None


def write_derived(path: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Replaces what was kept, in one step; a disk that refuses it is no error."""
    import safetensors.torch

    if read_derived(path, key) is not None:
        return
    said = {"key": key, "sha256": fingerprint(tensors)}
    data = safetensors.torch.save({name: own.contiguous() for name, own in tensors.items()}, said)
    draft = path / (DEBRIS + secrets.token_hex(8))
    with suppress(OSError, LineError):
        try:
            write_file(draft, data)
            os.replace(draft, path / DERIVED)
        except BaseException:
            discard(draft)
            raise
