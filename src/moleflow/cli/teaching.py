"""`moleflow add` and `moleflow update`."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
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
)
from .app import app, example
from .options import (
    Device,
    DropSuspicious,
    GoodImages,
    Groups,
    Line,
    ProductName,
    Rate,
    Recursive,
    ReportFile,
    Threads,
    Weights,
    as_image_size,
    as_intensity,
)
from .products import intensity_of, light_in_words, read_line, record_of, setting_of
from .screen import (
    NOTHING_CHANGED,
    SOME_FAILED,
    amount,
    as_text,
    complain,
    interruptible,
    say,
    stages,
    use_threads,
)

if TYPE_CHECKING:
    from ..detector import Detector
    from ..intake import Intake
    from ..results import TaskInfo
    from ..store import LineStore, TaskRecord

SHOWN_COPIES = 5  # groups of near-copies named on the screen; the report has all
NOTABLE_SHARE = 0.02  # of pixels beyond the line's intensity; a band itself leaves a few in a thousand aside

Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse any image that cannot be read, instead of up to one in twenty."),
]


@app.command(
    epilog=example(
        "moleflow add line-3 bottle photos/bottle/good",
        "moleflow add line-3 cable 'photos/cable/*.png' --false-alarm-rate 0.005",
        "moleflow add line-3 --each photos --group time",
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
    recursive: Recursive = False,
    group: Groups = "auto",
    strict: Strict = False,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone of a new line; efficientnet_lite0 by default.")
    ] = None,
    weights: Weights = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Size images are brought to, for a new line.")
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(
            metavar="auto|full|BITS|LOW:HIGH",
            help="Numbers that a new line sees as black to white; by its first images by default.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new line; 0 by default.")] = None,
    false_alarm_rate: Rate = None,
    report: ReportFile = None,
    drop_suspicious: DropSuspicious = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Teach LINE a new PRODUCT from good IMAGES; a LINE that does not exist is created.

    With --each, PRODUCT and IMAGES are left out: every folder in FOLDER is learned as a product, from its
    train/good, its good, or the images in it, and saved before the next; those on LINE already are skipped.

    Backbone, image size, intensity and seed belong to the line: for an existing one leave them out, or give
    the same. The false-alarm rate is the line's where it is new, and this product's alone where it exists.
    Suspicious images are listed; they teach all the same unless --drop-suspicious is given.
    """
    size = None if image_size is None else as_image_size(image_size)
    light = as_intensity(intensity)
    lesson = _Lesson(
        line=line,
        recursive=recursive,
        group=group,
        strict=strict,
        report=report,
        drop_suspicious=drop_suspicious,
        wishes={"backbone": backbone, "image_size": size, "intensity": light, "seed": seed},
        false_alarm_rate=false_alarm_rate,
        weights=weights,
        device=device,
        threads=threads,
    )
    if each is not None:
        if product is not None or images:
            raise typer.BadParameter("expected --each FOLDER alone, got PRODUCT or IMAGES as well")
        _add_each(lesson, each)
    elif product is None or not images:
        raise typer.BadParameter("expected PRODUCT and IMAGES, or --each FOLDER")
    else:
        _add(lesson, product, images)


@app.command(
    epilog=example(
        "moleflow update line-3 bottle photos/bottle/new",
        "moleflow update line-3 bottle new.csv --group column:lot",
    )
)
def update(
    line: Line,
    product: ProductName,
    images: GoodImages,
    recursive: Recursive = False,
    group: Groups = "auto",
    strict: Strict = False,
    report: ReportFile = None,
    drop_suspicious: DropSuspicious = False,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Learn more of PRODUCT from new good images, as a new version; the old one is kept for rollback.

    Earlier images are not stored in a line; features like theirs, drawn from what was learned, are learned
    again beside the new ones. The threshold follows from the new images.
    """
    with interruptible(NOTHING_CHANGED):
        paths, labels = _good_images(images, recursive=recursive, group=group, strict=strict)
        _refuse_report(report, paths)
        product = record_of(read_line(line), product).name
        use_threads(threads)
        from ..detector import Detector

        detector = Detector.load(line, weights=weights, device=device)
        with stages() as progress:
            detector.update_task(
                product,
                paths,
                groups=labels,
                strict=strict,
                drop_suspicious=drop_suspicious,
                progress=progress,
            )
    _save(detector, line)
    _report_learned(detector.info(product), line, detector.intake)
    _warn_of_light(detector.intake, paths)
    _write_report(report, detector.info(product), line, detector.intake)


@dataclass(frozen=True)
class _Lesson:
    """What `add` was asked for, whatever the product; `wishes` are the line's settings or None."""

    line: Path
    recursive: bool
    group: str
    strict: bool
    report: Path | None
    drop_suspicious: bool
    wishes: dict[str, Any]
    false_alarm_rate: float | None
    weights: str | None
    device: str
    threads: int | None


def _add(lesson: _Lesson, product: str, images: Sequence[str | Path], *, said: str = NOTHING_CHANGED) -> None:
    """Learn one product and save it; `said` is true where it is interrupted before that."""
    with interruptible(said):
        from ..store import LineStore, check_task_name

        line, store, product = lesson.line, LineStore(lesson.line), check_task_name(product)
        paths, labels = _good_images(
            images, recursive=lesson.recursive, group=lesson.group, strict=lesson.strict
        )
        _refuse_report(lesson.report, paths)
    with nullcontext() if store.exists() else _first_to_create(line):
        with interruptible(said):
            exists = store.exists()
            if exists:
                _refuse_taken(store, product)
                _refuse_other_settings(store, lesson.wishes)
            detector = _line_to_teach(lesson, exists=exists)
            with stages() as progress:
                detector.add_task(
                    product,
                    paths,
                    groups=labels,
                    strict=lesson.strict,
                    drop_suspicious=lesson.drop_suspicious,
                    progress=progress,
                )
            if exists and lesson.false_alarm_rate is not None:
                detector.set_threshold(product, false_alarm_rate=lesson.false_alarm_rate)
        _save(detector, line)
    _report_learned(detector.info(product), line, detector.intake)
    _warn_of_light(detector.intake, paths)
    _write_report(lesson.report, detector.info(product), line, detector.intake)


def _add_each(lesson: _Lesson, folder: Path) -> None:
    """Learn every subfolder as a product. What is wrong with one of them does not stop the others."""
    from ..data.images import subfolders

    products = [place for place in subfolders(folder) if place.resolve() != lesson.line.resolve()]
    if not products:
        raise ImageError(f"{folder}: expected a folder for each product, it holds none")
    ends: dict[str, list[str]] = {"learned": [], "skipped": [], "failed": []}
    for place in products:
        ends[_add_one_of(_with_own_report(lesson, place.name), place)].append(place.name)
    failed = ends["failed"]
    counts = ", ".join(f"{len(names)} {end}" for end, names in ends.items())
    say(counts + (f": {', '.join(failed)}" if failed else ""))
    if failed:
        raise typer.Exit(SOME_FAILED)


def _add_one_of(lesson: _Lesson, place: Path) -> str:
    """Learn one product of several: "learned", "skipped" where the line has it, or "failed"."""
    from ..store import LineStore

    store, name, images = LineStore(lesson.line), place.name, _lesson_folder(place)
    if store.exists():
        _refuse_other_settings(store, lesson.wishes)
        if _taken_as(store, name):
            say(f"{name}: on {lesson.line} already, skipped; moleflow update learns more of it")
            return "skipped"
    complain(f"{name}: from {images}")
    try:
        _add(lesson, name, [images], said=f"{name} was not learned, those before it are")
    except (ImageError, TaskError, TrainingError, CalibrationError) as error:
        complain(f"Error: {name}: {error}")
        return "failed"
    return "learned"


def _with_own_report(lesson: _Lesson, product: str) -> _Lesson:
    """Each product of several has a report of its own: lessons.html becomes lessons-gear.html."""
    path = lesson.report
    return lesson if path is None else replace(lesson, report=path.with_stem(f"{path.stem}-{product}"))


def _lesson_folder(product: Path) -> Path:
    """Where a product's folder has its good images."""
    for place in (product / "train" / "good", product / "good"):
        if place.is_dir():
            return place
    return product


def _good_images(
    images: Sequence[str | Path], *, recursive: bool, group: str, strict: bool
) -> tuple[list[Path], list[str] | None]:
    """The images to learn from, and for each the group it belongs to, where the rule makes any."""
    from ..data.groups import group_labels
    from ..data.images import find_entries

    try:
        found = find_entries(images, recursive=recursive, missing="raise" if strict else "keep")
    except OnlyFoldersError as error:
        raise OnlyFoldersError(f"{error}; moleflow add LINE --each learns every one as a product") from None
    paths = [entry.path for entry in found]
    labels = group_labels(paths, group, columns=[entry.columns for entry in found])
    if labels is not None:
        _report_groups(labels, group)
    return paths, labels


def _report_groups(labels: Sequence[str], rule: str) -> None:
    sizes = Counter(labels).values()
    if len(sizes) == 1:
        complain(f"note: --group {rule} puts all images in one group, which does not show how groups differ")
    else:
        complain(f"grouped by {rule}: {len(sizes)} groups of {min(sizes)} to {max(sizes)} images")


def _line_to_teach(lesson: _Lesson, *, exists: bool) -> Detector:
    """The line on disk, or a new one with the options that were given."""
    use_threads(lesson.threads)
    from ..detector import Detector

    if exists:
        return Detector.load(lesson.line, weights=lesson.weights, device=lesson.device)
    options = lesson.wishes | {"false_alarm_rate": lesson.false_alarm_rate}
    given = {key: value for key, value in options.items() if value is not None}
    return Detector(weights=lesson.weights, device=lesson.device, **given)


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


def _taken_as(store: LineStore, product: str) -> str | None:
    """The product's name as the line has it; None where it has none such."""
    folded = unicodedata.normalize("NFC", product).casefold()
    names = (known.name for known in store.read(tensors=False).tasks)
    return next((name for name in names if name.casefold() == folded), None)


def _refuse_taken(store: LineStore, product: str) -> None:
    """Say before learning what would be refused after it."""
    taken = _taken_as(store, product)
    if taken is not None:
        raise TaskError(f"{store.path}: {taken!r} is on this line already; moleflow update learns more of it")


def _refuse_other_settings(store: LineStore, wishes: dict[str, Any]) -> None:
    """Refuse wishes that an existing line cannot grant."""
    record = store.read(tensors=False)
    backbone = setting_of(record, "backbone")
    stored = {
        "backbone": backbone["name"],
        "image_size": tuple(backbone["image_size"]),
        "intensity": intensity_of(record).wish,
        "seed": setting_of(record, "seed"),
    }
    if wishes["intensity"] == "auto":  # was settled with the first product, whatever that came to
        wishes = wishes | {"intensity": None}
    for key, wish in wishes.items():
        if wish is not None and wish != stored[key]:
            option = "--" + key.replace("_", "-")
            raise ConfigError(
                f"{store.path}: this line has {option} {as_text(stored[key])}, got {as_text(wish)}; "
                f"leave it out, or begin a new line"
            )


def _warn_of_light(intake: Intake, paths: list[Path]) -> None:
    share = intake.beyond([(path, path) for path in paths])
    if share > NOTABLE_SHARE:
        complain(
            f"note: {share:.1%} of these images' pixels lie beyond the line's intensity ({intake.intensity}) "
            f"and are black or white to it; a new line can be begun with another --intensity"
        )


def _save(detector: Detector, line: Path) -> None:
    with interruptible(f"{line} is as it was before or has this change, see: moleflow list {line}"):
        detector.save(line)


def _refuse_report(report: Path | None, images: list[Path]) -> None:
    """Say before learning where the report cannot go."""
    if report is None:
        return
    if report.is_dir() or not report.absolute().parent.is_dir():
        raise ConfigError(f"--report {report}: expected a file in a folder that exists")
    if report.exists() and any(report.samefile(image) for image in images if image.exists()):
        raise ConfigError(f"--report {report}: this is one of the images")


def _write_report(report: Path | None, learned: TaskInfo, line: Path, intake: Intake) -> None:
    if report is None:
        return
    from ..teaching_report import write_teaching_report

    scores = _good_scores(record_of(read_line(line), learned.name))
    write_teaching_report(
        report,
        product=learned.name,
        lesson=learned.lesson,
        shown=lambda source: intake.shown(Path(source), Path(source)),  # with the light that the line sees
        unreadable=learned.unreadable,
        scores=scores,
        threshold=learned.threshold,
    )
    say(f"  report: {report}")


def _good_scores(record: TaskRecord) -> list[float]:
    """What the photographs that calibrated score, in the unit of the threshold."""
    from ..scoring import ScoreCalibration

    calibration = ScoreCalibration.from_dict(record.info["calibration"])
    return [(score - calibration.level) / calibration.spread for score in calibration.scores]


def _report_lesson(learned: TaskInfo) -> None:
    """How many images are independent, and every one that something speaks against or that comes again."""
    lesson = learned.lesson
    counted = f"{lesson.images} images" if lesson.images != 1 else "1 image"
    if lesson.independent < lesson.images:
        say(f"  {counted}, {lesson.independent} independent: the others show the same again")
    if lesson.suspicious:
        fate = "left out" if lesson.dropped else "learned from; --drop-suspicious leaves such images out"
        count = len(lesson.suspicious)
        complain(f"note: {count} suspicious {'image was' if count == 1 else 'images were'} {fate}:")
    for suspect in lesson.suspects:
        if suspect.fault:
            complain(f"  {suspect.source}: {suspect.reason}")
    for suspect in [s for s in lesson.suspects if not s.fault][:SHOWN_COPIES]:
        complain(f"note: {suspect.source}: {suspect.reason}")


def _report_learned(learned: TaskInfo, line: Path, intake: Intake) -> None:
    rate = "" if learned.false_alarm_rate is None else f" for {learned.false_alarm_rate:.3%} false alarms"
    say(f"{learned.name}: version {learned.version} on {line}, learned from {learned.images} good images")
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in learned.seconds.items())
    say(f"  {sum(learned.seconds.values()):.1f} s ({stages}), {amount(learned.bytes)}")
    say(
        f"  threshold {learned.threshold:.4f}{rate}, "
        f"from {learned.calibration_images} {learned.calibration} images"
    )
    say(f"  {light_in_words(intake.intensity)}")
    _report_lesson(learned)
    if learned.calibration == "in-sample":
        complain(
            "note: one image does not show how good ones vary; "
            "until it is taught more, hardly anything alarms"
        )
    for unreadable in learned.unreadable:
        complain(f"note: left out, it cannot be read: {unreadable}")
    for other, count in learned.rerouted.items():
        complain(f"note: {count} good images of {other} are now taken for another product")
