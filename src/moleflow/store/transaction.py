"""Changes of a line that become visible together."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from moleflow.errors import LineError, TaskError, reason_of

from .debris import mark_listed
from .files import (
    DEBRIS,
    EXPERT,
    INDEX,
    INFO,
    REMOVED,
    TASKS,
    UNLISTED,
    bury,
    discard,
    make_folder,
    read_bytes,
    require_inside,
    sync_folder,
    translated,
    write_file,
)
from .index import (
    FORMAT,
    Entry,
    Index,
    dump_json,
    entry_at,
    find_entry,
    foreign_base,
    library_version,
    load_info,
    versions_in,
    with_overrides,
)
from .names import check_task_name, folded_name
from .records import TaskRecord
from .tensors import check_sha256, dump_tensors, sha256_of
from .watch import write_watch


class Transaction:
    """Changes that become visible together; made by `LineStore.transaction`, never by hand."""

    def __init__(self, path: Path, index: Index, *, fresh: bool = False) -> None:
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
                foreign_base(f"{self._path}: product {name!r}", self._index.fingerprint, fingerprint)
            )
        expert = dump_tensors(record.tensors, f"product {name!r}")
        return self._stage(name, expert, dict(record.info), dict(record.overrides))

    def adopt(self, source: str | Path, name: str | None = None) -> str:
        """Copy a `tasks/<name>/<version>` folder of another line in as a new version; return the version.

        `name` replaces the name it had. Overrides are the other line's and stay there. Raises `LineError` if
        the expert is damaged or was learned on another base.
        """
        source = Path(source)
        document = load_info(source, source, self._index.fingerprint)
        expert = read_bytes(source, source / EXPERT)
        check_sha256(source / EXPERT, expert, document["sha256"])
        chosen = self._check_name(document["name"] if name is None else name)
        return self._stage(chosen, expert, document["info"], {})

    def remove(self, name: str) -> None:
        """Take a product off the line; its folder goes once `line.json` no longer lists it."""
        entry = self._entry(name)
        del self._entries[entry.name]
        for key in [key for key in self._staged if key[0] == entry.name]:
            discard(self._staged.pop(key))
        self._changed = True

    def point(self, name: str, version: str) -> None:
        """Use another version that is on disk, with the overrides that version had."""
        entry = self._entry(name)
        if version != entry.version:
            self._entries[entry.name] = entry_at(self._path, self._index, entry, version)
            self._changed = True

    def override(self, name: str, values: Mapping[str, Any]) -> None:
        """Set overrides of the version in use, key by key; a value of None takes the override back."""
        entry = self._entry(name)
        merged = {**entry.overrides.get(entry.version, {}), **values}
        merged = {key: value for key, value in merged.items() if value is not None}
        dump_json(merged, f"the overrides of {entry.name!r}")
        self._entries[entry.name] = replace(entry, overrides=with_overrides(entry, entry.version, merged))
        self._changed = True

    def _entry(self, name: str) -> Entry:
        return find_entry(replace(self._index, entries=self._entries), check_task_name(name), self._path)

    def _check_name(self, name: str) -> str:
        name = check_task_name(name)
        names = {**self._index.entries, **self._entries}
        twin = next((other for other in names if folded_name(other) == folded_name(name)), name)
        if twin != name:
            raise TaskError(f"{name!r} differs from the product {twin!r} only in case; choose another name")
        return name

    def _stage(self, name: str, expert: bytes, info: dict[str, Any], overrides: dict[str, Any]) -> str:
        """Write a version beside the others, whole and synced, under a name that counts for nothing yet."""
        version, digest = self._next_version(name), sha256_of(expert)
        document = {
            "format": FORMAT,
            "library": library_version(),
            "name": name,
            "version": version,
            "base": self._index.fingerprint,
            "sha256": digest,
            "info": info,
        }
        text = dump_json(document, f"the info of {name!r}")
        dump_json(overrides, f"the overrides of {name!r}")
        self._staged[name, version] = self._write_version({UNLISTED: b"", EXPERT: expert, INFO: text})
        old = self._entries.get(name) or Entry(name, version, "", "", {})
        kept = with_overrides(old, version, overrides)
        self._entries[name] = Entry(name, version, digest, sha256_of(text), kept)
        self._changed = True
        return version

    def _write_version(self, files: Mapping[str, bytes]) -> Path:
        folder = self._path / TASKS / (DEBRIS + secrets.token_hex(8))
        try:
            with translated(folder, "write"):
                require_inside(self._path, folder.parent)
                make_folder(folder.parent)  # an empty folder gets lost in some copies and archives
                folder.mkdir()
                for name, data in files.items():
                    write_file(folder / name, data)
                sync_folder(folder)
        except BaseException:
            discard(folder)
            raise
        return folder

    def _next_version(self, name: str) -> str:
        taken = [version for owner, version in self._staged if owner == name]
        if name in self._entries:
            taken.append(self._entries[name].version)
        taken += versions_in(self._path / TASKS / name)
        taken += [version for gone, version in self._index.removed.items() if gone == name]
        return f"{max(map(int, taken), default=0) + 1:04d}"

    def _last_versions(self, names: Iterable[str]) -> dict[str, str]:
        """Of products that go, the highest number on disk, or of the version in use where nothing is."""
        found = {name: versions_in(self._path / TASKS / name) for name in names}
        return {
            name: max([*versions, self._index.entries[name].version], key=int)
            for name, versions in found.items()
        }

    def _commit(self) -> None:
        if not self._changed:
            return
        removed = [name for name in self._index.entries if name not in self._entries]
        gone = {name: last for name, last in self._index.removed.items() if name not in self._entries}
        index = replace(self._index, entries=self._entries, removed=gone | self._last_versions(removed))
        text = dump_json(index.to_json(), f"{self._path / INDEX}")
        with translated(self._path, "write to"):
            self._mark_removed(removed)
            self._move_staged()
            self._replace_index(text)
        for folder in self._moved:
            mark_listed(folder)
        for name in removed:
            bury(self._path, self._path / TASKS / name)
            write_watch(self._path, name, None)

    def _mark_removed(self, names: Iterable[str]) -> None:
        for name in names:
            folder = self._path / TASKS / name
            require_inside(self._path, folder.parent)
            if folder.is_dir() and not folder.is_symlink():
                self._marked.append(folder / REMOVED)
                write_file(folder / REMOVED, b"")
                sync_folder(folder)

    def _move_staged(self) -> None:
        for (name, version), folder in self._staged.items():
            parent = self._path / TASKS / name
            require_inside(self._path, parent)
            make_folder(parent)
            os.rename(folder, parent / version)
            self._moved.append(parent / version)
            sync_folder(parent)
        if self._staged:
            sync_folder(self._path / TASKS)

    def _replace_index(self, text: bytes) -> None:
        draft = self._path / (DEBRIS + secrets.token_hex(8))
        try:
            write_file(draft, text)
            self._text = text
            os.replace(draft, self._path / INDEX)
            sync_folder(self._path)
        except BaseException as error:
            discard(draft)
            if isinstance(error, OSError) and self._in_place():
                problem = f"the change is in place, but the disk did not confirm it: {reason_of(error)}"
                raise LineError(f"{self._path / INDEX}: {problem}") from error
            raise

    def _in_place(self) -> bool:
        """Ask the disk whether readers see the change: an interrupt may fall just behind the replacement."""
        if self._text is None:
            return False
        try:
            return (self._path / INDEX).read_bytes() == self._text
        except FileNotFoundError:
            return False
        except OSError:
            return True  # rather leave debris than break a line

    def _abort(self) -> None:
        """Undo what is on disk, unless readers see it already: then undoing would break the line."""
        if self._in_place():
            return
        for path in (*self._staged.values(), *self._moved, *self._marked):
            discard(path)
        for name, _ in self._staged:
            with suppress(OSError):  # succeeds only for the empty folder of a product that was new
                os.rmdir(self._path / TASKS / name)
