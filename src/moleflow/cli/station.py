"""`moleflow serve`, `watch`, `backup` and `restore`: the station beside the belt."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, LineError, MoleFlowError, reason_of
from ..station.settings import GB, MB, STILL, Limits, Settings, data_folder
from .app import app, example
from .inspection import refuse_of_exports
from .options import Device, Line, Runtime, RuntimeChoice, Threads, Weights
from .screen import NOTHING_CHANGED, SOME_FAILED, complain, failed, say, use_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..results import Prediction
    from ..station.backup import Restoring
    from ..station.current import CurrentLine
    from ..station.outputs import Output
    from ..station.web import Access

LIBRARIES = (
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "prometheus_client",
    "python_multipart",
    "pydantic",
)
EVERYWHERE = ("0.0.0.0", "::")  # what a server listens at to be reached at all addresses
TOKENS = "MOLEFLOW_TOKENS"
ENDING = 10.0  # seconds for results that wait, once the watching is told to end

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder for the station's own data; LINE.station beside LINE by default."
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="MOLEFLOW_DATABASE",
        help="Another database than SQLite in that folder.",
        show_default=False,
    ),
]


@app.command(
    epilog=example(
        "moleflow serve line-3",
        "moleflow serve --new-token admin",
        "moleflow serve line-3 --host 0.0.0.0 --token-file tokens.txt",
    )
)
def serve(
    line: Annotated[
        Path | None, typer.Argument(metavar="LINE", help="Folder of the line; a new one is begun.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8601,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may ask: a line role:token each.")
    ] = None,
    new_token: Annotated[
        str | None,
        typer.Option(metavar="ROLE", help="Print a new token for inspect, teach or admin, and end."),
    ] = None,
    data: Data = None,
    database: DatabaseUrl = None,
    keep_days: Annotated[
        float, typer.Option(min=0, help="Days after which inspections are deleted; 0 keeps them.")
    ] = Settings.keep_days or 0,
    keep_bytes: Annotated[
        int, typer.Option(min=0, help="Bytes of kept pictures; beyond, the oldest go.")
    ] = Settings.keep_bytes,
    least_free_gb: Annotated[
        float, typer.Option(min=0, help="GB on the disk below which nothing is learned.")
    ] = Settings.least_free / GB,
    max_images: Annotated[int, typer.Option(min=1, help="Images of a request.")] = Limits.images,
    max_mb: Annotated[int, typer.Option(min=1, help="MB of a request.")] = Limits.bytes // MB,
    max_megapixels: Annotated[
        int, typer.Option(min=1, max=178, help="Megapixels of an image.")
    ] = Limits.pixels // 10**6,
    weights: Weights = None,
    device: Device = "auto",
    runtime: Runtime = RuntimeChoice.auto,
    threads: Threads = None,
) -> None:
    """Serve LINE to a browser and to programs: inspect, find again, teach, change; see docs/station.md.

    It listens to this machine alone unless another --host is given, and that needs tokens. Ctrl-C ends it
    once everything that was sent is answered.
    """
    with _installed():
        from ..station.web import create_app
        from ..station.web.access import new_token as made
        from ..station.web.server import claimed
        from ..station.web.server import serve as listen

    if new_token is not None:
        say(made(new_token))
        return
    if line is None:
        raise typer.BadParameter("expected the folder of a line", param_hint="LINE")
    access = _access(host, token_file)
    settings = Settings(
        line=line,
        data=data or data_folder(line),
        database=database,
        keep_days=keep_days or None,
        keep_bytes=keep_bytes,
        least_free=int(least_free_gb * GB),
        threads=threads,
        device=device,
        runtime=runtime.value,
        weights=weights,
        limits=Limits(
            waiting=max(Limits.waiting, max_images),
            images=max_images,
            bytes=max_mb * MB,
            pixels=max_megapixels * 1_000_000,
        ),
    )
    _log_to_stderr()
    sockets = claimed(host, port)
    begun = line.exists()
    served = create_app(settings, access)
    where = f"http://{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}/"
    if host in EVERYWHERE:
        where = f"port {sockets[0].getsockname()[1]} of every address of this machine"
    if not begun:
        say(f"{line}: no such folder yet; the line begins with the first product that is taught")
    say(f"{line}: {where} (Ctrl-C ends it)")
    with suppress(KeyboardInterrupt):  # the way it is ended: no error
        listen(served, sockets)
    say(f"{line}: ended")


@app.command(
    epilog=example(
        "moleflow watch line-3 belt --json results.jsonl",
        "moleflow watch line-3 belt --webhook http://localhost:9000/results",
    )
)
def watch(
    line: Line,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where images appear.")],
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Append JSON lines; - for stdout.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Post every result there, until it is taken.")
    ] = None,
    mqtt: Annotated[
        str | None, typer.Option(metavar="URL", help="Publish: mqtt://HOST:PORT/TOPIC.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="PRODUCT", help="The product, where it is known; else it is found.")
    ] = None,
    outbox: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What was not yet taken; in LINE.station by default."),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Watch the folders below as well.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Leave alone what is there at the beginning.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End once all that is there was inspected.")] = False,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Add the images to LINE's watch, see: moleflow drift.")
    ] = False,
    still: Annotated[
        float, typer.Option(min=0, help="Seconds without a change after which a file counts as whole.")
    ] = STILL,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 0.5,
    weights: Weights = None,
    device: Device = "auto",
    runtime: Runtime = RuntimeChoice.auto,
    threads: Threads = None,
) -> None:
    """Inspect what appears in FOLDER, once it is whole, and hand the results on.

    Files that still grow wait, see --still. Every result is kept in an outbox on the disk until it was taken,
    also across restarts; no file is inspected twice unless it changes. With --once the exit code is 3 where
    some were not taken.
    """
    from ..runtime import is_exported
    from ..station.current import CurrentLine
    from ..station.outbox import Courier, Outbox
    from ..station.watching import Watching

    if sum(one is not None for one in (json_file, webhook, mqtt)) != 1:
        raise typer.BadParameter("expected one of --json, --webhook and --mqtt")
    _log_to_stderr()
    use_threads(threads)
    ending = _told_to_end()
    with ExitStack() as stack:
        output = _output(json_file, webhook, mqtt)
        if is_exported(line):
            refuse_of_exports(weights, device, runtime, monitor=monitor)
        settings = Settings(
            line,
            data_folder(line),
            threads=threads,
            device=device,
            runtime=runtime.value,
            weights=weights,
        )
        current = CurrentLine(settings)
        _say_what_inspects(current, task)
        place = outbox or _outbox_place(_made(data_folder(line)), folder, json_file, webhook, mqtt)
        box = Outbox(place)
        stack.callback(box.close)
        watching = Watching(
            lambda paths: current.inspector.predict(paths, task=task, errors="yield"),
            folder,
            box,
            recursive=recursive,
            old=not new,
            still=still,
            counted=_counted(current, stack) if monitor else None,
        )
        courier = Courier(box, output)
        try:
            if not once:
                complain(f"{line}: inspects what appears in {folder} (Ctrl-C ends it)")
            while True:
                if current.look():
                    _say_what_inspects(current, task)
                if watching.look():
                    courier.wake()
                if once and watching.away:
                    raise MoleFlowError(f"{folder}: cannot be listed")
                if (once and not watching.waiting) or ending.wait(0 if watching.behind else interval):
                    break
        finally:
            courier.close(ENDING if ending.is_set() else math.inf)
        rest = box.count()
        complain(
            _in_words(watching.counts) + ("" if rest else f", all handed on to {_receiver(json_file, mqtt)}")
        )
        if rest:  # kept, and whoever ends the watching should know
            complain(f"{place}: results not taken yet: {rest}; the same command sends them")
            if once:
                raise typer.Exit(SOME_FAILED)


def _in_words(counts: Mapping[str, int]) -> str:
    """How many files were inspected, and what was said of them."""
    inspected = sum(counts.values()) - counts["failed"]
    unknown = f", {counts['unknown']} of an unknown product" if counts["unknown"] else ""
    return f"{inspected} inspected, {counts['defective']} defective{unknown}, {counts['failed']} unreadable"


def _receiver(json_file: str | None, mqtt: str | None) -> str:
    """Who takes the results; addresses may hold passwords and are not said."""
    if json_file is not None:
        return "stdout" if json_file == "-" else json_file
    return "the webhook" if mqtt is None else "the broker"


def _counted(current: CurrentLine, stack: ExitStack) -> Callable[[Prediction], None]:
    """A function that adds one image to the watch of the line that has just inspected it."""
    from ..station.monitoring import Monitoring

    monitoring = Monitoring()
    stack.callback(monitoring.close)
    return lambda seen: monitoring.add(current.inspector.observe, seen)  # type: ignore[union-attr]


def _say_what_inspects(current: CurrentLine, task: str | None) -> None:
    """Which products a belt is watched for from now on; LineError where the one that is given is damaged."""
    from ..runtime import is_exported

    complain(f"{current.store.path}: inspects {', '.join(current.inspector.tasks)}")
    damaged = current.now.damaged
    if task in damaged:
        raise LineError(f"{task!r} is damaged and cannot be inspected: {damaged[task]}")
    # A line's router goes without a damaged product; an export's still knows it.
    lot = "judged by none" if is_exported(current.store.path) else "taken for others"
    for name, reason in damaged.items():
        complain(f"{name} is left out, its images are {lot}: {reason}")


@app.command(epilog=example("moleflow backup line-3 backups/monday"))
def backup(
    line: Line,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the backup.")],
    data: Data = None,
    database: DatabaseUrl = None,
) -> None:
    """Back up LINE with all versions, its inspections and its lessons, also while it is served."""
    with _installed():
        from ..station.backup import back_up

    for warning in back_up(_settings(line, data, database), out):
        complain(warning)
    say(f"{out}: a backup of {line}")
    if database is not None:
        complain("the database is not in it: back it up with its own tools")


@app.command(epilog=example("moleflow restore backups/monday line-3"))
def restore(
    saved: Annotated[Path, typer.Argument(metavar="BACKUP", help="Folder that moleflow backup wrote.")],
    line: Line,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    database: DatabaseUrl = None,
) -> None:
    """Make LINE and its inspections what they were when BACKUP was written, also while it is served.

    Where products or versions on LINE are not in BACKUP they are listed first, and it asks.
    """
    with _installed():
        from ..station.backup import restore as restore_all
        from ..station.backup import restoring

    settings = _settings(line, data, database)
    if not yes:
        _ask_for_what_goes(restoring(saved, settings), saved, line)
    done = restore_all(saved, settings)
    say(f"{line}: as it was in {saved}")
    for what, names in (
        ("taken off", done.taken_off),
        ("put back", done.put_back),
        ("in the version of the backup", _with_versions(done.replaced)),
    ):
        if names:
            say(f"  {what}: {', '.join(names)}")
    if database is not None:
        complain("the database is left as it is: restore it with its own tools")


def _ask_for_what_goes(would: Restoring, saved: Path, line: Path) -> None:
    """Lists what is on the line and not in the backup, and asks; nothing is asked where there is nothing."""
    if not would.loses:
        return
    if would.taken_off:
        complain(f"taken off with all versions, for {saved} has none of: {', '.join(would.taken_off)}")
    if would.replaced:
        complain(f"in another version from then on: {', '.join(_with_versions(would.replaced))}")
    if not _somebody_there():
        raise failed(f"there is nobody to ask: --yes restores all the same; {NOTHING_CHANGED}")
    if not typer.confirm(f"Make {line} what it was in {saved}?", err=True):
        raise failed(f"not confirmed, {NOTHING_CHANGED}")


def _with_versions(replaced: Mapping[str, str]) -> list[str]:
    return [f"{name} (before it was {version})" for name, version in replaced.items()]


def _somebody_there() -> bool:
    """Whether a question would be read: a script's or a service's would wait for ever."""
    return sys.stdin is not None and sys.stdin.isatty()


def _settings(line: Path, data: Path | None, database: str | None) -> Settings:
    return Settings(line=line, data=data or data_folder(line), database=database)


def _access(host: str, token_file: Path | None) -> Access:
    """Who may ask; an error where everybody on the network might."""
    from ..station.web import Access, read_tokens
    from ..station.web.access import is_loopback

    text = os.environ.pop(TOKENS, "")  # so that no process that is begun later inherits them
    tokens = read_tokens(text.replace(",", "\n").splitlines())
    if token_file is not None:
        try:
            tokens += read_tokens(token_file.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(f"{token_file}: cannot be read: {reason}") from error
        if not tokens:
            raise ConfigError(f"{token_file}: expected lines role:token, found none")
    if not tokens and not is_loopback(host):
        raise ConfigError(
            f"expected tokens to listen at {host}: moleflow serve --new-token admin >> tokens.txt, "
            f"and then --token-file tokens.txt, or {TOKENS}"
        )
    return Access(tokens)


def _output(json_file: str | None, webhook: str | None, mqtt: str | None) -> Output:
    from ..station.outputs import Appended, Broker, Lines, Webhook, write_all

    if webhook is not None:
        return Webhook(webhook)
    if mqtt is not None:
        return Broker(mqtt)
    if json_file != "-":
        return Appended(Path(str(json_file)))
    try:  # not by Python's own buffer, which nobody may hold when the process ends
        file = FileIO(sys.stdout.fileno(), "w", closefd=False)
    except OSError:  # it is none of the system's
        return Lines(_write_to_stdout)
    return Lines(lambda line: write_all(file, line))


def _write_to_stdout(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _outbox_place(
    data: Path, folder: Path, json_file: str | None, webhook: str | None, mqtt: str | None
) -> Path:
    """One for each folder and place that results go to, whichever way they are named."""
    file = json_file if json_file in (None, "-") else os.path.abspath(json_file)
    place = data / _outbox_name(os.path.realpath(folder), file, webhook, mqtt)
    as_typed = data / _outbox_name(str(folder.absolute()), json_file, webhook, mqtt)
    return as_typed if as_typed.exists() and not place.exists() else place  # what was begun so goes on


def _outbox_name(*told: str | None) -> str:
    text = "\n".join(map(str, told))
    return f"outbox-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}.db"


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MoleFlowError(f"{folder}: {reason_of(error)}") from error
    return folder


def _told_to_end() -> threading.Event:
    """Set by SIGTERM and Ctrl-C: what is being inspected is finished."""
    ending = threading.Event()

    def end(*_: Any) -> None:
        ending.set()

    if threading.current_thread() is threading.main_thread():
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, end)
    return ending


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("moleflow").setLevel(logging.INFO)


@contextmanager
def _installed() -> Iterator[None]:
    """Around imports of what the extra `station` brings."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise MoleFlowError(
            f"this needs {error.name}, which is not installed: pip install 'moleflow[station]'"
        ) from None
