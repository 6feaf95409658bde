"""What a caller passes in as images, one at a time, each with the name it is reported under."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from .images import find_images

Source = Path | int
"""A file's path, or the position of an array among those that were passed in."""


def list_sources(images: Any) -> list[tuple[Source, Any]]:
    """Every image of `images` with its source: a folder, a pattern, a file, a list of them, or arrays.

    Raises ImageError where there is none.
    """
    if isinstance(images, str | Path):
        return [(path, path) for path in find_images(images)]
    if isinstance(images, np.ndarray) or _is_tensor(images):
        items = list(images) if images.ndim == 4 else [images]
    else:
        try:
            items = list(images)
        except TypeError:
            items = [images]
    paths = [item for item in items if isinstance(item, str | Path)]
    if items and len(paths) == len(items):
        return [(path, path) for path in find_images(paths)]
    if not items:
        raise ImageError("expected at least one image, got none")
    return list(enumerate(items))


def name_of(source: Source) -> str:
    """How an error names a source."""
    return f"image {source}" if isinstance(source, int) else str(source)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor can only have come if torch is imported
    return torch is not None and isinstance(value, torch.Tensor)
