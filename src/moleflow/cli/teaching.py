"""`moleflow add` and `moleflow update`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, LineError, TaskError
from .app import app, example
from .options import (
    Alignment,
    Device,
    GoodImages,
    Line,
    ProductName,
    Rate,
    Threads,
    Weights,
    as_image_size,
    as_intensity,
)
from .products import intensity_of, light_in_words, read_line, record_of, setting_of
from .screen import NOTHING_CHANGED, amount, as_text, complain, interruptible, say, stages, use_threads

if TYPE_CHECKING:
    from ..detector import Detector
    from ..intake import Intake
    from ..results import TaskInfo
    from ..store import LineStore

NOTABLE_SHARE = 0.02  # of pixels beyond the line's intensity; a band itself leaves a few in a thousand aside


@app.command(
    epilog=example(
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
    intensity: Annotated[
        str | None,
        typer.Option(
            metavar="auto|full|BITS|LOW:HIGH",
            help="Numbers that a new line sees as black to white; by its first images by default.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new line; 0 by default.")] = None,
    pose: Annotated[
        Alignment,
        typer.Option(
            help="Whether images of this product are turned and moved to lie alike; auto: where it helps."
        ),
    ] = Alignment.auto,
    false_alarm_rate: Rate = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Teach LINE a new PRODUCT from good images; a LINE that does not exist is created.

    Backbone, image size, intensity and seed belong to the line: for an existing one leave them out, or give
    the same. The false-alarm rate is the line's where it is new, and this product's alone where it exists.
    The pose is the product's own.
    """
    size = None if image_size is None else as_image_size(image_size)
    light = as_intensity(intensity)
    wishes = {"backbone": backbone, "image_size": size, "intensity": light, "seed": seed}
    with interruptible(NOTHING_CHANGED):
        from ..data.images import find_images
        from ..store import LineStore, check_task_name

        product, paths, store = check_task_name(product), find_images(images), LineStore(line)
    with nullcontext() if store.exists() else _first_to_create(line):
        with interruptible(NOTHING_CHANGED):
            exists = store.exists()
            if exists:
                _refuse_taken(store, product, wishes)
            use_threads(threads)
            rate = None if exists else false_alarm_rate
            detector = _line_to_teach(line if exists else None, wishes, rate, weights=weights, device=device)
            with stages() as progress:
                detector.add_task(product, paths, pose=pose.value, progress=progress)
            if exists and false_alarm_rate is not None:
                detector.set_threshold(product, false_alarm_rate=false_alarm_rate)
        _save(detector, line)
    _report_learned(detector.info(product), line, detector.intake)
    _warn_of_light(detector.intake, paths)


@app.command(epilog=example("moleflow update line-3 bottle photos/bottle/new"))
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
    with interruptible(NOTHING_CHANGED):
        from ..data.images import find_images

        paths = find_images(images)
        product = record_of(read_line(line), product).name
        use_threads(threads)
        from ..detector import Detector

        detector = Detector.load(line, weights=weights, device=device)
        with stages() as progress:
            detector.update_task(product, paths, progress=progress)
    _save(detector, line)
    _report_learned(detector.info(product), line, detector.intake)
    _warn_of_light(detector.intake, paths)


def _line_to_teach(
    line: Path | None, wishes: dict[str, Any], rate: float | None, *, weights: str | None, device: str
) -> Detector:
    """The line on disk, or a new one with the options that were given."""
    from ..detector import Detector

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
    if learned.pose is not None:
        say(f"  pose: {learned.pose}")
    if learned.calibration == "in-sample":
        complain(
            "note: one image does not show how good ones vary; "
            "until it is taught more, hardly anything alarms"
        )
    for other, count in learned.rerouted.items():
        complain(f"note: {count} good images of {other} are now taken for another product")
