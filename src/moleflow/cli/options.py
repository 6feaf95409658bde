"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..data.groups import RULES, parse_rule
from ..errors import ConfigError
from ..presets import PRESETS, get_preset

RUNTIME_VARIABLE = "MOLEFLOW_RUNTIME"


def refuse_target(
    target: str | Path | None, what: str, *, line: Path | None = None, read: Iterable[str | Path] = ()
) -> None:
    """ConfigError where what is to be written would take the place of what is read, or of a part of the line.

    Args:
        target: the file; none, or - for stdout, is never refused.
        what: the option it comes from.
        line: the line's folder, or that of an export.
        read: files that are read.
    """
    if target is None or target == "-":
        return
    place = Path(target).resolve()
    if line is not None and line.is_dir() and place.is_relative_to(line.resolve()):
        raise ConfigError(f"{what} {target}: expected a file outside of the line's folder {line}")
    if place in {Path(path).resolve() for path in read}:
        raise ConfigError(f"{what} {target}: this is one of the files that are read")


class BaseFrom(str, Enum):
    """Words for `--base`, as `Detector` takes them."""

    auto = "auto"
    learn = "learn"


class RuntimeChoice(str, Enum):
    """Words for `--runtime`, as `Detector` takes them."""

    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Alignment(str, Enum):
    """Words for `--pose`, as `Detector.add_task` takes them."""

    auto = "auto"
    on = "on"
    off = "off"


def as_image_size(text: str, option: str) -> tuple[int, int]:
    """A side, or "HxW", as (h, w); what else was given is wrong usage of the option."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:[xX]([1-9][0-9]{0,4}))?", text.strip())
    if found is None:
        raise typer.BadParameter(
            f"expected a side such as 256, or HxW such as 192x256, got {text!r}", param_hint=option
        )
    height, width = found.groups()
    return int(height), int(width or height)


def as_tiles(text: str | None) -> tuple[int, int] | None:
    """ "RxC" as (rows, columns); None where none was given."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]?)[xX]([1-9][0-9]?)", text.strip())
    if found is None:
        raise typer.BadParameter(f"expected ROWSxCOLUMNS such as 2x3, got {text!r}", param_hint="--tiles")
    return int(found[1]), int(found[2])


def as_intensity(text: str | None) -> str | None:
    """An intensity in its one way of writing; None where none was given."""
    from ..data.intensity import parse_intensity  # numpy takes a while, and `moleflow --help` should not

    try:
        return None if text is None else parse_intensity(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--intensity") from None


def as_device(text: str) -> str:
    """The name of a device; whether this machine has it shows once it is to be used."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?|mps", text) is None:
        raise typer.BadParameter(f"expected auto, cpu, cuda, cuda:N or mps, got {text!r}")
    return text


def _rate(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"expected a share between 0 and 1, such as 0.01, got {value}")
    return value


def _rule(value: str) -> str:
    try:
        parse_rule(value)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def _preset(value: str | None) -> str | None:
    try:
        return None if value is None else get_preset(value).name
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


Line = Annotated[
    Path, typer.Argument(metavar="LINE", help="Folder of the line: all products taught together.")
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Search the subfolders of folders too.")]
ProductName = Annotated[str, typer.Argument(metavar="PRODUCT", help="Name of the product.")]
GoodImages = Annotated[
    list[str], typer.Argument(metavar="IMAGES", help="Good images: folders, files, lists or quoted patterns.")
]
Groups = Annotated[
    str,
    typer.Option("--group", callback=_rule, metavar="RULE", help=f"Which images belong together: {RULES}."),
]
Device = Annotated[
    str, typer.Option(callback=as_device, help="Where to compute: auto, cpu, cuda, cuda:1, mps.")
]
Runtime = Annotated[
    RuntimeChoice,
    typer.Option(
        envvar=RUNTIME_VARIABLE,
        help="What inspects on the CPU; auto: the fastest that is installed and agrees with torch.",
    ),
]
Preset = Annotated[
    str,
    typer.Option(metavar="P", callback=_preset, help=f"Options by name: {', '.join(PRESETS)}."),
]
NewPreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="P",
        callback=_preset,
        help=f"All other options of a new line, by name: {', '.join(PRESETS)}.",
    ),
]
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
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write a page on the lesson and its suspicious pictures."),
]
DropSuspicious = Annotated[
    bool, typer.Option("--drop-suspicious", help="Leave suspicious images out; they are listed either way.")
]
