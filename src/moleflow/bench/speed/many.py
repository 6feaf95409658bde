"""What a line of many products takes to open, to route, to inspect, and in memory.

Each line is measured in a process of its own, `python -m moleflow.bench.speed.many LINE ROUNDS`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

from ...detector import Detector
from ...store import LineStore, TaskRecord
from .table import Table, drawn, timed

TAUGHT = 24
FEW = 4  # products that the warm images are of
HEAD = [
    "products",
    "open s",
    "route ms",
    "inspection ms, of 4 products",
    "each of another",
    "MB when open",
    "MB once each has judged",
]
NOTE = (
    "One drawn product again and again under other names, with a router's mean of its own. An inspection "
    "of a product that was not needed lately has its expert made ready as well."
)


def many(counts: Sequence[int], size: int, rounds: int) -> Table:
    """Lines of so many products."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one"
        line = Detector(image_size=size, device="cpu")
        line.add_task("p0000", drawn(TAUGHT, size))
        line.save(one)
        for count in counts:
            path = multiplied(one, Path(folder) / f"{count}", count)
            command = [sys.executable, "-m", __name__, str(path), str(rounds)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append([f"{count}", *json.loads(done.stdout)])
    return Table("Many products", HEAD, rows, NOTE)


def multiplied(one: Path, path: Path, count: int) -> Path:
    """A new line at `path` that holds the only product of another so many times."""
    source = LineStore(one).read()
    draw = torch.Generator().manual_seed(count)
    tasks = [_another(source.tasks[0], number, draw) for number in range(count)]
    store = LineStore(path)
    store.create(source.settings, source.base, fingerprint=source.fingerprint, tasks=tasks)
    Detector.load(path, device="cpu").save()  # keeps the router beside it, as every save does
    return path


def _another(record: TaskRecord, number: int, draw: torch.Generator) -> TaskRecord:
    mean = record.tensors["router.mean"]
    moved = torch.randn(mean.shape, generator=draw) * mean.abs().mean() * (number > 0)
    tensors = record.tensors | {"router.mean": mean + moved}
    return replace(record, name=f"p{number:04}", version=None, tensors=tensors)


def measured(path: Path, rounds: int) -> list[str]:
    """The cells of one line, measured in this process."""
    opened = [timed(lambda: Detector.load(path, device="cpu")) for _ in range(min(rounds, 3))]
    line = Detector.load(path, device="cpu")
    at_first = _megabytes()
    shown = drawn(FEW, line.intake.size[0], first=1000)
    few, fresh = cycle(line.tasks[:FEW]), cycle(reversed(line.tasks))
    line.predict(shown[0])
    taken: tuple[list[float], list[float], list[float]] = ([], [], [])
    for one in shown * rounds:
        seen = line.extractor.see(line.extractor.stack([line.intake.read(0, one).pixels]))
        taken[0].append(timed(partial(line._line.decide, seen)))  # right behind the backbone, as on the belt
        taken[1].append(timed(partial(line.predict, one, task=next(few))))
        taken[2].append(timed(partial(line.predict, one, task=next(fresh))))
    for name in line.tasks:
        line._line.judge(name, seen)
    route, warm, other = (1e3 * statistics.median(values) for values in taken)
    return [
        f"{statistics.median(opened):.2f}",
        f"{route:.2f}",
        f"{warm:.1f}",
        f"{other:.1f}",
        f"{at_first:.0f}",
        f"{_megabytes():.0f}",
    ]


def _megabytes() -> float:
    """Resident in memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), int(sys.argv[2]))))
