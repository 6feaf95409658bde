"""`moleflow predict` and `moleflow evaluate`."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.table import Table

from ..errors import ImageError, MoleFlowError
from .app import app, example
from .options import BatchSize, Device, JsonFile, Line, Threads, Weights
from .screen import NOTHING_CHANGED, bar, complain, interruptible, new_screen, printable, say, use_threads

if TYPE_CHECKING:
    from ..data.layouts import Dataset
    from ..detector import Detector
    from ..evaluation import Evaluation, Figures
    from ..intake import Intake
    from ..results import Prediction

MAP_ENDINGS = {"overlay": "_map.png", "tiff": "_scores.tiff", "npy": "_scores.npy", "mask": "_mask.png"}


def _map_kinds(text: str | None) -> str | None:
    """Checks a list of kinds of maps; each counts once."""
    if text is None:
        return None
    kinds = list(dict.fromkeys(kind.strip() for kind in text.split(",")))
    for kind in kinds:
        if kind not in MAP_ENDINGS:
            raise typer.BadParameter(f"expected some of {', '.join(MAP_ENDINGS)}, got {kind!r}")
    return ",".join(kinds)


@app.command(
    epilog=example(
        "moleflow predict line-3 'belt/*.png' --maps maps",
        "moleflow predict line-3 belt --task bottle --json results.jsonl",
    )
)
def predict(
    line: Line,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="Folders, files or quoted patterns.")],
    task: Annotated[
        str | None, typer.Option(metavar="PRODUCT", help="The product, where it is known; else it is found.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write JSON lines, one object per image; - for stdout."),
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a map per image: where it is suspicious.")
    ] = None,
    map_format: Annotated[
        str | None,
        typer.Option(
            metavar="F,...",
            callback=_map_kinds,
            help="Kinds of maps: overlay (the default), tiff, npy, mask; several with commas.",
        ),
    ] = None,
    legend: Annotated[
        bool, typer.Option("--legend/--no-legend", help="Draw the colour scale below an overlay.")
    ] = True,
    regions: Annotated[
        bool | None,
        typer.Option(
            "--regions/--no-regions",
            help="Regions in JSON: of all images, or of none; by default of defective ones.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 8,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Inspect images of any product of LINE. Nothing is written but what --json and --maps ask for.

    JSON lines: every line of the file is one JSON object, one per image, in the order of the images.
    """
    from ..data.images import find_images

    if map_format and maps is None:
        raise typer.BadParameter("expected --maps DIR as well", param_hint="--map-format")
    if regions is not None and json_file is None:
        raise typer.BadParameter("expected --json FILE as well", param_hint="--regions")
    paths = find_images(images)
    _refuse_overwriting(json_file, paths)
    use_threads(threads)
    from ..detector import Detector

    detector = Detector.load(line, weights=weights, device=device)
    results = detector.stream(paths, task=task, batch_size=batch_size)
    with ExitStack() as stack:
        write_json = stack.enter_context(_json_lines(json_file))
        write_maps = _map_writer(maps, paths, detector.intake, map_format or "overlay", legend=legend)
        show = stack.enter_context(_result_lines(paths, detector.tasks, to_stderr=json_file == "-"))
        said = NOTHING_CHANGED if not (json_file or maps) else "what was written so far is complete and stays"
        stack.enter_context(interruptible(said))
        for index, prediction in enumerate(results):
            write_json(prediction.to_dict() | _regions_json(prediction, wanted=regions))
            write_maps(index, prediction)
            show(prediction)


@app.command(epilog=example("moleflow evaluate line-3 datasets/mvtec --oracle --json figures.json"))
def evaluate(
    line: Line,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of labelled images.")],
    layout: Annotated[
        str, typer.Option(help="How DATA lies on disk: auto, folder, mvtec-ad, visa, ...")
    ] = "auto",
    json_file: JsonFile = None,
    eval_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Compare maps and masks at N x N; else at each image's own size."
        ),
    ] = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Also with the product given.")] = False,
    batch_size: BatchSize = 8,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Score LINE on labelled data: per product, and the mean over products.

    The line finds the product of every image itself; with --oracle there are also figures with the product
    given. F1-max picks its threshold by the labels; false alarms and detections are at the stored threshold.
    """
    with interruptible(NOTHING_CHANGED):
        from ..data.layouts import read_dataset

        if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
            raise MoleFlowError(f"{json_file}: expected a file in a folder that exists")
        dataset = read_dataset(data, layout=layout)
        use_threads(threads)
        from .. import evaluation
        from ..detector import Detector

        detector = Detector.load(line, weights=weights, device=device)
        with bar("inspecting") as told:
            result = evaluation.evaluate(
                detector,
                dataset,
                oracle=oracle,
                eval_size=eval_size,
                batch_size=batch_size,
                progress=told,
            )
    if json_file is not None:
        with _json_lines(json_file) as write:
            write(_evaluation_json(result, detector, dataset))
    if json_file != "-":
        _print_evaluation(result, dataset)


# Files


@contextmanager
def _json_lines(target: str | None) -> Iterator[Callable[[Any], None]]:
    """A function that writes one JSON object per line; it does nothing without a target."""
    if target is None:
        yield lambda _: None
        return
    with nullcontext(sys.stdout) if target == "-" else _opened(Path(target)) as file:

        def write(value: Any) -> None:
            # ASCII, because a file's name may hold bytes that are no text in any encoding.
            file.write(json.dumps(_finite(value), ensure_ascii=True, allow_nan=False) + "\n")
            file.flush()

        yield write


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise MoleFlowError(f"{path}: cannot be written: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor NaN."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_overwriting(json_file: str | None, paths: Sequence[Path]) -> None:
    if json_file not in (None, "-") and Path(str(json_file)).resolve() in {path.resolve() for path in paths}:
        raise ImageError(f"{json_file}: expected a file for the results, this is one of the images")


def _regions_json(prediction: Prediction, *, wanted: bool | None) -> dict[str, Any]:
    """The key `regions`; None: empty for an image that is called good, so that its line stays short."""
    if wanted is False:
        return {}
    listed = prediction.regions if wanted or prediction.pred_label else ()
    return {"regions": [region.to_dict() for region in listed]}


def _map_writer(
    folder: Path | None, paths: Sequence[Path], intake: Intake, kinds: str, *, legend: bool
) -> Callable[[int, Prediction], None]:
    """A function that writes the maps of one image; it does nothing without a folder."""
    if folder is None:
        return lambda index, prediction: None
    from .. import maps
    from ..overlay import save_overlay

    def overlay(prediction: Prediction, path: Path) -> None:
        seen = intake.shown(prediction.source, prediction.source)  # with the light that the line sees
        save_overlay(prediction, path, image=seen, legend=legend)

    savers: dict[str, Callable[[Prediction, Path], None]] = {
        "overlay": overlay,
        "tiff": maps.save_tiff,
        "npy": maps.save_npy,
        "mask": maps.save_mask,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoleFlowError(f"{folder}: cannot hold the maps: {error.strerror or error}") from error
    chosen = kinds.split(",")
    taken = {path.name for path in paths if path.resolve().parent == folder.resolve()}
    names = map_names(paths, [MAP_ENDINGS[kind] for kind in chosen], taken=taken)

    def write(index: int, prediction: Prediction) -> None:
        for kind, name in zip(chosen, names[index], strict=True):
            savers[kind](prediction, folder / name)

    return write


def map_names(
    paths: Sequence[Path], endings: Sequence[str], *, taken: set[str] | None = None
) -> list[tuple[str, ...]]:
    """File names for the maps of `paths`, one for each of `endings`.

    They are safe on any system and told apart even where case is ignored. A map is named after its image,
    after its folders too where images in several folders share a name, and is numbered where that does not
    suffice; all maps of an image share that stem. Names in `taken` are left alone.
    """
    stems = [_safe(path.stem) for path in paths]
    counts: dict[str, int] = {}
    for stem in stems:
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    common = len(Path(os.path.commonpath([path.absolute().parent for path in paths])).parts) if paths else 0
    used = {name.casefold() for name in taken or ()}
    names = []
    for path, stem in zip(paths, stems, strict=True):
        if counts[stem.casefold()] > 1:
            stem = _safe("_".join([*path.absolute().parent.parts[common:], path.stem]))
        number, own = 1, tuple(stem + ending for ending in endings)
        while used & {name.casefold() for name in own}:
            number += 1
            own = tuple(f"{stem}-{number}{ending}" for ending in endings)
        used |= {name.casefold() for name in own}
        names.append(own)
    return names


def _safe(text: str) -> str:
    kept = re.sub(r"[^\w.-]+", "_", text.encode("utf-8", "replace").decode()).strip("._")
    # The end tells photographs apart more often than the beginning; names have at most 255 bytes.
    return kept[-50:].strip("._") or "image"


# Screen


@contextmanager
def _result_lines(
    paths: Sequence[Path], tasks: Sequence[str], *, to_stderr: bool
) -> Iterator[Callable[[Prediction], None]]:
    """A function that shows one result as one line, under a bar; only the bar where stdout has the JSON."""
    screen = new_screen(to_stderr=to_stderr or not sys.stdout.isatty())
    wide = max(6, *(len(printable(path)) for path in paths))
    name = max(7, *(len(task) for task in tasks))
    counts = {"good": 0, "defective": 0, "unknown": 0}

    def put(line: str) -> None:
        if to_stderr:
            return
        if screen.is_terminal and not screen.stderr:  # above the bar
            screen.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(line)

    with bar("inspecting", screen, lines=False) as told:
        put(f"{'source':<{wide}}  {'product':<{name}}  {'score':>8}  {'p-value':>8}  verdict")

        def show(prediction: Prediction) -> None:
            verdict = "defective" if prediction.pred_label else "good"
            counts[verdict] += 1
            counts["unknown"] += not prediction.known
            product = prediction.task if prediction.known else "unknown"
            score, p = f"{prediction.pred_score:.3f}", f"{prediction.p_value:.2g}"
            put(f"{printable(prediction.source):<{wide}}  {product:<{name}}  {score:>8}  {p:>8}  {verdict}")
            told(counts["good"] + counts["defective"], len(paths))

        yield show
    complain(f"{counts['defective']} of {len(paths)} defective, {counts['unknown']} of an unknown product")


_COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro_30": "AUPRO@0.3",
    "routing_good": "routed good",
    "routing_defective": "routed defective",
    "unknown_good": "unknown good",
    "unknown_defective": "unknown defective",
    "false_alarms": "false alarms",
    "detected": "detected",
}


def _print_evaluation(result: Evaluation, dataset: Dataset) -> None:
    size = result.eval_size
    at = "each image's own size" if size is None else f"{size[0]} x {size[1]}"
    say(f"{dataset.root} ({dataset.layout}, licence: {dataset.licence}); maps and masks at {at}; in per cent")
    _print_scores("routed: the line finds the product", result.routed.products, result.routed.mean)
    if result.oracle is not None:
        _print_scores("oracle: the product is given", result.oracle.products, result.oracle.mean)
    for name, share in result.foreign.items():
        say(f"{name} is not on this line: {share:.1%} of its images were called unknown")
    if result.untested:
        say(f"no test images of: {', '.join(result.untested)}")


def _print_scores(title: str, products: dict[str, Figures], mean: Figures) -> None:
    """Products side by side where they are few, so that twelve figures fit a narrow terminal."""
    rows = {**{printable(name): asdict(figures) for name, figures in products.items()}, "mean": asdict(mean)}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right", no_wrap=True)
    for key, label in _COLUMNS.items():
        values = [figures[key] for figures in rows.values()]
        if any(value is not None for value in values):
            table.add_row(label, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    new_screen().print(table)


def _evaluation_json(result: Evaluation, detector: Detector, dataset: Dataset) -> dict[str, Any]:
    import torch

    return {
        "line": str(detector.path),
        "data": str(dataset.root),
        "layout": dataset.layout,
        "licence": dataset.licence,
        "backbone": detector.extractor.describe(),
        "moleflow": metadata.version("moleflow"),
        "torch": torch.__version__,
        "device": str(detector.extractor.device),
        **result.to_dict(),
    }
