"""Tensors as checked files, and the fingerprint of a base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moleflow.errors import LineError

from .files import read_bytes

if TYPE_CHECKING:  # torch is imported where tensors are: a list of products does without
    from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of names, dtypes, shapes and bytes, whatever their order and device."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        digest.update(len(header).to_bytes(8, "little") + header)
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dump_tensors(tensors: Mapping[str, Tensor], what: str) -> bytes:
    """Tensors as safetensors bytes."""
    import safetensors.torch

    try:
        # Cloned, because safetensors refuses tensors that share memory.
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return safetensors.torch.save(owned)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LineError(f"the tensors of {what} cannot be written: {error}") from error


def load_tensors(root: Path, path: Path, sha256: str) -> dict[str, Tensor]:
    """Read a file once, so that the bytes that were checked are the bytes that are used."""
    return parse_tensors(read_checked(root, path, sha256), path)


def read_checked(root: Path, path: Path, sha256: str) -> bytes:
    """A file of the line; LineError, with the path, where it is not the one that was written."""
    data = read_bytes(root, path)
    check_sha256(path, data, sha256)
    return data


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a file that was read from `path`."""
    import safetensors.torch

    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
    except Exception as error:  # safetensors has its own errors beside torch's and Python's
        raise LineError(
            f"{path}: expected safetensors, found {len(data)} bytes that are not: {error}"
        ) from error


def sha256_of(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def check_sha256(path: Path, data: bytes, expected: str) -> None:
    """LineError, with the path, for a file that is not the one that was written."""
    found = sha256_of(data)
    if found != expected:
        raise LineError(f"{path}: damaged or changed: expected SHA-256 {expected[:16]}, found {found[:16]}")
