"""A few remembered patches of a product: how far a patch lies from the nearest thing that was ever good.

A Gaussian says how unusual a patch is for its place; a remembered patch says that something like it was seen
at all. What a density finds ordinary because it lies between two kinds of good patches is far from both.
Patches are compared after layer normalisation: in what they show, whatever its contrast.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Coreset
from ..features.finite import require_finite
from ..flow.whitening import layer_norm
from ..packing import nibbles, paired, parted

ROUNDING = 1e-6  # squared distances below this share of the largest squared norm are float32's own error
AT_HAND = 2048  # farthest points among which the next centres are sought
ROWS = 1024  # patches compared at a time: their table of distances stays in the cache


@dataclass(frozen=True, eq=False)
class PatchCoreset:
    """Normalised patches of good images such that no good one is far from all of them, in few bits.

    Attributes:
        codes: (m, D) uint8.
        low: (D,), what code 0 stands for.
        step: (D,), between two codes.
        bits: that a file keeps a code in.
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    bits: int = 8

    @classmethod
    def of(cls, patches: Tensor, bits: int = 8) -> PatchCoreset:
        """Of patches (m, D), rounded to 16 or 256 levels of each channel's own range."""
        low, high = patches.min(0).values, patches.max(0).values
        most = 2**bits - 1
        step = ((high - low) / most).clamp_min(1e-9)
        codes = ((patches - low) / step).round().clamp(0, most).to(torch.uint8)
        return cls(codes, low, step, bits)

    @property
    def patches(self) -> Tensor:
        """(m, D) float32, as they are compared."""
        return torch.addcmul(self.low, self.codes.float(), self.step)

    def __call__(self, features: Tensor) -> Tensor:
        """Euclidean distance of every patch from the nearest, (B, h, w), for raw features (B, h, w, D)."""
        return distances(features, self.patches)

    def to(self, device: torch.device | str) -> PatchCoreset:
        """On another device."""
        return PatchCoreset(self.codes.to(device), self.low.to(device), self.step.to(device), self.bits)

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        scale = {"low": self.low, "step": self.step}
        if self.bits == 8:
            return {"codes": self.codes, **scale}
        return {nibbles(len(self.low)).lstrip("."): paired(self.codes), **scale}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> PatchCoreset:
        """The inverse of `tensors`, to the bit."""
        low, step = tensors["low"], tensors["step"]
        if "codes" in tensors:
            return cls(tensors["codes"], low, step)
        return cls(parted(tensors[nibbles(len(low)).lstrip(".")], len(low)), low, step, 4)


def distances(features: Tensor, patches: Tensor) -> Tensor:
    """Euclidean distance of every patch from the nearest of `patches` (m, D), normalised; (B, h, w)."""
    # About their mean: smaller numbers, smaller errors of their products.
    centre = patches.mean(0)
    own = patches - centre
    norms = own.square().sum(1)
    x = layer_norm(features.float()).flatten(0, 2) - centre
    nearest = [
        torch.addmm(norms, rows, own.T, alpha=-2).amin(1) + rows.square().sum(1) for rows in x.split(ROWS)
    ]
    return torch.cat(nearest).clamp_min(0).sqrt().view(features.shape[:3])


@dataclass(frozen=True, eq=False)
class Candidates:
    """Patches that coresets of one product are selected from.

    Attributes:
        points: normalised patches (n, D) float32.
        kept: which of them are candidates without each block, and at last of all, (blocks + 1, n).
        options: how many are selected.
    """

    points: Tensor
    kept: Tensor
    options: Coreset

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        features: Tensor,
        blocks: Sequence[int | None],
        options: Coreset,
        *,
        seed: int,
        known: Tensor | None = None,
    ) -> Candidates:
        """A random part of all patches.

        Args:
            features: raw patch features (N, h, w, D) of good images.
            blocks: of each image, 0, 1, ... without a gap; None for one that is never left out.
            options: how many.
            seed: of what chance decides.
            known: normalised patches (m, D) that are candidates whatever is left out.

        Raises:
            TrainingError: features that are no numbers.
        """
        require_finite(features)
        count, height, width, channels = features.shape
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count * height * width, generator=generator)
        drawn = order[: options.candidates].sort().values
        image, place = drawn // (height * width), drawn % (height * width)
        points = torch.cat(
            [
                layer_norm(features[i].reshape(-1, channels)[place[image == i].to(features.device)].float())
                for i in image.unique().tolist()
            ]
        )
        owner = torch.tensor([-1 if block is None else block for block in blocks])[image]
        if known is not None and len(known):
            points = torch.cat([points, known.to(points)])
            owner = torch.cat([owner, torch.full((len(known),), -1)])
        names = [*range(1 + max((block for block in blocks if block is not None), default=-1)), NOBODY]
        return cls(points, torch.stack([owner != name for name in names]).to(points.device), options)

    def __len__(self) -> int:
        """How many coresets there are to select."""
        return len(self.kept)

    @torch.no_grad()
    def coresets(self, which: slice = slice(None)) -> list[PatchCoreset]:
        """Without each of the blocks, and at last of all, or some of these; greedily (`greedy_centres`)."""
        chosen = _selections(self.points, self.kept[which], self.options.patches)
        return [PatchCoreset.of(self.points[own], self.options.bits) for own in chosen]


NOBODY = -2  # owns no patch: what is left without it is everything


def _selections(points: Tensor, kept: Tensor, size: int) -> list[Tensor]:
    """Up to `size` centres for each of several selections, as `greedy_centres` takes them, side by side.

    What costs is to read all points for every centre. So the farthest ones are kept at hand: distances only
    shrink, and as long as one of these is still as far as the nearest of them was when they were taken, it is
    the farthest of all. All points are read once for all centres found so, of all selections.

    Args:
        points: (n, d) float32.
        kept: which of them are candidates of each selection, (k, n).
        size: how many at most.

    Returns:
        Indices of each selection's centres; of all its candidates where they are no more.
    """
    points = points - points.mean(0)
    norms = points.square().sum(1)
    least = ROUNDING * float(norms.max())
    means = (kept.float() @ points) / kept.sum(1, keepdim=True)
    first = (norms - 2 * means @ points.T).masked_fill_(~kept, torch.inf).argmin(1).tolist()
    nearest = torch.full(kept.shape, torch.inf, device=points.device).masked_fill_(~kept, -torch.inf)
    few = [int(own.sum()) <= size for own in kept]
    chosen = [[] if all_of_it else [index] for index, all_of_it in zip(first, few, strict=True)]
    found = [list(own) for own in chosen]
    while any(found):
        _approach(nearest, points, norms, found)
        found = [
            _farthest(points, norms, distances, size - len(own), least) if own else []
            for own, distances in zip(chosen, nearest, strict=True)
        ]
        for own, further in zip(chosen, found, strict=True):
            own += further
    return [
        torch.tensor(centres, device=points.device) if centres else own.nonzero()[:, 0]
        for own, centres in zip(kept, chosen, strict=True)
    ]


def _farthest(points: Tensor, norms: Tensor, nearest: Tensor, count: int, least: float) -> list[int]:
    """The next centres of a greedy selection, as many of them as follow from the farthest points alone.

    Args:
        points: (n, d).
        norms: their squares (n,).
        nearest: squared distances (n,) from the centres so far.
        count: of centres at most. Where it is not 0 and some point lies farther than `least` there is one.
        least: squared distance up to which a point equals a centre.
    """
    if count <= 0:
        return []
    far = nearest.topk(min(AT_HAND, len(nearest)))
    floor = float(far.values[-1]) if len(far.values) < len(nearest) else -torch.inf
    at_hand = far.indices.sort().values  # of equals the first, as from all points
    own, own_norms, squared = points[at_hand], norms[at_hand], nearest[at_hand]
    centres: list[int] = []
    while len(centres) < count:
        radius, at = squared.max(0)
        if float(radius) <= least or (centres and float(radius) <= floor):
            break
        centres.append(int(at_hand[at]))
        squared = torch.minimum(squared, torch.addmv(own_norms, own, own[at], alpha=-2) + own_norms[at])
    return centres


def _approach(nearest: Tensor, points: Tensor, norms: Tensor, found: Sequence[Sequence[int]]) -> None:
    """Lowers squared distances (k, n) to what each selection's newly found centres make them."""
    names = sorted(set(itertools.chain(*found)))  # selections that differ in a block find many of the same
    place = {name: i for i, name in enumerate(names)}
    asked = [torch.tensor([place[name] for name in own], device=points.device) for own in found]
    centres = torch.tensor(names, device=points.device)
    own, own_norms = points[centres], norms[centres][:, None]
    for start in range(0, len(points), ROWS):
        rows = slice(start, start + ROWS)
        squared = torch.addmm(norms[rows].expand(len(own), -1), own, points[rows].T, alpha=-2).add_(own_norms)
        for distances, chosen in zip(nearest, asked, strict=True):
            if len(chosen):
                torch.minimum(distances[rows], squared[chosen].amin(0), out=distances[rows])


def greedy_centres(
    points: Tensor, count: int, begun: Sequence[int], nearest: Tensor | None = None
) -> list[int]:
    """Indices of up to `count` points (n, d) float32 such that no point is far from all of them.

    Greedy k-centre (Gonzalez 1985; Sener and Savarese 2018): after those `begun` with, always the point
    farthest from those chosen; from one point the radius that remains is at most twice the least possible.
    Ends early where every point equals a chosen one.

    Args:
        points: to choose from.
        count: how many at most.
        begun: indices to begin with.
        nearest: squared distances (n,) from these, where they are known.
    """
    norms = points.square().sum(1)
    least = ROUNDING * float(norms.max())
    chosen = list(begun)
    squared = torch.full((1, len(points)), torch.inf, device=points.device)
    if nearest is None:
        _approach(squared, points, norms, [chosen])
    else:
        squared[0] = nearest
    while found := _farthest(points, norms, squared[0], count - len(chosen), least):
        chosen += found
        _approach(squared, points, norms, [found])
    return chosen
