"""Inspects what appears in a folder, once it is whole.

The folder is looked at again and again: that works on network drives and with cameras of any make. A file
counts as whole when it has not changed between looks and can be decoded; one that cannot, after it has been
still for a while, is a result of its own.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..data.images import EXTENSIONS
from ..errors import MoleFlowError
from ..results import Failure, Prediction
from .outputs import Outbox

log = logging.getLogger("moleflow.station")

BATCH = 8  # files that are inspected together
STILL, GIVEN_UP = 0.5, 20.0  # seconds without a change: to try a file, to say that it is no image


@dataclass
class _Growing:
    """A file that is not inspected yet."""

    state: str
    since: float
    tried: float = 0.0


class Watching:
    """Over one folder.

    Args:
        predict: inspects files, as `Detector.predict` with "yield".
        folder: where files appear, also in folders below it with `recursive`.
        outbox: takes results, and remembers which files were inspected.
        recursive: look into folders below.
        old: inspect what is there at the first look as well.
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
    ) -> None:
        if not folder.is_dir():
            raise MoleFlowError(f"{folder}: expected a folder to watch")
        self._predict, self._folder, self._outbox = predict, folder, outbox
        self._recursive, self._still, self._given_up = recursive, still, given_up
        self._growing: dict[Path, _Growing] = {}
        self._away = self._unwritten = False
        self._hidden: list[Path] = []  # folders and files that the last look could not see into
        self._seen = outbox.seen()
        self._passed: set[tuple[str, str]] = set()
        if not old:
            self._passed = {(str(path), state) for path, state in self._listed().items()}

    @property
    def waiting(self) -> int:
        """Files that are there and not inspected yet."""
        return len(self._growing)

    @property
    def away(self) -> bool:
        """Whether the folder could not be listed when it was last looked at."""
        return self._away

    def look(self) -> int:
        """One look: inspects what has become whole; how many files that were."""
        now = time.monotonic()
        try:
            listed = self._listed()
        except OSError as error:  # a network drive comes back
            if not self._away:
                log.warning("%s: cannot be listed: %s", self._folder, error.strerror or error)
            self._away = True
            return 0
        self._away = False
        try:
            done = self._take(listed, now)
        except sqlite3.Error as error:  # a full disk: what could not be noted is inspected again
            if not self._unwritten:
                log.warning("results cannot be kept, tried again until they can: %s", error)
            self._unwritten = True
            return 0
        if done:
            self._unwritten = False
        return done

    def _take(self, listed: dict[Path, str], now: float) -> int:
        self._forget(listed)
        ready = []
        for path, state in listed.items():
            if self._seen.get(str(path)) == state or (str(path), state) in self._passed:
                continue
            growing = self._growing.get(path)
            if growing is None or growing.state != state:
                self._growing[path] = _Growing(state, now)
            elif now - growing.since >= self._still and now - growing.tried >= self._still:
                growing.tried = now
                ready.append(path)
        done = 0
        for start in range(0, len(ready), BATCH):
            done += self._inspect(ready[start : start + BATCH], now)
        return done

    def _inspect(self, paths: list[Path], now: float) -> int:
        done = 0
        for path, result in zip(paths, self._predict(paths), strict=True):
            growing = self._growing[path]
            if self._state(path) != growing.state:  # it grew while it was read: half a file was judged
                continue
            if isinstance(result, Failure) and now - growing.since < self._given_up:
                continue
            self._outbox.add(str(path), growing.state, told(result))
            self._seen[str(path)] = growing.state
            del self._growing[path]
            done += 1
        return done

    def _forget(self, listed: dict[Path, str]) -> None:
        """Of files that are gone nothing needs to be known: another one of that name is a new one."""
        self._growing = {path: one for path, one in self._growing.items() if path in listed}
        gone = {name for name in self._seen if Path(name) not in listed and not self._is_hidden(Path(name))}
        if gone and listed:  # a network drive that is away for a moment looks empty
            self._outbox.forget(sorted(gone))
            self._seen = {name: state for name, state in self._seen.items() if name not in gone}

    def _is_hidden(self, path: Path) -> bool:
        return any(path.is_relative_to(hidden) for hidden in self._hidden)

    def _listed(self) -> dict[Path, str]:
        self._hidden = []
        found = {path: self._state(path) for path in self._files(self._folder)}
        ordered = sorted(((state, path) for path, state in found.items() if state is not None))
        return {path: state for state, path in ordered}

    def _files(self, folder: Path) -> Iterator[Path]:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if self._recursive:
                    yield from self._below(Path(entry.path))
            elif Path(entry.name).suffix.lower() in EXTENSIONS and _may_be_file(entry):
                yield Path(entry.path)

    def _below(self, folder: Path) -> Iterator[Path]:
        """What a folder below holds; nothing where it cannot be listed, and it is not said to be gone."""
        try:
            yield from self._files(folder)
        except (FileNotFoundError, NotADirectoryError):  # it went meanwhile
            return
        except OSError:
            self._hidden.append(folder)

    def _state(self, path: Path) -> str | None:
        try:
            return _state(path)
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


def _state(path: Path) -> str:
    """Another one whenever a file changes; older files come first in order."""
    status = path.stat()
    return f"{status.st_mtime_ns:020d}-{status.st_size}-{status.st_ino}"
