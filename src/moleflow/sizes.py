"""What a product owns, part by part: numbers, and bytes in a saved line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {  # by the beginning of the names under which a line saves tensors
    "statistics": ("flow.statistics.",),
    "whitening": ("flow.whitening.",),
    "lora": ("flow.adapters.",),
    "dia": ("flow.dia.",),
    "cells": ("cells.",),
    "coreset": ("coreset.",),
    "correction": ("correction.",),
    "whole": ("whole.",),
    "router": ("router.",),
    "pose": ("pose.",),
    "calibration": ("position.",),
}
SAID = ("calibration", "strangeness")  # keys of a product's JSON that belong to its calibration


@dataclass(frozen=True)
class Part:
    """Size of a part.

    Attributes:
        numbers: how many numbers it holds.
        bytes: that it takes in a saved line, file headers apart.
    """

    numbers: int
    bytes: int


def parts_of(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[str, Part]:
    """Sizes by part, of the tensors and the JSON that a line saves of a product; parts it lacks are left out.

    A tensor that belongs to no part stands under the first word of its name.
    """
    from .packing import numbers_in  # torch: what is on the disk is counted without

    found: dict[str, Part] = {}
    for name, tensor in tensors.items():
        _add(found, _part(name), Part(numbers_in(name, tensor), tensor.numel() * tensor.element_size()))
    values = _values(said)
    if values:
        _add(found, "calibration", Part(_numbers(values), len(json.dumps(values).encode())))
    return found


def bytes_on_disk(folder: Path, said: Mapping[str, Any]) -> int:
    """Bytes of all parts of a product, by the lengths of its files alone.

    Args:
        folder: of its version.
        said: the JSON that a line saves of it.
    """
    values = _values(said)
    found = len(json.dumps(values).encode()) if values else 0
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as opened:
            found += file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")
    return found


def total(parts: Mapping[str, Part]) -> Part:
    """All parts together."""
    return Part(sum(part.numbers for part in parts.values()), sum(part.bytes for part in parts.values()))


def _part(name: str) -> str:
    known = (part for part, starts in PARTS.items() if name.startswith(starts))
    return next(known, name.partition(".")[0])


def _add(found: dict[str, Part], part: str, more: Part) -> None:
    held = found.get(part, Part(0, 0))
    found[part] = Part(held.numbers + more.numbers, held.bytes + more.bytes)


def _values(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: said[key] for key in SAID if key in said}


def _numbers(value: Any) -> int:
    """How many numbers JSON values hold."""
    if isinstance(value, Mapping):
        return sum(map(_numbers, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_numbers, value))
    return int(isinstance(value, int | float) and not isinstance(value, bool))
