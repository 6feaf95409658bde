"""`moleflow drift`: whether the good images of a line's products are moving away from those taught."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LineError
from .app import app, example
from .json_lines import json_lines
from .options import JsonFile, Line, refuse_target
from .products import name_damaged, read_line, record_of
from .screen import new_screen, new_table, say

if TYPE_CHECKING:
    from ..store import TaskRecord
    from ..verdict.watch import ChannelReport, Monitor, Report

LEVELS = "▁▂▃▄▅▆▇"  # the middle one is as taught
FULL = 4.0  # spreads at which a chart is at its end


@app.command(
    epilog=example(
        "moleflow drift line-3",
        "moleflow drift line-3 bottle --json -",
        "moleflow drift line-3 --reset bottle",
    )
)
def drift(
    line: Line,
    product: Annotated[
        str | None, typer.Argument(metavar="PRODUCT", help="One product; all where left out.")
    ] = None,
    json_file: JsonFile = None,
    reset: Annotated[
        str | None, typer.Option(metavar="PRODUCT", help="Begin a new watch over this product.")
    ] = None,
) -> None:
    """Say whether the good images of LINE's products are moving away from those taught.

    From what `moleflow predict --monitor` and `moleflow watch --monitor` added: the last 200 images of each
    product, as numbers. What `moleflow serve` inspected is on its page alone.
    """
    if reset is not None and (product is not None or json_file is not None):
        raise typer.BadParameter("expected neither PRODUCT nor --json beside it", param_hint="--reset")
    refuse_target(json_file, "--json", line=line)
    read = read_line(line)
    from ..store import LineStore

    store = LineStore(line)
    if reset is not None:
        name = record_of(read, reset).name
        store.delete_watch(name)
        say(f"{name}: a new watch begins with the next image that is inspected with --monitor.")
        return
    records = read.tasks if product is None else (record_of(read, product),)
    watches = [(record.name, *_watch(store.path, record)) for record in records]
    with json_lines(json_file) as write:
        for name, monitor, report in watches:
            write({"product": name, "version": monitor.version, "total": monitor.total, **report.to_dict()})
            if json_file != "-":
                _print(name, monitor, report)
    if product is None:
        name_damaged(read)


def _watch(line: Path, record: TaskRecord) -> tuple[Monitor, Report]:
    from ..monitor import read_monitor, reference_of
    from ..store import LineStore
    from ..verdict.watch import judge

    try:
        reference = reference_of(record.info)
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(
            f"{record.name}: expected the conditions that were taught, but {error!r} is amiss"
        ) from error
    monitor = read_monitor(LineStore(line), record.name, str(record.version))
    return monitor, judge(monitor.seen, reference)


def _print(name: str, monitor: Monitor, report: Report) -> None:
    from ..verdict.drift import CHANNELS

    seen = (
        f"{monitor.total} images watched since {_moment(monitor.began)}" if monitor.total else "not watched"
    )
    what = "" if report.channel is None else f": {report.channel}, since about {_moment(report.since or 0)}"
    say(f"{name}: {report.state}{what} ({seen})")
    say(f"  {report.sentence}")
    if not report.channels:
        return
    table = new_table(
        "  channel", "taught", "recent", "spreads", "", "over time, the middle is as taught", numbers=3
    )
    for row in report.channels:
        shown = CHANNELS[row.channel].shown
        taught = f"{shown(row.taught[0])} to {shown(row.taught[1])}"
        mark = "moved" if row.moved else ""
        table.add_row(f"  {row.channel}", taught, shown(row.recent), f"{row.spreads:+.1f}", mark, _chart(row))
    new_screen().print(table)


def _chart(row: ChannelReport) -> str:
    shares = (min(max(spreads / FULL, -1.0), 1.0) for spreads in row.history)
    return "".join(LEVELS[round((share + 1) / 2 * (len(LEVELS) - 1))] for share in shares)


def _moment(time: float) -> str:
    return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M")
