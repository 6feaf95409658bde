"""What is to be handed on: kept in a file on the disk, and carried from there to an output.

A result leaves the outbox once it was taken. So it arrives at least once, whatever stops in between; its `id`
is the same every time, for those who must not count it twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from ..errors import MoleFlowError
from .outputs import SECONDS, Output

log = logging.getLogger("moleflow.station")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds between two attempts; each is twice the one before
PATIENCE = 2 * SECONDS + 5  # seconds without a result being taken, after which closing waits no longer
PRAGMAS = """
pragma locking_mode = exclusive;  -- two couriers would carry the same result twice
pragma journal_mode = wal;
pragma synchronous = full;
"""
TABLES = """
create table if not exists outbox (
    number integer primary key autoincrement, id text not null, body text not null
);
create table if not exists seen (path text primary key, state text not null);
"""
ADDED = {"digest": "blob", "gone": "real", "id": "text"}  # columns that an outbox may lack


class Outbox:
    """What was said and not yet taken, and which files were inspected; one file, written synced.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, timeout=0.5)
            self._database.executescript(PRAGMAS + TABLES)
            with closing(self._database.execute("select name from pragma_table_info('seen')")) as rows:
                lacking = ADDED.keys() - {name for (name,) in rows}
            for name in sorted(lacking):
                self._database.execute(f"alter table seen add column {name} {ADDED[name]}")
        except sqlite3.Error as error:
            raise MoleFlowError(f"{path}: cannot be used as an outbox: {error}") from error
        self._guard = threading.Lock()

    def add(self, path: str, state: str, result: dict[str, Any], *, digest: bytes | None = None) -> None:
        """A result and that its file was seen, with the bytes of this SHA-256: both, or neither.

        Where the file was inspected before and has been there since, the result names the one before.
        """
        identity, key = uuid.uuid4().hex, _kept(path)
        with self._guard, self._database:
            query = "select id from seen where path = ? and gone is null and id is not null"
            before = self._database.execute(query, (key,)).fetchone()
            more = {"id": identity} if before is None else {"id": identity, "earlier_id": before[0]}
            body = json.dumps(result | more, ensure_ascii=True, allow_nan=False)
            self._database.execute("insert into outbox (id, body) values (?, ?)", (identity, body))
            self._database.execute(
                "insert or replace into seen (path, state, digest, id) values (?, ?, ?, ?)",
                (key, state, digest, identity),
            )

    def seen(self) -> dict[str, str]:
        """State by path, of the files that were inspected."""
        with self._guard, closing(self._database.execute("select path, state from seen")) as rows:
            return {os.fsdecode(path): state for path, state in rows}

    def gone(self) -> set[str]:
        """Of these the ones that are said to be gone."""
        with self._guard, closing(self._database.execute("select path from seen where gone > 0")) as rows:
            return {os.fsdecode(path) for (path,) in rows}

    def digest(self, path: str) -> bytes | None:
        """SHA-256 of what was inspected under this path, where it is known."""
        query = "select digest from seen where path = ?"
        with self._guard, closing(self._database.execute(query, (_kept(path),))) as rows:
            found = rows.fetchone()
        return None if found is None else found[0]

    def renew(self, path: str, state: str) -> None:
        """What was inspected has another state by now, and is the same."""
        with self._guard, self._database:
            self._database.execute(
                "update seen set state = ?, gone = null where path = ?", (state, _kept(path))
            )

    def rename(self, names: dict[str, str]) -> None:
        """Paths that are told in another way from now on."""
        pairs = [(_kept(after), _kept(before)) for before, after in names.items()]
        with self._guard, self._database:
            self._database.executemany("update or replace seen set path = ? where path = ?", pairs)

    def say_gone(self, paths: Iterable[str], when: float) -> None:
        """Files that were not found any more at this time."""
        with self._guard, self._database:
            self._database.executemany(
                "update seen set gone = ? where path = ?", [(when, _kept(path)) for path in paths]
            )

    def say_back(self, paths: Iterable[str]) -> None:
        """Files that were gone, and are there."""
        with self._guard, self._database:
            self._database.executemany(
                "update seen set gone = null where path = ?", [(_kept(path),) for path in paths]
            )

    def forget(self, before: float, most: int) -> set[str]:
        """Forgets what is gone since before a time, and the longest gone beyond so many; which these are."""
        with self._guard, self._database:
            query = "select path from seen where gone > 0 order by gone desc limit -1 offset ?"
            found = self._database.execute(query, (most,)).fetchall()
            found += self._database.execute("select path from seen where gone < ?", (before,)).fetchall()
            self._database.executemany("delete from seen where path = ?", found)
        return {os.fsdecode(path) for (path,) in found}

    def first(self) -> tuple[int, str] | None:
        """The oldest that was not taken: its number and what is sent."""
        query = "select number, body from outbox order by number limit 1"
        with self._guard, closing(self._database.execute(query)) as rows:
            found: tuple[int, str] | None = rows.fetchone()
        return found

    def count(self) -> int:
        """How many were not taken yet."""
        with self._guard, closing(self._database.execute("select count(*) from outbox")) as rows:
            return int(rows.fetchone()[0])

    def taken(self, number: int) -> None:
        """It arrived."""
        with self._guard, self._database:
            self._database.execute("delete from outbox where number = ?", (number,))

    def close(self) -> None:
        """Lets go of the file."""
        with self._guard:
            self._database.close()


def _kept(path: str) -> str | bytes:
    """A name that is no text in any encoding is kept as the system has it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


class Courier:
    """Carries what is in an outbox to an output, one after the other, in a thread of its own."""

    def __init__(self, outbox: Outbox, output: Output, *, pause: float = FIRST_PAUSE) -> None:
        self._outbox, self._output, self._pause = outbox, output, pause
        self._closing, self._woken, self._left = (threading.Event() for _ in range(3))
        self._sent = 0
        self._thread = threading.Thread(target=self._carry, name="courier", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._woken.set()

    def close(self, at_most: float = math.inf) -> None:
        """Ends at the first that cannot be taken, or when none was for long; the rest stays in the outbox.

        Args:
            at_most: seconds that this takes.
        """
        self._closing.set()
        self._woken.set()
        until, before = time.monotonic() + at_most, -1
        while self._thread.is_alive() and self._sent != before and time.monotonic() < until:
            before = self._sent
            self._thread.join(min(PATIENCE, max(0.0, until - time.monotonic())))
        self._left.set()
        if self._thread.is_alive():
            log.warning("a result that nobody takes is not waited for; it stays in the outbox")
        else:
            self._output.close()

    def _carry(self) -> None:
        pause = self._pause
        while not self._left.is_set():
            self._woken.clear()
            try:
                if self._carry_one():
                    pause = self._pause
                    continue
            except (OSError, sqlite3.Error) as error:
                if self._closing.is_set():
                    return
                log.warning("a result cannot be sent, next attempt in %.0f s: %s", pause, error)
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if self._closing.is_set():
                return
            self._woken.wait(1.0)

    def _carry_one(self) -> bool:
        """The oldest that waits; whether there was one."""
        waiting = self._outbox.first()
        if waiting is None:
            return False
        number, body = waiting
        self._output.send(body)
        self._outbox.taken(number)
        self._sent += 1
        return True
