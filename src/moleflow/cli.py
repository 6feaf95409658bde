"""The command line: `moleflow COMMAND ...`.

torch and the models are imported inside the commands that need them: a help text should not wait for them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from .errors import ConfigError, ImageError, LineError, MoleFlowError, TaskError

if TYPE_CHECKING:
    from .data.layouts import Dataset
    from .detector import Detector
    from .evaluation import Evaluation, Figures
    from .results import Prediction, TaskInfo
    from .store import LineRecord, LineStore, TaskRecord

INTERRUPTED = 130
NOTHING_CHANGED = "nothing on disk was changed"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES = 256 << 20
_PIPED_WIDTH = 240  # columns for tables that go to a file or another program


class _Commands(TyperGroup):
    """Turns the errors raised on purpose, and Ctrl-C, into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except MoleFlowError as error:
            raise _failed(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has left: no error of ours
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise _failed(f"{where}{error.strerror or error}") from None
        except KeyboardInterrupt:
            raise _failed("interrupted", code=INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="Visual inspection that learns products one after another from good images, and forgets none.",
    epilog="Begin with: moleflow demo --quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `moleflow` command."""
    _keep_freed_memory()
    app(prog_name="moleflow")


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next image instead of handing them back to the system.

    Every image passes through the same megabytes; asking for them anew costs a third of its time.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # another C library has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


# Arguments and options that several commands share


def _image_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:[xX]([1-9][0-9]{0,4}))?", text.strip())
    if found is None:
        raise typer.BadParameter(f"expected a side such as 256, or HxW such as 192x256, got {text!r}")
    height, width = found.groups()
    return int(height), int(width or height)


def _rate(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"expected a share between 0 and 1, such as 0.01, got {value}")
    return value


Line = Annotated[Path, typer.Argument(metavar="LINE", help="Folder of the line.")]
ProductName = Annotated[str, typer.Argument(metavar="PRODUCT", help="Name of the product.")]
GoodImages = Annotated[
    list[str], typer.Argument(metavar="IMAGES", help="Good images: folders, files or quoted patterns.")
]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; all by default.")]
Weights = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Local file with the backbone's weights.", show_default=False),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per pass of the backbone.")]
JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write JSON here; - for stdout.")
]
Rate = Annotated[
    float | None,
    typer.Option(callback=_rate, metavar="R", help="Share of good images that may be called defective."),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"moleflow {metadata.version('moleflow')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before any command."""


def _example(*lines: str) -> str:
    """An epilog that keeps its line breaks."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


# Commands


@app.command(epilog=_example("moleflow demo --quick --out my-demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the line, the images and the report.")] = Path(
        "moleflow-demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer products and images.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
) -> None:
    """Show the whole story on built-in products, without network, and write an HTML report."""
    from . import demo as story

    report = story.run(out, quick=quick, seed=seed, console=_screen())
    _say(f"The report: {report}")


@app.command(
    epilog=_example(
        "moleflow add line-3 bottle photos/bottle/good",
        "moleflow add line-3 cable 'photos/cable/*.png' --false-alarm-rate 0.005",
    )
)
def add(
    line: Line,
    product: ProductName,
    images: GoodImages,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone of a new line; efficientnet_lite0 by default.")
    ] = None,
    weights: Weights = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Size images are brought to, for a new line.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new line; 0 by default.")] = None,
    false_alarm_rate: Rate = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Teach LINE a new PRODUCT from good images; a LINE that does not exist is created.

    Backbone, image size and seed belong to the line: for an existing one leave them out, or give the same.
    The false-alarm rate is the line's where it is new, and this product's alone where it exists.
    """
    size = None if image_size is None else _image_size(image_size)
    wishes = {"backbone": backbone, "image_size": size, "seed": seed}
    with _interruptible(NOTHING_CHANGED):
        from .data.images import find_images
        from .store import LineStore, check_task_name

        product, paths, store = check_task_name(product), find_images(images), LineStore(line)
    with nullcontext() if store.exists() else _first_to_create(line):
        with _interruptible(NOTHING_CHANGED):
            exists = store.exists()
            if exists:
                _refuse_taken(store, product, wishes)
            _use_threads(threads)
            rate = None if exists else false_alarm_rate
            detector = _line_to_teach(line if exists else None, wishes, rate, weights=weights, device=device)
            with _stages() as progress:
                detector.add_task(product, paths, progress=progress)
            if exists and false_alarm_rate is not None:
                detector.set_threshold(product, false_alarm_rate=false_alarm_rate)
        _save(detector, line)
    _report_learned(detector.info(product), line)


@app.command(epilog=_example("moleflow update line-3 bottle photos/bottle/new"))
def update(
    line: Line,
    product: ProductName,
    images: GoodImages,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Learn more of PRODUCT from new good images, as a new version; the old one is kept for rollback.

    Earlier images are not stored in a line; features like theirs, drawn from what was learned, are learned
    again beside the new ones. The threshold follows from the new images.
    """
    with _interruptible(NOTHING_CHANGED):
        from .data.images import find_images

        paths = find_images(images)
        product = _record(_read(line), product).name
        _use_threads(threads)
        from .detector import Detector

        detector = Detector.load(line, weights=weights, device=device)
        with _stages() as progress:
            detector.update_task(product, paths, progress=progress)
    _save(detector, line)
    _report_learned(detector.info(product), line)


@app.command(
    epilog=_example(
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
        Path | None, typer.Option(metavar="DIR", help="Write a PNG per image: where it is suspicious.")
    ] = None,
    batch_size: BatchSize = 8,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Inspect images of any product of LINE. Nothing is written but what --json and --maps ask for.

    JSON lines: every line of the file is one JSON object, one per image, in the order of the images.
    """
    from .data.images import find_images

    paths = find_images(images)
    _refuse_overwriting(json_file, paths)
    _use_threads(threads)
    from .detector import Detector

    detector = Detector.load(line, weights=weights, device=device)
    results = detector.stream(paths, task=task, batch_size=batch_size)
    with ExitStack() as stack:
        write_json = stack.enter_context(_json_lines(json_file))
        write_map = _map_writer(maps, paths)
        show = stack.enter_context(_result_lines(paths, detector.tasks, to_stderr=json_file == "-"))
        said = NOTHING_CHANGED if not (json_file or maps) else "what was written so far is complete and stays"
        stack.enter_context(_interruptible(said))
        for index, prediction in enumerate(results):
            write_json(prediction.to_dict())
            write_map(index, prediction)
            show(prediction)


@app.command(epilog=_example("moleflow remove line-3 cable"))
def remove(
    line: Line,
    product: ProductName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take PRODUCT and all its versions off LINE, for good."""
    with _interruptible(NOTHING_CHANGED):
        store = _store(line)
        product = _record(_read(line), product).name
        versions = store.versions(product)
        question = f"Remove {product} ({len(versions)} version(s)) from {line} for good?"
        if not yes and not typer.confirm(question, err=True):
            raise _failed(f"not confirmed, {NOTHING_CHANGED}")
    store.remove(product)
    _say(f"{product} is no longer on {line}.")


@app.command(epilog=_example("moleflow rollback line-3 bottle", "moleflow rollback line-3 bottle 0003"))
def rollback(
    line: Line,
    product: ProductName,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="The version before, where left out.")
    ] = None,
) -> None:
    """Use another version of PRODUCT; no version is deleted."""
    store = _store(line)
    with store.transaction() as change:  # so that no other process comes between looking and changing
        record = _record(_read(line), product)
        available, current = store.versions(record.name), str(record.version)
        chosen = _before(available, current, record.name) if version is None else version.zfill(len(current))
        change.point(record.name, chosen)
    _say(
        f"{record.name}: version {chosen} is in use"
        + (f", before it was {current}." if chosen != current else ".")
    )


@app.command(
    epilog=_example(
        "moleflow threshold line-3 bottle", "moleflow threshold line-3 bottle --false-alarm-rate 0.001"
    )
)
def threshold(
    line: Line,
    product: ProductName,
    false_alarm_rate: Rate = None,
    value: Annotated[float | None, typer.Option(metavar="T", help="The score itself.")] = None,
) -> None:
    """Show from which score on PRODUCT is called defective, or change it; nothing is learned again."""
    if false_alarm_rate is not None and value is not None:
        raise typer.BadParameter("expected --false-alarm-rate or --value, got both")
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected --value to be a finite number, got {value}")
    record = _record(_read(line), product)
    if false_alarm_rate is not None or value is not None:
        # The one takes the other back: a threshold is set by hand or follows from a rate.
        _store(line).override(record.name, {"false_alarm_rate": false_alarm_rate, "threshold": value})
    read = _read(line)
    record = _record(read, product)
    score, rate = _verdict(read, record)
    origin = "set by hand" if rate is None else f"for {rate:.3%} false alarms, from {_calibration(record)}"
    _say(f"{record.name}: threshold {score:.4f}, {origin}")


@app.command("list", epilog=_example("moleflow list line-3"))
def list_products(line: Line) -> None:
    """List the products of LINE."""
    read = _read(line)
    table = _table("product", "version", "images", "threshold", "false alarms", numbers=2)
    for record in read.tasks:
        score, rate = _verdict(read, record)
        shown = "set by hand" if rate is None else f"{rate:.3%}"
        table.add_row(
            _printable(record.name), record.version, str(record.info.get("images")), f"{score:.4f}", shown
        )
    _screen().print(table)


@app.command(epilog=_example("moleflow info line-3", "moleflow info line-3 bottle"))
def info(
    line: Line,
    product: Annotated[
        str | None, typer.Argument(metavar="PRODUCT", help="One product; all where left out.")
    ] = None,
) -> None:
    """Show the backbone of LINE, and what each product costs: bytes, seconds, versions."""
    read, store = _read(line), _store(line)
    records = read.tasks if product is None else (_record(read, product),)
    backbone = _setting(read, "backbone")
    size = backbone["image_size"]
    _say(f"{line}: backbone {backbone['name']} ({backbone['tag']}), images {size[0]} x {size[1]}")
    _say(
        f"weights {backbone['weights_hash'][:16]}, base {read.fingerprint[:16]}, {_bytes(_base_bytes(line))}"
    )
    table = _table("product", "bytes", "seconds", "of which", "images", "calibration", "versions", numbers=3)
    for record in records:
        seconds = record.info.get("seconds", {})
        versions = store.versions(record.name)
        table.add_row(
            _printable(record.name),
            _bytes(_task_bytes(line, record)),
            f"{sum(seconds.values()):.1f}",
            ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items()),
            str(record.info.get("images")),
            _calibration(record),
            " ".join(f"[{v}]" if v == record.version else v for v in versions),
        )
    _screen().print(table)


@app.command(epilog=_example("moleflow evaluate line-3 datasets/mvtec --oracle --json figures.json"))
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
    with _interruptible(NOTHING_CHANGED):
        from .data.layouts import read_dataset

        if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
            raise MoleFlowError(f"{json_file}: expected a file in a folder that exists")
        dataset = read_dataset(data, layout=layout)
        _use_threads(threads)
        from . import evaluation
        from .detector import Detector

        detector = Detector.load(line, weights=weights, device=device)
        with _bar("inspecting") as told:
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


# Learning and saving


def _line_to_teach(
    line: Path | None, wishes: dict[str, Any], rate: float | None, *, weights: str | None, device: str
) -> Detector:
    """The line on disk, or a new one with the options that were given."""
    from .detector import Detector

    if line is not None:
        return Detector.load(line, weights=weights, device=device)
    options = {key: value for key, value in {**wishes, "false_alarm_rate": rate}.items() if value is not None}
    return Detector(weights=weights, device=device, **options)


@contextmanager
def _first_to_create(line: Path) -> Iterator[None]:
    """Hold a line that does not exist yet, so that of two processes the second adds to the first one's.

    The line's own lock is left to saving. This lock's name is one that counts for nothing in a line.
    """
    from filelock import FileLock

    made = [folder for folder in (line, *line.parents) if not folder.exists()]
    try:
        line.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LineError(f"{line}: cannot create a line there: {error.strerror or error}") from error
    lock = FileLock(line / ".tmp-first.lock")
    try:
        with lock:
            try:
                yield
            finally:
                with suppress(OSError):
                    os.unlink(lock.lock_file)
    finally:
        if not (line / "line.json").exists():
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _refuse_taken(store: LineStore, product: str, wishes: dict[str, Any]) -> None:
    """Say before learning what would be refused after it."""
    record = store.read(tensors=False)
    for known in record.tasks:
        if known.name.casefold() == product.casefold():
            raise TaskError(
                f"{store.path}: {known.name!r} is on this line already; moleflow update learns more of it"
            )
    backbone = _setting(record, "backbone")
    stored = {
        "backbone": backbone["name"],
        "image_size": tuple(backbone["image_size"]),
        "seed": _setting(record, "seed"),
    }
    for key, wish in wishes.items():
        if wish is not None and wish != stored[key]:
            option = "--" + key.replace("_", "-")
            raise ConfigError(
                f"{store.path}: this line has {option} {_shown(stored[key])}, got {_shown(wish)}; "
                f"leave it out, or begin a new line"
            )


def _save(detector: Detector, line: Path) -> None:
    with _interruptible(f"{line} is as it was before or has this change, see: moleflow list {line}"):
        detector.save(line)


def _report_learned(learned: TaskInfo, line: Path) -> None:
    rate = "" if learned.false_alarm_rate is None else f" for {learned.false_alarm_rate:.3%} false alarms"
    _say(f"{learned.name}: version {learned.version} on {line}, learned from {learned.images} good images")
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in learned.seconds.items())
    _say(f"  {sum(learned.seconds.values()):.1f} s ({stages}), {_bytes(learned.bytes)}")
    _say(
        f"  threshold {learned.threshold:.4f}{rate}, "
        f"from {learned.calibration_images} {learned.calibration} images"
    )
    for other, count in learned.rerouted.items():
        _complain(f"note: {count} good images of {other} are now taken for another product")


# Reading a line without its models


def _store(line: Path) -> LineStore:
    from .store import LineStore

    return LineStore(line)


def _read(line: Path) -> LineRecord:
    return _store(line).read(tensors=False)


def _record(read: LineRecord, product: str) -> TaskRecord:
    from .store import check_task_name

    name = check_task_name(product)
    for record in read.tasks:
        if record.name == name:
            return record
    known = ", ".join(record.name for record in read.tasks) or "none"
    raise TaskError(f"{name!r} is no product of this line; known: {known}")


def _setting(read: LineRecord, key: str) -> Any:
    if key not in read.settings:
        raise LineError(
            f"expected {key!r} among the line's settings, found {', '.join(read.settings) or 'none'}"
        )
    return read.settings[key]


def _verdict(read: LineRecord, record: TaskRecord) -> tuple[float, float | None]:
    """The threshold of a product, and the false-alarm rate it follows from; None where it was set by hand."""
    from .scoring import ScoreCalibration

    if "threshold" in record.overrides:
        return float(record.overrides["threshold"]), None
    rate = float(record.overrides.get("false_alarm_rate", _setting(read, "false_alarm_rate")))
    try:
        calibration = ScoreCalibration.from_dict(record.info["calibration"])
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(
            f"{record.name}: expected the scores of good images, but {error!r} is amiss"
        ) from error
    return calibration.threshold(rate), rate


def _calibration(record: TaskRecord) -> str:
    calibration = record.info.get("calibration", {})
    return f"{len(calibration.get('scores', ()))} {calibration.get('kind', '?')} images"


def _before(available: Sequence[str], current: str, product: str) -> str:
    earlier = [version for version in available if int(version) < int(current)]
    if not earlier:
        raise LineError(f"{product}: no version before {current} (versions: {', '.join(available)})")
    return earlier[-1]


def _base_bytes(line: Path) -> int:
    return (line / "base.safetensors").stat().st_size


def _task_bytes(line: Path, record: TaskRecord) -> int:
    folder = line / "tasks" / record.name / str(record.version)
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


# Predictions: files


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


def _map_writer(folder: Path | None, paths: Sequence[Path]) -> Callable[[int, Prediction], None]:
    if folder is None:
        return lambda index, prediction: None
    from .overlay import save_overlay

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoleFlowError(f"{folder}: cannot hold the maps: {error.strerror or error}") from error
    names = map_names(paths, taken={path.name for path in paths if path.resolve().parent == folder.resolve()})
    return lambda index, prediction: save_overlay(prediction, folder / names[index])


def map_names(paths: Sequence[Path], *, taken: set[str] | None = None) -> list[str]:
    """File names for the maps of `paths`: safe on any system, told apart even where case is ignored.

    A map is named after its image, after its folders too where images in several folders share a name, and
    is numbered where that does not suffice. Names in `taken` are left alone.
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
        number, name = 1, f"{stem}_map.png"
        while name.casefold() in used:
            number += 1
            name = f"{stem}-{number}_map.png"
        used.add(name.casefold())
        names.append(name)
    return names


def _safe(text: str) -> str:
    kept = re.sub(r"[^\w.-]+", "_", text.encode("utf-8", "replace").decode()).strip("._")
    # The end tells photographs apart more often than the beginning; names have at most 255 bytes.
    return kept[-50:].strip("._") or "image"


# Predictions: screen


@contextmanager
def _result_lines(
    paths: Sequence[Path], tasks: Sequence[str], *, to_stderr: bool
) -> Iterator[Callable[[Prediction], None]]:
    """A function that shows one result as one line, under a bar; only the bar where stdout has the JSON."""
    screen = _screen(to_stderr=to_stderr or not sys.stdout.isatty())
    wide = max(6, *(len(_printable(path)) for path in paths))
    name = max(7, *(len(task) for task in tasks))
    counts = {"good": 0, "defective": 0, "unknown": 0}

    def put(line: str) -> None:
        if to_stderr:
            return
        if screen.is_terminal and not screen.stderr:  # above the bar
            screen.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(line)

    with _bar("inspecting", screen, lines=False) as told:
        put(f"{'source':<{wide}}  {'product':<{name}}  {'score':>8}  {'p-value':>8}  verdict")

        def show(prediction: Prediction) -> None:
            verdict = "defective" if prediction.pred_label else "good"
            counts[verdict] += 1
            counts["unknown"] += not prediction.known
            product = prediction.task if prediction.known else "unknown"
            score, p = f"{prediction.pred_score:.3f}", f"{prediction.p_value:.2g}"
            put(f"{_printable(prediction.source):<{wide}}  {product:<{name}}  {score:>8}  {p:>8}  {verdict}")
            told(counts["good"] + counts["defective"], len(paths))

        yield show
    _complain(f"{counts['defective']} of {len(paths)} defective, {counts['unknown']} of an unknown product")


def _printable(what: object) -> str:
    """Names of files may hold what a terminal would obey, or what it cannot show."""
    text = str(what).encode("utf-8", "replace").decode()
    return "".join(character if character.isprintable() else "?" for character in text)


# Evaluation

_COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO@0.3",
    "routing_good": "routed good",
    "routing_defective": "routed defective",
    "unknown_good": "unknown good",
    "unknown_defective": "unknown defective",
    "false_alarm_rate": "false alarms",
    "detection_rate": "detected",
}


def _print_evaluation(result: Evaluation, dataset: Dataset) -> None:
    size = result.eval_size
    at = "each image's own size" if size is None else f"{size[0]} x {size[1]}"
    _say(
        f"{dataset.root} ({dataset.layout}, licence: {dataset.licence}); maps and masks at {at}; in per cent"
    )
    _print_scores("routed: the line finds the product", result.routed.products, result.routed.mean)
    if result.oracle is not None:
        _print_scores("oracle: the product is given", result.oracle.products, result.oracle.mean)
    for name, share in result.foreign.items():
        _say(f"{name} is not on this line: {share:.1%} of its images were called unknown")
    if result.untested:
        _say(f"no test images of: {', '.join(result.untested)}")


def _print_scores(title: str, products: dict[str, Figures], mean: Figures) -> None:
    """Products side by side where they are few, so that twelve figures fit a narrow terminal."""
    rows = {**{_printable(name): asdict(figures) for name, figures in products.items()}, "mean": asdict(mean)}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right", no_wrap=True)
    for key, label in _COLUMNS.items():
        values = [figures[key] for figures in rows.values()]
        if any(value is not None for value in values):
            table.add_row(label, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    _screen().print(table)


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


# What is shown


def _screen(*, to_stderr: bool = False) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(stderr=to_stderr, width=None if stream.isatty() else _PIPED_WIDTH, highlight=False)


def _say(sentence: str) -> None:
    typer.echo(_printable(sentence))


def _complain(sentence: str) -> None:
    typer.echo(_printable(sentence), err=True)


def _failed(sentence: str, *, code: int = 1) -> typer.Exit:
    """Say on stderr what is wrong; the result is to be raised."""
    typer.echo("Error: " + "\n".join(map(_printable, sentence.splitlines())), err=True)
    return typer.Exit(code)


@contextmanager
def _interruptible(said: str) -> Iterator[None]:
    """On Ctrl-C, say what became of the files."""
    try:
        yield
    except KeyboardInterrupt:
        raise _failed(f"interrupted; {said}", code=INTERRUPTED) from None


def _table(*columns: str, numbers: int) -> Table:
    """A plain table; the `numbers` columns after the first are set to the right."""
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < index <= numbers else "left", overflow="fold")
    return table


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _progress(screen: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=screen, transient=True)


@contextmanager
def _bar(
    what: str, screen: Console | None = None, *, lines: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A function that is told how many of how many are done; it shows a bar where somebody watches."""
    screen = screen or _screen(to_stderr=True)
    if not screen.is_terminal:
        if lines:
            _complain(f"{what} ...")
        yield lambda done, total: None
        return
    with _progress(screen) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def _stages() -> Iterator[Callable[[str, float], None]]:
    """A function that is told the stage and the share of it done: a bar per stage, or a line per stage."""
    screen = _screen(to_stderr=True)
    if not screen.is_terminal:
        begun: set[str] = set()

        def tell(stage: str, share: float) -> None:
            if stage not in begun:
                begun.add(stage)
                _complain(f"{stage} ...")

        yield tell
        return
    columns = TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as progress:
        bars: dict[str, Any] = {}

        def show(stage: str, share: float) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0)
            progress.update(bars[stage], completed=share)

        yield show


if __name__ == "__main__":
    main()
