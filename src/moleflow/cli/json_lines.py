"""What commands write for other programs: one JSON object per line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from ..errors import MoleFlowError, reason_of


@contextmanager
def json_lines(target: str | None) -> Iterator[Callable[[Any], None]]:
    """A function that writes one JSON object per line; it does nothing without a target.

    Args:
        target: a file, which is begun anew, or - for stdout.

    Raises MoleFlowError for a file that cannot be written.
    """
    if target is None:
        yield lambda _: None
        return
    with nullcontext(sys.stdout) if target == "-" else _opened(Path(target)) as file:

        def write(value: Any) -> None:
            # ASCII, because a file's name may hold bytes that are no text in any encoding.
            line = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False) + "\n"
            try:
                file.write(line)
                file.flush()
            except OSError as error:
                if target == "-":
                    raise
                with suppress(OSError):  # what could not be written would be tried again
                    file.close()
                raise MoleFlowError(f"{target}: cannot be written: {reason_of(error)}") from error

        yield write


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise MoleFlowError(f"{path}: cannot be written: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor NaN."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
