"""`moleflow predict` and `moleflow evaluate`."""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import ImageError, MoleFlowError
from .app import app, example
from .json_lines import json_lines
from .options import (
    RUNTIME_VARIABLE,
    BatchSize,
    Device,
    JsonFile,
    Line,
    Recursive,
    Runtime,
    RuntimeChoice,
    Threads,
    Weights,
    refuse_target,
)
from .products import read_line, record_of
from .screen import (
    NOTHING_CHANGED,
    SOME_FAILED,
    bar,
    complain,
    interruptible,
    new_screen,
    printable,
    say,
    use_threads,
)

if TYPE_CHECKING:
    from ..data.layouts import Dataset
    from ..detector import Detector
    from ..evaluation import Evaluation, Figures
    from ..intake import Intake
    from ..results import Failure, Prediction
    from ..runtime import Inspector

Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")]

WATCHED_AT_ONCE = 32  # images between two writes of the watch
WRITTEN_STAYS = "what was written so far is complete and stays"
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
        "moleflow predict line-3 shift.csv",
        "moleflow predict line-3 belt --monitor",
    )
)
def predict(
    line: Line,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES", help="Folders, files, lists or quoted patterns.")
    ],
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
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Add the images to LINE's watch, see: moleflow drift.")
    ] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Say at the end what an image took, stage by stage.")
    ] = False,
    recursive: Recursive = False,
    strict: Strict = False,
    batch_size: BatchSize = 8,
    weights: Weights = None,
    device: Device = "auto",
    runtime: Runtime = RuntimeChoice.auto,
    threads: Threads = None,
) -> None:
    """Inspect images of any product of LINE. Nothing is written but what --json, --maps, --monitor ask for.

    JSON lines: every line of the file is one JSON object, one per image, in the order of the images. An image
    that cannot be read is a result of its own; the exit code is then 3.
    """
    from ..data.images import find_entries

    if map_format and maps is None:
        raise typer.BadParameter("expected --maps DIR as well", param_hint="--map-format")
    if regions is not None and json_file is None:
        raise typer.BadParameter("expected --json FILE as well", param_hint="--regions")
    found = find_entries(images, recursive=recursive, missing="raise" if strict else "keep")
    paths = [entry.path for entry in found]
    _require_place(json_file)
    refuse_target(json_file, "--json", line=line, read=[*paths, *map(str, images)])
    if maps is not None and maps.exists() and not maps.is_dir():
        raise MoleFlowError(f"{maps}: cannot hold the maps: expected a folder, found a file")
    from ..results import Failure

    detector = _line_or_export(line, weights, device, runtime, threads, task=task, monitor=monitor)
    results = detector.stream(paths, task=task, batch_size=batch_size, errors="raise" if strict else "yield")
    failed, taken = 0, []
    with ExitStack() as stack:
        write_maps = _map_writer(maps, paths, map_format or "overlay", intake=detector.intake, legend=legend)
        write_json = stack.enter_context(json_lines(json_file))
        show = stack.enter_context(_result_lines(paths, detector.tasks, to_stderr=json_file == "-"))
        asked = json_file or maps or monitor
        stack.enter_context(interruptible(WRITTEN_STAYS if asked else NOTHING_CHANGED))
        watch = stack.enter_context(_watcher(detector)) if monitor else None  # type: ignore[arg-type]
        for index, result in enumerate(results):
            if isinstance(result, Failure):
                failed += 1
                write_json(result.to_dict())
            else:
                started = time.perf_counter()
                write_json(result.to_dict() | _regions_json(result, wanted=regions))
                try:
                    write_maps(index, result)
                except ImageError as error:  # an overlay needs the picture once more, and it is gone
                    if strict:
                        raise
                    complain(f"no map: {error}")
                    failed += 1
                taken.append(result.seconds | {"writing": time.perf_counter() - started})
            show(result)
            if watch is not None and not isinstance(result, Failure):
                watch(result)
    _say_written(json_file, maps)
    if timings and taken:
        _say_timings(taken, to_stderr=json_file == "-")
    if failed:
        raise typer.Exit(SOME_FAILED)


def _say_written(json_file: str | None, maps: Path | None = None) -> None:
    """Where one finds what was written; stdout one need not be told of."""
    for what, place in (("maps", maps), ("results", json_file)):
        if place not in (None, "-"):
            complain(f"{what}: {place}")


def _say_timings(taken: Sequence[dict[str, float]], *, to_stderr: bool) -> None:
    """Milliseconds an image by stage; the first image waits for what is opened with it."""
    tell = complain if to_stderr else say
    rows = {stage: [1e3 * one.get(stage, 0.0) for one in taken] for stage in taken[0]}
    rows["in all"] = [sum(values) for values in zip(*rows.values(), strict=True)]
    tell("milliseconds an image: median, first, longest")
    for stage, values in rows.items():
        tell(f"  {stage:<9} {statistics.median(values):8.1f} {values[0]:8.1f} {max(values):8.1f}")


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
    strict: Strict = False,
    batch_size: BatchSize = 8,
    weights: Weights = None,
    device: Device = "auto",
    runtime: Runtime = RuntimeChoice.auto,
    threads: Threads = None,
) -> None:
    """Score LINE on labelled data: per product, and the mean over products.

    The line finds the product of every image itself; with --oracle there are also figures with the product
    given. F1-max picks its threshold by the labels; false alarms and detections are at the stored threshold.
    Images that cannot be read are listed and left out of all figures; the exit code is then 3.
    """
    with interruptible(NOTHING_CHANGED):
        from ..data.layouts import read_dataset

        _require_place(json_file)
        refuse_target(json_file, "--json", line=line)
        read_line(line)
        dataset = read_dataset(data, layout=layout)
        use_threads(threads)
        from .. import evaluation
        from ..detector import Detector

        detector = Detector.load(line, weights=weights, device=device, runtime=runtime.value)
        with bar("inspecting") as told:
            result = evaluation.evaluate(
                detector,
                dataset,
                oracle=oracle,
                eval_size=eval_size,
                batch_size=batch_size,
                errors="raise" if strict else "yield",
                progress=told,
            )
    if json_file is not None:
        with json_lines(json_file) as write:
            write(_evaluation_json(result, detector, dataset))
    if json_file != "-":
        _print_evaluation(result, dataset)
    _say_written(json_file)
    if result.unreadable:
        for failure in result.unreadable:
            complain(failure.error)
        complain(f"{len(result.unreadable)} test images could not be inspected; no figure counts them")
        raise typer.Exit(SOME_FAILED)


# Files


def _require_place(json_file: str | None) -> None:
    """MoleFlowError for a file that cannot lie where it is to be written, before anything is computed."""
    if json_file in (None, "-"):
        return
    place = Path(str(json_file))
    if place.is_dir() or not place.absolute().parent.is_dir():
        raise MoleFlowError(f"{json_file}: cannot be written: expected a file in a folder that exists")


def _line_or_export(
    line: Path,
    weights: str | None,
    device: str,
    runtime: RuntimeChoice,
    threads: int | None,
    *,
    task: str | None,
    monitor: bool,
) -> Detector | Inspector:
    """The line, or the exported one, for which torch need not be there."""
    from ..runtime import Inspector, is_exported

    if not is_exported(line):
        # What is none is told at once: to import torch takes seconds.
        read = read_line(line)
        if task is not None:
            record_of(read, task)
        use_threads(threads)
        from ..detector import Detector
        from ..store import LineStore

        store = LineStore(line)
        if monitor and store.exists():
            store.require_writable()  # before anything is inspected, and earlier results are replaced
        return Detector.load(line, weights=weights, device=device, runtime=runtime.value)
    refuse_of_exports(weights, device, runtime, monitor=monitor)
    return Inspector(line, threads=threads)


def refuse_of_exports(
    weights: str | None, device: str, runtime: RuntimeChoice, *, monitor: bool = False
) -> None:
    """Refuses options that an exported line does not have."""
    asked = {
        "--weights": weights is not None,
        "--device": device not in ("auto", "cpu"),
        "--runtime": runtime.value not in ("auto", os.environ.get(RUNTIME_VARIABLE)),
        "--monitor": monitor,
    }
    for option, given in asked.items():
        if given:
            raise typer.BadParameter("an exported line takes none", param_hint=option)


@contextmanager
def _watcher(detector: Detector) -> Iterator[Callable[[Prediction], None]]:
    """A function that adds one result to the line's watch; what came before an error is kept as well."""
    for name in detector.tasks:
        detector.drift(name)  # a damaged watch is an error before anything is inspected
    waiting: list[Prediction] = []

    def watch(prediction: Prediction) -> None:
        waiting.append(prediction)
        if len(waiting) >= WATCHED_AT_ONCE:
            flush()

    def flush() -> None:
        taken = list(waiting)
        waiting.clear()  # before: what an error comes of is not tried again
        detector.observe(taken)

    try:
        yield watch
    finally:
        flush()


def _regions_json(prediction: Prediction, *, wanted: bool | None) -> dict[str, Any]:
    """The key `regions`; None: empty for an image that is called good, so that its line stays short."""
    if wanted is False:
        return {}
    listed = prediction.regions if wanted or prediction.pred_label else ()
    return {"regions": [region.to_dict() for region in listed]}


def _map_writer(
    folder: Path | None, paths: Sequence[Path], kinds: str, *, intake: Intake, legend: bool
) -> Callable[[int, Prediction], None]:
    """A function that writes the maps of one image; it does nothing without a folder."""
    if folder is None:
        return lambda index, prediction: None
    from .. import maps

    def save_drawn(prediction: Prediction, place: Path) -> None:
        photo = intake.shown(prediction.source, prediction.source)  # with the light that the line sees
        maps.save_overlay(prediction, place, image=photo, legend=legend)

    savers: dict[str, Callable[[Prediction, Path], None]] = {
        "overlay": save_drawn,
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
) -> Iterator[Callable[[Prediction | Failure], None]]:
    """A function that shows one result as one line; only what failed where stdout has the JSON."""
    from ..results import Failure, as_decimal

    screen = new_screen(to_stderr=to_stderr or not sys.stdout.isatty())
    wide = max(6, *(len(printable(path)) for path in paths))
    name = max(7, *(len(task) for task in tasks))
    counts = {"good": 0, "defective": 0, "unknown": 0, "drifting": 0, "failed": 0}

    def put(line: str, *, also_to_stderr: bool = False) -> None:
        if to_stderr and not also_to_stderr:
            return
        if screen.is_terminal and screen.stderr == to_stderr:  # above the bar
            screen.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(line, err=to_stderr)

    with bar("inspecting", screen, lines=False) as told:
        put(f"{'source':<{wide}}  {'product':<{name}}  {'score':>8}  {'p-value':>8}  verdict")

        def show_failure(failure: Failure) -> None:
            counts["failed"] += 1
            source, reason = printable(failure.source), printable(failure.reason)
            put(f"{source:<{wide}}  {'-':<{name}}  {'-':>8}  {'-':>8}  error: {reason}", also_to_stderr=True)

        def show_prediction(prediction: Prediction) -> None:
            verdict = prediction.status
            counts[verdict] += 1
            product = prediction.task if prediction.known else "unknown"
            score, p = as_decimal(prediction.pred_score, 3), f"{prediction.p_value:.2g}"
            put(f"{printable(prediction.source):<{wide}}  {product:<{name}}  {score:>8}  {p:>8}  {verdict}")

        def show(result: Prediction | Failure) -> None:
            if isinstance(result, Failure):
                show_failure(result)
            else:
                show_prediction(result)
            told(sum(counts.values()), len(paths))

        yield show
    inspected = sum(counts.values()) - counts["failed"]
    complain(
        f"{counts['defective']} of {inspected} defective, {counts['unknown']} of an unknown product, "
        f"{counts['drifting']} drifting"
    )
    if counts["drifting"]:
        complain("drifting: not like good ones, but light or focus are not as taught either; see --json")
    if counts["failed"]:
        complain(f"{counts['failed']} of {len(paths)} images could not be inspected")


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
        said = (
            "none of its images could be read"
            if share is None
            else f"{share:.1%} of its images were called unknown"
        )
        say(f"{name} is not on this line: {said}")
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
        "runtime": detector.extractor.runtime,
        **result.to_dict(),
    }
