"""Rows of numbers in 4 or 8 bits, such that what is kept is the very thing that was used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .codes import CODES, NIBBLES, ODD, STEP

STEP_BITS = 16  # of a step's fraction: a code of 8 bits times a step is exact in float32


def levels(bits: int) -> int:
    """The largest code of so many bits; the least is as far below zero."""
    return int(2 ** (bits - 1)) - 1


def pack(tensor: Tensor, bits: int = 8, *, lengths: bool = False) -> tuple[Tensor, Tensor]:
    """Codes int8 of a tensor (…, D), and the step of each row of D numbers (…, 1), float32.

    Steps are such that codes times step are exact, and what was unpacked packs to the very same.

    Args:
        tensor: what is kept.
        bits: of a code, 4 or 8.
        lengths: whether rows keep their length, where that says more than each number.
    """
    most = levels(bits)
    step = _rounded((tensor.abs().amax(-1, keepdim=True) / most).clamp_min(1e-12), up=True)
    codes = (tensor / step).round().clamp(-most, most)
    if lengths:
        length = tensor.double().norm(dim=-1, keepdim=True) / codes.double().norm(dim=-1, keepdim=True)
        step = torch.where(codes.any(-1, keepdim=True), _rounded(length.float(), up=False), step)
    return codes.to(torch.int8).contiguous(), step.contiguous()


def unpack(codes: Tensor, step: Tensor) -> Tensor:
    """The inverse of `pack`, float32."""
    return codes.float() * step


def packed(name: str, tensor: Tensor, bits: int = 8, *, lengths: bool = False) -> dict[str, Tensor]:
    """A tensor as a file keeps it, under two names; arguments as for `pack`."""
    codes, step = pack(tensor, bits, lengths=lengths)
    if bits == 8:
        return {name + CODES: codes, name + STEP: step}
    return {name + nibbles(codes.shape[-1]): paired(codes + 8), name + STEP: step}


def unpacked(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a file in float32: those in 4 or 8 bits put together again, the others as they are."""
    tensors = {}
    for name, tensor in kept.items():
        own, dot, kind = name.rpartition(".")
        if dot + kind == CODES:
            tensors[own] = unpack(tensor, kept[own + STEP])
        elif dot + kind in (NIBBLES, ODD):
            codes = parted(tensor, 2 * tensor.shape[-1] - (dot + kind == ODD)).to(torch.int8) - 8
            tensors[own] = unpack(codes, kept[own + STEP])
        elif not (dot + kind == STEP and _has_codes(own, kept)):
            tensors[name] = tensor.float()
    return tensors


def nibbles(length: int) -> str:
    """How a name ends under which `paired` rows of that length are kept."""
    return ODD if length % 2 else NIBBLES


def numbers_in(name: str, tensor: Tensor) -> int:
    """How many numbers are kept in a file's tensor of that name."""
    if name.endswith(NIBBLES):
        return 2 * tensor.numel()
    return 2 * tensor.numel() - tensor[..., 0].numel() if name.endswith(ODD) else tensor.numel()


def paired(codes: Tensor) -> Tensor:
    """Codes 0..15 of rows (…, D), two a byte: (…, (D + 1) // 2) uint8."""
    even = F.pad(codes, (0, codes.shape[-1] % 2)).to(torch.uint8)
    return (even[..., 0::2] + 16 * even[..., 1::2]).contiguous()


def parted(pairs: Tensor, length: int) -> Tensor:
    """The inverse of `paired` for rows of that length, uint8."""
    return torch.stack([pairs % 16, pairs // 16], -1).flatten(-2)[..., :length].contiguous()


def _has_codes(name: str, kept: Mapping[str, Tensor]) -> bool:
    return any(name + kind in kept for kind in (CODES, NIBBLES, ODD))


def _rounded(step: Tensor, *, up: bool) -> Tensor:
    """To so few digits that codes times step are exact."""
    share, power = torch.frexp(step)
    digits = share * 2**STEP_BITS
    return torch.ldexp((digits.ceil() if up else digits.round()) / 2**STEP_BITS, power)
