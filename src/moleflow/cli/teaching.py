"""`moleflow update` and `correct`: new versions of a product that a line knows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app, example
from .learned import say_changes
from .lesson import Asked, Strict, good_images, save, teach, tell
from .options import (
    Device,
    DropSuspicious,
    GoodImages,
    Groups,
    Line,
    ProductName,
    Recursive,
    ReportFile,
    Runtime,
    RuntimeChoice,
    Threads,
    Weights,
)
from .products import read_line, record_of
from .screen import (
    LESSON_ENDED,
    LINE_AS_BEFORE,
    NOTHING_CHANGED,
    complain,
    counted,
    interruptible,
    say,
    use_threads,
)

if TYPE_CHECKING:
    from ..results import Failure, Prediction, TaskInfo


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
    runtime: Runtime = RuntimeChoice.auto,
    threads: Threads = None,
) -> None:
    """Learn more of PRODUCT from new good images, as a new version; the old one is kept for rollback.

    Earlier images are not stored in a line; features like theirs, drawn from what was learned, are learned
    again beside the new ones. The threshold follows from the new images. Those among them that the
    version before does not call good are listed.
    """
    asked = Asked(
        line=line,
        recursive=recursive,
        group=group,
        strict=strict,
        report=report,
        drop_suspicious=drop_suspicious,
        weights=weights,
        device=device,
        runtime=runtime.value,
        threads=threads,
    )
    with interruptible(LINE_AS_BEFORE):
        from ..store import LineStore

        photographs = good_images(images, asked)
        product = record_of(read_line(line), product).name
        LineStore(line).require_writable()  # before anything is learned
        use_threads(threads)
        from ..detector import Detector

        detector = Detector.load(line, weights=weights, device=device, runtime=runtime.value)
        before = detector.info(product).version
    with interruptible(LESSON_ENDED):
        teach(detector.update_task, product, photographs, asked)
    save(detector, line)
    tell(detector, product, photographs, asked)
    say_changes(detector.info(product), asked.line, before)


@app.command(
    epilog=example(
        "moleflow correct line-3 bottle photos/bottle/good --missed missed",
        "moleflow correct line-3 bottle photos/bottle/good --missed missed --masks masks",
    )
)
def correct(
    line: Line,
    product: ProductName,
    images: GoodImages,
    missed: Annotated[
        list[str],
        typer.Option(metavar="IMAGES", help="Images of defects that were missed; may be repeated."),
    ],
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Masks of them, named like the images, perhaps with _mask behind the name; without it the "
            "strongest places stand in.",
        ),
    ] = None,
    false_alarms: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES", help="Good images that were called defective; they teach as well."),
    ] = None,
    recursive: Recursive = False,
    group: Groups = "auto",
    strict: Strict = False,
    report: ReportFile = None,
    drop_suspicious: DropSuspicious = False,
    weights: Weights = None,
    device: Device = "auto",
    runtime: Runtime = RuntimeChoice.auto,
    threads: Threads = None,
) -> None:
    """Show PRODUCT defects that it missed, as a new version; the old one is kept for rollback.

    A line keeps no images, so the good IMAGES that PRODUCT was taught from are given again, all of them. It
    is learned anew from these, and patches count as stranger the more they are like the missed defects. The
    threshold follows from left-out good images with that in it: the promised false-alarm rate stands.
    """
    asked = Asked(
        line=line,
        recursive=recursive,
        group=group,
        strict=strict,
        report=report,
        drop_suspicious=drop_suspicious,
        weights=weights,
        device=device,
        runtime=runtime.value,
        threads=threads,
    )
    with interruptible(LINE_AS_BEFORE):
        from ..store import LineStore

        photographs = good_images([*images, *(false_alarms or [])], asked)
        product = record_of(read_line(line), product).name
        LineStore(line).require_writable()  # before anything is learned
        use_threads(threads)
        from ..data.images import find_entries
        from ..detector import Detector

        shown = [entry.path for entry in find_entries(missed, recursive=recursive)]
        detector = Detector.load(line, weights=weights, device=device, runtime=runtime.value)
        taught = detector.info(product)
        _note_fewer(len(photographs.paths), taught)
        before, found = taught.version, [_found(detector.predict(shown, task=product))]
    with interruptible(LESSON_ENDED):
        teach(partial(detector.correct_task, missed=shown, masks=masks), product, photographs, asked)
    with interruptible(NOTHING_CHANGED):
        # One that has gone by now takes no finished lesson with it.
        found.append(_found(detector.predict(shown, task=product, errors="yield")))
    save(detector, line)
    tell(detector, product, photographs, asked)
    say(f"of {len(shown)} missed images {found[0]} were found before and {found[1]} now, which it has seen")
    say(f"  to take it back: moleflow rollback {line} {product} {before}")


def _note_fewer(given: int, taught: TaskInfo) -> None:
    """Says that a product is learned anew from fewer good images than it was; far fewer are refused later."""
    if given < taught.images:
        complain(
            f"note: {taught.name} was learned from {counted(taught.images, 'good image')}, and {given} are "
            f"given: it is learned anew from these alone, and what the others showed is lost to it"
        )


def _found(results: Iterable[Prediction | Failure]) -> int:
    """How many of these are called defective."""
    from ..results import Prediction

    return sum(isinstance(result, Prediction) and result.status == "defective" for result in results)
