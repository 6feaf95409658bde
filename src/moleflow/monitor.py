"""Between inspections and the watch kept with a line: what is written, what is read, what it says."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .data.sources import text_of
from .errors import LineError
from .results import Prediction
from .store import LineStore
from .store.watch import watch_file
from .verdict.drift import Reference
from .verdict.watch import Monitor, Seen


def observe(store: LineStore, versions: dict[str, str], predictions: Iterable[Prediction]) -> None:
    """Adds inspected images to the watches kept with a line.

    Args:
        store: the line's folder.
        versions: by product, the version that inspected.
        predictions: those without facts, of which nothing can be said later, are left out.

    Raises:
        LineError: the line uses another version by now, cannot be written, or a watch is damaged.
    """
    now = time.time()
    seen: dict[str, list[Seen]] = {}
    paths: dict[str, list[tuple[str, str]]] = {}
    for prediction in predictions:
        if prediction.facts is None:
            continue
        verdict, name = prediction.status, prediction.task
        seen.setdefault(name, []).append(Seen(now, verdict, prediction.pred_score, prediction.facts))
        if isinstance(prediction.source, Path):
            path = text_of(prediction.source.absolute())
            paths.setdefault(name, []).append((path, verdict))
    for name, images in seen.items():
        version = versions[name]

        def added(document: dict[str, Any] | None, name: str = name, images: list[Seen] = images) -> Any:
            monitor = _monitor(store, name, versions[name], document)
            return monitor.adding(images, paths.get(name, ())).to_dict()

        store.change_watch(name, added, version=version)


def read_monitor(store: LineStore, name: str, version: str) -> Monitor:
    """The watch over one version of a product, empty where nothing was seen of it; LineError for damage."""
    return _monitor(store, name, version, store.read_watch(name))


def reference_of(info: dict[str, Any]) -> Reference | None:
    """What good images taught, from a product's saved info; None in a line from before drift was watched."""
    saved = info.get("reference")
    return None if saved is None else Reference.from_dict(saved)


def _monitor(store: LineStore, name: str, version: str, document: dict[str, Any] | None) -> Monitor:
    if document is None or document.get("version") != version:
        return Monitor(version)
    try:
        return Monitor.from_dict(document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LineError(
            f"{watch_file(store.path, name)}: expected what was seen of {name!r}, but {error!r} is amiss; "
            f"moleflow drift LINE --reset {name} begins a new watch"
        ) from error
