"""Inspection with an exported line: no torch, no timm, the same verdicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from ..data.sources import Errors, list_sources
from ..errors import ConfigError
from ..inspection import check_stream, inspect_all
from ..intake import Intake, Picture, without_border
from ..results import Failure, Prediction
from ..store import Damaged, check_damaged
from .line import ExportedLine, Seen, is_exported

__all__ = ["Inspector", "is_exported"]


class Inspector:
    """Inspects images of any product of an exported line, as the line's own `Detector` does.

    It needs ONNX Runtime, or OpenVINO for a line that was exported to it, and neither torch nor timm. Several
    threads may share one. Every file is checked now; a product is read when an image first needs it.

    Args:
        path: folder that `moleflow export` wrote.
        threads: processor threads; as many as there are cores by default.
        damaged: "raise" refuses a line of which one product is damaged; "quarantine" leaves that one out,
            names it in `damaged`, and inspects the others. An image that is nearest to it is judged by none
            of them: it raises LineError.

    Raises:
        LineError: there is no exported line, it is damaged, or of a later format.
        ConfigError: no thread, or another word for `damaged`.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, damaged: Damaged = "raise") -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ConfigError(f"expected at least 1 thread, got {threads!r}")
        check_damaged(damaged)
        self._line = ExportedLine(path, threads=threads or os.cpu_count() or 1, damaged=damaged)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the products, in the order they were added."""
        return tuple(self._line.entries)

    @property
    def damaged(self) -> dict[str, str]:
        """Products that were left out because their files are damaged, with the reason."""
        return dict(self._line.damaged)

    @property
    def intake(self) -> Intake:
        """From an image to what the backbone sees."""
        return self._line.intake

    def hold(self) -> None:
        """Reads as many products as stay in memory: what becomes of their files later does not reach them.

        Raises:
            LineError: a file was damaged since the line was opened, or a network cannot be run.
            BackboneError: the backbone computes something else here than where the line was learned.
        """
        self._line.hold()

    @overload
    def predict(
        self, images: Any, *, task: str | None = ..., batch_size: int = ..., errors: Literal["raise"] = ...
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: Any, *, task: str | None = ..., batch_size: int = ..., errors: Literal["yield"]
    ) -> list[Prediction | Failure]: ...

    def predict(
        self, images: Any, *, task: str | None = None, batch_size: int = 8, errors: Errors = "raise"
    ) -> Any:
        """Inspects images; arguments, results and errors as of `Detector.predict`.

        Raises:
            BackboneError: the backbone computes something else here than where the line was learned.
            LineError: a file that is needed now was damaged or replaced since the line was opened.
        """
        return list(self.stream(images, task=task, batch_size=batch_size, errors=errors))

    def stream(
        self, images: Any, *, task: str | None = None, batch_size: int = 8, errors: Errors = "raise"
    ) -> Iterator[Prediction | Failure]:
        """As `predict`, one result after the other, for folders of any size."""
        check_stream(batch_size, errors)
        return inspect_all(
            self._line,
            list_sources(images, errors=errors),
            see=self._see,
            task=None if task is None else self._line.require(task),
            batch_size=batch_size,
            errors=errors,
        )

    def _see(self, pictures: Sequence[Picture]) -> list[Seen]:
        images = np.stack([picture.pixels for picture in pictures]).transpose(0, 3, 1, 2)
        seen = self._line.see(np.ascontiguousarray(images))
        return [
            Seen(without_border(one.patches, [picture]), one.pooled)
            for one, picture in zip(seen, pictures, strict=True)
        ]
