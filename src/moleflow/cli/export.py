"""`moleflow export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .app import app, example
from .options import Line, Recursive, Threads, Weights
from .screen import NOTHING_CHANGED, amount, interruptible, say, stages, use_threads


class Format(str, Enum):
    """Words for `--format`, as `export_line` takes them."""

    onnx = "onnx"
    openvino = "openvino"


@app.command(
    epilog=example(
        "moleflow export line-3 line-3-exported --images photos/check",
        "moleflow predict line-3-exported belt",
    )
)
def export(
    line: Line,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write; an earlier export is replaced.")
    ],
    format: Annotated[
        Format, typer.Option("--format", help="onnx, for ONNX Runtime, or openvino.")
    ] = Format.onnx,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGES",
            help="Good and defective ones, shown to LINE and to the export before it is written; may be "
            "repeated. Without it drawn pictures are.",
        ),
    ] = None,
    recursive: Recursive = False,
    weights: Weights = None,
    threads: Threads = None,
) -> None:
    """Write LINE for inspection without torch: moleflow predict OUT, or moleflow.runtime.Inspector.

    What was written is run beside LINE on the same pictures, and put in its place only if both say the same.
    """
    paths = None
    if images is not None:
        from ..data.images import find_entries

        paths = [entry.path for entry in find_entries(images, recursive=recursive)]
    use_threads(threads)
    with interruptible(NOTHING_CHANGED), stages() as tell:
        from ..export import export_line

        found = export_line(
            line, out, format=format.value, images=paths, weights=weights, threads=threads, progress=tell
        )
    files = [path for path in out.rglob("*") if path.is_file()]
    products = [path for path in files if path.parent.name == "products"]
    shared, owned = (
        sum(path.stat().st_size for path in some) for some in (set(files) - set(products), products)
    )
    count = len(products) // 2
    say(
        f"{out}: {count} products, {amount(shared)} shared and {amount(owned // max(count, 1))} a product; "
        f"over {found.pictures} pictures every verdict is the line's; features differ by at most "
        f"{found.features:.1g}, scores by {found.score:.1g}, maps by {found.map:.1g}, distances by "
        f"{found.distance:.1g}"
    )
