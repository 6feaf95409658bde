"""What killed writers leave, and how the next writer clears it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .files import DEBRIS, REMOVED, TASKS, UNLISTED, bury, discard, discard_empty, listing_of, sync_folder
from .index import Index, versions_in
from .names import folded_name
from .watch import sweep_watches


def sweep(path: Path, index: Index) -> None:
    """Remove what killed writers left; under the lock, so nothing here belongs to a living one."""
    tasks = path / TASKS
    products = [] if tasks.is_symlink() else listing_of(tasks)
    for entry in (*listing_of(path), *products):
        if entry.name.startswith(DEBRIS):
            discard(entry)
    listed = {folded_name(name): entry.version for name, entry in index.entries.items()}
    for product in products:
        if not product.is_symlink():
            _sweep_product(path, product, listed.get(folded_name(product.name)))
    sweep_watches(path, index)


def _sweep_product(path: Path, product: Path, version: str | None) -> None:
    """Finish or undo what a killed writer began, as `line.json` has it: `version` is what it points to."""
    if (product / REMOVED).is_file():
        if version is None:
            bury(path, product)
        else:
            discard(product / REMOVED)
    for name in versions_in(product):
        if (product / name / UNLISTED).is_file():
            if name == version:
                mark_listed(product / name)
            else:
                bury(path, product / name)
    if version is None:
        discard_empty([product])


def mark_listed(folder: Path) -> None:
    """A version that line.json points to is no longer debris."""
    with suppress(OSError):  # the next writer tries again
        os.unlink(folder / UNLISTED)
        sync_folder(folder)
