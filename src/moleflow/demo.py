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
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import report
from .config import LineConfig, TrainingConfig, to_dict
from .data.factory import PRODUCTS, write_product
from .data.images import read_image
from .data.layouts import Item, Product, load_mask, read_dataset
from .detector import Detector
from .errors import ConfigError
from .metrics import (
    PixelScores,
    RoutingAccuracy,
    average_accuracy,
    forgetting,
    image_auroc,
    router_gap,
    routing_accuracy,
)
from .results import Prediction, TaskInfo

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
    image_size: int | None = None
    config: LineConfig = field(default_factory=LineConfig)


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


@dataclass(frozen=True)
class ProductFigures:
    """What was measured on one product at the end; shares from 0 to 1."""

    name: str
    image_auroc: float
    image_auroc_routed: float
    pixel_ap: float
    aupro: float
    good: int
    false_alarms: int
    defective: int
    found: int
    routed_good: float
    routed_defective: float
    called_unknown: int
    unchanged: bool
    seconds: dict[str, float]
    bytes: int
    parameters: int
    images: int
    calibration: str
    threshold: float


@dataclass(frozen=True)
class Figures:
    """What was measured on the line; `oracle[k][j]` is the image AUROC of product j after step k."""

    oracle: list[list[float | None]]
    routed: list[list[float | None]]
    average_oracle: float
    average_routed: float
    forgetting_oracle: float
    forgetting_routed: float
    router_gap: float
    products: list[ProductFigures]
    unknown_product: str
    unknown_images: int
    unknown_found: int
    unchanged: bool
    reloaded_identical: bool
    line_bytes: int


@dataclass(frozen=True)
class _Step:
    """Predictions on the test images of all products known after one more was learned, by product."""

    oracle: dict[str, list[Prediction]]
    routed: dict[str, list[Prediction]]


@dataclass(frozen=True)
class _Outcome:
    """All a run produced, before anything is computed from it."""

    products: tuple[Product, ...]
    stranger: Product
    steps: tuple[_Step, ...]
    unknown: list[Prediction]
    infos: dict[str, TaskInfo]
    reloaded_identical: bool
    line_bytes: int


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
        figures = _figures(outcome)
        about = _about(sizes, seed=seed, seconds=time.perf_counter() - started)
        _write_json(out, {"finished": True, "about": about, "figures": dataclasses.asdict(figures)})
        path = out / "report.html"
        path.write_text(_page(outcome, figures, about), encoding="utf-8")
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


def _trial(
    path: Path, products: Sequence[Product], sizes: Sizes, *, seed: int, display: _Display
) -> _Outcome:
    *taught, stranger = products
    line = Detector(image_size=sizes.image_size, seed=seed, config=sizes.config)
    steps: list[_Step] = []
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
    return _Outcome(
        products=tuple(taught),
        stranger=stranger,
        steps=tuple(steps),
        unknown=unknown,
        infos={product.name: line.info(product.name) for product in taught},
        reloaded_identical=_same_step(steps[-1], again),
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
) -> _Step:
    """Every test image twice: with its product given, and in a mix where nobody says what it is."""
    oracle: dict[str, list[Prediction]] = {}
    for number, product in enumerate(products, start=1):
        oracle[product.name] = line.predict(_paths(product.test), task=product.name)
        reached(number / len(products) / 2)
    items = [item for product in products for item in product.test]
    mixed = random.Random(seed).sample(items, len(items))
    found = {p.source: p for p in line.stream(_paths(mixed))}
    routed = {product.name: [found[path] for path in _paths(product.test)] for product in products}
    return _Step(oracle, routed)


def _paths(items: Sequence[Item]) -> list[Path]:
    return [item.path for item in items]


def _progress_line(
    number: int, total: int, products: Sequence[Product], step: _Step, *, seconds: float
) -> str:
    given = np.mean([_auroc(product, step.oracle[product.name]) for product in products])
    routed = np.mean([_auroc(product, step.routed[product.name]) for product in products])
    return (
        f"{number}/{total}  {products[-1].name:<14} learned in {seconds:5.1f} s;  "
        f"image AUROC of all so far {given:.3f} with the product given, {routed:.3f} routed"
    )


# Figures


def _figures(outcome: _Outcome) -> Figures:
    oracle = _result_matrix(outcome.products, [step.oracle for step in outcome.steps])
    routed = _result_matrix(outcome.products, [step.routed for step in outcome.steps])
    products = [_product_figures(outcome, product) for product in outcome.products]
    return Figures(
        oracle=_listed(oracle),
        routed=_listed(routed),
        average_oracle=average_accuracy(oracle),
        average_routed=average_accuracy(routed),
        forgetting_oracle=forgetting(oracle),
        forgetting_routed=forgetting(routed),
        router_gap=router_gap(oracle, routed),
        products=products,
        unknown_product=outcome.stranger.name,
        unknown_images=len(outcome.unknown),
        unknown_found=sum(not p.known for p in outcome.unknown),
        unchanged=all(product.unchanged for product in products),
        reloaded_identical=outcome.reloaded_identical,
        line_bytes=outcome.line_bytes,
    )


def _product_figures(outcome: _Outcome, product: Product) -> ProductFigures:
    name, last = product.name, outcome.steps[-1]
    oracle, routed, info = last.oracle[name], last.routed[name], outcome.infos[name]
    learned = next(step for step in outcome.steps if name in step.oracle)
    defective = [item.label == 1 for item in product.test]
    pixel_ap, aupro = _pixel_figures(product, oracle)
    arrived = _arrived(product, routed)
    return ProductFigures(
        name=name,
        image_auroc=_auroc(product, oracle),
        image_auroc_routed=_auroc(product, routed),
        pixel_ap=pixel_ap,
        aupro=aupro,
        good=defective.count(False),
        false_alarms=sum(p.pred_label for p, bad in zip(oracle, defective, strict=True) if not bad),
        defective=defective.count(True),
        found=sum(p.pred_label for p, bad in zip(oracle, defective, strict=True) if bad),
        routed_good=arrived.good,
        routed_defective=arrived.defective,
        called_unknown=sum(not p.known for p in routed),
        unchanged=_same(learned.oracle[name], oracle),
        seconds=dict(info.seconds),
        bytes=info.bytes,
        parameters=info.parameters,
        images=info.images,
        calibration=f"{info.calibration}, {info.calibration_images} images",
        threshold=info.threshold,
    )


def _result_matrix(products: Sequence[Product], steps: Sequence[dict[str, list[Prediction]]]) -> np.ndarray:
    a = np.full((len(products), len(products)), np.nan)
    for k, predictions in enumerate(steps):
        for j, product in enumerate(products[: k + 1]):
            a[k, j] = _auroc(product, predictions[product.name])
    return a


def _auroc(product: Product, predictions: Sequence[Prediction]) -> float:
    return image_auroc([p.pred_score for p in predictions], [item.label for item in product.test])


def _pixel_figures(product: Product, predictions: Sequence[Prediction]) -> tuple[float, float]:
    with PixelScores() as pixels:
        for item, prediction in zip(product.test, predictions, strict=True):
            mask = load_mask(item, shape=prediction.image_size)
            pixels.add(prediction.anomaly_map, mask, defective=item.label == 1)
        return pixels.ap(), pixels.aupro()


def _arrived(product: Product, routed: Sequence[Prediction]) -> RoutingAccuracy:
    """An image called unknown did not arrive, however near its own product was."""
    answers = [p.task if p.known else None for p in routed]
    labels = [item.label for item in product.test]
    return routing_accuracy([product.name] * len(answers), answers, labels)[product.name]


def _same_step(first: _Step, second: _Step) -> bool:
    pairs = ((first.oracle, second.oracle), (first.routed, second.routed))
    return all(a.keys() == b.keys() and all(_same(a[n], b[n]) for n in a) for a, b in pairs)


def _same(first: Sequence[Prediction], second: Sequence[Prediction]) -> bool:
    """Whether verdicts, scores and maps are equal to the last bit."""
    return len(first) == len(second) and all(
        a.to_dict() == b.to_dict() and a.patch_map.tobytes() == b.patch_map.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def _listed(a: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in a]


def _about(sizes: Sizes, *, seed: int, seconds: float) -> dict[str, Any]:
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
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


# The report


def _page(outcome: _Outcome, figures: Figures, about: dict[str, Any]) -> str:
    return report.page(
        "MoLE-Flow demo: products learned one after another",
        report.paragraph(
            f"{len(figures.products)} made-up products were taught one at a time, each from "
            f"{figures.products[0].images} good images. After every step all products taught so far were "
            "inspected again on images not seen before, good and defective ones mixed. One more product was "
            "never taught."
        ),
        report.notice(
            "These images are drawn by a program. They show that the method runs and how it behaves; "
            "they say nothing about how well it would do on real products."
        ),
        report.key_figures(_headline(figures, about)),
        _retention_section(figures),
        _routing_section(figures),
        _detection_section(figures),
        _cost_section(figures),
        *(_gallery_section(outcome, product) for product in outcome.products),
        _unknown_section(outcome, figures),
        _about_section(about),
    )


def _headline(figures: Figures, about: dict[str, Any]) -> list[tuple[str, str, str]]:
    products = figures.products
    alarms, good = sum(p.false_alarms for p in products), sum(p.good for p in products)
    found, defective = sum(p.found for p in products), sum(p.defective for p in products)
    return [
        (f"{figures.average_oracle:.3f}", "Image AUROC, product given", "mean over all products at the end"),
        (f"{figures.average_routed:.3f}", "Image AUROC, routed", "nobody says which product it is"),
        (
            f"{figures.forgetting_oracle:.3f}",
            "Forgetting, product given",
            f"routed: {figures.forgetting_routed:.3f}",
        ),
        (_yes(figures.unchanged), "Old predictions bit-identical", "maps, scores, verdicts, first and last"),
        (f"{found} of {defective}", "Defective images found", "at the default threshold"),
        (f"{alarms} of {good}", "False alarms on good images", "the threshold aims at 1 in 100"),
        (
            f"{figures.unknown_found} of {figures.unknown_images}",
            "Unknown product recognised",
            f"{figures.unknown_product} was never taught",
        ),
        (f"{about['seconds']:.0f} s", "Whole run", f"{about['hardware']['processors']} processors"),
    ]


def _retention_section(figures: Figures) -> report.Html:
    names = [p.name for p in figures.products]
    rows = [f"after {name}" for name in names]
    return report.section(
        "What was learned is kept",
        report.paragraph(
            "Each row is a moment in the line's life, each column a product: image AUROC on its test images. "
            "Read a column downwards: a number that falls is a product being forgotten."
        ),
        report.columns(
            report.matrix(
                _as_matrix(figures.oracle), rows, names, caption="Product given. Colour from 0.5 to 1."
            ),
            report.matrix(_as_matrix(figures.routed), rows, names, caption="Routed. Colour from 0.5 to 1."),
        ),
        report.table(
            ["", "product given", "routed"],
            [
                [
                    "mean over products at the end",
                    report.number(figures.average_oracle, 4),
                    report.number(figures.average_routed, 4),
                ],
                [
                    "forgetting",
                    report.number(figures.forgetting_oracle, 4),
                    report.number(figures.forgetting_routed, 4),
                ],
            ],
            caption="Forgetting: the best a product ever was, less what it is in the end; their mean.",
        ),
        report.table(
            ["product", "bit-identical"],
            [[p.name, _yes(p.unchanged)] for p in figures.products[:-1]],
            caption="Predictions right after the product was learned against those at the end, product given:"
            " every map, score and verdict compared bit by bit.",
        ),
        report.paragraph(
            "The line was also saved, loaded and asked again, with the product given and routed. "
            f"All predictions bit-identical: {_yes(figures.reloaded_identical)}."
        ),
    )


def _routing_section(figures: Figures) -> report.Html:
    return report.section(
        "Which product is it",
        report.paragraph(
            "In the routed inspection the images of all products arrive mixed and without a name. An image "
            "has found its product when it was sent there and not called unknown."
        ),
        report.table(
            ["product", "good images", "defective images", "called unknown"],
            [
                [
                    p.name,
                    _share(p.routed_good, p.good),
                    _share(p.routed_defective, p.defective),
                    p.called_unknown,
                ]
                for p in figures.products
            ],
            caption="Images that found their product, after all products were learned.",
        ),
    )


def _detection_section(figures: Figures) -> report.Html:
    return report.section(
        "What is found",
        report.table(
            [
                "product",
                "image AUROC",
                "image AUROC routed",
                "pixel AP",
                "AUPRO",
                "defective found",
                "false alarms",
            ],
            [
                [
                    p.name,
                    report.number(p.image_auroc),
                    report.number(p.image_auroc_routed),
                    report.number(p.pixel_ap),
                    report.number(p.aupro),
                    f"{p.found} of {p.defective}",
                    f"{p.false_alarms} of {p.good}",
                ]
                for p in figures.products
            ],
            caption="Product given unless said otherwise; pixel figures at the size of the image. The "
            "threshold comes from good images alone and aims at one false alarm in a hundred good images: "
            "so few test images can show that it is badly off, not that it is right.",
        ),
    )


def _cost_section(figures: Figures) -> report.Html:
    stages = list(dict.fromkeys(stage for p in figures.products for stage in p.seconds))
    return report.section(
        "What a product costs",
        report.table(
            [
                "product",
                "images",
                *(f"{stage}, s" for stage in stages),
                "numbers owned",
                "on disk",
                "threshold",
            ],
            [
                [
                    p.name,
                    p.images,
                    *(report.number(p.seconds.get(stage), 1) for stage in stages),
                    f"{p.parameters:,}",
                    report.amount(p.bytes),
                    report.number(p.threshold, 2),
                ]
                for p in figures.products
            ],
            caption="The base is learned once, with the first product, and never changes. The saved line as "
            f"a whole takes {report.amount(figures.line_bytes)}. Calibration of the first product: "
            f"{figures.products[0].calibration}.",
        ),
    )


def _gallery_section(outcome: _Outcome, product: Product) -> report.Html:
    predictions = outcome.steps[-1].oracle[product.name]
    chosen = _examples(product, predictions)
    return report.section(
        product.name,
        report.paragraph(
            "The first good image that passed, the clearest and the faintest defect that were found, and the "
            "first false alarm and the first miss where there were any. Heat starts at half the threshold; "
            "what exceeds the threshold is outlined."
        ),
        report.gallery(_card(item, prediction) for item, prediction in chosen),
    )


def _examples(product: Product, predictions: Sequence[Prediction]) -> list[tuple[Item, Prediction]]:
    """A few telling images, by rule; the same image is not shown twice."""
    groups: dict[tuple[int, bool], list[tuple[Item, Prediction]]] = {}
    for item, prediction in zip(product.test, predictions, strict=True):
        groups.setdefault((item.label, prediction.pred_label), []).append((item, prediction))
    hits = sorted(groups.get((1, True), []), key=lambda pair: -pair[1].pred_score)
    passed, alarms, misses = (groups.get(key, []) for key in ((0, False), (0, True), (1, False)))
    return [*passed[:1], *hits[:1], *hits[1:][-1:], *alarms[:1], *misses[:1]]


def _card(item: Item, prediction: Prediction) -> report.Card:
    image = read_image(item.path)
    truth = load_mask(item, shape=prediction.image_size)
    heat = report.heat_overlay(image, prediction.anomaly_map, threshold=prediction.threshold)
    verdict, right = _VERDICTS[item.label, prediction.pred_label]
    kind = "good" if item.label == 0 else item.kind.replace("_", " ")
    return report.Card(
        verdict=verdict,
        remark=f"{kind}: score {prediction.pred_score:.2f}, threshold {prediction.threshold:.2f}",
        pictures=(
            report.Picture(report.photo_uri(image), "image"),
            report.Picture(report.mask_uri(truth), "true defect"),
            report.Picture(report.photo_uri(heat), "heat map"),
        ),
        tone="good" if right else "bad",
    )


_VERDICTS = {
    (0, False): ("Passed.", True),
    (0, True): ("False alarm.", False),
    (1, True): ("Found.", True),
    (1, False): ("Missed.", False),
}


def _unknown_section(outcome: _Outcome, figures: Figures) -> report.Html:
    pairs = list(zip(outcome.stranger.test, outcome.unknown, strict=True))
    return report.section(
        f"A product nobody taught: {figures.unknown_product}",
        report.paragraph(
            f"{figures.unknown_found} of its {figures.unknown_images} images were called unknown; of the "
            f"{sum(p.good + p.defective for p in figures.products)} test images of taught products, "
            f"{sum(p.called_unknown for p in figures.products)} were. An image is unknown when it lies "
            "farther from the nearest product than that product's limit, and most of it also looks strange to "
            "that product's expert."
        ),
        report.gallery(_unknown_card(item, prediction) for item, prediction in _spread(pairs, 4)),
        report.folded(
            "All its images, with the distances to every product",
            _distance_table(pairs, [p.name for p in figures.products]),
        ),
    )


def _spread(pairs: Sequence[tuple[Item, Prediction]], count: int) -> list[tuple[Item, Prediction]]:
    """`count` pairs at equal steps; what was taken for a product comes first, since it is the failure."""
    ordered = sorted(pairs, key=lambda pair: not pair[1].known)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return [ordered[int(place)] for place in places]


def _unknown_card(item: Item, prediction: Prediction) -> report.Card:
    routing = prediction.routing
    remark = f"Nearest: {prediction.task}."
    if routing is not None:
        remark += (
            f" Distance {report.number(routing.distance, 1)}"
            f" (limit {report.number(routing.distance_limit, 1)}),"
            f" strangeness {report.number(routing.strangeness, 1)}"
            f" (limit {report.number(routing.strangeness_limit, 1)})."
        )
    return report.Card(
        verdict=f"Taken for {prediction.task}." if prediction.known else "Unknown.",
        remark=remark,
        pictures=(
            report.Picture(report.photo_uri(read_image(item.path), side=200), item.kind.replace("_", " ")),
        ),
        tone="bad" if prediction.known else "good",
    )


def _distance_table(pairs: Sequence[tuple[Item, Prediction]], names: Sequence[str]) -> report.Html:
    rows = []
    for item, prediction in pairs:
        distances = prediction.routing.distances if prediction.routing is not None else {}
        verdict = f"taken for {prediction.task}" if prediction.known else "unknown"
        rows.append(
            [
                f"{item.kind} {item.path.stem}",
                verdict,
                *(report.number(distances.get(name), 1) for name in names),
            ]
        )
    return report.table(
        ["image", "answer", *names],
        rows,
        caption="Distances in units of the product's typical good image.",
    )


def _about_section(about: dict[str, Any]) -> report.Html:
    plain = {"seed": about["seed"], **about["sizes"]}
    return report.section(
        "How this was made",
        report.columns(
            report.settings(
                [*((name.replace("_", " "), value) for name, value in plain.items())], caption="The run"
            ),
            report.settings(
                [*about["versions"].items(), *about["hardware"].items()], caption="Software and machine"
            ),
        ),
        report.folded("All options of the line", report.settings(_flat(about["config"]))),
    )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _as_matrix(rows: list[list[float | None]]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def _share(share: float, count: int) -> str:
    return f"{round(share * count)} of {count}" if count else "–"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# The console


def _close(console: Console, figures: Figures, path: Path, *, seconds: float) -> None:
    table = Table(title="At the end, on images not seen before")
    table.add_column("product")
    for header in ("image AUROC", "routed", "pixel AP", "AUPRO", "found", "false alarms", "unchanged"):
        table.add_column(header, justify="right")
    for p in figures.products:
        numbers = [f"{value:.3f}" for value in (p.image_auroc, p.image_auroc_routed, p.pixel_ap, p.aupro)]
        counts = [f"{p.found} of {p.defective}", f"{p.false_alarms} of {p.good}"]
        table.add_row(p.name, *numbers, *counts, _yes(p.unchanged))
    console.print(table)
    lines = (
        f"forgetting {figures.forgetting_oracle:.4f} with the product given, "
        f"{figures.forgetting_routed:.4f} routed",
        f"{figures.unknown_product}, never taught: "
        f"{figures.unknown_found} of {figures.unknown_images} called unknown",
        f"saved, loaded, predictions bit-identical: {_yes(figures.reloaded_identical)}",
        f"synthetic images; {seconds:.0f} s; report: {path}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
