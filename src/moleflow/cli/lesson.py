"""What `add`, `update` and `correct` share: what is asked for, the photographs, what is said afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .learned import refuse_report, say_groups, say_learned, write_report
from .screen import interruptible, stages

if TYPE_CHECKING:
    from ..detector import Detector
    from ..features.runtime import RuntimeName
    from ..results import TaskInfo

Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse any image that cannot be read, instead of up to one in twenty."),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `add` and `update` are asked for alike, whatever the product."""

    line: Path
    recursive: bool
    group: str
    strict: bool
    report: Path | None
    drop_suspicious: bool
    weights: str | None
    device: str
    runtime: RuntimeName
    threads: int | None


@dataclass(frozen=True)
class Photographs:
    """What one product is learned from; `groups` has a label for each path where the rule makes any."""

    paths: list[Path]
    groups: list[str] | None


def good_images(images: Sequence[str | Path], asked: Asked) -> Photographs:
    """The images to learn from, none of which the report may overwrite."""
    from ..data.groups import group_labels
    from ..data.images import find_entries

    found = find_entries(images, recursive=asked.recursive, missing="raise" if asked.strict else "keep")
    paths = [entry.path for entry in found]
    groups = group_labels(paths, asked.group, columns=[entry.columns for entry in found])
    if groups is not None:
        say_groups(groups, asked.group)
    refuse_report(asked.report, asked.line, [*paths, *(Path(given) for given in images)])
    return Photographs(paths, groups)


def teach(learn: Callable[..., TaskInfo], product: str, photographs: Photographs, asked: Asked) -> None:
    """`learn` is `add_task` or `update_task` of the line."""
    with stages() as progress:
        learn(
            product,
            photographs.paths,
            groups=photographs.groups,
            strict=asked.strict,
            drop_suspicious=asked.drop_suspicious,
            progress=progress,
        )


def tell(detector: Detector, product: str, photographs: Photographs, asked: Asked) -> None:
    """Say what was learned, and write the report that was asked for."""
    say_learned(detector, product, asked.line, images=photographs.paths)
    write_report(asked.report, detector, product, line=asked.line)


def save(detector: Detector, line: Path) -> None:
    """Write the line; an interruption says what may have become of it."""
    with interruptible(f"{line} is as it was before or has this change, see: moleflow list {line}"):
        detector.save(line)
