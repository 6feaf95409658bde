"""What an exported line takes beside the line it came from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from ...detector import Detector
from ...export import ENGINE, Format, export_line
from ...runtime import Inspector
from ...runtime.engines import installed
from .table import Table, drawn, in_turns, milliseconds, ratio

TAUGHT = 24
NOTE = (
    "Milliseconds an image, from arrays; “÷ backbone” is of the line's own backbone in the same round. The "
    "difference is the largest of scores, maps and distances, in spreads, over drawn pictures."
)


def exports(size: int, batches: Sequence[int], rounds: int) -> Table:
    """Both formats, as far as their engines are installed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line"
        line = Detector(image_size=size, device="cpu")
        line.add_task("drawn", drawn(TAUGHT, size), pose="off")
        line.save(path)
        inspectors: dict[str, Detector | Inspector] = {f"line, {line.extractor.runtime}": line}
        told = {f"line, {line.extractor.runtime}": ("–", _megabytes(path))}
        for format in get_args(Format):
            if not installed(ENGINE[format]):
                continue
            out = Path(folder) / format
            found = export_line(path, out, format=format, images=drawn(4, size, first=500))
            inspectors[f"exported, {format}"] = Inspector(out)
            apart = max(found.score, found.map, found.distance)
            told[f"exported, {format}"] = f"{apart:.0e}", _megabytes(out)
        columns = [_timed(line, inspectors, size, batch, rounds) for batch in batches]
    head = [""]
    for batch in batches:
        head += [f"ms, batch {batch}", f"÷ backbone, batch {batch}"]
    rows = [
        [name, *(cell for column in columns for cell in column[name]), told[name][1], told[name][0]]
        for name in inspectors
    ]
    return Table("Exports", [*head, "MB", "differs by"], rows, NOTE)


def _timed(
    line: Detector, inspectors: dict[str, Detector | Inspector], size: int, batch: int, rounds: int
) -> dict[str, tuple[str, str]]:
    shown = drawn(batch, size, first=10_000)
    stacked = line.extractor.stack([line.intake.read(0, one).pixels for one in shown])
    works = {name: partial(own.predict, shown, batch_size=batch) for name, own in inspectors.items()}
    taken = in_turns({None: partial(line.extractor.see, stacked), **works}, rounds)
    return {
        name: (milliseconds(taken[name], batch), f"{ratio(taken[name], taken[None]):.2f}")
        for name in inspectors
    }


def _megabytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.1f}"
