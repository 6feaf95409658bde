"""A station's line, database and lessons in one folder, and back, while the station runs.

The database is copied by its own means, which see one moment of it. The line is read as readers of a line
do: whole, in one state; and last. What a lesson learned is in its folder until it is on the line, so that one
accepted meanwhile is in the backup at least once; where it still waits there it is accepted again, which
makes no second version. Restoring changes the line in one transaction under its lock, and the database in one
step for all who use it, so that a running station goes on with what was restored.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import LineError, MoleFlowError
from ..store import LineRecord, LineStore, TaskRecord
from ..store.files import UNLISTED, sync_path, sync_tree
from ..store.places import beside, clear, left_among, require_apart
from .history import Database
from .history.database import require_restorable
from .history.jobs import LIVE, Jobs
from .settings import DATABASE, Settings
from .teaching import PAST

FORMAT = 1
SAYS, LINE, JOBS = "backup.json", "line", "jobs"
UNFINISHED = ".unfinished"  # ends the name of a folder that is being written beside its place
ATTEMPTS = 5  # to copy a line or lessons that others change meanwhile


def back_up(settings: Settings, out: Path) -> list[str]:
    """Writes a backup to a new folder: the line with all versions, the database, photographs of lessons.

    Returns:
        What is wrong with earlier versions, which go along as they are.

    Raises:
        LineError: there is no line, or it is damaged.
        MoleFlowError: the folder is there already, lies in the line's, or cannot be written.
    """
    if out.exists():
        raise MoleFlowError(f"{out}: expected a folder that is not there yet")
    if not LineStore(settings.line).exists():
        raise LineError(f"{settings.line}: expected the folder of a line, found none to back up")
    require_apart(settings.line, out, MoleFlowError)
    with _said(out), _unfinished(out) as folder:
        if settings.database is None and (settings.data / DATABASE).exists():
            with _opened(settings) as database:
                _copy_lessons(database, settings.data / JOBS, folder)
        elif (settings.data / JOBS).is_dir():
            _copy_jobs(settings.data / JOBS, folder / JOBS)
        _copy_line(settings.line, folder / LINE)
        said = {"format": FORMAT, "library": metadata.version("moleflow"), "time": time.time()}
        (folder / SAYS).write_text(json.dumps(said), encoding="utf-8")
        return _damaged_earlier(LineStore(folder / LINE))


@dataclass(frozen=True)
class Restoring:
    """What restoring a backup does to the products of a line.

    Attributes:
        taken_off: products on the line that the backup has not; with all their versions, for good.
        replaced: products of which the line has another version in use than the backup had, with that
            version, which stays on the disk.
        foreign: those among them whose version in use is not in the backup.
        put_back: products of the backup that the line has not, or not whole.
    """

    taken_off: tuple[str, ...] = ()
    replaced: dict[str, str] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    put_back: tuple[str, ...] = ()

    @property
    def loses(self) -> bool:
        """Whether something on the line goes, or goes out of use, that the backup has not."""
        return bool(self.taken_off or self.foreign)


def restoring(backup: Path, settings: Settings) -> Restoring:
    """What `restore` would do to the line as it stands; nothing is changed. Raises what `restore` raises."""
    _check_all(backup, settings)
    source, store = LineStore(backup / LINE), LineStore(settings.line)
    record = _whole(source)
    if not store.exists():
        return Restoring(put_back=tuple(task.name for task in record.tasks))
    there = store.read(tensors=False, damaged="quarantine")
    _require_one_base(there, record, settings.line)
    return _compared(record, source, store.names(), there)


def restore(backup: Path, settings: Settings) -> Restoring:
    """Makes line and database what they were; products that came since are taken off the line.

    Another database than SQLite is left alone.

    Returns:
        What became of the products.

    Raises:
        MoleFlowError: there is no backup, or its database is damaged or of a later library.
        LineError: the backup is damaged, the line there is another one, with another base, or its index is
            damaged.
    """
    kept = _check_all(backup, settings)  # before anything is changed
    with _said(settings.line):
        done = _restore_line(LineStore(backup / LINE), settings.line)
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (backup / JOBS).is_dir():
            _put_lessons_back(backup / JOBS, settings.data / JOBS)
        if kept:
            with _opened(settings) as database:
                database.copy_from(backup / DATABASE)
                lessons = Jobs(database)
                lessons.interrupted()
                _forget_others(lessons, settings.data / JOBS)
    return done


def _restore_line(source: LineStore, line: Path) -> Restoring:
    record = _whole(source)  # every file is checked before anything is changed
    store = LineStore(line)
    if not store.exists():
        _copy_to_new(source.path, line)
        return Restoring(put_back=tuple(task.name for task in record.tasks))
    _require_one_base(store.read(tensors=False, damaged="quarantine"), record, line)
    with store.transaction() as change:
        store.mend_base(source)
        there = store.open(damaged="quarantine")
        done = _compared(record, source, store.names(), there)
        for name in done.taken_off:
            change.remove(name)
        now = {task.name: task for task in there.tasks}  # the whole ones
        for task in record.tasks:
            if task.name in done.replaced or task.name in done.put_back:
                change.adopt(source.path / "tasks" / task.name / str(task.version))
            before = now[task.name].overrides if task.name in now else {}
            change.override(task.name, dict.fromkeys(before, None) | task.overrides)
    return done


def _compared(record: LineRecord, source: LineStore, names: Collection[str], there: LineRecord) -> Restoring:
    """What restoring a line of products `names`, of which those in `there` are whole, comes to."""
    now = {task.name: task for task in there.tasks}
    kept = {task.name: task for task in record.tasks}
    replaced = {
        name: str(now[name].version)
        for name, task in kept.items()
        if name in now and _said_of(now[name]) != _said_of(task)
    }
    return Restoring(
        taken_off=tuple(name for name in names if name not in kept),
        replaced=replaced,
        foreign=tuple(name for name in replaced if not _has(source, kept[name], now[name])),
        put_back=tuple(name for name in kept if name not in now),
    )


def _has(source: LineStore, kept: TaskRecord, task: TaskRecord) -> bool:
    """Whether a backup, with `kept` in use, has a version of the product, in use or not."""
    if (task.sha256, task.info) == (kept.sha256, kept.info):  # as of an earlier restoring, numbered anew
        return True
    try:
        return _said_of(source.read_task(task.name, task.version)) == _said_of(task)
    except MoleFlowError:  # it has none of this number, or a damaged one
        return False


def _whole(source: LineStore) -> LineRecord:
    """The line of a backup, every file of it checked; LineError for the first that is damaged.

    That of a line advises to roll back what is damaged, which is no way out for a backup.
    """
    record = source.open(damaged="quarantine")
    for reason in record.damaged.values():
        raise LineError(reason)
    return record


def _require_one_base(there: LineRecord, record: LineRecord, line: Path) -> None:
    if there.fingerprint != record.fingerprint:
        raise LineError(f"{line}: expected the line of the backup, found one with another base")


def _check_all(backup: Path, settings: Settings) -> bool:
    """Whether the backup has a database to go with the line; MoleFlowError where it cannot be used."""
    _check(backup)
    kept = settings.database is None and (backup / DATABASE).is_file()
    if kept:
        require_restorable(backup / DATABASE)
    return kept


def _said_of(task: TaskRecord) -> tuple[Any, ...]:
    """What two records of one version of a product have in common."""
    return task.version, task.sha256, task.info


def _copy_line(line: Path, out: Path) -> None:
    """A copy that is one state of the line: what others change meanwhile is begun again."""
    refused: OSError | None = None
    for _ in range(ATTEMPTS):
        before, refused = LineStore(line).state(), None
        shutil.rmtree(out, ignore_errors=True)
        try:
            shutil.copytree(line, out, ignore=_left_out)
        except (shutil.Error, FileNotFoundError) as error:  # perhaps a version went while it was copied
            refused = error
        if refused is None and before == LineStore(line).state():
            try:
                LineStore(out).read()
            except LineError:
                LineStore(line).read()  # says which file is damaged, where it stands
                raise
            return
    raise refused or LineError(f"{line}: it changes all the time; try again")


def _damaged_earlier(store: LineStore) -> list[str]:
    """Each version that cannot be used any more, with the reason; those in use are whole."""
    found = []
    for name, used in store.in_use().items():
        for version in store.versions(name):
            try:
                if version != used:
                    store.read_task(name, version)
            except LineError as error:
                found.append(f"{name}: version {version} is damaged: {error}")
    return found


def _left_out(folder: str, names: list[str]) -> list[str]:
    """Locks and debris; what says that a version was never listed goes along."""
    return [name for name in names if name.startswith(".") and name != UNLISTED]


def _copy_lessons(database: Database, jobs: Path, out: Path) -> None:
    """The database, and before it the folders it speaks of; those of lessons that went on meanwhile anew.

    A draft is whole before its lesson waits in review, and photographs go when it is live: a state that is
    the same before and after says what is in the folder.
    """
    lessons, copied = Jobs(database), dict[int, Any]()
    (out / JOBS).mkdir(mode=0o700)
    for _ in range(ATTEMPTS):
        states = lessons.states()
        for number in (one for one in states if states[one] != copied.get(one)):
            name = str(number)
            shutil.rmtree(out / JOBS / name, ignore_errors=True)
            if states[number][0] != LIVE:
                _copy_jobs(jobs / name, out / JOBS / name)
        database.copy_to(out / DATABASE)
        if lessons.states() == states:
            return
        copied = states
    raise MoleFlowError(f"{jobs}: lessons change all the time; try again")


def _copy_jobs(jobs: Path, out: Path) -> None:
    """Lessons go on meanwhile: what one of them takes away while it is copied is left out.

    A draft is copied as well, for one that waits in review is accepted after restoring; that of a lesson
    which is being learned may be half of one, and is made anew when the lesson is resumed.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, names, files in os.walk(jobs, onerror=refuse):
        names[:] = [name for name in names if name != PAST and not name.startswith(".")]
        target = out / Path(folder).relative_to(jobs)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in files:
            if not name.startswith("."):
                with suppress(FileNotFoundError):
                    shutil.copy2(Path(folder) / name, target / name)


def _put_lessons_back(kept: Path, jobs: Path) -> None:
    """Their folders, on the disk before the database speaks of them."""
    shutil.copytree(kept, jobs, dirs_exist_ok=True)
    copied = [jobs / path.relative_to(kept) for path in kept.rglob("*")]
    for path in (*copied, jobs, jobs.parent):
        with suppress(FileNotFoundError):  # a lesson that goes on takes its own away
            sync_path(path)


def _forget_others(lessons: Jobs, jobs: Path) -> None:
    """Deletes folders of lessons that the database knows no more: nobody else would ever look at them."""
    if not jobs.is_dir():
        return
    folders = {int(folder.name): folder for folder in jobs.iterdir() if folder.name.isdecimal()}
    for number in lessons.gone(folders):
        shutil.rmtree(folders[number], ignore_errors=True)


def _copy_to_new(source: Path, line: Path) -> None:
    if line.exists() and any(line.iterdir()):
        raise LineError(f"{line}: expected a line, a new folder or an empty one; found something else")
    with _unfinished(line) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        os.utime(folder)  # as old as the backup it would count as one that a killed process left


def _check(backup: Path) -> None:
    try:
        said: Any = json.loads((backup / SAYS).read_text(encoding="utf-8"))
        found = int(said["format"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MoleFlowError(f"{backup}: expected a folder that moleflow backup wrote") from error
    if found > FORMAT:
        raise MoleFlowError(
            f"{backup}: expected format {FORMAT} or earlier, got {found} of {said['library']}"
        )


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    database = Database(settings.url)
    try:
        database.open()  # a full disk, with which a station begins all the same, is an error here
        yield database
    finally:
        database.close()


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it at the end, once it is on the disk.

    Nothing is left of it after an error. What killed processes left of such folders, for any place beside
    this one, is deleted after a day.
    """
    new = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    clear(left_among(out.parent, UNFINISHED), out, UNFINISHED)
    folder = beside(out, UNFINISHED)
    folder.mkdir(mode=0o700)
    try:
        yield folder
        sync_tree(folder)
        with suppress(FileNotFoundError):
            out.rmdir()  # an empty one
        os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for parent in (out.parent, *(one.parent for one in new)):
        sync_path(parent)


@contextmanager
def _said(place: Path) -> Iterator[None]:
    try:
        yield
    except shutil.Error as error:  # of several files; one of them is enough to know
        source, _, reason = error.args[0][0]
        raise MoleFlowError(f"{source}: cannot be copied: {reason}") from error
    except OSError as error:
        raise MoleFlowError(f"{error.filename or place}: {error.strerror or error}") from error
