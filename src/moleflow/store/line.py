"""The folder of a line: one lock, one index, transactions."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import filelock

from moleflow.errors import ConfigError, LineBusyError, LineError, NoLineError, reason_of

from .debris import sweep
from .derived import read_derived, write_derived
from .files import (
    BASE,
    CREATING,
    DEBRIS,
    EXPERT,
    EXPORTED,
    INDEX,
    LOCK,
    TASKS,
    discard,
    discard_empty,
    discard_unfinished,
    make_folder,
    read_bytes,
    replace_file,
    sync_folder,
    translated,
    write_file,
)
from .index import (
    Entry,
    Index,
    dump_json,
    entry_at,
    find_entry,
    load_info,
    parse_index,
    parse_json,
    usable_versions,
)
from .names import check_task_name, some_of
from .records import LineRecord, TaskRecord
from .tensors import dump_tensors, load_tensors, parse_tensors, read_checked, sha256_of
from .transaction import Transaction
from .watch import Change, read_watch, write_watch

if TYPE_CHECKING:
    from torch import Tensor

Damaged = Literal["raise", "quarantine"]
"""What a damaged product does: it is raised, or left out and named."""

Load = Callable[[Index, Entry], TaskRecord]

_READ_ATTEMPTS = 10


def check_damaged(damaged: object) -> None:
    """Raises ConfigError for what is no `Damaged`."""
    if damaged not in get_args(Damaged):
        raise ConfigError(f'expected damaged to be "raise" or "quarantine", got {damaged!r}')


class LineStore:
    """The folder of one line. Every write takes the line's lock and reads `line.json` anew inside it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._local = threading.local()

    def exists(self) -> bool:
        """Tell whether the folder holds a line."""
        return (self.path / INDEX).is_file()

    def names(self) -> tuple[str, ...]:
        """Products the folder lists; none where it holds no line."""
        return tuple(self.in_use())

    def in_use(self) -> dict[str, str]:
        """The version in use of each product the folder lists, also of a damaged one."""
        if not self.exists():
            return {}
        return {name: entry.version for name, entry in self._read_index().entries.items()}

    @contextmanager
    def lock(self, timeout: float | None = 600) -> Iterator[None]:
        """Hold the line for this thread; re-entrant within one `LineStore`. `timeout` in seconds, None waits.

        The lock belongs to the process: it falls when the process dies, and a `.lock` file left behind is no
        obstacle. Raises `LineBusyError` when another holds it for longer than `timeout`.
        """
        if not self.path.is_dir():
            raise LineError(f"{self.path}: expected the folder of a line, found no folder")
        held = self._held()
        try:
            held.lock.acquire(timeout=-1 if timeout is None else timeout)
        except filelock.Timeout as error:
            waited = f"within {timeout:g} s" if timeout else "at once"
            raise LineBusyError(
                f"{self.path}: another process writes to this line, not free {waited}"
            ) from error
        except RuntimeError as error:  # a second LineStore of the same thread would wait for itself
            raise LineBusyError(f"{self.path}: this line is already locked: {error}") from error
        except (OSError, NotImplementedError) as error:
            raise LineError(f"{self.path / LOCK}: cannot lock the line: {reason_of(error)}") from error
        try:
            yield
        finally:
            held.lock.release()

    def require_writable(self) -> None:
        """LineError where the folder cannot be written to; that another process does so is no obstacle."""
        with suppress(LineBusyError), self.lock(0):
            pass

    def read(self, *, tensors: bool = True, damaged: Damaged = "raise") -> LineRecord:
        """Read the line without taking its lock, checking every file against the SHA-256 in `line.json`.

        With `tensors=False` only the JSON is read and all `tensors` and `base` are empty: enough for a list.
        With `damaged="quarantine"` a damaged product is left out and named in `LineRecord.damaged`.
        Raises `LineError` naming the file, what was expected and what was found: damaged or missing files,
        unsafe names, a format of a later library, an expert that was learned on another base.
        """

        def load_one(index: Index, entry: Entry) -> TaskRecord:
            return self._load_task(index, entry, tensors)

        return self._read(lambda: load_one, base=tensors, damaged=damaged)

    def open(self, *, hold: int = 0, damaged: Damaged = "raise") -> LineRecord:
        """Read the line as `read` does, with every file checked; of the experts hold the bytes, or nothing.

        As many are held as fit into `hold` bytes: those outlast what other processes do to the line.
        """

        def loader() -> Load:
            held = 0

            def load_one(index: Index, entry: Entry) -> TaskRecord:
                nonlocal held
                data = read_checked(self.path, self._expert(entry.name, entry.version), entry.sha256)
                held += len(data)
                task = self._load_task(index, entry, False)
                return replace(task, data=data) if held <= hold else task

            return load_one

        return self._read(loader, base=True, damaged=damaged)

    def read_expert(self, task: TaskRecord) -> dict[str, Tensor]:
        """The tensors of a product that `open` found; LineError where they were not held and are gone."""
        assert task.version is not None
        path = self._expert(task.name, task.version)
        if task.data is not None:
            return parse_tensors(task.data, path)
        return load_tensors(self.path, path, task.sha256)

    def read_derived(self, key: str) -> dict[str, Tensor] | None:
        """Read what `write_derived` kept under the same key; None where it did not, or it is damaged."""
        return read_derived(self.path, key)

    def write_derived(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what follows from the line as `key` names it; a disk that refuses it is no error."""
        write_derived(self.path, key, tensors)

    def read_task(self, name: str, version: str | None = None) -> TaskRecord:
        """Read one product, in the version in use or in another one, with the overrides of that version."""
        name = check_task_name(name)

        def load(index: Index) -> TaskRecord:
            entry = find_entry(index, name, self.path)
            if version is not None and version != entry.version:
                entry = entry_at(self.path, index, entry, version)
            return self._load_task(index, entry, True)

        return self._consistently(load)

    def versions(self, name: str) -> list[str]:
        """List the versions of a product that are on disk, oldest first."""
        name = check_task_name(name)
        return usable_versions(self.path, find_entry(self._read_index(), name, self.path))

    def create(
        self,
        settings: Mapping[str, Any],
        base: Mapping[str, Tensor],
        *,
        fingerprint: str,
        tasks: Iterable[TaskRecord] = (),
        timeout: float | None = 600,
    ) -> None:
        """Write a new line. `fingerprint` names the base that every expert of this line was learned on.

        Raises `LineError` if the folder holds a line already, or anything else; `timeout` as for `lock`.
        """
        self.refuse_occupied()
        with translated(self.path, "create a line in"):
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in made or [self.path]:  # that is there may have been made a moment ago
                sync_folder(folder.parent)
        with self.lock(timeout):
            try:
                self.refuse_occupied()
                self._write_new(dict(settings), base, fingerprint, tasks)
            except BaseException:
                if made and not self.exists():
                    discard(self.path / LOCK)
                    discard_empty(made)
                raise

    @contextmanager
    def transaction(self, timeout: float | None = 600) -> Iterator[Transaction]:
        """Collect several changes and make them visible together, in one replacement of `line.json`.

        Inside an open transaction of the same thread it joins that one. An exception undoes everything.
        """
        current = self._held().transaction
        if current is not None:
            yield current
            return
        self._require_line()
        with self.lock(timeout):
            index = self._read_index()
            sweep(self.path, index)
            with self._begun(Transaction(self.path, index)) as transaction:
                yield transaction

    def put(self, record: TaskRecord, *, fingerprint: str | None = None) -> str:
        """Write a product as a new version and use it; see `Transaction.put`."""
        with self.transaction() as change:
            return change.put(record, fingerprint=fingerprint)

    def remove(self, name: str) -> None:
        """Take a product and all its versions off the line."""
        with self.transaction() as change:
            change.remove(name)

    def point(self, name: str, version: str) -> None:
        """Use another version of a product that is on disk; see `Transaction.point`."""
        with self.transaction() as change:
            change.point(name, version)

    def override(self, name: str, values: Mapping[str, Any]) -> None:
        """Change a product's overrides; see `Transaction.override`."""
        with self.transaction() as change:
            change.override(name, values)

    def read_watch(self, name: str) -> dict[str, Any] | None:
        """What was seen lately of a product, as `change_watch` wrote it; None where nothing was."""
        name = check_task_name(name)
        find_entry(self._read_index(), name, self.path)
        return read_watch(self.path, name)

    def change_watch(self, name: str, change: Change, *, version: str | None = None) -> None:
        """Replace what was seen lately of a product by what `change` makes of it.

        Under the line's lock, so that of several processes each builds on what the others wrote; a crash
        leaves it as before or after. Nothing else of the line is touched, and no version of it. With
        `version`, LineError where the line uses another version of the product by now. `change`
        gets None where there is nothing yet.
        """
        name = check_task_name(name)
        self._require_line()
        with self.lock():
            entry = find_entry(self._read_index(), name, self.path)
            if version not in (None, entry.version):
                found = f"the line has {entry.version} by now"
                raise LineError(f"{self.path}: expected {name!r} in version {version}, {found}")
            write_watch(self.path, name, change(read_watch(self.path, name)))

    def delete_watch(self, name: str) -> None:
        """Forget what was seen lately of a product, also where that is damaged."""
        name = check_task_name(name)
        self._require_line()
        with self.lock():
            find_entry(self._read_index(), name, self.path)
            write_watch(self.path, name, None)

    def adopt(self, source: str | Path, name: str | None = None) -> str:
        """Copy a product's version folder of another line in; see `Transaction.adopt`."""
        with self.transaction() as change:
            return change.adopt(source, name)

    def mend_base(self, other: LineStore) -> None:
        """Write the base anew from another copy of this line, where it is damaged or gone.

        Readers see the one or the other. Raises `LineError` where the base of `other` is not to the byte the
        one that `line.json` names; nothing is changed then.
        """
        with self.lock():
            expected = self._read_index().base_sha256
            try:
                read_checked(self.path, self.path / BASE, expected)
                return
            except LineError as error:
                damage = error
            data = read_bytes(other.path, other.path / BASE)
            if sha256_of(data) != expected:
                raise LineError(f"{damage}; {other.path / BASE} is another file") from damage
            with translated(self.path / BASE, "write"):
                replace_file(self.path, self.path / BASE, data)

    @contextmanager
    def _begun(self, transaction: Transaction) -> Iterator[Transaction]:
        held = self._held()
        held.transaction = transaction
        try:
            yield transaction
            transaction._commit()
        except BaseException:
            transaction._abort()
            raise
        finally:
            held.transaction = None

    def _held(self) -> _Held:
        """Return what this thread holds; a forked process starts with nothing."""
        held = getattr(self._local, "held", None)
        if held is None or held.process != os.getpid():
            held = self._local.held = _Held(os.getpid(), filelock.FileLock(self.path / LOCK))
        return held

    def _write_new(
        self,
        settings: dict[str, Any],
        base: Mapping[str, Tensor],
        fingerprint: str,
        tasks: Iterable[TaskRecord],
    ) -> None:
        data = dump_tensors(base, f"{self.path}: the base")
        dump_json(settings, f"{self.path}: the settings")
        index = Index(settings, sha256_of(data), fingerprint, {}, {})
        try:
            with translated(self.path, "create a line in"):
                discard_unfinished(self.path)
                write_file(self.path / CREATING, b"")
                sync_folder(self.path)
                write_file(self.path / BASE, data)
                make_folder(self.path / TASKS)
            with self._begun(Transaction(self.path, index, fresh=True)) as transaction:
                for record in tasks:
                    transaction.put(record)
        except BaseException:
            if not self.exists():
                discard_unfinished(self.path)
            raise
        discard(self.path / CREATING)

    def refuse_occupied(self) -> None:
        """Accept a missing folder, an empty one, and what a killed `create` left behind; refuse all else."""
        if self.exists():
            raise LineError(f"{self.path}: expected a new folder, found a line")
        if not self.path.is_dir():
            if self.path.exists() or self.path.is_symlink():
                raise LineError(f"{self.path}: expected a folder, found a file")
            return
        try:
            present = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            raise LineError(f"{self.path}: cannot be listed: {reason_of(error)}") from error
        if EXPORTED in present:
            raise self._an_export()
        foreign = present - {LOCK} - ({BASE, TASKS} if CREATING in present else set())
        foreign = {name for name in foreign if not name.startswith(DEBRIS)}
        if foreign:
            raise LineError(f"{self.path}: expected an empty folder, found {some_of(foreign)} and no {INDEX}")

    def _require_line(self) -> None:
        if not self.exists():
            if (self.path / EXPORTED).is_file():
                raise self._an_export()
            found = "no such file" if self.path.is_dir() else "no folder"
            text = f"{self.path / INDEX}: expected the index of a line, found {found}"
            try:
                self.refuse_occupied()
            except LineError:
                raise LineError(text) from None
            raise NoLineError(text, self.path)

    def _an_export(self) -> LineError:
        return LineError(
            f"{self.path}: expected a line, found an exported one, which inspects and nothing else: "
            f"ask the line that it was written from"
        )

    def _read(self, loader: Callable[[], Load], *, base: bool, damaged: Damaged) -> LineRecord:
        """All of the line, its products by what `loader` makes for every attempt."""

        def load(index: Index) -> LineRecord:
            shared = load_tensors(self.path, self.path / BASE, index.base_sha256) if base else {}
            load_one, tasks, found = loader(), [], {}
            for entry in index.entries.values():
                try:
                    tasks.append(load_one(index, entry))
                except LineError as error:
                    if not lenient:
                        raise LineError(f"{error}; roll {entry.name!r} back or remove it") from error
                    found[entry.name] = str(error)
            return LineRecord(index.settings, shared, index.base_info, index.fingerprint, tuple(tasks), found)

        check_damaged(damaged)
        lenient = False  # at first: what another process replaces just now is not damaged
        try:
            return self._consistently(load)
        except LineError:
            if damaged == "raise":
                raise
        lenient = True
        return self._consistently(load)

    def _consistently(self, load: Callable[[Index], Any]) -> Any:
        """Read without a lock: begin again if a writer changed the line meanwhile."""
        for attempt in range(_READ_ATTEMPTS):
            self._require_line()
            before = self.state()
            try:
                return load(self._read_index())
            except LineError:
                if attempt == _READ_ATTEMPTS - 1 or self.state() == before:
                    raise
        raise AssertionError("unreachable")

    def state(self) -> tuple[int, int, int] | None:
        """What is another after every change of the line; None where there is no line."""
        try:
            status = os.stat(self.path / INDEX)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read_index(self) -> Index:
        self._require_line()
        path = self.path / INDEX
        return parse_index(parse_json(read_bytes(self.path, path), path), path)

    def _load_task(self, index: Index, entry: Entry, tensors: bool) -> TaskRecord:
        folder = self.path / TASKS / entry.name / entry.version
        info = load_info(self.path, folder, index.fingerprint, sha256=entry.info_sha256)
        loaded = load_tensors(self.path, folder / EXPERT, entry.sha256) if tensors else {}
        overrides = dict(entry.overrides.get(entry.version, {}))
        return TaskRecord(entry.name, entry.version, loaded, info["info"], overrides, entry.sha256)

    def _expert(self, name: str, version: str) -> Path:
        return self.path / TASKS / name / version / EXPERT


@dataclass
class _Held:
    """The lock of one thread, and the transaction it is in."""

    process: int
    lock: filelock.BaseFileLock
    transaction: Transaction | None = None
