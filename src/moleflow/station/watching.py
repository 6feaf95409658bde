"""Inspects what appears in a folder, once it is whole.

The folder is looked at again and again: that works on network drives and with cameras of any make. A file
counts as whole when it has not changed between looks and can be decoded; one that cannot, after it has been
still for a while, is a result of its own. One that was made at full length and is filled later can be decoded
at once where its kind is not compressed; it waits longer while it ends with nothing.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from ..data.images import EXTENSIONS
from ..data.sources import name_of
from ..errors import MoleFlowError, TaskError
from ..results import Failure, Prediction
from .outbox import Outbox
from .settings import STILL

log = logging.getLogger("moleflow.station")

BATCH = 8  # files that are inspected together, and in one look
GIVEN_UP = 20.0  # seconds without a change after which a file that cannot be decoded is no image
BLANK = 10  # times as long waits a file that can be decoded half written, and ends with nothing
UNFINISHED = (b"BM", b"II*\0", b"MM\0*", b"P4", b"P5", b"P6", b"RIFF")  # begin what can be: zeros are pixels
RETRY = 0.5  # seconds, at least, between two attempts at one that cannot be decoded
TIDIED = 60.0  # seconds between two looks after what is gone
KEPT_DAYS, MOST_GONE = 7, 100_000  # how long, and of how many files, it is known that they were inspected
CHECKED = 1.0  # seconds, about, of a look for reading files again of which only the inode is another
LAST = 4096  # bytes at the end of a file, at most, that are looked at
PIECE = 1 << 20  # bytes that are read of a file at a time
ASKED = 2000  # settled files, about, that a look asks for changes; of more it asks in turn


@dataclass
class _Growing:
    """A file that is not inspected yet, and whether it was there at the first look."""

    state: str
    since: float
    old: bool
    tried: float = 0.0


class Watching:
    """Over one folder.

    Args:
        predict: inspects files, as `Detector.predict` with "yield"; what it raises for one file alone is that
            file's failure.
        folder: where files appear, also in folders below it with `recursive`.
        outbox: takes results, and remembers which files were inspected, by their real paths.
        recursive: look into folders below.
        old: inspect what is there at the first look as well, after what appears meanwhile.
        still: seconds without a change after which a file is tried; ten times as many where it may be half
            written. A network drive tells of changes as late as its cache of attributes says.
        given_up: seconds without a change after which one that cannot be decoded is a result.
        counted: is given every prediction that became a result.

    `counts` has how many results were of each status, and how many "failed".
    """

    def __init__(
        self,
        predict: Callable[[list[Path]], list[Prediction | Failure]],
        folder: Path,
        outbox: Outbox,
        *,
        recursive: bool = False,
        old: bool = True,
        still: float = STILL,
        given_up: float = GIVEN_UP,
        counted: Callable[[Prediction], None] | None = None,
    ) -> None:
        if not folder.is_dir():
            raise MoleFlowError(f"{folder}: expected a folder to watch")
        self._predict, self._folder, self._outbox = predict, folder, outbox
        self._recursive, self._still, self._given_up = recursive, still, given_up
        self._counted = counted
        self._growing: dict[str, _Growing] = {}
        self._away = self._behind = self._unwritten = False
        self._looked = not old
        self._hidden: list[str] = []  # folders and files that the last look could not see into
        self._root = os.path.realpath(folder)
        self._seen, self._gone = self._read_seen(), outbox.gone()
        self._tidied = -math.inf
        self._passed: dict[str, str] = {}
        self._turn, self._turns = 0, 1
        self.counts: Counter[str] = Counter()
        if not old:
            self._passed = self._listed()

    def _read_seen(self) -> dict[str, str]:
        """State by real path, also where paths were kept as they had been given."""
        seen, names = self._outbox.seen(), {}
        for name in seen:
            if not name.startswith(self._root + os.sep) and Path(name).is_relative_to(self._folder):
                names[name] = os.path.join(self._root, Path(name).relative_to(self._folder))
        if names:
            self._outbox.rename(names)
        return {names.get(name, name): state for name, state in seen.items()}

    @property
    def waiting(self) -> int:
        """Files that are there and not inspected yet."""
        return len(self._growing)

    @property
    def behind(self) -> bool:
        """Whether the last look left files for the next one that are ready."""
        return self._behind

    @property
    def away(self) -> bool:
        """Whether the folder could not be listed when it was last looked at."""
        return self._away

    def look(self) -> int:
        """One look: inspects a batch of what has become whole; how many files that were."""
        now = time.monotonic()
        self._behind = False
        try:
            listed = self._listed()
        except OSError as error:  # a network drive comes back
            if not self._away:
                log.warning("%s: cannot be listed: %s", self._folder, error.strerror or error)
            self._away = True
            return 0
        self._away = False
        try:
            if now - self._tidied >= TIDIED:
                self._tidied = now
                self._tidy(listed)
            self._note(listed, now)
            done = self._inspect(self._batch(self._ready(now), now), now)
        except sqlite3.Error as error:  # a full disk: what could not be noted is inspected again
            if not self._unwritten:
                log.warning("results cannot be kept, tried again until they can: %s", error)
            self._unwritten, self._behind = True, False
            return 0
        if done:
            self._unwritten = False
        return done

    def _note(self, listed: dict[str, str], now: float) -> None:
        """What of the listed is not inspected yet, and since when it is as it is."""
        growing = {}
        for path, state in listed.items():
            if self._seen.get(path) == state or _but_inode(self._passed.get(path)) == _but_inode(state):
                continue
            one = self._growing.get(path)
            if one is None or one.state != state:
                one = _Growing(state, now, old=not self._looked or (one is not None and one.old))
            growing[path] = one
        self._growing, self._looked = growing, True

    def _ready(self, now: float) -> list[str]:
        """What may be tried: what just came before what waited for the first look, failures last."""
        pause = max(self._still, RETRY)
        ready = [
            (one.tried > 0, one.old, one.state, path)
            for path, one in self._growing.items()
            if now - one.since >= self._still and now - one.tried >= pause
        ]
        return [path for *_, path in sorted(ready)]

    def _batch(self, ready: list[str], now: float) -> list[str]:
        """Of what may be tried so much as one look takes."""
        batch: list[str] = []
        until = time.monotonic() + CHECKED
        for path in ready:
            if len(batch) == BATCH or time.monotonic() > until:
                self._behind = True
                break
            if self._is_known(path):
                continue
            if self._is_unfinished(path, now):
                self._growing[path].tried = now
            else:
                batch.append(path)
        return batch

    def _is_unfinished(self, path: str, now: float) -> bool:
        """Whether a file that is still is likely to be written on, as who opens it can see."""
        growing = self._growing[path]
        age = now - growing.since
        if age >= max(self._given_up, BLANK * self._still):
            return False
        try:
            with open(path, "rb") as file:  # a network drive tells of changes at the latest now
                found = _state(os.fstat(file.fileno()))
                changed = _but_inode(found) != _but_inode(growing.state) and age < self._given_up
                return changed or (age < BLANK * self._still and _ends_with_nothing(file))
        except OSError:
            return False

    def _is_known(self, path: str) -> bool:
        """Whether it was inspected, to the byte, and only the inode is another one, as after a remount."""
        state = self._growing[path].state
        if path not in self._seen or _but_inode(self._seen[path]) != _but_inode(state):
            return False
        digest = self._outbox.digest(path)
        if digest is None or digest != _digest(path):
            return False
        self._outbox.renew(path, state)
        self._seen[path] = state
        self._gone.discard(path)
        del self._growing[path]
        return True

    def _inspect(self, paths: list[str], now: float) -> int:
        if not paths:
            return 0
        done = 0
        results = self._said_of([self._as_typed(path) for path in paths])
        for path, result in zip(paths, results, strict=True):
            growing = self._growing[path]
            growing.tried = now
            digest = _digest(path)
            if self._state(path) != growing.state:  # it grew while it was read: half a file was judged
                continue
            if isinstance(result, Failure) and now - growing.since < self._given_up:
                continue
            self._outbox.add(path, growing.state, told(result), digest=digest)
            self._seen[path] = growing.state
            self._gone.discard(path)
            del self._growing[path]
            done += 1
            self.counts["failed" if isinstance(result, Failure) else result.status] += 1
            if self._counted is not None and isinstance(result, Prediction):
                self._counted(result)
        return done

    def _said_of(self, files: list[Path]) -> list[Prediction | Failure]:
        """A result for each file: one that cannot be judged ends neither the others nor the watching.

        A failure counts after a while only, so that a line that is being replaced has time to be read anew.

        Raises:
            TaskError: the product that was given is none, which is no matter of any file.
        """
        try:
            return self._predict(files)
        except TaskError:
            raise
        except MoleFlowError as error:
            if len(files) > 1:
                return [result for file in files for result in self._said_of([file])]
            return [Failure(files[0], f"{name_of(files[0])}: {error}")]

    def _as_typed(self, path: str) -> Path:
        """A listed file below the folder as it was given, which is how results name it."""
        return self._folder / os.path.relpath(path, self._root)

    def _tidy(self, listed: dict[str, str]) -> None:
        """Of what is gone it is known for days that it was inspected: a network drive may be away so long."""
        away = {path for path in self._seen.keys() - listed.keys() if not self._is_hidden(path)}
        when = time.time()
        self._outbox.say_gone(away - self._gone, when)
        self._outbox.say_back(self._gone - away)
        forgotten = self._outbox.forget(when - KEPT_DAYS * 86_400, MOST_GONE)
        self._seen = {path: state for path, state in self._seen.items() if path not in forgotten}
        self._gone = away - forgotten

    def _is_hidden(self, path: str) -> bool:
        return any(path == hidden or path.startswith(hidden + os.sep) for hidden in self._hidden)

    def _listed(self) -> dict[str, str]:
        """State by real path; it is the same whichever way the folder was named."""
        self._hidden, self._root = [], os.path.realpath(self._folder)
        self._turns = 1 + (len(self._seen) + len(self._passed)) // ASKED
        self._turn = (self._turn + 1) % self._turns
        found: dict[str, str] = {}
        self._list(self._root, found)
        return found

    def _list(self, folder: str, found: dict[str, str]) -> None:
        below = []
        with os.scandir(folder) as entries:
            for entry in entries:
                path = entry.path
                state = self._unasked(path, entry.inode())
                if state is None and not entry.name.startswith("."):
                    if entry.is_dir(follow_symlinks=False):
                        below.append(path)
                    elif os.path.splitext(path)[1].lower() in EXTENSIONS and _may_be_file(entry):
                        state = self._state(path, entry)
                if state is not None:
                    found[path] = state
        for path in below if self._recursive else ():
            try:
                self._list(path, found)
            except (FileNotFoundError, NotADirectoryError):  # it went meanwhile
                continue
            except OSError:  # what it holds is not said to be gone
                self._hidden.append(path)

    def _unasked(self, path: str, inode: int) -> str | None:
        """The state of a settled file, where it is not its turn: asking all of a large folder is dear."""
        if inode % self._turns == self._turn:
            return None
        state = self._seen.get(path) or self._passed.get(path)
        return state if state is not None and state.endswith(f"-{inode}") else None

    def _state(self, path: str, entry: os.DirEntry[str] | None = None) -> str | None:
        try:
            return _state(os.stat(path) if entry is None else entry.stat())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            self._hidden.append(path)
            return None


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """Also of what cannot be looked at now, such as a link into a folder that is not to be read."""
    try:
        return entry.is_file()
    except OSError:
        return True


def told(result: Prediction | Failure) -> dict[str, Any]:
    """A result as it is sent: as of `moleflow predict --json`, and when it was said."""
    when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    said = result.to_dict() | {"time": when}
    if isinstance(result, Prediction):
        said["regions"] = [region.to_dict() for region in result.regions] if result.pred_label else []
    return {key: _as_text(value) if isinstance(value, str) else value for key, value in said.items()}


def _as_text(text: str) -> str:
    """A file's name may be no text in any encoding; whoever takes results need not know such."""
    return text.encode("utf-8", "replace").decode()


def _ends_with_nothing(file: BinaryIO) -> bool:
    """Whether the last of an image that shows no damage are zeros: it may have been made at full length."""
    if not file.read(4).startswith(UNFINISHED):
        return False
    length = min(file.seek(0, os.SEEK_END) // 16, LAST)
    file.seek(-length, os.SEEK_END)
    return file.read(length).count(0) == length > 0


def _but_inode(state: str | None) -> str | None:
    """What a state says of a file's time and size."""
    return None if state is None else state.rpartition("-")[0]


def _digest(path: str) -> bytes | None:
    """SHA-256 of a file's bytes; None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError:
        return None
    return digest.digest()


def _state(status: os.stat_result) -> str:
    """Another one whenever a file changes; older files come first in order."""
    return f"{status.st_mtime_ns:020d}-{status.st_size}-{status.st_ino}"
