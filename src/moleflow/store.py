"""A line on disk: named tensors and JSON, one folder per product and version, no pickle.

`line.json` says what the line is; every other file counts only as far as it points to it. A change writes
new files beside the old ones, syncs them, and then replaces `line.json` in one step, so that a crash at any
moment leaves the line as it was before or after. What a killed writer leaves behind has names that begin
with `.tmp-`, and the next writer removes it.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import safetensors.torch
import torch
from torch import Tensor

from moleflow.errors import LineBusyError, LineError, TaskError

FORMAT = 1
"""Number of the folder layout below; a line with a larger one was written by a later library."""

_INDEX, _BASE, _TASKS, _LOCK = "line.json", "base.safetensors", "tasks", ".lock"
_EXPERT, _INFO = "expert.safetensors", "task.json"
_DEBRIS = ".tmp-"
_CREATING = (
    _DEBRIS + "creating"
)  # present while a new line is being written: without line.json it is all debris
_UNLISTED = _DEBRIS + "unlisted"  # inside a version's folder until line.json has pointed to it
_REMOVED = _DEBRIS + "removed"  # inside a product's folder that goes as soon as line.json no longer lists it
_VERSION = re.compile(r"[0-9]{4,}")
_READ_ATTEMPTS = 10

_MAX_NAME_BYTES = 80
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)


# Names and fingerprints


def check_task_name(name: Any) -> str:
    """Return the NFC form of a product's name, or raise `TaskError`.

    The name becomes a folder on any system: no separators and none of `<>:"|?*`, no control or invisible
    characters, no leading dot, no space at either end, no trailing dot, no name Windows reserves, at most 80
    bytes of UTF-8. Letters of any script, inner spaces and inner dots are welcome.
    """
    if not isinstance(name, str):
        raise TaskError(f"a product's name must be text, got {type(name).__name__}")
    name = unicodedata.normalize("NFC", name)
    problem = _name_problem(name)
    if problem:
        raise TaskError(f"{name!r} cannot name a product: {problem}")
    return name


def _name_problem(name: str) -> str | None:
    if not name:
        return "it is empty"
    if any(_unprintable(character) for character in name):
        return "it holds a control or invisible character"
    if any(character in '<>:"/\\|?*' for character in name):
        return 'it holds one of < > : " / \\ | ? *'
    if name != name.strip():
        return "it begins or ends with a space"
    if name.startswith(".") or name.endswith("."):
        return "it begins or ends with a dot"
    if _RESERVED.fullmatch(name.split(".")[0].rstrip()):
        return "Windows reserves it"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"it takes {len(name.encode())} bytes, at most {_MAX_NAME_BYTES} are allowed"
    return None


def _unprintable(character: str) -> bool:
    # Zero-width (non-)joiners are part of the spelling of several scripts.
    return (
        unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in "\u200c\u200d"
    )


def _folded(name: str) -> str:
    """Two names with one folded form are one folder on systems that ignore case."""
    return unicodedata.normalize("NFC", name.casefold())


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of names, dtypes, shapes and bytes, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        digest.update(len(header).to_bytes(8, "little") + header)
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# What is read and written


@dataclass(frozen=True, eq=False)
class TaskRecord:
    """One product: the tensors and JSON of a version, and what was changed since without relearning.

    `version` is None as long as the product is not on disk.
    """

    name: str
    version: str | None
    tensors: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LineRecord:
    """A whole line: its settings, the frozen base, and the products in the order they were added."""

    settings: dict[str, Any]
    base: dict[str, Tensor]
    base_info: dict[str, Any]
    fingerprint: str
    tasks: tuple[TaskRecord, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """A product as line.json lists it; overrides are kept per version, so that a rollback finds its own."""

    name: str
    version: str
    sha256: str
    info_sha256: str
    overrides: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Index:
    """The content of line.json."""

    settings: dict[str, Any]
    base_sha256: str
    fingerprint: str
    base_info: dict[str, Any]
    entries: dict[str, _Entry]

    def to_json(self) -> dict[str, Any]:
        base = {"file": _BASE, "sha256": self.base_sha256, "fingerprint": self.fingerprint}
        return {
            "format": FORMAT,
            "library": _library(),
            "settings": self.settings,
            "base": {**base, "info": self.base_info},
            "tasks": [asdict(entry) for entry in self.entries.values()],
        }


class LineStore:
    """The folder of one line. Every write takes the line's lock and reads `line.json` anew inside it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._local = threading.local()

    def exists(self) -> bool:
        """Tell whether the folder holds a line."""
        return (self.path / _INDEX).is_file()

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
            raise LineError(f"{self.path / _LOCK}: cannot lock the line: {_reason(error)}") from error
        try:
            yield
        finally:
            held.lock.release()

    def read(self, *, tensors: bool = True) -> LineRecord:
        """Read the line without taking its lock, checking every file against the SHA-256 in `line.json`.

        With `tensors=False` only the JSON is read and all `tensors` and `base` are empty: enough for a list.
        Raises `LineError` naming the file, what was expected and what was found: damaged or missing files,
        unsafe names, a format of a later library, an expert that was learned on another base.
        """

        def load(index: _Index) -> LineRecord:
            base = {}
            if tensors:
                base = _load_tensors(self.path, self.path / _BASE, index.base_sha256)
            tasks = tuple(self._load_task(index, entry, tensors) for entry in index.entries.values())
            return LineRecord(index.settings, base, index.base_info, index.fingerprint, tasks)

        return self._consistently(load)

    def read_task(self, name: str, version: str | None = None) -> TaskRecord:
        """Read one product, in the version in use or in another one, with the overrides of that version."""
        name = check_task_name(name)

        def load(index: _Index) -> TaskRecord:
            entry = _entry(index, name, self.path)
            if version is not None and version != entry.version:
                entry = _entry_at(self.path, index, entry, version)
            return self._load_task(index, entry, True)

        return self._consistently(load)

    def versions(self, name: str) -> list[str]:
        """List the versions of a product that are on disk, oldest first."""
        name = check_task_name(name)
        return _usable_versions(self.path, _entry(self._read_index(), name, self.path))

    def create(
        self,
        settings: Mapping[str, Any],
        base: Mapping[str, Tensor],
        *,
        fingerprint: str,
        base_info: Mapping[str, Any] | None = None,
        tasks: Iterable[TaskRecord] = (),
    ) -> None:
        """Write a new line. `fingerprint` names the base that every expert of this line was learned on.

        Raises `LineError` if the folder holds a line already, or anything else.
        """
        self._refuse_occupied()
        with _translated(self.path, "create a line in"):
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in made:
                _sync_folder(folder.parent)
        with self.lock():
            try:
                self._refuse_occupied()
                self._write_new(dict(settings), base, fingerprint, dict(base_info or {}), tasks)
            except BaseException:
                if made and not self.exists():
                    _discard(self.path / _LOCK)
                    _discard_empty(made)
                raise

    @contextmanager
    def transaction(self, timeout: float | None = 600) -> Iterator["Transaction"]:
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
            _sweep(self.path, index)
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

    def adopt(self, source: str | Path, name: str | None = None) -> str:
        """Copy a product's version folder of another line in; see `Transaction.adopt`."""
        with self.transaction() as change:
            return change.adopt(source, name)

    @contextmanager
    def _begun(self, transaction: "Transaction") -> Iterator["Transaction"]:
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

    def _held(self) -> "_Held":
        """Return what this thread holds; a forked process starts with nothing."""
        held = getattr(self._local, "held", None)
        if held is None or held.process != os.getpid():
            held = self._local.held = _Held(os.getpid(), filelock.FileLock(self.path / _LOCK))
        return held

    def _write_new(
        self,
        settings: dict[str, Any],
        base: Mapping[str, Tensor],
        fingerprint: str,
        base_info: dict[str, Any],
        tasks: Iterable[TaskRecord],
    ) -> None:
        data = _dump_tensors(base, f"{self.path}: the base")
        _dump_json([settings, base_info], f"{self.path}: the settings")
        index = _Index(settings, _sha256(data), fingerprint, base_info, {})
        try:
            with _translated(self.path, "create a line in"):
                _discard_unfinished(self.path)
                _write_file(self.path / _CREATING, b"")
                _sync_folder(self.path)
                _write_file(self.path / _BASE, data)
                _make_folder(self.path / _TASKS)
            with self._begun(Transaction(self.path, index, fresh=True)) as transaction:
                for record in tasks:
                    transaction.put(record)
        except BaseException:
            if not self.exists():
                _discard_unfinished(self.path)
            raise
        _discard(self.path / _CREATING)

    def _refuse_occupied(self) -> None:
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
            raise LineError(f"{self.path}: cannot be listed: {_reason(error)}") from error
        foreign = present - {_LOCK} - ({_BASE, _TASKS} if _CREATING in present else set())
        foreign = {name for name in foreign if not name.startswith(_DEBRIS)}
        if foreign:
            raise LineError(f"{self.path}: expected an empty folder, found {_some(foreign)} and no {_INDEX}")

    def _require_line(self) -> None:
        if not self.exists():
            found = "no such file" if self.path.is_dir() else "no folder"
            raise LineError(f"{self.path / _INDEX}: expected the index of a line, found {found}")

    def _consistently(self, load: Callable[[_Index], Any]) -> Any:
        """Read without a lock: begin again if a writer changed the line meanwhile."""
        for attempt in range(_READ_ATTEMPTS):
            self._require_line()
            before = self._state()
            try:
                return load(self._read_index())
            except LineError:
                if attempt == _READ_ATTEMPTS - 1 or self._state() == before:
                    raise
        raise AssertionError("unreachable")

    def _state(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self.path / _INDEX)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read_index(self) -> _Index:
        self._require_line()
        path = self.path / _INDEX
        return _parse_index(_parse_json(_read_bytes(self.path, path), path), path)

    def _load_task(self, index: _Index, entry: _Entry, tensors: bool) -> TaskRecord:
        folder = self.path / _TASKS / entry.name / entry.version
        info = _load_info(self.path, folder, index.fingerprint, sha256=entry.info_sha256)
        loaded = _load_tensors(self.path, folder / _EXPERT, entry.sha256) if tensors else {}
        overrides = entry.overrides.get(entry.version, {})
        return TaskRecord(entry.name, entry.version, loaded, info["info"], dict(overrides))


@dataclass
class _Held:
    """The lock of one thread, and the transaction it is in."""

    process: int
    lock: filelock.BaseFileLock
    transaction: "Transaction | None" = None


class Transaction:
    """Changes that become visible together; made by `LineStore.transaction`, never by hand."""

    def __init__(self, path: Path, index: _Index, *, fresh: bool = False) -> None:
        self._path = path
        self._index = index
        self._entries = dict(index.entries)
        self._changed = fresh
        self._staged: dict[tuple[str, str], Path] = {}
        self._marked: list[Path] = []
        self._moved: list[Path] = []
        self._text: bytes | None = None  # the new line.json, once its turn has come

    def put(self, record: TaskRecord, *, fingerprint: str | None = None) -> str:
        """Write a product as a new version, add or replace it, and return the version.

        The name, the tensors, `info` and `overrides` count; `record.version` does not. With `fingerprint` the
        product is refused (`LineError`) unless this is the base it was learned on.
        """
        name = self._check_name(record.name)
        if fingerprint is not None and fingerprint != self._index.fingerprint:
            raise LineError(
                _foreign_base(f"{self._path}: product {name!r}", self._index.fingerprint, fingerprint)
            )
        expert = _dump_tensors(record.tensors, f"product {name!r}")
        return self._stage(name, expert, dict(record.info), dict(record.overrides))

    def adopt(self, source: str | Path, name: str | None = None) -> str:
        """Copy a `tasks/<name>/<version>` folder of another line in as a new version; return the version.

        `name` replaces the name it had. Overrides are the other line's and stay there. Raises `LineError` if
        the expert is damaged or was learned on another base.
        """
        source = Path(source)
        document = _load_info(source, source, self._index.fingerprint)
        expert = _read_bytes(source, source / _EXPERT)
        _check_sha256(source / _EXPERT, expert, document["sha256"])
        chosen = self._check_name(document["name"] if name is None else name)
        return self._stage(chosen, expert, document["info"], {})

    def remove(self, name: str) -> None:
        """Take a product off the line; its folder goes once `line.json` no longer lists it."""
        entry = self._entry(name)
        del self._entries[entry.name]
        for key in [key for key in self._staged if key[0] == entry.name]:
            _discard(self._staged.pop(key))
        self._changed = True

    def point(self, name: str, version: str) -> None:
        """Use another version that is on disk, with the overrides that version had."""
        entry = self._entry(name)
        if version != entry.version:
            self._entries[entry.name] = _entry_at(self._path, self._index, entry, version)
            self._changed = True

    def override(self, name: str, values: Mapping[str, Any]) -> None:
        """Set overrides of the version in use, key by key; a value of None takes the override back."""
        entry = self._entry(name)
        merged = {**entry.overrides.get(entry.version, {}), **values}
        merged = {key: value for key, value in merged.items() if value is not None}
        _dump_json(merged, f"the overrides of {entry.name!r}")
        self._entries[entry.name] = replace(entry, overrides=_with_overrides(entry, entry.version, merged))
        self._changed = True

    def _entry(self, name: str) -> _Entry:
        return _entry(replace(self._index, entries=self._entries), check_task_name(name), self._path)

    def _check_name(self, name: str) -> str:
        name = check_task_name(name)
        names = {**self._index.entries, **self._entries}
        twin = next((other for other in names if _folded(other) == _folded(name)), name)
        if twin != name:
            raise TaskError(f"{name!r} differs from the product {twin!r} only in case; choose another name")
        return name

    def _stage(self, name: str, expert: bytes, info: dict[str, Any], overrides: dict[str, Any]) -> str:
        """Write a version beside the others, whole and synced, under a name that counts for nothing yet."""
        version, digest = self._next_version(name), _sha256(expert)
        document = {
            "format": FORMAT,
            "library": _library(),
            "name": name,
            "version": version,
            "base": self._index.fingerprint,
            "sha256": digest,
            "info": info,
        }
        text = _dump_json(document, f"the info of {name!r}")
        _dump_json(overrides, f"the overrides of {name!r}")
        self._staged[name, version] = self._write_version({_UNLISTED: b"", _EXPERT: expert, _INFO: text})
        old = self._entries.get(name) or _Entry(name, version, "", "", {})
        kept = _with_overrides(old, version, overrides)
        self._entries[name] = _Entry(name, version, digest, _sha256(text), kept)
        self._changed = True
        return version

    def _write_version(self, files: Mapping[str, bytes]) -> Path:
        folder = self._path / _TASKS / (_DEBRIS + secrets.token_hex(8))
        try:
            with _translated(folder, "write"):
                _require_inside(self._path, folder.parent)
                _make_folder(folder.parent)  # an empty folder gets lost in some copies and archives
                folder.mkdir()
                for name, data in files.items():
                    _write_file(folder / name, data)
                _sync_folder(folder)
        except BaseException:
            _discard(folder)
            raise
        return folder

    def _next_version(self, name: str) -> str:
        taken = [version for owner, version in self._staged if owner == name]
        if name in self._entries:
            taken.append(self._entries[name].version)
        taken += _versions(self._path / _TASKS / name)
        return f"{max(map(int, taken), default=0) + 1:04d}"

    def _commit(self) -> None:
        if not self._changed:
            return
        removed = [name for name in self._index.entries if name not in self._entries]
        text = _dump_json(replace(self._index, entries=self._entries).to_json(), f"{self._path / _INDEX}")
        with _translated(self._path, "write to"):
            self._mark_removed(removed)
            self._move_staged()
            self._replace_index(text)
        for folder in self._moved:
            _mark_listed(folder)
        for name in removed:
            _bury(self._path, self._path / _TASKS / name)

    def _mark_removed(self, names: Iterable[str]) -> None:
        for name in names:
            folder = self._path / _TASKS / name
            _require_inside(self._path, folder.parent)
            if folder.is_dir() and not folder.is_symlink():
                self._marked.append(folder / _REMOVED)
                _write_file(folder / _REMOVED, b"")
                _sync_folder(folder)

    def _move_staged(self) -> None:
        for (name, version), folder in self._staged.items():
            parent = self._path / _TASKS / name
            _require_inside(self._path, parent)
            _make_folder(parent)
            os.rename(folder, parent / version)
            self._moved.append(parent / version)
            _sync_folder(parent)
        if self._staged:
            _sync_folder(self._path / _TASKS)

    def _replace_index(self, text: bytes) -> None:
        draft = self._path / (_DEBRIS + secrets.token_hex(8))
        try:
            _write_file(draft, text)
            self._text = text
            os.replace(draft, self._path / _INDEX)
            _sync_folder(self._path)
        except BaseException as error:
            _discard(draft)
            if isinstance(error, OSError) and self._in_place():
                problem = f"the change is in place, but the disk did not confirm it: {_reason(error)}"
                raise LineError(f"{self._path / _INDEX}: {problem}") from error
            raise

    def _in_place(self) -> bool:
        """Ask the disk whether readers see the change: an interrupt may fall just behind the replacement."""
        if self._text is None:
            return False
        try:
            return (self._path / _INDEX).read_bytes() == self._text
        except FileNotFoundError:
            return False
        except OSError:
            return True  # rather leave debris than break a line

    def _abort(self) -> None:
        """Undo what is on disk, unless readers see it already: then undoing would break the line."""
        if self._in_place():
            return
        for path in (*self._staged.values(), *self._moved, *self._marked):
            _discard(path)
        for name, _ in self._staged:
            with suppress(OSError):  # succeeds only for the empty folder of a product that was new
                os.rmdir(self._path / _TASKS / name)


# line.json and task.json


def _entry(index: _Index, name: str, path: Path) -> _Entry:
    if name not in index.entries:
        known = ", ".join(index.entries) or "none"
        raise TaskError(f"{path}: no product {name!r} on this line (products: {known})")
    return index.entries[name]


def _entry_at(path: Path, index: _Index, entry: _Entry, version: str) -> _Entry:
    """Return the entry for another version on disk, whole and learned on this base."""
    product = path / _TASKS / entry.name
    available = _usable_versions(path, entry)
    if version not in available:
        raise LineError(f"{product}: no version {version!r} (versions: {', '.join(available) or 'none'})")
    document = _load_info(path, product / version, index.fingerprint)
    text = _read_bytes(path, product / version / _INFO)
    _check_sha256(
        product / version / _EXPERT, _read_bytes(path, product / version / _EXPERT), document["sha256"]
    )
    return replace(entry, version=version, sha256=document["sha256"], info_sha256=_sha256(text))


def _with_overrides(entry: _Entry, version: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    others = {key: value for key, value in entry.overrides.items() if key != version}
    return {**others, version: values} if values else others


def _versions(product: Path) -> list[str]:
    return sorted((path.name for path in _listing(product) if _VERSION.fullmatch(path.name)), key=int)


def _usable_versions(path: Path, entry: _Entry) -> list[str]:
    """List the versions that are in use or once were; a killed writer may have left one that never was."""
    product = path / _TASKS / entry.name
    return [
        version
        for version in _versions(product)
        if (product / version / _INFO).is_file()
        and (version == entry.version or not (product / version / _UNLISTED).exists())
    ]


def _load_info(root: Path, folder: Path, base: str, *, sha256: str | None = None) -> dict[str, Any]:
    """Read task.json and refuse an expert of another base."""
    path = folder / _INFO
    text = _read_bytes(root, path)
    if sha256 is not None:
        _check_sha256(path, text, sha256)
    document = _parse_json(text, path)
    _check_format(document, path)
    for key, kind in (("name", str), ("base", str), ("sha256", str), ("info", dict)):
        _get(document, key, kind, path)
    if document["base"] != base:
        raise LineError(_foreign_base(str(folder), base, document["base"]))
    return document


def _foreign_base(what: str, expected: str, found: str) -> str:
    return f"{what} was learned on another base: expected fingerprint {expected[:16]}, found {found[:16]}"


def _parse_index(document: dict[str, Any], path: Path) -> _Index:
    _check_format(document, path)
    base = _get(document, "base", dict, path)
    if _get(base, "file", str, path) != _BASE:
        raise LineError(f"{path}: expected the base in {_BASE}, found {base['file']!r}")
    entries: dict[str, _Entry] = {}
    folded = set()
    for item in _get(document, "tasks", list, path):
        entry = _parse_entry(item, path)
        if _folded(entry.name) in folded:
            raise LineError(f"{path}: expected each product once, found {entry.name!r} twice")
        folded.add(_folded(entry.name))
        entries[entry.name] = entry
    return _Index(
        settings=_get(document, "settings", dict, path),
        base_sha256=_get(base, "sha256", str, path),
        fingerprint=_get(base, "fingerprint", str, path),
        base_info=_get(base, "info", dict, path),
        entries=entries,
    )


def _parse_entry(item: Any, path: Path) -> _Entry:
    if not isinstance(item, dict):
        raise LineError(f"{path}: expected a product to be an object, found {item!r:.60}")
    name = _get(item, "name", str, path)
    try:
        safe = check_task_name(name) == name
    except TaskError:
        safe = False
    if not safe:
        raise LineError(f"{path}: expected names of products, found the unsafe name {name!r}")
    version = _get(item, "version", str, path)
    if not _VERSION.fullmatch(version):
        raise LineError(f"{path}: expected a version like '0001' for {name!r}, found {version!r}")
    overrides = _get(item, "overrides", dict, path)
    for key in overrides:
        _get(overrides, key, dict, path)
    hashes = _get(item, "sha256", str, path), _get(item, "info_sha256", str, path)
    return _Entry(name, version, *hashes, overrides)


def _check_format(document: dict[str, Any], path: Path) -> None:
    found = _get(document, "format", int, path)
    if found > FORMAT:
        writer = document.get("library", "a later version")
        raise LineError(
            f"{path}: expected format {FORMAT} or earlier, found format {found}: reading it needs moleflow "
            f"{writer} or later, this is moleflow {_library()}"
        )
    if found < 1:
        raise LineError(f"{path}: expected a format of 1 or more, found {found}")


def _get(document: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    if key not in document:
        raise LineError(f"{path}: expected the key {key!r}, found {_some(document)}")
    value = document[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise LineError(f"{path}: expected {key!r} to be {kind.__name__}, found {type(value).__name__}")
    return value


def _parse_json(data: bytes, path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        document = json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LineError(f"{path}: expected JSON, found {len(data)} bytes that are not: {error}") from error
    if not isinstance(document, dict):
        raise LineError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def _dump_json(value: Any, what: str) -> bytes:
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LineError(f"{what} cannot be written as JSON: {error}") from error


def _library() -> str:
    return metadata.version("moleflow")


# Tensors


def _dump_tensors(tensors: Mapping[str, Tensor], what: str) -> bytes:
    try:
        # Cloned, because safetensors refuses tensors that share memory.
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return safetensors.torch.save(owned)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LineError(f"the tensors of {what} cannot be written: {error}") from error


def _load_tensors(root: Path, path: Path, sha256: str) -> dict[str, Tensor]:
    """Read a file once, so that the bytes that were checked are the bytes that are used."""
    data = _read_bytes(root, path)
    _check_sha256(path, data, sha256)
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
    except Exception as error:  # safetensors has its own errors beside torch's and Python's
        raise LineError(
            f"{path}: expected safetensors, found {len(data)} bytes that are not: {error}"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_sha256(path: Path, data: bytes, expected: str) -> None:
    found = _sha256(data)
    if found != expected:
        raise LineError(f"{path}: damaged or changed: expected SHA-256 {expected[:16]}, found {found[:16]}")


# Files


def _require_inside(root: Path, path: Path) -> None:
    """Refuse a link that leads out of the line."""
    resolved, home = path.resolve(), root.resolve()
    if not resolved.is_relative_to(home):
        raise LineError(f"{path}: expected a place inside {root}, found a link to {resolved}")


def _read_bytes(root: Path, path: Path) -> bytes:
    try:
        _require_inside(root, path)
        if not path.is_file():
            raise LineError(f"{path}: expected a file, found {'no file' if path.exists() else 'nothing'}")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise LineError(f"{path}: cannot be read: {_reason(error)}") from error


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(path: Path) -> None:
    """Make a folder, if need be, so that it lasts."""
    if not path.is_dir():
        path.mkdir()
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders, and needs no sync for a rename to last
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LineError(f"{path}: cannot {verb} it: {_reason(error)}") from error


def _sweep(path: Path, index: _Index) -> None:
    """Remove what killed writers left; under the lock, so nothing here belongs to a living one."""
    tasks = path / _TASKS
    products = [] if tasks.is_symlink() else _listing(tasks)
    for entry in (*_listing(path), *products):
        if entry.name.startswith(_DEBRIS):
            _discard(entry)
    listed = {_folded(name): entry.version for name, entry in index.entries.items()}
    for product in products:
        if not product.is_symlink():
            _sweep_product(path, product, listed.get(_folded(product.name)))


def _sweep_product(path: Path, product: Path, version: str | None) -> None:
    """Finish or undo what a killed writer began, as `line.json` has it: `version` is what it points to."""
    if (product / _REMOVED).is_file():
        if version is None:
            _bury(path, product)
        else:
            _discard(product / _REMOVED)
    for name in _versions(product):
        if (product / name / _UNLISTED).is_file():
            if name == version:
                _mark_listed(product / name)
            else:
                _bury(path, product / name)
    if version is None:
        _discard_empty([product])


def _mark_listed(folder: Path) -> None:
    with suppress(OSError):  # the next writer tries again
        os.unlink(folder / _UNLISTED)
        _sync_folder(folder)


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _discard(path: Path) -> None:
    """Delete a file, a link or a folder; what resists is debris that counts for nothing."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _bury(path: Path, folder: Path) -> None:
    """Delete a folder of the line under a name that is debris, whatever happens in between."""
    grave = path / _TASKS / (_DEBRIS + secrets.token_hex(8))
    with suppress(OSError):
        os.rename(folder, grave)
        _discard(grave)


def _discard_unfinished(path: Path) -> None:
    """Empty the folder of a line that never got its line.json; the marker goes last."""
    if not (path / _CREATING).exists():
        return
    for name in (_BASE, _TASKS, _CREATING):
        _discard(path / name)


def _discard_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().rstrip(".") or type(error).__name__
