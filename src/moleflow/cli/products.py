"""`moleflow remove`, `rollback`, `threshold`, `list` and `info`: a line without its models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, LineError, TaskError
from .app import app, example
from .json_lines import json_lines
from .options import JsonFile, Line, ProductName, Rate, refuse_target
from .screen import (
    NOTHING_CHANGED,
    amount,
    as_text,
    as_threshold,
    complain,
    counted,
    failed,
    interruptible,
    new_screen,
    new_table,
    printable,
    say,
)

if TYPE_CHECKING:
    from ..data.intensity import Intensity
    from ..intake import Intake
    from ..store import LineRecord, LineStore, TaskRecord

BY_HAND = "set by hand"


@app.command(epilog=example("moleflow remove line-3 cable"))
def remove(
    line: Line,
    product: ProductName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take PRODUCT and all its versions off LINE, for good."""
    with interruptible(NOTHING_CHANGED):
        store = _store(line)
        product = _listed(read_line(line), product)
        versions = store.versions(product)
        question = f"Remove {product} ({len(versions)} version(s)) from {line} for good?"
        if not yes and not _confirmed(question):
            raise failed(f"not confirmed, {NOTHING_CHANGED}; --yes removes without asking")
    store.remove(product)
    say(f"{product} is no longer on {line}.")


@app.command(epilog=example("moleflow rollback line-3 bottle", "moleflow rollback line-3 bottle 0003"))
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
        name = _listed(read_line(line), product)
        available, current = store.versions(name), store.in_use()[name]
        chosen = _before(available, current, name) if version is None else _as_version(version, current)
        change.point(name, chosen)
    say(f"{name}: version {chosen} is in use" + (f", before it was {current}." if chosen != current else "."))


@app.command(
    epilog=example(
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
    record = record_of(read_line(line), product)
    if false_alarm_rate is not None or value is not None:
        # The one takes the other back: a threshold is set by hand or follows from a rate.
        _store(line).override(record.name, {"false_alarm_rate": false_alarm_rate, "threshold": value})
    read = read_line(line)
    record = record_of(read, product)
    score, rate = verdict_in(read, record)
    origin = BY_HAND if rate is None else f"for {_rate(rate)} false alarms, from {_calibration(record)}"
    say(f"{record.name}: threshold {as_threshold(score)}, {origin}")
    _say_promise(record, rate, score)


@app.command("list", epilog=example("moleflow list line-3", "moleflow list line-3 --json -"))
def list_products(line: Line, json_file: JsonFile = None) -> None:
    """List the products of LINE."""
    refuse_target(json_file, "--json", line=line)
    read = read_line(line)
    table = new_table("product", "version", "images", "threshold", "false alarms", numbers=2)
    with json_lines(json_file) as write:
        for record in read.tasks:
            known = _verdict_of(read, record)
            write(known)
            rate = known["false_alarm_rate"]
            shown = BY_HAND if rate is None else _rate(rate)
            table.add_row(
                printable(record.name),
                record.version,
                str(known["images"]),
                as_threshold(known["threshold"]),
                shown,
            )
    if json_file != "-":
        new_screen().print(table)
        say(light_in_words(intake_of(read).intensity))
    name_damaged(read)


@app.command(
    epilog=example("moleflow info line-3", "moleflow info line-3 bottle", "moleflow info line-3 --json -")
)
def info(
    line: Line,
    product: Annotated[
        str | None, typer.Argument(metavar="PRODUCT", help="One product; all where left out.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Show the backbone of LINE, and what each product costs: bytes, seconds, versions."""
    refuse_target(json_file, "--json", line=line)
    read, store = read_line(line), _store(line)
    records = read.tasks if product is None else (record_of(read, product),)
    with json_lines(json_file) as write:
        for record in records:
            write(_verdict_of(read, record) | _cost_of(store, record))
    if json_file != "-":
        _print_line(read, store, records)
    if product is None:
        name_damaged(read)


def _verdict_of(read: LineRecord, record: TaskRecord) -> dict[str, Any]:
    """What a product's verdicts follow from, by the names of a `TaskInfo`; JSON."""
    score, rate = verdict_in(read, record)
    return {
        "product": record.name,
        "version": record.version,
        "images": record.info.get("images"),
        "threshold": score,
        "false_alarm_rate": rate,
    }


def _cost_of(store: LineStore, record: TaskRecord) -> dict[str, Any]:
    """What else is known about a product, by the names of a `TaskInfo`; JSON."""
    from ..verdict.calibration import calibration_from_dict

    calibration = calibration_from_dict(record.info["calibration"])
    return {
        "calibration": calibration.kind,
        "calibration_images": calibration.images,
        "seconds": record.info.get("seconds", {}),
        "parameters": record.info.get("parameters"),
        "bytes": _task_bytes(store.path, record),
        "versions": list(store.versions(record.name)),
        "pose": _pose_in_words(record),
        "unreadable": list(record.info.get("unreadable", ())),
    }


def _print_line(read: LineRecord, store: LineStore, records: Sequence[TaskRecord]) -> None:
    line = store.path
    backbone = setting_of(read, "backbone")
    size = backbone["image_size"]
    preset = read.settings.get("preset")
    options = "" if preset is None else f", preset {preset}"
    say(f"{line}: backbone {backbone['name']} ({backbone['tag']}), images {size[0]} x {size[1]}{options}")
    say(f"{_fit_in_words(read)}; {light_in_words(intake_of(read).intensity)}")
    say(f"weights {backbone['weights_hash'][:16]}, base {read.fingerprint[:16]}, {amount(_base_bytes(line))}")
    table = new_table(
        "product", "bytes", "seconds", "of which", "images", "calibration", "versions", numbers=3
    )
    for record in records:
        seconds = record.info.get("seconds", {})
        versions = store.versions(record.name)
        table.add_row(
            printable(record.name),
            amount(_task_bytes(line, record)),
            f"{sum(seconds.values()):.1f}",
            ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items()),
            _images(record),
            _calibration(record),
            " ".join(f"[{v}]" if v == record.version else v for v in versions),
        )
    new_screen().print(table)
    for record in records:
        say(f"{record.name}: pose {_pose_in_words(record)}")
        for unreadable in record.info.get("unreadable", ()):
            say(f"{record.name}: left out when it was learned: {unreadable}")
        score, rate = verdict_in(read, record)
        _say_promise(record, rate, score)


def _pose_in_words(record: TaskRecord) -> str:
    from ..pose import PoseReport

    found = record.info.get("pose")
    if found is None:
        return "not asked for"
    try:
        return str(PoseReport(**found["report"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(
            f"{record.name}: expected what was found about its pose, but {error!r} is amiss"
        ) from error


def _store(line: Path) -> LineStore:
    from ..store import LineStore

    return LineStore(line)


def read_line(line: Path) -> LineRecord:
    """The line as it stands on disk, without its tensors; damaged products are left out and named."""
    return _store(line).read(tensors=False, damaged="quarantine")


def name_damaged(read: LineRecord) -> None:
    """Says which products were left out, and why."""
    for name, reason in read.damaged.items():
        complain(f"note: {name} is damaged and left out: {reason}; roll it back or remove it")


def _listed(read: LineRecord, product: str) -> str:
    """The name of a product that the line lists, also of a damaged one."""
    from ..store import check_task_name

    name = check_task_name(product)
    return name if name in read.damaged else record_of(read, name).name


def record_of(read: LineRecord, product: str) -> TaskRecord:
    """A product of a line; TaskError, with those there are, where there is none of this name.

    LineError where it is damaged.
    """
    from ..store import check_task_name

    name = check_task_name(product)
    for record in read.tasks:
        if record.name == name:
            return record
    if name in read.damaged:
        raise LineError(f"{name} is damaged: {read.damaged[name]}; roll it back or remove it")
    known = ", ".join(record.name for record in read.tasks) or "none"
    raise TaskError(f"{name!r} is no product of this line; known: {known}")


def setting_of(read: LineRecord, key: str) -> Any:
    """One of the line's own settings."""
    if key not in read.settings:
        raise LineError(
            f"expected {key!r} among the line's settings, found {', '.join(read.settings) or 'none'}"
        )
    return read.settings[key]


def intake_of(read: LineRecord) -> Intake:
    """How this line takes images in."""
    from ..intake import Intake

    try:
        size = setting_of(read, "backbone")["image_size"]
        return Intake.from_settings((size[0], size[1]), read.settings.get("intake"))
    except (KeyError, TypeError, ConfigError) as error:
        raise LineError(f"expected the line's intake among its settings, but {error} is amiss") from error


def tiles_of(read: LineRecord) -> tuple[tuple[int, int], tuple[int, int]]:
    """Counts of tiles, down and across, and (h, w) of one; one tile of the whole size without tiles."""
    backbone = setting_of(read, "backbone")
    counts, size = backbone.get("tiles", (1, 1)), backbone.get("tile_size", backbone["image_size"])
    return (counts[0], counts[1]), (size[0], size[1])


def light_in_words(intensity: Intensity) -> str:
    """One sentence on the range that a line sees."""
    origin = "; chosen from the first images" if intensity.source == "auto" else ""
    return f"intensity: {intensity}{origin}"


def _fit_in_words(read: LineRecord) -> str:
    """What becomes of images on this line, and in how many tiles they are seen."""
    counts, tile = tiles_of(read)
    tiled = "" if counts == (1, 1) else f", seen in {as_text(counts)} tiles of {as_text(tile)}"
    defect = intake_of(read).smallest_defect
    chosen = "" if defect is None else f", chosen for defects of {defect:g} pixels"
    return f"fit: {intake_of(read).fit}{tiled}{chosen}"


def _rate(share: float) -> str:
    from ..verdict.promise import as_percent

    return as_percent(share, 3)


def verdict_in(read: LineRecord, record: TaskRecord) -> tuple[float, float | None]:
    """The threshold of a product, and the false-alarm rate it follows from; None where it was set by hand."""
    from ..verdict.calibration import calibration_from_dict, verdict_of

    try:
        calibration = calibration_from_dict(record.info["calibration"])
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(
            f"{record.name}: expected the scores of good images, but {error!r} is amiss"
        ) from error
    rate, threshold = verdict_of(calibration, record.overrides, float(setting_of(read, "false_alarm_rate")))
    return threshold, rate


def _images(record: TaskRecord) -> str:
    """How many images taught, and how many of the last lesson's were independent where not all were."""
    images, lesson = str(record.info.get("images")), record.info.get("lesson", {})
    if lesson.get("independent") == lesson.get("images"):
        return images
    return f"{images} ({lesson['independent']} independent)"


def _say_promise(record: TaskRecord, rate: float | None, threshold: float) -> None:
    """What the good images support, or of a threshold set by hand what it makes of them."""
    from ..verdict.calibration import calibration_from_dict
    from ..verdict.promise import promise

    calibration = calibration_from_dict(record.info["calibration"])
    if rate is None:
        scores = calibration.scores_of_good()
        above, good = sum(score > threshold for score in scores), counted(len(scores), "good image")
        say(f"{record.name}: {above} of the {good} that calibrated it would be called defective")
        return
    for sentence in promise(calibration, rate, threshold).sentences():
        say(f"{record.name}: {sentence}")


def _calibration(record: TaskRecord) -> str:
    from ..verdict.calibration import calibration_from_dict

    calibration = calibration_from_dict(record.info["calibration"])
    return counted(calibration.images, f"{calibration.kind} image")


def _confirmed(question: str) -> bool:
    """The answer; none at all, as without a terminal, is a no."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as ended:
        complain("")  # behind the question
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return False


def _as_version(text: str, current: str) -> str:
    """A version's number in the digits of the current one; what is no number as it was typed."""
    return text.zfill(len(current)) if text.isascii() and text.isdigit() else text


def _before(available: Sequence[str], current: str, product: str) -> str:
    earlier = [version for version in available if int(version) < int(current)]
    if not earlier:
        raise LineError(f"{product}: no version before {current} (versions: {', '.join(available)})")
    return earlier[-1]


def _base_bytes(line: Path) -> int:
    return (line / "base.safetensors").stat().st_size


def _task_bytes(line: Path, record: TaskRecord) -> int:
    """As a station and `Detector.info` say it."""
    from ..sizes import bytes_on_disk

    return bytes_on_disk(line / "tasks" / record.name / str(record.version), record.info)
