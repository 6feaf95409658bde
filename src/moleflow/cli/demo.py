"""`moleflow demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app, example
from .screen import new_screen, say


@app.command(epilog=example("moleflow demo --quick --out my-demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the line, the images and the report.")] = Path(
        "moleflow-demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer products and images.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
) -> None:
    """Show the whole story on built-in products, without network, and write an HTML report."""
    from .. import demo as story

    report = story.run(out, quick=quick, seed=seed, console=new_screen())
    say(f"The report: {report}")
    say(f"The same line beside a belt, with a page in the browser: moleflow serve {report.parent / 'line'}")
