"""What was found once is not found again: flows and parts learned, images inspected, maps measured.

Everything is kept in a run's folder by what it follows from, so a later unit that asks for the very same
takes it from there: another order of the same products, another rival that begins with the same flow, the
next step of a method whose parts stay as they are, another seed of one that leaves nothing to chance. What
is taken is the same to the bit as what would be found.
Seconds are kept beside it and charged again: a method's cost does not depend on who went first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .figures import Examined
from .files import read_json, read_state, write_json, write_state
from .methods.base import Inspection, Method, PerProduct, Pictures, State

FOLDER = "reused"
IMAGES = "images"


def key_of(*facts: object) -> str:
    """A name for what follows from these facts, plain JSON or states."""
    told = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, State):
            for name in sorted(fact.tensors):
                tensor = fact.tensors[name].detach().cpu()
                told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                told.update(tensor.numpy().tobytes())  # in order of the elements, however they lie
            fact = fact.notes
        told.update(json.dumps(fact, sort_keys=True).encode() + b"\n")
    return told.hexdigest()[:32]


def images_path(out: Path, product: str, digest: str) -> Path:
    """Where a run keeps scores of a product's images, and its figures under other draws of them."""
    return out / IMAGES / f"{key_of(product, digest)}.safetensors"


@dataclass
class Memory:
    """What one unit may take from units before it, and adds for those after it.

    Attributes:
        folder: of the run.
        setting: all that decides what a method makes of the same images: options and seed.
        learning: the part of it that decides what a flow learns.
        saved: seconds that what was taken had cost, less those that taking and keeping cost, since somebody
            last asked.
    """

    folder: Path
    setting: dict[str, Any]
    learning: dict[str, Any]
    saved: float = 0.0
    _said: dict[str, _Said] = field(default_factory=dict)
    _parts: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def charged(self) -> float:
        """The seconds saved, which are then forgotten."""
        saved, self.saved = self.saved, 0.0
        return saved

    def part(self, method: Method, pictures: Pictures, learn: Callable[[], State]) -> State:
        """What a method learns of one product and nothing else; as `learned`."""
        return self.learned(["a part", self.setting, method.name, pictures.key], learn)

    def learned(self, facts: Sequence[object], learn: Callable[[], State]) -> State:
        """A state as it was kept, or as it is learned now.

        Args:
            facts: what it follows from beside the learning options and the seed, plain JSON or states.
            learn: learns it.
        """
        started = perf_counter()
        path = self._path("learned", key_of(self.learning, *facts))
        if path.exists():
            kept = read_state(path)
            self.saved += kept.notes["seconds"] - (perf_counter() - started)
            return State(kept.tensors, kept.notes["notes"])
        began = perf_counter()
        state = learn()
        seconds = perf_counter() - began
        write_state(path, State(state.tensors, {"notes": state.notes, "seconds": seconds}))
        self.saved += seconds - (perf_counter() - started)
        return state

    def said(self, method: PerProduct, product: str, pictures: Pictures, image: int) -> Inspection:
        """What a method's part says of an image: as it was kept, or as it is said now."""
        asked = perf_counter()
        kept = self._of(method, product, pictures)
        self.saved -= perf_counter() - asked
        found = kept.inspections[image]
        if found is not None:
            self.saved += kept.seconds[image]
            return found
        started = perf_counter()
        found = method.inspect_part(method.parts[product], pictures.seen_of(image))
        kept.seconds[image] = perf_counter() - started
        kept.inspections[image], kept.new = found, True
        return found

    def keep(self) -> None:
        """Writes what was said anew."""
        for key, kept in self._said.items():
            if kept.new:
                write_state(self._path("inspected", key), kept.state())
                kept.new = False

    def examined(
        self, products: Sequence[str], digests: Sequence[str], find: Callable[[], Examined]
    ) -> Examined:
        """Figures of maps as they were kept, or as they are found now."""
        path = self._path("measured", key_of(list(products), list(digests))).with_suffix(".json")
        if path.exists():
            return Examined.from_dict(read_json(path))
        found = find()
        write_json(path, found.to_dict())
        return found

    def _of(self, method: PerProduct, product: str, pictures: Pictures) -> _Said:
        key = key_of(self._part_key(method, product), pictures.key)
        if key not in self._said:
            path = self._path("inspected", key)
            self._said[key] = _Said.read(read_state(path)) if path.exists() else _Said.nothing(len(pictures))
        return self._said[key]

    def _part_key(self, method: PerProduct, product: str) -> str:
        part = method.parts[product]
        # The part is held on to, so that no other can take its place in memory and its number with it.
        if id(part) not in self._parts:
            # Not by the seed: what a part says follows from the part, and some are the same from all seeds.
            asked = {name: value for name, value in self.setting.items() if name != "seed"}
            key = key_of(asked, method.name, method.common(), method.part_state(part))
            self._parts[id(part)] = (part, key)
        return self._parts[id(part)][1]

    def _path(self, kind: str, key: str) -> Path:
        folder = self.folder / FOLDER / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{key}.safetensors"


@dataclass
class _Said:
    """What one part says of one product's test images, as far as it was asked."""

    inspections: list[Inspection | None]
    seconds: list[float]
    new: bool = False

    @classmethod
    def nothing(cls, count: int) -> _Said:
        return cls([None] * count, [0.0] * count)

    @classmethod
    def read(cls, state: State) -> _Said:
        t = state.tensors
        names = ("score", "threshold", "known", "there")
        columns = zip(*(t[name].tolist() for name in names), strict=True)
        maps = t.get("maps")
        return cls(
            [
                _inspection(score, threshold, known, None if maps is None else maps[i]) if there else None
                for i, (score, threshold, known, there) in enumerate(columns)
            ],
            t["seconds"].tolist(),
        )

    def state(self) -> State:
        there = [found is not None for found in self.inspections]
        some = [found for found in self.inspections if found is not None]
        tensors = {
            "there": torch.tensor(there),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "score": self._column(lambda found: found.score),
            "threshold": self._column(lambda f: math.nan if f.threshold is None else f.threshold),
            "known": self._column(lambda found: -1.0 if found.known is None else float(found.known)),
        }
        if some and some[0].patch_map is not None:
            blank = np.zeros_like(some[0].patch_map)
            maps = [blank if found is None else found.patch_map for found in self.inspections]
            tensors["maps"] = torch.from_numpy(np.stack(maps))  # type: ignore[arg-type]
        return State(tensors)

    def _column(self, value: Callable[[Inspection], float]) -> Tensor:
        values = [0.0 if found is None else value(found) for found in self.inspections]
        return torch.tensor(values, dtype=torch.float64)


def _inspection(score: float, threshold: float, known: float, patch_map: Tensor | None) -> Inspection:
    return Inspection(
        task=None,
        known=None if known < 0 else bool(known),
        score=score,
        patch_map=None if patch_map is None else patch_map.numpy(),
        threshold=None if math.isnan(threshold) else threshold,
    )
