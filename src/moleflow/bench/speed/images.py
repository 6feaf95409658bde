"""What an inspection takes over the backbone's own pass, on every runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...data.images import resize
from ...detector import Detector
from ...errors import BackboneError
from ...features.backbones import get_backbone
from ...features.runtime import COMPILED, RuntimeName
from ...runtime.engines import installed
from .table import Table, drawn, in_turns, milliseconds, ratio

TAUGHT = 8
HEAD = [
    "backbone",
    "runtime",
    "size",
    "batch",
    "backbone ms",
    "of torch's",
    "inspection ms",
    "of torch's",
    "inspection ÷ backbone",
]
NOTE = (
    "Milliseconds an image, medians; ratios are medians of the ratios within a round. Images come as arrays: "
    "decoding is not in it. A line of one product, threads as many as cores."
)


def images(
    sizes: Sequence[int], batches: Sequence[int], rounds: int, *, wide: Sequence[str], device: str
) -> Table:
    """The default backbone at each size, and wide ones with random weights at their own."""
    rows: list[list[str]] = []
    notes = [NOTE]
    for size in sizes:
        rows += _compared("efficientnet_lite0", None, size, batches, rounds, notes)
    for name in wide:
        size = get_backbone(name).image_size[0]
        rows += _compared(name, "random", size, batches, rounds, notes)
        if device != "cpu":
            rows += _compared(name, "random", size, batches, rounds, notes, device=device)
    if device == "cpu" and not torch.cuda.is_available():
        notes.append("No card: none was measured.")
    return Table("Images", HEAD, rows, " ".join(notes), words=2)


def _compared(
    backbone: str,
    weights: str | None,
    size: int,
    batches: Sequence[int],
    rounds: int,
    notes: list[str],
    *,
    device: str = "cpu",
) -> list[list[str]]:
    """One backbone on every runtime of a device; those that cannot run it are noted."""
    with tempfile.TemporaryDirectory() as folder:
        line = Detector(backbone, weights=weights, image_size=size, device=device, runtime="torch")
        line.add_task("drawn", drawn(TAUGHT, size))
        line.save(Path(folder) / "line")
        names: list[RuntimeName] = ["torch"]
        if device == "cpu":
            names += [name for name in COMPILED if installed(name)]  # type: ignore[misc]
        lines = {}
        for name in names:
            line = Detector.load(Path(folder) / "line", device=device, runtime=name)
            try:
                line.predict(drawn(1, size))
                lines[name] = line
            except BackboneError as error:
                notes.append(f"{name} does not run {backbone}: {error}.")
    return [row for batch in batches for row in _rows(backbone, lines, size, batch, rounds)]


def _rows(
    backbone: str, lines: dict[RuntimeName, Detector], size: int, batch: int, rounds: int
) -> list[list[str]]:
    shown = drawn(batch, size, first=10_000)
    height, width = lines["torch"].extractor.image_size
    stacked = lines["torch"].extractor.stack([resize(one, (height, width)) for one in shown])
    works: dict[tuple[str, str], Callable[[], object]] = {}
    for name, line in lines.items():
        works["backbone", name] = partial(_seen, line, stacked)
        works["inspection", name] = partial(_inspected, line, shown)
    taken = in_turns(works, rounds)
    rows = []
    for name, line in lines.items():
        device = line.extractor.device.type
        row = [backbone, name if device == "cpu" else device, f"{size}", f"{batch}"]
        for what in ("backbone", "inspection"):
            of_torch = ratio(taken[what, name], taken[what, "torch"])
            row += [milliseconds(taken[what, name], batch), f"{of_torch:.2f}"]
        rows.append([*row, f"{ratio(taken['inspection', name], taken['backbone', name]):.2f}"])
    return rows


def _inspected(line: Detector, shown: list[np.ndarray]) -> None:
    line.predict(shown, batch_size=len(shown))


def _seen(line: Detector, stacked: torch.Tensor) -> None:
    line.extractor.see(stacked)
    if line.extractor.device.type == "cuda":
        torch.cuda.synchronize()
