"""What is read from a line and written to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class TaskRecord:
    """One product: the tensors and JSON of a version, and what was changed since without relearning.

    `version` is None as long as the product is not on disk; `sha256` is of the file of its tensors there, and
    `data` that file, where it was asked for instead of the tensors.
    """

    name: str
    version: str | None
    tensors: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class LineRecord:
    """A whole line: its settings, the frozen base, and the products in the order they were added.

    `damaged` says why, by name, of products that were left out because their files are not as written.
    """

    settings: dict[str, Any]
    base: dict[str, Tensor]
    base_info: dict[str, Any]
    fingerprint: str
    tasks: tuple[TaskRecord, ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)
