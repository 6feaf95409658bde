"""Copies of a computation that an engine runs in torch's place: made once on a machine, compared, and kept.

A copy is made for all that determines the computation and the versions of what makes and runs it. It is shown
what eager torch is shown, and kept among the user's caches together with how far the two were apart.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import threading
import time
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor, nn

from .errors import MoleFlowError
from .runtime.engines import Run, Running, imported
from .threads import usual

CACHE_VARIABLE = "MOLEFLOW_CACHE"
TOLERANCE = 1e-3  # by which a copy may differ from eager torch anywhere
OPEN_AT_ONCE = 4  # of a kind

UNUSED_DAYS = 60  # after which a copy goes
WAIT = 60.0  # seconds for another process that makes the same copy

_FORMAT = 1  # of what is kept; another one is made anew
_OTHERS = ("bench", "cli", "demo", "station")  # folders of the package that no network follows from
_OPSET = 17


class CopyError(MoleFlowError):
    """An engine cannot run a copy, or it says something else."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a copy comes about.

    Attributes:
        kind: folder of such copies among the user's caches.
        of: what it is a copy of, in messages.
        facts: all that determines the computation, plain JSON.
        make: the network in ONNX; whatever it raises is told.
        differ: how far a running copy is from eager torch, in spreads.
        alike: whether whoever asks for the copy would compare the same. Where not, a copy that was found too
            far from torch is compared anew by the next who asks.
    """

    kind: str
    of: str
    facts: dict[str, Any]
    make: Callable[[], bytes]
    differ: Callable[[Run], float]
    alike: bool = True


@dataclass(frozen=True, eq=False)
class Opened:
    """A copy that runs, which threads may share.

    Attributes:
        name: of the engine, with its version.
        run: arrays by the names of the network's inputs to its outputs.
    """

    name: str
    run: Running


@dataclass(frozen=True)
class _Copy:
    """One copy.

    Attributes:
        key: of all that it depends on.
        data: the network, in ONNX.
        difference: how far it is from eager torch, in spreads.
    """

    key: str
    data: bytes
    difference: float


def cache_folder(of: str = "backbones") -> Path:
    """Where copies, or what else is named, are kept: `MOLEFLOW_CACHE`, or the user's folder for caches."""
    told = os.environ.get(CACHE_VARIABLE)
    try:
        return (Path(told).expanduser() if told else user_cache_path("moleflow")) / of
    except RuntimeError:  # a user without a home: as one whose folder cannot be written
        return Path(os.devnull) / of


def opened(engine: str, recipe: Recipe) -> Opened:
    """A copy, kept or made, running on as many threads as torch has.

    Raises CopyError where the engine cannot be had or cannot run it, or it says something else than torch.
    """
    try:
        named = f"{engine} {imported(engine).__version__}"
    except Exception as error:  # a broken installation may raise anything
        raise CopyError(f"it cannot be imported: {error}") from error
    versions = {"runtime": named, "torch": torch.__version__, "library": _library(), "format": _FORMAT}
    told = json.dumps({**recipe.facts, **versions}, sort_keys=True)
    key, threads = hashlib.sha256(told.encode()).hexdigest()[:32], usual()
    with _opening:
        open_ones = _open.setdefault(recipe.kind, OrderedDict())
        if key in _impossible:
            raise CopyError(_impossible[key])
        if (key, threads) not in open_ones:
            open_ones[key, threads] = Opened(named, _running(key, engine, recipe, threads))
        open_ones.move_to_end((key, threads))
        while len(open_ones) > OPEN_AT_ONCE:
            open_ones.popitem(last=False)
        return open_ones[key, threads]


_opening = threading.RLock()  # of several threads the first makes a copy, the others find it
# By kind; then by key and number of threads, the latest last.
_open: dict[str, OrderedDict[tuple[str, int], Opened]] = {}
_impossible: dict[str, str] = {}  # why there can be no copy, by key: it is not tried for every product


@cache
def _library() -> str:
    """What this library makes of networks: a hash of its own modules, and timm's version."""
    told, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root)
        if own.parts[0] not in _OTHERS:
            told.update(own.as_posix().encode() + path.read_bytes())
    return f"{told.hexdigest()[:16]}, timm {metadata.version('timm')}"


def _running(key: str, engine: str, recipe: Recipe, threads: int) -> Running:
    """The copy that is kept or made, ready to run; one that the engine refuses is made anew."""
    folder = cache_folder(recipe.kind)
    copy = _agreed(_kept(folder, key) or _made(key, engine, recipe), recipe)
    try:
        return _open_copy(engine, copy.data, threads)
    except CopyError:
        _forget(folder, key)
    return _open_copy(engine, _agreed(_made(key, engine, recipe), recipe).data, threads)


def _agreed(copy: _Copy, recipe: Recipe) -> _Copy:
    if not copy.difference <= TOLERANCE:
        raise CopyError(
            f"its copy of {recipe.of} differs by {copy.difference:.2g} spreads, "
            f"expected at most {TOLERANCE:g}"
        )
    return copy


def _made(key: str, engine: str, recipe: Recipe) -> _Copy:
    """A copy, compared and kept. Where the folder cannot be written it serves this process alone."""
    folder, copy = cache_folder(recipe.kind), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock", timeout=WAIT):
            copy = _kept(folder, key) or _compared(key, engine, recipe)
            if recipe.alike or copy.difference <= TOLERANCE:
                _keep(folder, copy, {"of": recipe.of, "runtime": engine, **recipe.facts})
            _clear(folder)
    except OSError:  # the lock's Timeout among them
        copy = copy or _compared(key, engine, recipe)
    return copy


def _compared(key: str, engine: str, recipe: Recipe) -> _Copy:
    try:
        data = recipe.make()
        run = _open_copy(engine, data, usual())
        difference = recipe.differ(run)
    except Exception as error:  # of any library: none of them says what its converter may raise
        _impossible[key] = f"no copy for it could be made: {_first_line(error)}"
        raise CopyError(_impossible[key]) from error
    return _Copy(key, data, difference)


def _open_copy(engine: str, data: bytes, threads: int) -> Running:
    try:
        return Running(engine, data, threads)
    except Exception as error:  # of any engine, as above
        raise CopyError(f"its copy cannot be opened: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def exported(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> bytes:
    """A module in ONNX, traced on example inputs; whatever torch raises is raised.

    Args:
        module: to be traced.
        example: its arguments.
        inputs, outputs: their names.
        axes: lengths that are left open, by the name of an input or an output.
    """
    file = io.BytesIO()
    # The tracing exporter: it takes half a second where the newer one takes ten, and needs no more than onnx.
    tracing = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    # What it cannot trace it would print on standard output, graph and all, among a command's own lines.
    silence = getattr(torch._C, "_jit_set_onnx_log_enabled", None)
    if silence is not None:
        silence(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            file,  # type: ignore[arg-type]
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=_OPSET,
            **tracing,  # type: ignore[arg-type]
        )
    return file.getvalue()


# Kept copies: the network, and beside it what is known of it; the second is written last


def _kept(folder: Path, key: str) -> _Copy | None:
    """The copy as it is kept; None where there is none, or a damaged one."""
    try:
        known = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        data = (folder / f"{key}.onnx").read_bytes()
        if hashlib.sha256(data).hexdigest() == known["sha256"]:
            with suppress(OSError):
                os.utime(folder / f"{key}.json")  # when it was last of use
            return _Copy(key, data, float(known["difference"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(folder: Path, copy: _Copy, told: dict[str, Any]) -> None:
    known = {**told, "sha256": hashlib.sha256(copy.data).hexdigest(), "difference": copy.difference}
    _replace(folder / f"{copy.key}.onnx", copy.data)
    _replace(folder / f"{copy.key}.json", json.dumps(known, indent=1).encode())


def _clear(folder: Path) -> None:
    """Deletes copies that nobody asked for in a long time, and what killed writers left."""
    long_ago = time.time() - UNUSED_DAYS * 86_400
    for path in folder.iterdir():
        told = path if path.suffix == ".json" else path.with_suffix(".json")
        with suppress(OSError):
            if (told if told.exists() else path).stat().st_mtime < long_ago:
                path.unlink()


def _forget(folder: Path, key: str) -> None:
    with suppress(OSError):
        (folder / f"{key}.json").unlink()


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
