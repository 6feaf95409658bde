"""A verdict becomes a row of the history, with a small picture beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..results import Prediction
from .history.inspections import Inspections, as_json
from .history.models import Inspection
from .inspecting import Said
from .pictures import as_kept_map
from .problems import Conflict, Problem, Unready

FINER = 4  # as often as a cell of the grid, the map of an aligned image is kept


class Recorder:
    """Writes what was said, and returns what is answered.

    Args:
        inspections: of the database.
        keep_pictures: whether there is room for them.
        told: of every batch that was answered, for those who count.
    """

    def __init__(
        self,
        inspections: Inspections,
        keep_pictures: Callable[[], bool],
        told: Callable[[Sequence[Inspection], bool], None],
    ) -> None:
        self._inspections, self._keep_pictures, self._told = inspections, keep_pictures, told

    def __call__(self, said: Sequence[Said]) -> list[dict[str, Any] | Problem]:
        """One answer each. On a full disk they are answered as not recorded; any other trouble is raised.

        An image that was sent before under its key is answered with what was recorded of it then.
        """
        now, keep = time.time(), self._keep_pictures()
        known = first_of(self._inspections, [one.shot.key for one in said if one.shot.key])
        fresh = _without_again(said, known)
        rows = [_row(one, now) for one in fresh]
        recorded = True
        try:
            pictures = [_picture(one) if keep else None for one in fresh]
            numbers: Sequence[int | None] = self._write(rows, pictures)
        except Unready as problem:
            if problem.code != "disk_full":
                raise
            numbers, recorded = [None] * len(rows), False
        found = [Inspection(id=number, **row) for number, row in zip(numbers, rows, strict=True)]
        self._told(found, recorded)
        first = {id(one): row for one, row in zip(fresh, found, strict=True)}
        known |= {row.key: row for row in found if row.key}
        return [answer_of(first.get(id(one)) or known[str(one.shot.key)], one.shot.sha256) for one in said]

    def _write(
        self, rows: Sequence[dict[str, Any]], pictures: Sequence[dict[str, Any] | None]
    ) -> Sequence[int]:
        """Without the pictures, where there is no room for them."""
        if not rows:
            return []
        try:
            return self._inspections.add(rows, pictures)
        except Unready as problem:
            if problem.code != "disk_full":
                raise
            return self._inspections.add(rows, [None] * len(rows))


def first_of(inspections: Inspections, keys: Collection[str]) -> dict[str, Inspection]:
    """What was recorded under these keys; on a full disk that cannot be asked nothing is known."""
    try:
        return inspections.keyed(keys)
    except Unready as problem:
        if problem.code != "disk_full":
            raise
        return {}


def answer_of(row: Inspection, sha256: str) -> dict[str, Any] | Problem:
    """To an image of this SHA-256; a problem where what stands under its key is of another one."""
    if row.sha256 == sha256:
        return as_json(row) | {"recorded": row.id is not None}
    found = f"expected the image that came first under this key, of SHA-256 {row.sha256}, got one of {sha256}"
    return Conflict(found, "key_taken")


def _without_again(said: Sequence[Said], known: Collection[str]) -> list[Said]:
    """Those that are recorded: of two under one key the first."""
    fresh, keys = [], set(known)
    for one in said:
        if one.shot.key is None or one.shot.key not in keys:
            fresh.append(one)
            keys.add(str(one.shot.key))
    return fresh


def _row(said: Said, now: float) -> dict[str, Any]:
    prediction, told = said.prediction, said.prediction.to_dict()
    routing = told["routing"]
    height, width = prediction.image_size
    return {
        "time": now,
        "source": said.shot.source,
        "sha256": said.shot.sha256,
        "key": said.shot.key,
        "version": said.version,
        "height": height,
        "width": width,
        "certainty": routing and {key: routing[key] for key in ("margin", "distance", "distance_limit")},
        "regions": [region.to_dict() for region in prediction.regions] if prediction.pred_label else [],
        "facts": told["facts"],
        "latency_ms": round(1000 * said.seconds, 3),
    } | {
        key: told[key]
        for key in (
            "task",
            "status",
            "known",
            "pred_score",
            "p_value",
            "threshold",
            "reason",
            "place_score",
            "whole_score",
            "map_threshold",
        )
    }


def _picture(said: Said) -> dict[str, Any]:
    grid = _grid(said.prediction)
    kept = as_kept_map(grid)
    return {
        "size": len(kept) + len(said.shot.jpeg),
        "map_height": grid.shape[0],
        "map_width": grid.shape[1],
        "map": kept,
        "jpeg": said.shot.jpeg,
    }


def _grid(prediction: Prediction) -> Any:
    """The map in the image's own coordinates, as coarse as it is."""
    if prediction.placement is None:
        return prediction.patch_map
    height, width = prediction.patch_map.shape
    return prediction.map_at((FINER * height, FINER * width))
