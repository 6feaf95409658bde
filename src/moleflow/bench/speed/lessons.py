"""What a lesson takes over eager torch's pass of the same photographs, stage by stage, and what it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...data.factory import PRODUCTS
from ...detector import Detector
from ...features.backbones import get_backbone
from ...features.runtime import RuntimeName
from ...learning.lesson import EXTRACT_BATCH
from ...line.beginning import see
from ...results import TaskInfo
from .table import Table, drawn, timed

HEAD = [
    "backbone",
    "photographs",
    "lesson s",
    "backbone s",
    "learning s",
    "calibration s",
    "eager backbone s",
    "without the backbone ÷ eager backbone",
    "kB a product",
]
NOTE = (
    "The first lesson of a line is not among them: it may make the backbone's copy. Wide backbones have "
    "random weights. Of the bytes, by part: "
)
RUNTIMES: tuple[RuntimeName, RuntimeName] = ("auto", "torch")
WIDE = 8  # photographs for a wide backbone: what it leaves does not depend on them


def lessons(counts: Sequence[int], size: int, *, wide: Sequence[str]) -> Table:
    """Lessons of so many photographs with the default backbone, and a short one with each wide one."""
    rows, parts = [], {}
    line, eager = (_line("efficientnet_lite0", None, size, runtime) for runtime in RUNTIMES)
    line.add_task("first", drawn(2, size))
    for count in counts:
        row, info = _lesson(line, eager, f"{count} photographs", count, size)
        rows.append(["efficientnet_lite0", *row])
        parts["efficientnet_lite0"] = info
    for name in wide:
        own = get_backbone(name).image_size[0]
        line, eager = (_line(name, "random", own, runtime) for runtime in RUNTIMES)
        line.add_task("first", drawn(2, own))
        row, parts[name] = _lesson(line, eager, "another", WIDE, own)
        rows.append([name, *row])
    sizes = "; ".join(f"{name}: {_parts(info)}" for name, info in parts.items())
    return Table("Lessons", HEAD, rows, f"{NOTE}{sizes}.")


def _line(backbone: str, weights: str | None, size: int, runtime: RuntimeName) -> Detector:
    return Detector(backbone, weights=weights, image_size=size, device="cpu", runtime=runtime)


def _lesson(line: Detector, eager: Detector, name: str, count: int, size: int) -> tuple[list[str], TaskInfo]:
    photographs = drawn(count, size, product=PRODUCTS[1])
    started = time.perf_counter()
    info = line.add_task(name, photographs, pose="off")
    whole = time.perf_counter() - started
    pictures = [line.intake.read(number, one) for number, one in enumerate(photographs)]
    batches = [pictures[i : i + EXTRACT_BATCH] for i in range(0, count, EXTRACT_BATCH)]
    passed = timed(lambda: [see(eager.extractor, batch) for batch in batches])
    took = info.seconds
    rest = (whole - took["backbone"]) / passed
    seconds = [whole, took["backbone"], took["learning"], took["calibration"], passed]
    return [
        f"{count}",
        *(f"{value:.1f}" for value in seconds),
        f"{rest:.2f}",
        f"{info.bytes / 1e3:.0f}",
    ], info


def _parts(info: TaskInfo) -> str:
    return ", ".join(f"{name} {part.bytes / 1e3:.0f} kB" for name, part in info.parts.items())
