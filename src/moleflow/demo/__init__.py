"""The main job on products drawn for the occasion: learn them one after another, forget none, show it.

Everything in the report is measured in the run that writes it; nothing is downloaded and no file is needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..config import LineConfig, TrainingConfig, to_dict
from ..data.factory import PRODUCTS, write_product
from ..data.layouts import Item, Product, read_dataset
from ..detector import Detector
from ..errors import ConfigError
from ..results import Prediction
from . import page
from .figures import Figures, Outcome, Step, auroc, measure, same_step

_MADE_BY = "moleflow demo"
_PARTS = ("images", "line", "report.html", "results.json")


@dataclass(frozen=True)
class Sizes:
    """How much a run does: products taught, images of each, their side, and the line's options."""

    taught: int = 6
    train: int = 60
    good: int = 10
    defective: int = 12
    pixels: int = 256
    image_size: int | None = 256
    config: LineConfig = field(
        default_factory=lambda: LineConfig(training=TrainingConfig(steps=350, base_steps=300))
    )


FULL = Sizes()
QUICK = Sizes(
    taught=4,
    train=40,
    good=6,
    defective=6,
    pixels=192,
    image_size=192,
    config=LineConfig(training=TrainingConfig(steps=100, base_steps=100)),
)


def run(out: Path, *, quick: bool = False, seed: int = 0, console: Console | None = None) -> Path:
    """Learn and inspect products drawn below `out`; returns the path of the report.

    `out` becomes a folder with `report.html`, `results.json`, the saved `line` and the `images`. An
    earlier demo in it is replaced; ConfigError if it holds anything else, or cannot be written.
    """
    return _run(Path(out), QUICK if quick else FULL, seed=seed, console=console or Console())


def _run(out: Path, sizes: Sizes, *, seed: int, console: Console) -> Path:
    started = time.perf_counter()
    try:
        _make_room(out)
        with _Display(console, _work(sizes)) as display:
            products = _drawn(out / "images", sizes, seed=seed, display=display)
            outcome = _trial(out / "line", products, sizes, seed=seed, display=display)
        figures = measure(outcome)
        about = _about(sizes, seed=seed, device=outcome.device, seconds=time.perf_counter() - started)
        _write_json(out, {"finished": True, "about": about, "figures": dataclasses.asdict(figures)})
        path = out / "report.html"
        path.write_text(page.build(outcome, figures, about), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written as a demo's folder: {error}") from error
    _close(console, figures, path, seconds=time.perf_counter() - started)
    return path


# The folder


def _make_room(out: Path) -> None:
    """An empty folder at `out`, with nothing lost but an earlier demo's files."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the demo, and this is a file")
    if out.is_dir() and any(out.iterdir()):
        if not _is_demo(out):
            raise ConfigError(f"{out}: holds something that is not an earlier demo; name another folder")
        for part in _PARTS:
            _remove(out / part)
    out.mkdir(parents=True, exist_ok=True)
    # Said at once, so that a run that was interrupted can be repeated in the same place.
    _write_json(out, {"finished": False})


def _is_demo(out: Path) -> bool:
    try:
        content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == _MADE_BY


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_json(out: Path, content: dict[str, Any]) -> None:
    text = json.dumps({"made_by": _MADE_BY, **content}, indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")


# Progress


class _Display:
    """One bar over the whole run with the time left, and a line of text where something is finished.

    Work is counted in inspected images; what else is done is weighed against that by rough estimates,
    which only make the bar more or less even.
    """

    def __init__(self, console: Console, total: float) -> None:
        bar = BarColumn(bar_width=32)
        text = TextColumn("{task.description}")
        self._progress = Progress(
            text, bar, TaskProgressColumn(), TimeRemainingColumn(), console=console, transient=True
        )
        self._bar = self._progress.add_task("", total=total)
        self._done = 0.0

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.console.print(text, markup=False, highlight=False)

    @contextmanager
    def part(self, description: str, work: float) -> Iterator[Callable[[float], None]]:
        """A part of the run; call what it gives with the share of the part that is done."""

        def reached(share: float) -> None:
            self._progress.update(self._bar, completed=self._done + work * share)

        self._progress.update(self._bar, description=description)
        yield reached
        reached(1.0)
        self._done += work


_DRAWING = 0.7  # an image drawn and written, against one inspected
_STEP = 1.0  # a step of learning, against an image inspected


def _learning_work(sizes: Sizes, *, first: bool) -> float:
    training = sizes.config.training
    return sizes.train + _STEP * (training.steps + first * training.base_steps)


def _tested(sizes: Sizes) -> int:
    return sizes.good + sizes.defective


def _work(sizes: Sizes) -> float:
    drawing = _DRAWING * (sizes.taught + 1) * (sizes.train + _tested(sizes))
    learning = sum(_learning_work(sizes, first=k == 0) for k in range(sizes.taught))
    inspecting = 2 * _tested(sizes) * sum(range(1, sizes.taught + 1))
    return drawing + learning + inspecting + _tested(sizes) + 2 * sizes.taught * _tested(sizes)


# The run


def _drawn(root: Path, sizes: Sizes, *, seed: int, display: _Display) -> list[Product]:
    """All products as files below `root`, read back as a user's files are; the last is never taught."""
    names = PRODUCTS[: sizes.taught + 1]
    for name in names:
        with display.part(f"drawing {name}", _DRAWING * (sizes.train + _tested(sizes))):
            write_product(
                name,
                root,
                train=sizes.train,
                test_good=sizes.good,
                test_defective=sizes.defective,
                seed=seed,
                size=sizes.pixels,
            )
    found = read_dataset(root).products
    return [found[name] for name in names]


def _trial(path: Path, products: Sequence[Product], sizes: Sizes, *, seed: int, display: _Display) -> Outcome:
    *taught, stranger = products
    line = Detector(image_size=sizes.image_size, seed=seed, config=sizes.config)
    steps: list[Step] = []
    for number, product in enumerate(taught, start=1):
        seconds = _learn(line, product, sizes, display=display)
        with display.part("inspecting all products so far", 2 * number * _tested(sizes)) as reached:
            steps.append(_inspect(line, taught[:number], seed=seed, reached=reached))
        display.say(_progress_line(number, len(taught), taught[:number], steps[-1], seconds=seconds))
    with display.part(f"showing {stranger.name}, never taught", _tested(sizes)):
        unknown = line.predict(_paths(stranger.test))
    line.save(path)
    with display.part("inspecting again with the saved line", 2 * len(taught) * _tested(sizes)) as reached:
        again = _inspect(Detector.load(path), taught, seed=seed, reached=reached)
    return Outcome(
        products=tuple(taught),
        stranger=stranger,
        steps=tuple(steps),
        unknown=unknown,
        infos={product.name: line.info(product.name) for product in taught},
        reloaded_identical=same_step(steps[-1], again),
        device=str(line.extractor.device),
        line_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    )


def _learn(line: Detector, product: Product, sizes: Sizes, *, display: _Display) -> float:
    first = not line.tasks
    stages = ("backbone", *(("base",) if first else ()), "learning", "calibration")
    started = time.perf_counter()
    with display.part(f"learning {product.name}", _learning_work(sizes, first=first)) as reached:

        def progress(stage: str, share: float) -> None:
            if stage in stages:
                reached((stages.index(stage) + share) / len(stages))

        line.add_task(product.name, _paths(product.train), progress=progress)
    return time.perf_counter() - started


def _inspect(
    line: Detector, products: Sequence[Product], *, seed: int, reached: Callable[[float], None]
) -> Step:
    """Every test image twice: with its product given, and in a mix where nobody says what it is."""
    oracle: dict[str, list[Prediction]] = {}
    for number, product in enumerate(products, start=1):
        oracle[product.name] = line.predict(_paths(product.test), task=product.name)
        reached(number / len(products) / 2)
    items = [item for product in products for item in product.test]
    mixed = random.Random(seed).sample(items, len(items))
    found = {p.source: p for p in line.stream(_paths(mixed))}
    routed = {product.name: [found[path] for path in _paths(product.test)] for product in products}
    return Step(oracle, routed)


def _paths(items: Sequence[Item]) -> list[Path]:
    return [item.path for item in items]


def _progress_line(
    number: int, total: int, products: Sequence[Product], step: Step, *, seconds: float
) -> str:
    given = np.mean([auroc(product, step.oracle[product.name]) for product in products])
    routed = np.mean([auroc(product, step.routed[product.name]) for product in products])
    return (
        f"{number}/{total}  {products[-1].name:<14} {seconds:5.1f} s   "
        f"image AUROC so far: {given:.3f} given, {routed:.3f} routed"
    )


def _about(sizes: Sizes, *, seed: int, device: str, seconds: float) -> dict[str, Any]:
    packages = ("moleflow", "torch", "timm", "numpy", "scipy")
    return {
        "seed": seed,
        "sizes": {f.name: getattr(sizes, f.name) for f in dataclasses.fields(sizes) if f.name != "config"},
        "config": to_dict(sizes.config),
        "seconds": seconds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": device,
        },
    }


# The console


def _close(console: Console, figures: Figures, path: Path, *, seconds: float) -> None:
    table = Table(title="At the end, on images not seen before", box=SIMPLE_HEAD)
    table.add_column("product", no_wrap=True)
    for header in ("image\nAUROC", "\nrouted", "pixel\nAP", "\nAUPRO", "\nfound", "false\nalarms", "\nkept"):
        table.add_column(header, justify="right")
    for p in figures.products:
        numbers = [f"{value:.3f}" for value in (p.image_auroc, p.image_auroc_routed, p.pixel_ap, p.aupro)]
        counts = [f"{p.found} of {p.defective}", f"{p.false_alarms} of {p.good}"]
        table.add_row(p.name, *numbers, *counts, page.yes(p.unchanged))
    console.print(table)
    lines = (
        f"forgetting {figures.forgetting_oracle:.4f} with the product given, "
        f"{figures.forgetting_routed:.4f} routed",
        f"{figures.unknown_product}, never taught: "
        f"{figures.unknown_found} of {figures.unknown_images} called unknown",
        f"saved, loaded, predictions bit-identical: {page.yes(figures.reloaded_identical)}",
        f"synthetic images; {seconds:.0f} s; report: {path}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
