"""One bank of patches for all products, of fixed size: what is farthest comes in, one of the closest goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import check
from ...densities.coreset import ROUNDING, greedy_centres
from ...errors import TaskError
from .banks import (
    Bank,
    Selection,
    candidates,
    inspect_bank,
    projected,
    require_images,
)
from .base import Inspection, Method, Pictures, Setting, State

ROWS = 256  # points compared with all others at a time


@dataclass(frozen=True)
class SharedBankOptions(Selection):
    """The size of the one bank, how it is selected, and how an image is scored with it."""

    size: int = 10_000  # patches
    neighbours: int = 9  # b of the re-weighting, the patch found included

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("size", "neighbours"))


COMMON = SharedBankOptions()


class SharedCoreset(Method):
    """One bank of fixed size for all products, updated as CADIC updates its own.

    While there is room, greedy k-centre fills the bank. In a full bank the new patch that is farthest from
    the bank takes the place of one of the two that are closest to each other, as long as it is farther
    than these two are apart (Yang et al. 2025, eq. 1 to 6): the least distance within the bank only grows.
    Images are not kept. The bank does not say which patch is of which product, so nothing is routed; what
    a product keeps of it shrinks as others come. The score is PatchCore's, as in the paper.

    Where this departs from the paper: a task's candidates are a random part of its patches and come as one
    batch; distances of selection are those of a random projection; the backbone is the bench's and nothing
    in front of the bank learns; the paper gives no number of neighbours for the score, PatchCore's is taken.
    """

    name = "shared-coreset"
    title = "shared coreset"
    source = "CADIC (Yang et al. 2025, arXiv 2511.08634): the incremental coreset on the bench's features"

    def __init__(self, setting: Setting, options: SharedBankOptions = COMMON) -> None:
        super().__init__(setting)
        self.options = options
        self.bank: Bank | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        size = f"one bank of {self.options.size:,} patches"
        return "CADIC's update on frozen features", size, *self.options.notes(self.setting.channels)

    def learn(self, products: Sequence[Pictures]) -> None:
        """Fills or updates the bank; products of one task share the candidates equally."""
        drawn = []
        for pictures in products:
            require_images(pictures)
            count = max(1, self.options.candidates // len(products))
            drawn.append(candidates(pictures.features, range(len(pictures)), self.setting, count))
        new = torch.cat(drawn)
        old = new[:0] if self.bank is None else self.bank.patches.half()
        self.bank = Bank(updated(old, new, self.setting, self.options).float())

    @torch.no_grad()
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """Every image against the whole bank, whatever its product is."""
        if self.bank is None:
            raise TaskError("expected products to be learned before an inspection, got none")
        for i in range(len(pictures)):
            features = pictures.features[i : i + 1].float()
            yield inspect_bank(self.bank, features, self.setting, self.options.neighbours)

    def state(self) -> State:
        """The bank, float16."""
        return State({} if self.bank is None else {"shared/bank": self.bank.patches.half().cpu()})

    def restore(self, state: State) -> None:
        """The bank as it was, or none."""
        stored = state.tensors.get("shared/bank")
        self.bank = None if stored is None else Bank(stored.to(self.setting.device).float())


def updated(old: Tensor, new: Tensor, setting: Setting, options: SharedBankOptions) -> Tensor:
    """The patches (m, D) float16 of a bank that was `old` (m', D) and meets new ones (n, D)."""
    patches = torch.cat([old, new])
    points = projected(patches, setting, options)
    kept = list(range(len(old)))
    if len(kept) < options.size:
        kept = _filled(points, len(kept), options.size, setting.seed)
    waiting = sorted(set(range(len(old), len(patches))) - set(kept))
    return patches[_exchanged(points, kept, waiting)]


def _filled(points: Tensor, held: int, size: int, seed: int) -> list[int]:
    """The first `held` points and those farthest from all taken so far, up to `size` in all."""
    if held:
        nearest = torch.cat([_squared(rows, points[:held]).amin(1) for rows in points.split(ROWS)])
        return greedy_centres(points, size, list(range(held)), nearest)
    if len(points) <= size:
        return list(range(len(points)))
    first = int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed)))
    return greedy_centres(points, size, [first])


def _exchanged(points: Tensor, kept: list[int], waiting: list[int]) -> list[int]:
    """The indices kept once no waiting point is farther from them than the closest two are apart."""
    if len(kept) < 2 or not waiting:
        return kept
    bank, pool, kept = points[kept], points[waiting], list(kept)
    least = ROUNDING * float(points.square().sum(1).max())
    inside, outside = _Nearest.within(bank), _Nearest.to(pool, bank)
    while True:
        far, close = int(outside.distance.argmax()), int(inside.distance.argmin())
        close = min(close, int(inside.index[close]))  # the same of the two, whatever rounding says
        if float(outside.distance[far]) <= max(float(inside.distance[close]), least):
            return kept
        kept[close], bank[close] = waiting[far], pool[far]
        inside.exchange(bank, bank, close)
        outside.exchange(pool, bank, close)
        outside.distance[far] = -1.0  # it has been in


@dataclass(eq=False)
class _Nearest:
    """The nearest point of a bank to each of some points, kept up to date while the bank changes.

    Attributes:
        distance: squared, (n,); infinite from a point of the bank to itself, -1 for what no longer counts.
        index: which point of the bank that is, (n,).
        own: whether the points are the bank's own.
    """

    distance: Tensor
    index: Tensor
    own: bool

    @classmethod
    def to(cls, points: Tensor, bank: Tensor) -> _Nearest:
        """Of points (n, d) that are not in the bank (m, d)."""
        found = [_squared(rows, bank).min(1) for rows in points.split(ROWS)]
        return cls(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]), own=False)

    @classmethod
    def within(cls, bank: Tensor) -> _Nearest:
        """Of the bank's own points (m, d), each but for itself."""
        index = torch.empty(len(bank), dtype=torch.long, device=bank.device)
        nearest = cls(bank.new_empty(len(bank)), index, own=True)
        for rows in torch.arange(len(bank), device=bank.device).split(ROWS):
            nearest._look_again(bank, bank, rows)
        return nearest

    def exchange(self, points: Tensor, bank: Tensor, place: int) -> None:
        """Another point has come to this place of the bank."""
        to_new = _squared(bank[place : place + 1], points)[0]
        lost = (self.index == place) & (self.distance >= 0)
        if self.own:
            to_new[place] = torch.inf
            lost[place] = True
        nearer = (to_new < self.distance) & ~lost
        self.distance[nearer], self.index[nearer] = to_new[nearer], place
        for rows in lost.nonzero()[:, 0].split(ROWS):
            self._look_again(points, bank, rows)

    def _look_again(self, points: Tensor, bank: Tensor, rows: Tensor) -> None:
        table = _squared(points[rows], bank)
        if self.own:
            table[torch.arange(len(rows), device=rows.device), rows] = torch.inf
        self.distance[rows], self.index[rows] = table.min(1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m)."""
    table = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    return table.add_(a.square().sum(1)[:, None]).clamp_min_(0)
