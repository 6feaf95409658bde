"""What everything takes, in tables from one run: drawn images, lessons, many products, exports."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...errors import BenchError, ConfigError
from ..files import alone, read_json, write_json, write_text
from .exports import exports
from .images import images
from .lessons import lessons
from .many import many
from .table import Table

__all__ = ["TABLES", "SpeedOptions", "Table", "measure_speed", "speed_options"]

T = TypeVar("T")
LIBRARIES = ("torch", "timm", "onnxruntime", "openvino")


@dataclass(frozen=True)
class SpeedOptions:
    """What is measured, and how often.

    Attributes:
        tables: names among `TABLES`.
        sizes, batches: of images.
        rounds: in which all that is compared takes turns; what stands in a table is their median.
        lessons: photographs of each lesson.
        products: of each line.
        wide: further backbones, with random weights at their own size.
        image_size: of lessons, lines of many products and exports.
        device: "cpu", or where the wide backbones run as well.
    """

    tables: tuple[str, ...] = ("images", "lessons", "many", "exports")
    sizes: tuple[int, ...] = (256, 384, 512)
    batches: tuple[int, ...] = (1, 16)
    rounds: int = 7
    lessons: tuple[int, ...] = (8, 24, 200)
    products: tuple[int, ...] = (1, 10, 100, 1000)
    wide: tuple[str, ...] = ("vit_base_patch16", "wide_resnet50")
    image_size: int = 512
    device: str = "cpu"


TABLES: dict[str, Callable[[SpeedOptions], Table]] = {
    "images": lambda o: images(o.sizes, o.batches, o.rounds, wide=o.wide, device=o.device),
    "lessons": lambda o: lessons(o.lessons, o.image_size, wide=o.wide),
    "many": lambda o: many(o.products, o.image_size, o.rounds),
    "exports": lambda o: exports(o.image_size, o.batches, o.rounds),
}


def speed_options(values: Mapping[str, Any]) -> SpeedOptions:
    """Options from plain values; ConfigError for an unknown one or another kind of value."""
    known = asdict(SpeedOptions())
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; known are {', '.join(known)}")
        kind = type(known[name])
        given = tuple(value) if isinstance(value, list) else value
        if kind is tuple and not isinstance(given, tuple):
            given = (given,)
        element = type(known[name][0]) if kind is tuple else kind
        parts = given if kind is tuple else (given,)
        if not all(type(part) is element and (element is str or part > 0) for part in parts):
            what = "words" if element is str else "positive numbers"
            raise ConfigError(f"{name}: expected {what} such as {known[name]}, got {value!r}")
        known[name] = given
    options = SpeedOptions(**known)
    for table in options.tables:
        if table not in TABLES:
            raise ConfigError(f"unknown table {table!r}; known are {', '.join(TABLES)}")
    return options


def measure_speed(
    options: SpeedOptions, out: Path, *, command: str, told: Callable[[str], None] = lambda table: None
) -> Path:
    """Measures what was asked for and writes OUT/speed.md and OUT/speed.json; the path of the first.

    A table is written when it is done; the same options go on behind the last one.

    Args:
        options: what is measured.
        out: folder.
        command: that the tables stand under.
        told: the name of each table before it begins.

    Raises:
        BenchError: `out` holds a run with other options.
    """
    asked, file = asdict(options), out / "speed.json"
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
    with alone(out):
        found: dict[str, Any]
        found = read_json(file) if file.exists() else {"options": asked, "machine": machine(), "tables": {}}
        if found.get("options") != asked:
            raise BenchError(f"{out}: holds a run with other options; choose another folder")
        for name in options.tables:
            if name in found["tables"]:
                continue
            told(name)
            found["tables"][name] = asdict(TABLES[name](options))
            write_json(file, found)
        tables = [Table(**found["tables"][name]).markdown() for name in options.tables]
        write_text(out / "speed.md", "\n\n".join([f"`{command}`\n\n{found['machine']}", *tables]) + "\n")
    return out / "speed.md"


def machine() -> str:
    """What the figures were taken on."""
    found = [f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    for library in LIBRARIES:
        try:
            found.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found.append(torch.cuda.get_device_name())
    return ", ".join(found)
