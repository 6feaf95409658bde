"""What runs a backbone on the processor: eager torch, or a compiled copy of it that was seen to say the same.

A copy is made once on a machine, for a network with its weights, a size of images and the versions of what
makes and runs it; it is compared with eager torch on drawn pictures and kept among the user's caches.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import json
import os
import threading
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor, nn

from moleflow.errors import BackboneError, ConfigError
from moleflow.runtime.engines import ENGINES, installed, open_network

RuntimeName = Literal["auto", "torch", "onnxruntime", "openvino"]
COMPILED = ENGINES  # in the order that "auto" asks for them
TOLERANCE = 1e-3  # spreads of the features by which a copy may differ from eager torch anywhere
CACHE_VARIABLE = "MOLEFLOW_CACHE"
OPEN_AT_ONCE = 4

_FORMAT = 1  # of what is kept; another one is made anew
_OPSET = 17

Run = Callable[[np.ndarray], "list[np.ndarray]"]


class Compiled(nn.Module):
    """A compiled copy in the place of the module it was made from, which threads may share.

    Args:
        name: of the runtime, with its version.
        run: uint8 images to patch features and pooled ones.
    """

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name, self._run = name, run

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, 3, h, w) on the processor to (B, h', w', D) and (B, E), within `TOLERANCE`."""
        patches, pooled = self._run(images.contiguous().numpy())
        return torch.from_numpy(patches), torch.from_numpy(pooled)


@dataclass(frozen=True)
class _Copy:
    """One compiled copy.

    Attributes:
        key: of all that it depends on.
        data: the network, in ONNX.
        difference: how far it is from eager torch, in spreads of the features.
    """

    key: str
    data: bytes
    difference: float


def check_runtime(wish: str) -> RuntimeName:
    """The runtime of this name. Raises ConfigError for another word, or for one that is not installed."""
    if wish not in get_args(RuntimeName):
        raise ConfigError(f"expected a runtime among {', '.join(get_args(RuntimeName))}, got {wish!r}")
    if wish in COMPILED and not installed(wish):
        raise ConfigError(f"runtime {wish!r} is not installed: pip install {wish}")
    return wish  # type: ignore[return-value]


def torch_runtime() -> str:
    """Eager torch, as it is named in a line."""
    return f"torch {torch.__version__}"


def compiled(
    module: nn.Module, size: tuple[int, int], *, identity: dict[str, Any], wish: RuntimeName
) -> Compiled | None:
    """A compiled copy of a backbone's module, kept or made; None where eager torch is to run it.

    With "auto" whatever goes wrong leaves it to eager torch, with a warning that says why.

    Args:
        module: on the processor: uint8 images (B, 3, h, w) to (B, h', w', D) and (B, E).
        size: (h, w).
        identity: all that determines the module but the size.
        wish: the runtime that was asked for.

    Raises:
        BackboneError: a runtime that was asked for by name cannot run it, or says something else.
    """
    if wish == "torch":
        return None
    for name in COMPILED if wish == "auto" else (wish,):
        if not installed(name):
            continue
        try:
            return _agreeing(name, module, size, identity)
        except BackboneError as error:
            if wish != "auto":
                raise
            warnings.warn(f"the backbone runs in eager torch, not in {name}: {error}", stacklevel=2)
    return None


def probe(size: tuple[int, int], count: int = 3) -> Tensor:
    """Drawn pictures, uint8 (count, 3, h, w), the same numbers with every version of every library."""
    chance = np.random.Generator(np.random.PCG64(0))
    coarse = chance.integers(0, 256, (count, 3, 8, 8))
    rows, columns = (np.arange(side) * 8 // side for side in size)
    stripes = (np.arange(size[0])[:, None] * 7 + np.arange(size[1]) * 13) % 64
    pictures = coarse[:, :, rows[:, None], columns] * 3 // 4 + stripes
    return torch.from_numpy(pictures.astype(np.uint8))


def cache_folder(of: str = "backbones") -> Path:
    """Where copies, or what else is named, are kept: `MOLEFLOW_CACHE`, or the user's folder for caches."""
    told = os.environ.get(CACHE_VARIABLE)
    return (Path(told) if told else user_cache_path("moleflow")) / of


def _agreeing(name: str, module: nn.Module, size: tuple[int, int], identity: dict[str, Any]) -> Compiled:
    try:
        named = f"{name} {importlib.import_module(name).__version__}"
    except ImportError as error:
        raise BackboneError(f"it cannot be imported: {error}") from error
    versions = {"runtime": named, "torch": torch.__version__, "format": _FORMAT}
    told = json.dumps({"size": size, **identity, **versions}, sort_keys=True)
    key, threads = hashlib.sha256(told.encode()).hexdigest()[:32], torch.get_num_threads()
    with _opening:
        if (key, threads) not in _open:
            _open[key, threads] = Compiled(named, _opened(key, name, module, size, identity))
        _open.move_to_end((key, threads))
        while len(_open) > OPEN_AT_ONCE:
            _open.popitem(last=False)
        return _open[key, threads]


_opening = threading.RLock()  # of several threads the first makes a copy, the others find it
_open: OrderedDict[tuple[str, int], Compiled] = OrderedDict()  # by key and number of threads, the latest last


def _opened(key: str, name: str, module: nn.Module, size: tuple[int, int], identity: dict[str, Any]) -> Run:
    """The copy that is kept or made, ready to run; one that the engine refuses is made anew."""
    threads = torch.get_num_threads()
    copy = _agreed(_kept(key) or _made(key, name, module, size, identity), identity)
    try:
        return _open_copy(name, copy.data, threads)
    except BackboneError:
        _forget(key)
    copy = _agreed(_made(key, name, module, size, identity), identity)
    return _open_copy(name, copy.data, threads)


def _agreed(copy: _Copy, identity: dict[str, Any]) -> _Copy:
    if not copy.difference <= TOLERANCE:
        raise BackboneError(
            f"its copy of {identity['name']} differs by {copy.difference:.2g} spreads of the "
            f"features, expected at most {TOLERANCE:g}"
        )
    return copy


def _made(key: str, name: str, module: nn.Module, size: tuple[int, int], identity: dict[str, Any]) -> _Copy:
    """A copy, compared and kept. Where the folder cannot be written it serves this process alone."""
    folder, copy = cache_folder(), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            copy = _kept(key) or _compared(key, name, module, size)
            _keep(folder, copy, {"backbone": identity["name"], "size": size, "runtime": name})
    except OSError:
        copy = copy or _compared(key, name, module, size)
    return copy


def _compared(key: str, name: str, module: nn.Module, size: tuple[int, int]) -> _Copy:
    pictures = probe(size)
    try:
        data = _exported(module, pictures[:2])
        run = _open_copy(name, data, torch.get_num_threads())
        difference = max(_differences(module, run, pictures), _differences(module, run, pictures[:1]))
    except Exception as error:  # of any library: none of them says what its converter may raise
        raise BackboneError(f"no copy for it could be made: {_first_line(error)}") from error
    return _Copy(key, data, difference)


def _open_copy(name: str, data: bytes, threads: int) -> Run:
    try:
        run = open_network(name, data, threads)
    except Exception as error:  # of any engine, as above
        raise BackboneError(f"its copy cannot be opened: {_first_line(error)}") from error
    return lambda images: run({"images": images})


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


@torch.no_grad()
def _differences(module: nn.Module, run: Run, pictures: Tensor) -> float:
    """The largest difference between a copy and eager torch, in spreads of what eager torch says."""
    expected = [output.numpy() for output in module(pictures)]
    found = run(pictures.numpy())
    return max(
        float(np.abs(one - other).max() / max(one.std(), 1e-12))
        for one, other in zip(expected, found, strict=True)
    )


def _exported(module: nn.Module, pictures: Tensor) -> bytes:
    """The module in ONNX, for any number of images."""
    outputs = ["patches", "pooled"]
    axes = {name: {0: "batch"} for name in ("images", *outputs)}
    return exported(module, (pictures,), inputs=["images"], outputs=outputs, axes=axes)


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


def _kept(key: str) -> _Copy | None:
    """The copy as it is kept; None where there is none, or a damaged one."""
    folder = cache_folder()
    try:
        known = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        data = (folder / f"{key}.onnx").read_bytes()
        if hashlib.sha256(data).hexdigest() == known["sha256"]:
            return _Copy(key, data, float(known["difference"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(folder: Path, copy: _Copy, told: dict[str, Any]) -> None:
    known = {"sha256": hashlib.sha256(copy.data).hexdigest(), "difference": copy.difference, **told}
    _replace(folder / f"{copy.key}.onnx", copy.data)
    _replace(folder / f"{copy.key}.json", json.dumps(known, indent=1).encode())


def _forget(key: str) -> None:
    with suppress(OSError):
        (cache_folder() / f"{key}.json").unlink()


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
