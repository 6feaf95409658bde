"""Files of a line: their names, writing that survives a crash, reading that stays inside the folder."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moleflow.errors import LineError, reason_of

INDEX, BASE, TASKS, LOCK = "line.json", "base.safetensors", "tasks", ".lock"
WATCH = "watch"
EXPORTED = "exported.json"  # the index of an export, which is no line
EXPERT, INFO = "expert.safetensors", "task.json"
DEBRIS = ".tmp-"
CREATING = (
    DEBRIS + "creating"
)  # present while a new line is being written: without line.json it is all debris
UNLISTED = DEBRIS + "unlisted"  # inside a version's folder until line.json has pointed to it
REMOVED = DEBRIS + "removed"  # inside a product's folder that goes as soon as line.json no longer lists it
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # said of what cannot be synced, such as a pipe
VERSION = re.compile(r"[0-9]{4,}")


def require_inside(root: Path, path: Path) -> None:
    """Refuse a link that leads out of the line."""
    resolved, home = path.resolve(), root.resolve()
    if not resolved.is_relative_to(home):
        raise LineError(f"{path}: expected a place inside {root}, found a link to {resolved}")


def read_bytes(root: Path, path: Path) -> bytes:
    """The bytes of a file inside the line; LineError, with the path."""
    try:
        require_inside(root, path)
        if not path.is_file():
            raise LineError(f"{path}: expected a file, found {'no file' if path.exists() else 'nothing'}")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise LineError(f"{path}: cannot be read: {reason_of(error)}") from error


def write_file(path: Path, data: bytes) -> None:
    """A new file, synced."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(root: Path, path: Path, data: bytes) -> None:
    """Another content of a file of the line, synced, in one step."""
    draft = root / (DEBRIS + secrets.token_hex(8))
    try:
        write_file(draft, data)
        os.replace(draft, path)
        sync_folder(path.parent)
    except BaseException:
        discard(draft)
        raise


def make_folder(path: Path) -> None:
    """Make a folder, if need be, so that it lasts."""
    if not path.is_dir():
        path.mkdir()
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames in a folder last."""
    if os.name == "nt":  # Windows opens no folders, and needs no sync for a rename to last
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_path(path: Path) -> None:
    """Makes the content of a file last, or the names in a folder, on a drive that can be synced at all."""
    if os.name == "nt" and (
        path.is_dir() or not os.access(path, os.W_OK)
    ):  # where neither can be opened for it
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes a written folder last with all that is in it, before it takes another's place."""
    for path in (*folder.rglob("*"), folder):
        sync_path(path)


@contextmanager
def translated(path: Path, verb: str) -> Iterator[None]:
    """Turns what the system says into a LineError with the path."""
    try:
        yield
    except OSError as error:
        raise LineError(f"{path}: cannot {verb} it: {reason_of(error)}") from error


def listing_of(folder: Path) -> list[Path]:
    """What a folder holds; nothing where it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def discard(path: Path) -> None:
    """Delete a file, a link or a folder; what resists is debris that counts for nothing."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def bury(path: Path, folder: Path) -> None:
    """Delete a folder of the line under a name that is debris, whatever happens in between."""
    grave = path / TASKS / (DEBRIS + secrets.token_hex(8))
    with suppress(OSError):
        os.rename(folder, grave)
        discard(grave)


def discard_unfinished(path: Path) -> None:
    """Empty the folder of a line that never got its line.json; the marker goes last."""
    if not (path / CREATING).exists():
        return
    for name in (BASE, TASKS, CREATING):
        discard(path / name)


def discard_empty(folders: Iterable[Path]) -> None:
    """Delete folders that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)
