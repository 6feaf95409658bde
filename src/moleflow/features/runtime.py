"""What runs a backbone on the processor: eager torch, or a compiled copy of it that was seen to say the same.

A copy (`compiling`) is one of a network with its weights at a size of images, compared with eager torch on
drawn pictures.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from moleflow.compiling import CopyError, Recipe, exported, opened
from moleflow.errors import BackboneError, ConfigError
from moleflow.runtime.engines import ENGINES, Run, Running, installed
from moleflow.runtime.witness import drawn

RuntimeName = Literal["auto", "torch", "onnxruntime", "openvino"]
COMPILED = ENGINES  # in the order that "auto" asks for them


class Compiled(nn.Module):
    """A compiled copy in the place of the module it was made from, which threads may share.

    Args:
        name: of the runtime, with its version.
        run: images by the name of "images" to patch features and pooled ones.
    """

    def __init__(self, name: str, run: Running) -> None:
        super().__init__()
        self.name, self._run = name, run

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, 3, h, w) on the processor to (B, h', w', D) and (B, E), within `TOLERANCE`."""
        patches, pooled = self._run.of_images(images.contiguous().numpy())
        return torch.from_numpy(patches), torch.from_numpy(pooled)


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
    module: Callable[[], nn.Module], size: tuple[int, int], *, identity: dict[str, Any], wish: RuntimeName
) -> Compiled | None:
    """A compiled copy of a backbone's module, kept or made; None where eager torch is to run it.

    With "auto" whatever goes wrong leaves it to eager torch, with a warning that says why.

    Args:
        module: builds it where a copy has to be made; on the processor: uint8 images (B, 3, h, w) to
            (B, h', w', D) and (B, E).
        size: (h, w).
        identity: all that determines the module but the size.
        wish: the runtime that was asked for.

    Raises:
        BackboneError: a runtime that was asked for by name cannot run it, or says something else.
    """
    if wish == "torch":
        return None
    pictures = probe(size)
    recipe = Recipe(
        "backbones",
        identity["name"],
        {"size": size, **identity},
        make=lambda: exported_backbone(module(), pictures[:2]),
        differ=lambda run: float(np.max([_difference(module(), run, p) for p in (pictures, pictures[:1])])),
    )
    for name in COMPILED if wish == "auto" else (wish,):
        if not installed(name):
            continue
        try:
            copy = opened(name, recipe)
            return Compiled(copy.name, copy.run)
        except CopyError as error:
            if wish != "auto":
                raise BackboneError(str(error)) from error
            warnings.warn(f"the backbone does not run in {name}: {error}", stacklevel=2)
    return None


def probe(size: tuple[int, int], count: int = 3) -> Tensor:
    """Drawn pictures, uint8 (count, 3, h, w), the same numbers with every version of every library."""
    return torch.from_numpy(drawn(size, count))


@torch.no_grad()
def _difference(module: nn.Module, run: Run, pictures: Tensor) -> float:
    """The largest between a copy and eager torch, in spreads of what that says; nan where one is none."""
    expected = [output.numpy() for output in module(pictures)]
    found = run({"images": pictures.numpy()})
    # Not Python's own max, to which what is no number is less than everything.
    return float(
        np.max(
            [
                np.abs(one - other).max() / max(one.std(), 1e-12)
                for one, other in zip(expected, found, strict=True)
            ]
        )
    )


def exported_backbone(module: nn.Module, pictures: Tensor) -> bytes:
    """A backbone's module in ONNX, for any number of images; whatever torch raises is raised."""
    outputs = ["patches", "pooled"]
    axes = {name: {0: "batch"} for name in ("images", *outputs)}
    return exported(module, (pictures,), inputs=["images"], outputs=outputs, axes=axes)
