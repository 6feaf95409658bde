"""What is shown: sentences, tables, bars; plain lines where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SOME_FAILED = 3  # exit code: the work was done, but not on everything that was named
INTERRUPTED = 130
NOTHING_CHANGED = "nothing on disk was changed"
LINE_AS_BEFORE = "the line is as before"
LESSON_ENDED = f"{LINE_AS_BEFORE}; what the backbone saw is kept, and the same command goes on with it"
PIPED_WIDTH = 240  # columns for tables that go to a file or another program


def new_screen(*, to_stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for any table where the output is piped."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(stderr=to_stderr, width=None if stream.isatty() else PIPED_WIDTH, highlight=False)


def say(sentence: str) -> None:
    """One sentence on stdout."""
    typer.echo(printable(sentence))


def complain(sentence: str) -> None:
    """One sentence on stderr."""
    typer.echo(printable(sentence), err=True)


def failed(sentence: str, *, code: int = 1) -> typer.Exit:
    """Say on stderr what is wrong; the result is to be raised."""
    typer.echo("Error: " + "\n".join(map(printable, sentence.splitlines())), err=True)
    return typer.Exit(code)


@contextmanager
def interruptible(said: str) -> Iterator[None]:
    """On Ctrl-C, say what became of the files."""
    try:
        yield
    except KeyboardInterrupt:
        raise failed(f"interrupted; {said}", code=INTERRUPTED) from None


def new_table(*columns: str, numbers: int) -> Table:
    """A plain table; the `numbers` columns after the first are set to the right."""
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < index <= numbers else "left", overflow="fold")
    return table


def amount(count: int) -> str:
    """Bytes in kB or MB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def counted(count: int, what: str) -> str:
    """So many of them, in English."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def as_threshold(score: float) -> str:
    """A threshold as a number, or that nothing gets there: one photograph alone shows no variation."""
    from ..verdict.promise import OUT_OF_REACH

    return f"{score:.5g}" if score < OUT_OF_REACH else "out of reach"


def as_text(value: object) -> str:
    """A setting as one writes it on the command line."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def use_threads(threads: int | None) -> None:
    """Limits torch to so many processor threads, where a number was given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def progress_on(screen: Console) -> Progress:
    """Bars that say what is done, how much of how much, and how long the rest takes; gone at the end."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=screen, transient=True)


@contextmanager
def bar(
    what: str, screen: Console | None = None, *, lines: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A function that is told how many of how many are done; it shows a bar where somebody watches."""
    screen = screen or new_screen(to_stderr=True)
    if not screen.is_terminal:
        if lines:
            complain(f"{what} ...")
        yield lambda done, total: None
        return
    with progress_on(screen) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, float], None]]:
    """A function that is told the stage and the share of it done: a bar per stage, or a line per stage."""
    screen = new_screen(to_stderr=True)
    if not screen.is_terminal:
        begun: set[str] = set()

        def tell(stage: str, share: float) -> None:
            if stage not in begun:
                begun.add(stage)
                complain(f"{stage} ...")

        yield tell
        return
    columns = TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as progress:
        bars: dict[str, Any] = {}

        def show(stage: str, share: float) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0)
            progress.update(bars[stage], completed=share)

        yield show


def printable(what: object) -> str:
    """Names of files may hold what a terminal would obey, or what it cannot show."""
    text = str(what).encode("utf-8", "replace").decode()
    return "".join(character if character.isprintable() else "?" for character in text)
