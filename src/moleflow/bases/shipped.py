"""Bases that come with the library: what products share, learned once from drawn ones.

With such a base the first product of a line decides nothing for those after it, its lesson is shorter, and
all lines of the same backbone, size and options have the very same base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from ..config import FlowConfig, to_dict
from ..features.extractor import Extractor
from ..flow.expert import Base
from ..threads import seeded

FOLDER = Path(__file__).parent
_OF_PRODUCTS = ("cells", "whitening", "lora", "dia", "bits")  # parts of a flow that are a product's own


def shipped_base(
    weights_hash: str, grid: tuple[int, int], channels: int, flow: FlowConfig, *, folder: Path = FOLDER
) -> Base | None:
    """The base for features of these weights in this shape of flow, frozen; None where there is none.

    Args:
        weights_hash: of the backbone; see `Extractor`.
        grid: patch grid (h, w).
        channels: D.
        flow: shape of the density; only what the base itself is made of has to agree.
        folder: where to look.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            told = file.metadata() or {}
        if told.get("weights_hash") != weights_hash or json.loads(told.get("shape", "{}")) != _shape(flow):
            continue
        with seeded(0):
            base = Base(grid, channels, flow)
        base.load_state_dict(
            {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
        )
        return base.requires_grad_(False).eval()
    return None


def write_base(folder: Path, extractor: Extractor, base: Base, *, how: dict[str, Any]) -> Path:
    """Writes a base for `shipped_base` to find, 16 bits a number, with how it was made; returns its file."""
    path = folder / f"{extractor.name}.safetensors"
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in base.state_dict().items()}
    told = {
        "backbone": extractor.name,
        "weights_hash": extractor.weights_hash,
        "shape": json.dumps(_shape(base.config), sort_keys=True),
        "made": json.dumps(how, sort_keys=True),
    }
    safetensors.torch.save_file(tensors, path, told)
    return path


def _shape(flow: FlowConfig) -> dict[str, Any]:
    """The options that decide what a base is made of, and what its maps meet."""
    owned = {name: value for name, value in to_dict(flow).items() if name not in _OF_PRODUCTS}
    return {"cells": flow.cells is not None, **owned}
