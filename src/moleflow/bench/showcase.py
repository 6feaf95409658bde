"""Pictures for the report: of every product a good image that passed, a hit, a miss and a false alarm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.layouts import Item, Product
from ..maps.overlay import overlay
from ..maps.scale import Scale
from ..report import Card, Picture, greyed, mask_uri, photo_uri
from .figures import enlarged
from .files import read_state, write_state
from .methods.base import Inspection, State
from .pictures import has_masks, item_image, item_mask


@dataclass(frozen=True)
class _Role:
    """Why a picture is shown."""

    verdict: str
    label: int
    highest: bool  # of the scores of this label, else the lowest
    tone: str


ROLES = {
    "good": _Role("Good", 0, False, "good"),
    "hit": _Role("Defective, highest score", 1, True, "good"),
    "miss": _Role("Defective, lowest score", 1, False, "bad"),
    "alarm": _Role("Good, highest score", 0, True, "bad"),
}


def choose(product: Product, found: Sequence[Inspection]) -> dict[str, int]:
    """Positions of the test images to show, by role: the extremes, not the handsome ones."""
    chosen = {}
    for name, role in ROLES.items():
        own = [i for i, item in enumerate(product.test) if item.label == role.label]
        if own:
            chosen[name] = (max if role.highest else min)(own, key=lambda i: found[i].score)
    return chosen


def keep(path: Path, products: Sequence[Product], found: Mapping[str, Sequence[Inspection]]) -> None:
    """Writes the chosen maps of products, for `cards` to draw later."""
    tensors, notes = {}, {}
    for product in products:
        for role, i in choose(product, found[product.name]).items():
            result = found[product.name][i]
            if result.patch_map is None:
                continue
            name = f"{product.name}/{role}"
            tensors[name] = torch.from_numpy(np.ascontiguousarray(result.patch_map, np.float32))
            notes[name] = {"image": i, "score": result.score, "threshold": result.threshold}
    write_state(path, State(tensors, notes))


def cards(path: Path, products: Mapping[str, Product]) -> Iterator[tuple[str, list[Card]]]:
    """Product and its cards, from what `keep` wrote."""
    state = read_state(path)
    by_product: dict[str, list[Card]] = {}
    for name, note in state.notes.items():
        owner, role = name.rsplit("/", 1)
        product = products[owner]
        shown = state.tensors[name].numpy(), note["score"], _scale(state, owner, note)
        card = _card(ROLES[role], product.test[note["image"]], has_masks(product), *shown)
        by_product.setdefault(owner, []).append(card)
    yield from by_product.items()


def _scale(state: State, owner: str, note: Mapping[str, Any]) -> Scale:
    """The method's own; else from the patches of the good images shown: the middle one to the highest."""
    if note["threshold"] is not None:
        return Scale(float(note["threshold"]))
    good = [state.tensors[name] for role in ("good", "alarm") if (name := f"{owner}/{role}") in state.tensors]
    if not good:
        return Scale(0.0)
    patches = torch.cat([patch_map.flatten() for patch_map in good])
    return Scale(float(patches.max()), typical=float(patches.median()))


def _card(role: _Role, item: Item, masks: bool, patch_map: np.ndarray, score: float, scale: Scale) -> Card:
    image = item_image(item)
    pictures = [Picture(photo_uri(image), "image")]
    if masks:
        pictures.append(Picture(mask_uri(item_mask(item, image.shape[:2])), "true defect"))
    anomaly_map = enlarged(patch_map, image.shape[:2])
    heat = overlay(greyed(image), anomaly_map, scale.threshold, typical=scale.typical)
    pictures.append(Picture(photo_uri(heat), "heat map"))
    return Card(role.verdict, f"{item.kind}: score {score:.2f}", tuple(pictures), role.tone)
