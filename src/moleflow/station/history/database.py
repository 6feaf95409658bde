"""The database: opened, brought up to date, and asked in short sessions.

SQLite is the embedded default, and this file is the only one that knows it. Its log is written ahead (WAL),
so that readers never wait for the writer, and synced at every commit (`synchronous=FULL`): what was answered
survives a killed process and a pulled plug. One commit holds a whole batch of inspections.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from ...errors import ConfigError, reason_of
from ..problems import Unready

log = logging.getLogger("moleflow.station")

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 20
CONNECTIONS = 8, 40  # kept, and at most
SHRINKING = 2000, 32  # pages a step, and steps at once
FULL, IOERR_WRITE, IOERR_SHMSIZE = 13, 778, 4874  # of SQLite; Python 3.10 names none of them


class Database:
    """Of one station; any number of threads may use it.

    A full disk is no error here, for inspection goes on without records: sessions open it once there is room.

    Args:
        url: as SQLAlchemy writes it.

    Raises:
        ConfigError: no URL of a database, or its driver is not installed.
        Unready: it cannot be opened for another reason.
    """

    def __init__(self, url: str) -> None:
        self.engine = _open(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._opening, self._opened = threading.Lock(), False
        try:
            self.open()
        except Unready as problem:
            if problem.code != "disk_full":
                raise
            log.warning("%s; until there is room nothing is recorded", problem)

    def open(self) -> None:
        """Brings it up to date, where that is not done yet.

        Raises:
            Unready: it cannot be opened; its `code` is "disk_full" where there is no room.
        """
        with self._opening:
            if self._opened:
                return
            try:
                self._migrate()
            except SQLAlchemyError as error:
                if self._is_full(error):
                    raise Unready("the disk is full: the database cannot be opened", "disk_full") from error
                raise Unready(f"the database cannot be opened: {_short(error)}", "database") from error
            self._opened = True

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction: committed at the end, undone by an error.

        Raises:
            Unready: the database says no; its `code` is "disk_full" where there is no room.
        """
        if not self._opened:
            self.open()
        try:
            with self._sessions() as session, session.begin():
                yield session
        except DBAPIError as error:
            if self._is_full(error):
                raise Unready("the disk is full: nothing more can be recorded", "disk_full") from error
            raise Unready(f"the database cannot be used: {_short(error)}", "database") from error

    def check(self) -> None:
        """Unready where the database does not answer for another reason than a full disk."""
        try:
            with self.session() as session:
                session.execute(text("select 1"))
        except Unready as problem:
            if problem.code != "disk_full":
                raise

    def shrink(self) -> None:
        """Gives room that was freed back to the disk, where the database does not by itself.

        A step's worth stays for what comes next, and after many steps it is enough for once.
        """
        if self.engine.dialect.name != "sqlite":
            return
        with _said(Path(str(self.engine.url.database)), "shrunk"), self.engine.connect() as connection:
            held: Any = connection.connection.driver_connection
            free = _free_pages(held)
            for _ in range(SHRINKING[1]):  # between them others write
                if free <= SHRINKING[0]:
                    return
                held.executescript(f"PRAGMA incremental_vacuum({SHRINKING[0]})")  # execute() would free one
                before, free = free, _free_pages(held)
                if free == before:  # a file from before it could be shrunk
                    return

    def last_given(self, table: str) -> int:
        """The largest number that a row of a table was ever given, 0 where there was none; SQLite only."""
        with self.session() as session:
            asked = text("select seq from sqlite_sequence where name = :name")
            return int(session.scalar(asked, {"name": table}) or 0)

    def copy_to(self, target: Path) -> None:
        """A whole and consistent copy while others write; SQLite only."""
        if self.engine.dialect.name != "sqlite":
            raise ConfigError("expected a SQLite database; another one is backed up with its own tools")
        with _said(target), self.engine.connect() as connection, _sqlite(target) as copy:
            held: Any = connection.connection.driver_connection
            held.backup(copy)

    def copy_from(self, source: Path) -> None:
        """Takes the content of a copy, in one step for all who use the database; SQLite only.

        Numbers that were given away since the copy was made are not given to others.
        """
        with _said(source), self.engine.connect() as connection, _sqlite(source) as copy:
            held: Any = connection.connection.driver_connection
            given = held.execute("select name, seq from sqlite_sequence").fetchall()
            copy.backup(held)
            for name, last in given:
                held.execute("update sqlite_sequence set seq = max(seq, ?) where name = ?", (last, name))
                held.execute(
                    "insert into sqlite_sequence (name, seq) select ?, ? "
                    "where not exists (select 1 from sqlite_sequence where name = ?)",
                    (name, last, name),
                )
            held.commit()
        self._migrate()

    def close(self) -> None:
        """Lets go of the file."""
        self.engine.dispose()

    def _is_full(self, error: BaseException) -> bool:
        file = self.engine.url.database if self.engine.dialect.name == "sqlite" else None
        return is_full(error, None if file is None else Path(file).parent)

    def _migrate(self) -> None:
        config = _alembic()
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "sqlite":  # by itself Python begins with a row, not with a table
                connection.exec_driver_sql("begin")
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise Unready(f"the database is of a later moleflow: {error}", "database") from error


def _free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def require_restorable(source: Path) -> None:
    """Unready where a copy that `Database.copy_to` made is damaged by now, or of a later library."""
    with _said(source), _sqlite(source) as copy:
        found = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise Unready(f"{source}: expected a whole database, found: {found}", "database")
        versions = {version for (version,) in copy.execute("select version_num from alembic_version")}
    known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
    if versions - known:
        raise Unready(f"{source}: the database is of a later moleflow", "database")


def is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Whether a database says that there is no room for more.

    Args:
        error: of the system, of a driver or of SQLAlchemy.
        folder: of the file; where nothing is free there, a write that failed had no room.
    """
    cause = getattr(error, "orig", error)
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(cause, "sqlite_errorcode", None)
    if code == IOERR_WRITE:
        return folder is not None and _nothing_free(folder)
    # The second is said of the index that readers of the log share, which is made anew after a restart.
    if code in (FULL, IOERR_SHMSIZE) or getattr(cause, "sqlstate", None) == "53100":
        return True
    return code is None and str(cause) == "database or disk is full"  # SQLite, as Python 3.10 tells it


def _nothing_free(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free == 0
    except OSError:  # it is away
        return False


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


@contextmanager
def _said(path: Path, what: str = "copied") -> Iterator[None]:
    """What SQLite says of a file at this path, as the station says it."""
    try:
        yield
    except sqlite3.Error as error:
        code = "disk_full" if is_full(error) else "database"
        raise Unready(f"{path}: the database cannot be {what}: {_short(error)}", code) from error


def _open(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise ConfigError("expected a database in a file: one in memory forgets everything")
            Path(str(parsed.database)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        size, most = CONNECTIONS
        engine = create_engine(parsed, pool_size=size, max_overflow=most - size, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"expected a database URL such as sqlite:///station.db: {error}") from error
    except ModuleNotFoundError as error:
        found = f"the database needs {error.name}, which is not installed"
        if error.name == "psycopg":
            found += ": pip install 'moleflow[postgresql]'"
        raise ConfigError(found) from error
    except OSError as error:
        raise ConfigError(f"{parsed.database}: {reason_of(error)}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: sqlite3.Connection, record: Any) -> None:
    for pragma in (
        f"busy_timeout={BUSY_SECONDS * 1000}",
        "auto_vacuum=INCREMENTAL",  # of a new file; an old one stays as it is
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


@contextmanager
def _sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    try:
        yield connection
    finally:
        connection.close()


def _short(error: BaseException) -> str:
    """What a database says, without the statement and its values."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
