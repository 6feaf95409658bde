"""The application: its errors, its version, and what it does before any command."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import warnings
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import LEARNING, MoleFlowError, NoLineError, reason_of, without_learning
from ..waiting import wait_asleep
from .screen import INTERRUPTED, complain, failed

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES = 256 << 20


ORDER = (
    "demo",
    "add",
    "update",
    "correct",
    "predict",
    "drift",
    "evaluate",
    "list",
    "info",
    "threshold",
    "rollback",
    "remove",
    "export",
    "serve",
    "watch",
    "backup",
    "restore",
    "benchmark",
    "ablate",
    "sweep",
)


class _Commands(TyperGroup):
    """Turns the errors raised on purpose, and Ctrl-C, into one sentence and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which somebody new would need them."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except NoLineError as error:
            begun = f"moleflow add {error.line} PRODUCT IMAGES begins one"
            raise failed(f"{error.line}: there is no line here; {begun}") from None
        except MoleFlowError as error:
            raise failed(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has left: no error of ours
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise failed(f"{where}{reason_of(error)}") from None
        except ModuleNotFoundError as error:
            if error.name not in LEARNING:
                raise
            raise failed(without_learning(error.name)) from None
        except KeyboardInterrupt:
            raise failed("interrupted", code=INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="Visual inspection that learns products one after another from good images, and forgets none.",
    epilog="Begin with: moleflow demo --quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `moleflow` command."""
    _keep_freed_memory()
    wait_asleep()
    for name in ("stdout", "stderr"):  # Python has none where the shell closed it
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    warnings.showwarning = _show_warning
    app(prog_name="moleflow")


_show_others_warning = warnings.showwarning
PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, *more: Any, **named: Any
) -> None:
    """What this library warns of as a sentence, without the line of its code."""
    if filename.startswith(PACKAGE):
        complain(f"note: {message}")
    else:
        _show_others_warning(message, category, filename, *more, **named)


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next image instead of handing them back to the system.

    Every image passes through the same megabytes; asking for them anew costs a third of its time.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # another C library has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"moleflow {metadata.version('moleflow')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before any command."""


def example(*lines: str) -> str:
    """An epilog that keeps its line breaks."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
