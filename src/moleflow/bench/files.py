"""Small files written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import BenchError, ConfigError
from .methods.base import State

_NOTES = "notes"
DRAFT, LOCK = ".draft-", ".lock"


def write_json(path: Path, value: Any) -> None:
    """Plain JSON in a fixed order; non-finite numbers are refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Beside its place first, then renamed."""
    with _draft(path) as draft:
        draft.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """The inverse of `write_json`. Raises BenchError, with the path, for a file that is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BenchError(f"{path}: expected JSON of an earlier run: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """What a YAML file of the user's holds. Raises ConfigError, with the path, where it cannot be read."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from error


def number_or_same(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for text, since it has no point; no option is text that reads as a number."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def write_state(path: Path, state: State) -> None:
    """Tensors and notes in one safetensors file."""
    # Clones, because two names may share one memory, which the format refuses.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()}
    with _draft(path) as draft:
        save_file(tensors, draft, metadata={_NOTES: json.dumps(state.notes)})


def read_state(path: Path) -> State:
    """The inverse of `write_state`. Raises BenchError, with the path."""
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: in the file a tensor may begin anywhere, and where it begins can change a last bit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return State(tensors, json.loads(file.metadata()[_NOTES]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path}: expected the state of a method: {error}") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder; the lock goes with the process that holds it.

    What a killed run left half written in it is removed. A folder that is made here goes again where
    nothing but an error came of it.

    Raises BenchError where another process works in it, or the folder cannot be made.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BenchError(f"{folder}: another process runs a benchmark in this folder") from error
    except OSError as error:
        raise BenchError(f"{folder}: cannot be written: {error}") from error
    try:
        for left in folder.rglob(f"{DRAFT}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # another process may have come, or the system keeps an open file
            if made and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                for one in made:
                    one.rmdir()
        raise
    finally:
        lock.release()


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A place to write beside a file, which takes its name in the end; BenchError, with the path, if not."""
    draft = path.with_name(f"{DRAFT}{path.name}.{os.getpid()}")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        raise BenchError(f"{path}: cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
