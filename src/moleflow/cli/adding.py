"""`moleflow add`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import (
    CalibrationError,
    ConfigError,
    ImageError,
    LineError,
    OnlyFoldersError,
    TaskError,
    TrainingError,
    reason_of,
)
from .app import app, example
from .lesson import Asked, Photographs, Strict, good_images, save, teach, tell
from .options import (
    Alignment,
    BaseFrom,
    Device,
    DropSuspicious,
    Groups,
    Line,
    NewPreset,
    Rate,
    Recursive,
    ReportFile,
    Runtime,
    RuntimeChoice,
    Threads,
    Weights,
    as_image_size,
    as_intensity,
    as_tiles,
)
from .products import intake_of, setting_of, tiles_of
from .screen import (
    LESSON_ENDED,
    LINE_AS_BEFORE,
    SOME_FAILED,
    as_text,
    complain,
    interruptible,
    say,
    stages,
    use_threads,
)
from .shapes import settled_in_words

if TYPE_CHECKING:
    from ..detector import Detector
    from ..learning.pose import Wish
    from ..store import LineStore

SHOWN = 6  # images of a found product that are named


@dataclass(frozen=True, kw_only=True)
class _AskedOfAdd(Asked):
    """And what of `add` alone; `wishes` are the line's settings or None, `pose` is as `add_task` takes it."""

    wishes: dict[str, Any]
    pose: Wish
    false_alarm_rate: float | None


def _fit(text: str | None) -> str | None:
    if text not in (None, "auto", "squeeze", "letterbox"):
        raise typer.BadParameter(f"expected auto, squeeze or letterbox, got {text!r}")
    return text


@app.command(
    epilog=example(
        "moleflow add line-3 bottle photos/bottle/good",
        "moleflow add line-3 cable 'photos/cable/*.png' --false-alarm-rate 0.005",
        "moleflow add line-3 --each photos --group time",
        "moleflow add line-3 --mixed photos/unsorted --names bottle,cable",
    )
)
def add(
    line: Line,
    product: Annotated[
        str | None, typer.Argument(metavar="PRODUCT", help="Name of the product.", show_default=False)
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGES", help="Good images: folders, files, lists or quoted patterns."),
    ] = None,
    each: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Instead: every subfolder of FOLDER is a product of its name."),
    ] = None,
    mixed: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Instead: the products that unsorted images in FOLDER show."),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(metavar="P,...", help="With --mixed: their names, ordered by the first image of each."),
    ] = None,
    recursive: Recursive = False,
    group: Groups = "auto",
    strict: Strict = False,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone of a new line; efficientnet_lite0 by default.")
    ] = None,
    weights: Weights = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW", help="Size images, or tiles, are brought to on a new line; by its first images."
        ),
    ] = None,
    smallest_defect: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Smallest defect to find, in the images' pixels: sets a new line's size.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="auto|squeeze|letterbox",
            callback=_fit,
            help="What a new line does with images of another shape; auto by default.",
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(metavar="RxC", help="Overlapping tiles a new line sees its images in; 1x1 by default."),
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(
            metavar="auto|full|BITS|LOW:HIGH",
            help="Numbers that a new line sees as black to white; by its first images by default.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new line; 0 by default.")] = None,
    preset: NewPreset = None,
    base: Annotated[
        BaseFrom | None,
        typer.Option(
            help="What the products of a new line share: auto, the library's own where it has one for the "
            "backbone; learn, from the first product. The preset says it by default."
        ),
    ] = None,
    pose: Annotated[
        Alignment,
        typer.Option(
            help="Whether images of this product are turned and moved to lie alike; auto: where it helps."
        ),
    ] = Alignment.auto,
    false_alarm_rate: Rate = None,
    report: ReportFile = None,
    drop_suspicious: DropSuspicious = False,
    device: Device = "auto",
    runtime: Runtime = RuntimeChoice.auto,
    threads: Threads = None,
) -> None:
    """Teach LINE a new PRODUCT from good IMAGES; a LINE that does not exist is created.

    With --each, PRODUCT and IMAGES are left out: every folder in FOLDER is learned as a product, from its
    train/good, its good, or the images in it, and saved before the next; those on LINE already are skipped.

    With --mixed they are left out as well: the products that the images show are found, which images become
    which product is said, and each is learned as one of its own; all are saved, or none.

    Backbone, image size, smallest defect, fit, tiles, intensity, seed, preset and base belong to the line:
    for an existing one leave them out, or give the same. The false-alarm rate is the line's where it is new,
    and this product's alone where it exists. The pose is the product's own.
    Suspicious images are listed; they teach all the same unless --drop-suspicious is given.
    """
    if image_size is not None and smallest_defect is not None:
        raise typer.BadParameter("expected --image-size or --smallest-defect, got both")
    wishes = {
        "backbone": backbone,
        "image_size": None if image_size is None else as_image_size(image_size, "--image-size"),
        "smallest_defect": smallest_defect,
        "fit": fit,
        "tiles": as_tiles(tiles),
        "intensity": as_intensity(intensity),
        "seed": seed,
        "preset": preset,
        "base": None if base is None else base.value,
    }
    asked = _AskedOfAdd(
        line=line,
        recursive=recursive,
        group=group,
        strict=strict,
        report=report,
        drop_suspicious=drop_suspicious,
        wishes=wishes,
        pose=pose.value,
        false_alarm_rate=false_alarm_rate,
        weights=weights,
        device=device,
        runtime=runtime.value,
        threads=threads,
    )
    for option, value in (("--each", each), ("--mixed", mixed)):
        if value is not None and (product is not None or images):
            raise typer.BadParameter(f"expected {option} FOLDER alone, got PRODUCT or IMAGES as well")
    if names is not None and mixed is None:
        raise typer.BadParameter("--names: expected --mixed FOLDER beside it")
    if each is not None and mixed is not None:
        raise typer.BadParameter("expected --each or --mixed, got both")
    if each is not None:
        _add_each(asked, each)
    elif mixed is not None:
        _add_mixed(asked, mixed, None if names is None else [name.strip() for name in names.split(",")])
    elif product is None or not images:
        raise typer.BadParameter("expected PRODUCT and IMAGES, --each FOLDER or --mixed FOLDER")
    else:
        with _each_advised():
            _add(asked, product, images)


@contextmanager
def _each_advised() -> Iterator[None]:
    """Names the way to learn a folder of products, where one was given in place of a folder of images."""
    try:
        yield
    except OnlyFoldersError as error:
        raise OnlyFoldersError(f"{error}; moleflow add LINE --each learns every one as a product") from None


def _add(
    asked: _AskedOfAdd, product: str, images: Sequence[str | Path], *, interrupted: str | None = None
) -> None:
    """Learn one product and save it.

    Args:
        asked: the options.
        product: its name.
        images: where its images are.
        interrupted: what is true where it is interrupted before it is saved; that of the line by default.
    """
    with interruptible(interrupted or LINE_AS_BEFORE):
        from ..store import LineStore, check_new_name

        store, product = LineStore(asked.line), check_new_name(product)
        photographs = good_images(images, asked)
    with nullcontext() if store.exists() else _first_to_create(asked.line, interrupted):
        with interruptible(interrupted or LINE_AS_BEFORE):
            exists = _may_be_saved(store)
            if exists:
                _refuse_taken(store, product)
                _refuse_other_settings(store, asked.wishes)
            detector = _line_ready(asked, photographs, exists=exists)
        with interruptible(interrupted or LESSON_ENDED):
            teach(partial(detector.add_task, pose=asked.pose), product, photographs, asked)
            if exists and asked.false_alarm_rate is not None:
                detector.set_threshold(product, false_alarm_rate=asked.false_alarm_rate)
        save(detector, asked.line)
    tell(detector, product, photographs, asked)


def _may_be_saved(store: LineStore) -> bool:
    """Whether the line exists; LineError, before anything is learned, where nothing could be saved."""
    if store.exists():
        store.require_writable()
        return True
    store.refuse_occupied()
    return False


def _add_each(asked: _AskedOfAdd, folder: Path) -> None:
    """Learn every subfolder as a product. What is wrong with one of them does not stop the others."""
    from ..data.images import subfolders

    products = [place for place in subfolders(folder) if place.resolve() != asked.line.resolve()]
    if not products:
        raise ImageError(f"{folder}: expected a folder for each product, it holds none")
    ends: dict[str, list[str]] = {"learned": [], "skipped": [], "failed": []}
    for place in products:
        ends[_add_one_of(_with_own_report(asked, place.name), place)].append(place.name)
    failed = ends["failed"]
    counts = ", ".join(f"{len(names)} {end}" for end, names in ends.items())
    say(counts + (f": {', '.join(failed)}" if failed else ""))
    if failed:
        raise typer.Exit(SOME_FAILED)


def _add_one_of(asked: _AskedOfAdd, place: Path) -> str:
    """Learn one product of several: "learned", "skipped" where the line has it, or "failed"."""
    from ..store import LineStore

    store, name, images = LineStore(asked.line), place.name, _lesson_folder(place)
    if store.exists():
        _refuse_other_settings(store, asked.wishes)
        if _taken_as(store, name):
            say(f"{name}: on {asked.line} already, skipped; moleflow update learns more of it")
            return "skipped"
    complain(f"{name}: from {images}")
    try:
        _add(asked, name, [images], interrupted=f"{name} was not learned, those before it are")
    except (ImageError, TaskError, TrainingError, CalibrationError) as error:
        complain(f"Error: {name}: {error}")
        return "failed"
    return "learned"


def _add_mixed(asked: _AskedOfAdd, images: str, names: Sequence[str] | None) -> None:
    """Learn every product that unsorted images show, and save all of them at once."""
    with interruptible(LINE_AS_BEFORE), _each_advised():
        from ..learning.mixed import check_names
        from ..store import LineStore

        store, wanted = LineStore(asked.line), None if names is None else check_names(names)
        photographs = good_images([images], asked)
    of_each: dict[str, list[Path]] = {}
    with nullcontext() if store.exists() else _first_to_create(asked.line):
        with interruptible(LINE_AS_BEFORE):
            exists = _may_be_saved(store)
            if exists:
                _refuse_other_settings(store, asked.wishes)
            for name in wanted or () if exists else ():
                _refuse_taken(store, name)
            detector = _line_ready(asked, photographs, exists=exists)
        with interruptible(LESSON_ENDED):
            with stages() as progress:
                detector.add_tasks(
                    photographs.paths,
                    wanted,
                    groups=photographs.groups,
                    strict=asked.strict,
                    drop_suspicious=asked.drop_suspicious,
                    pose=asked.pose,
                    found=partial(_say_found, of_each),
                    progress=progress,
                )
            if exists and asked.false_alarm_rate is not None:
                for name in of_each:
                    detector.set_threshold(name, false_alarm_rate=asked.false_alarm_rate)
        save(detector, asked.line)
    for name, paths in of_each.items():
        tell(detector, name, Photographs(paths, None), _with_own_report(asked, name))


def _say_found(of_each: dict[str, list[Path]], found: Mapping[str, Sequence[Any]]) -> None:
    """Says which images become which product, and notes it."""
    for name, paths in found.items():
        of_each[name] = list(paths)
        shown = ", ".join(path.name for path in of_each[name][:SHOWN])
        complain(f"{name}: {len(paths)} images, {shown}" + (", ..." if len(paths) > SHOWN else ""))


def _with_own_report(asked: _AskedOfAdd, product: str) -> _AskedOfAdd:
    """Each product of several has a report of its own: lessons.html becomes lessons-gear.html."""
    path = asked.report
    return asked if path is None else replace(asked, report=path.with_stem(f"{path.stem}-{product}"))


def _lesson_folder(product: Path) -> Path:
    """Where a product's folder has its good images."""
    for place in (product / "train" / "good", product / "good"):
        if place.is_dir():
            return place
    return product


def _line_ready(asked: _AskedOfAdd, photographs: Photographs, *, exists: bool) -> Detector:
    """The line to teach; a new one is settled by the images, and what that comes to is said."""
    detector = _line_to_teach(asked, exists=exists)
    if not exists:
        for sentence in settled_in_words(detector, detector.settle(photographs.paths)):
            say(sentence)
    return detector


def _line_to_teach(asked: _AskedOfAdd, *, exists: bool) -> Detector:
    """The line on disk, or a new one with the options that were given."""
    use_threads(asked.threads)
    from ..detector import Detector

    if exists:
        return Detector.load(asked.line, weights=asked.weights, device=asked.device, runtime=asked.runtime)
    options = asked.wishes | {"false_alarm_rate": asked.false_alarm_rate}
    given = {key: value for key, value in options.items() if value is not None}
    return Detector(weights=asked.weights, device=asked.device, runtime=asked.runtime, **given)


@contextmanager
def _first_to_create(line: Path, interrupted: str | None = None) -> Iterator[None]:
    """Hold a line that does not exist yet, so that of two processes the second adds to the first one's.

    The line's own lock is left to saving. This lock's name is one that counts for nothing in a line.
    `interrupted` is true where it is interrupted while it waits; that of the line by default.
    """
    from filelock import FileLock, Timeout

    made = [folder for folder in (line, *line.parents) if not folder.exists()]
    try:
        line.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LineError(f"{line}: cannot create a line there: {reason_of(error)}") from error
    lock = FileLock(line / ".tmp-first.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            complain(f"{line}: another process is creating this line; this one waits until it has")
            with interruptible(interrupted or LINE_AS_BEFORE):
                lock.acquire()
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(lock.lock_file)
            lock.release()
    finally:
        if not (line / "line.json").exists():
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _taken_as(store: LineStore, product: str) -> str | None:
    """The product's name as the line has it; None where it has none such."""
    from ..store.names import folded_name

    return next((name for name in store.names() if folded_name(name) == folded_name(product)), None)


def _refuse_taken(store: LineStore, product: str) -> None:
    """Say before learning what would be refused after it."""
    taken = _taken_as(store, product)
    if taken is not None:
        raise TaskError(f"{store.path}: {taken!r} is on this line already; moleflow update learns more of it")


def _refuse_other_settings(store: LineStore, wishes: dict[str, Any]) -> None:
    """Refuse wishes that an existing line cannot grant."""
    from ..config import stored_line

    record = store.read(tensors=False)
    backbone, intake = setting_of(record, "backbone"), intake_of(record)
    counts, tile = tiles_of(record)
    stored = {
        "backbone": backbone["name"],
        "image_size": tile,
        "smallest_defect": intake.smallest_defect,
        "fit": intake.fit,
        "tiles": counts,
        "intensity": intake.intensity.wish,
        "seed": setting_of(record, "seed"),
        "preset": record.settings.get("preset"),  # of older lines nobody knows
        "base": stored_line(setting_of(record, "config")).training.base,
    }
    # "auto" was settled with the first product, whatever that came to.
    wishes = {key: None if wish == "auto" else wish for key, wish in wishes.items()}
    for key, wish in wishes.items():
        if wish is not None and wish != stored[key]:
            option = "--" + key.replace("_", "-")
            has = f"no {option}" if stored[key] is None else f"{option} {as_text(stored[key])}"
            raise ConfigError(
                f"{store.path}: this line has {has}, got {as_text(wish)}; leave it out, or begin a new line"
            )
