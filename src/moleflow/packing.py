"""Rows of numbers in 8 bits, such that what is kept is the very thing that was used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 127
CODES, STEP = ".codes", ".step"


def pack(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 of a tensor (…, D), and the step of each row of D numbers (…, 1), float32.

    Steps have 12 bits, so that codes times step are exact and what was unpacked packs to the very same.
    """
    share, power = torch.frexp((tensor.abs().amax(-1, keepdim=True) / LEVELS).clamp_min(1e-12))
    step = torch.ldexp((share * 4096).ceil() / 4096, power)
    codes = (tensor / step).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return codes.contiguous(), step.contiguous()


def unpack(codes: Tensor, step: Tensor) -> Tensor:
    """The inverse of `pack`, float32."""
    return codes.float() * step


def packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor as a file keeps it in 8 bits, under two names."""
    codes, step = pack(tensor)
    return {name + CODES: codes, name + STEP: step}


def unpacked(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a file in float32: those in 8 bits put together again, the others as they are."""
    tensors = {name: tensor.float() for name, tensor in kept.items() if not name.endswith((CODES, STEP))}
    for name in kept:
        if name.endswith(CODES):
            own = name.removesuffix(CODES)
            tensors[own] = unpack(kept[name], kept[own + STEP])
    return tensors
