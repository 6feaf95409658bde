"""Two training-free rivals with routers of their own: GCR's prototypes and DINOSaur's banks by place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import check
from ...features.extractor import Features
from ...verdict.maps import smooth
from .banks import Bank, Selection, candidates, local_patches, require_images, select
from .base import Inspection, OwnRouter, Pictures, Setting, State

WINDOW = 8  # side of the square of places that are compared at a time


@dataclass(frozen=True)
class PrototypeOptions:
    """Options of GCR, the paper's defaults.

    Attributes:
        size: K, prototypes of a product.
        nearest: K', of them that a patch's energy sums over.
        tokens: M_r, places of the grid that are looked at to find the product.
        share: of the patches, the highest, whose mean is the image's score.
        candidates: patches drawn at random to select prototypes from.
    """

    size: int = 196
    nearest: int = 16
    tokens: int = 32
    share: float = 0.01
    candidates: int = 100_000

    def __post_init__(self) -> None:
        check(self, positive=("size", "nearest", "tokens", "candidates"), share=("share",))


GCR_OPTIONS = PrototypeOptions()


class GCR(OwnRouter):
    """Geometry-consistent routing, Chae et al. 2026 (arXiv 2601.01856).

    A greedy k-centre bank of prototypes per product. An image belongs to the product whose prototypes are
    nearest, by the sum of squared distances over a few of its patches; a patch's energy is
    -log sum_k exp(-|x - m_k|^2 / 2) / K over the nearest prototypes of that product alone.

    Where this departs from the paper: the bench's features instead of a block of CLIP's transformer;
    candidates are a random part of all patches; the places looked at are drawn once from the seed instead of
    anew for every batch; the image's score comes from patches instead of interpolated pixels.
    """

    name = "gcr"
    title = "GCR"
    source = "Chae et al., GCR: Geometry-Consistent Routing (2026, arXiv 2601.01856)"

    def __init__(self, setting: Setting, options: PrototypeOptions = GCR_OPTIONS) -> None:
        super().__init__(setting)
        self.options = options
        generator = torch.Generator().manual_seed(setting.seed)
        order = torch.randperm(setting.grid[0] * setting.grid[1], generator=generator)
        self._places = order[: options.tokens]

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        return (
            f"{self.options.size} prototypes a product on the bench's features instead of CLIP's",
            f"routed by {len(self._places)} places, the same for every image",
        )

    def learn_part(self, pictures: Pictures) -> Bank:
        """The prototypes of all images."""
        require_images(pictures)
        own = self.options
        drawn = candidates(pictures.features, range(len(pictures)), self.setting, own.candidates)
        selection = Selection(candidates=own.candidates, projection=self.setting.channels)
        return select(drawn, own.size, self.setting, selection)

    def distance(self, part: Bank, pictures: Pictures, image: int) -> float:
        """Sum of squared distances of some patches from a product's prototypes."""
        patches = local_patches(pictures.features[image : image + 1].float(), self.setting)
        found = part.nearest(patches.flatten(0, 2)[self._places])
        return float(found.distance.square().sum())

    def inspect_part(self, part: Bank, seen: Features) -> Inspection:
        """Smoothed energies, and the mean of the highest ones as the image's score."""
        x = local_patches(seen.patches, self.setting)
        squared = torch.cdist(x.flatten(0, 2), part.patches).square()
        count = min(self.options.nearest, len(part.patches))
        near = squared.topk(count, dim=1, largest=False).values
        energy = -torch.logsumexp(-0.5 * near, dim=1) + math.log(len(part.patches))
        maps = smooth(energy.view(1, *x.shape[1:3]), self.setting.config.scoring.smoothing)
        top = max(1, round(self.options.share * maps[0].numel()))
        score = float(maps.flatten().topk(top).values.mean())
        return Inspection(task=None, known=None, score=score, patch_map=maps[0].cpu().numpy())

    def part_state(self, part: Bank) -> State:
        """The prototypes, float16."""
        return State({"prototypes": part.patches.half().cpu()})

    def part_from(self, state: State) -> Bank:
        """The inverse of `part_state`."""
        return Bank(state.tensors["prototypes"].to(self.setting.device).float())


@dataclass(frozen=True)
class PlaceOptions:
    """Options of DINOSaur, the paper's defaults.

    Attributes:
        share: rho, of a product's images, the patches that every place keeps.
        least: patches a place keeps at least, where there are so many images.
        radius: r, in patches, of the square around a place in which neighbours are sought.
    """

    share: float = 0.1
    least: int = 20
    radius: int = 3

    def __post_init__(self) -> None:
        check(self, positive=("least",), least_zero=("radius",), share=("share",))

    def size(self, images: int) -> int:
        """Patches of a place kept from so many images."""
        return min(images, max(self.least, int(self.share * images)))


DINOSAUR_OPTIONS = PlaceOptions()


@dataclass(frozen=True, eq=False)
class _Places:
    """A product: banks of all places (h, w, M, D) float32 that 16 bits hold, and its mean descriptor (D,)."""

    banks: Tensor
    prototype: Tensor


class DINOSaur(OwnRouter):
    """Banks of patches by place, Weatherly and Lin, ECCV 2026 (arXiv 2605.24251).

    Every place of the grid keeps a greedy k-centre selection of the patches that good images show there; a
    patch's score is its distance from the nearest patch kept within a few places around, and the image's
    score is the largest. An image belongs to the product with the nearest mean descriptor.

    Where this departs from the paper: the bench's features and their spatial mean instead of DINOv3's patches
    and class token. The radius is the paper's in patches, and so a smaller part of a finer grid.
    """

    name = "dinosaur"
    title = "DINOSaur"
    source = "Weatherly and Lin, Rethinking Continual Anomaly Detection on the Edge, ECCV 2026"

    def __init__(self, setting: Setting, options: PlaceOptions = DINOSAUR_OPTIONS) -> None:
        super().__init__(setting)
        self.options = options

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        return (
            "the bench's features and their spatial mean instead of DINOv3's patches and class token",
            f"{100 * self.options.share:g} % of the images kept at every place, radius {self.options.radius}",
        )

    def learn_part(self, pictures: Pictures) -> _Places:
        """The banks of all places, and the mean descriptor."""
        require_images(pictures)
        generator = torch.Generator().manual_seed(self.setting.seed)
        size = self.options.size(len(pictures))
        rows = []
        for row in range(self.setting.grid[0]):
            points = pictures.features[:, row].float().transpose(0, 1).contiguous()  # (w, N, D)
            first = torch.randint(len(pictures), (len(points),), generator=generator)
            rows.append(_spread_points(points, size, first.to(points.device)))
        return _Places(torch.stack(rows), pictures.descriptors.mean(0).float())

    def distance(self, part: _Places, pictures: Pictures, image: int) -> float:
        """Between the image's descriptor and the product's mean."""
        return float((pictures.descriptors[image].float() - part.prototype).norm())

    def inspect_part(self, part: _Places, seen: Features) -> Inspection:
        """Smoothed distances, and the largest as the image's score."""
        distances = nearest_around(seen.patches[0], part.banks, self.options.radius)
        maps = smooth(distances[None], self.setting.config.scoring.smoothing)
        return Inspection(task=None, known=None, score=float(maps.max()), patch_map=maps[0].cpu().numpy())

    def part_state(self, part: _Places) -> State:
        """The banks, float16, and the descriptor."""
        return State({"banks": part.banks.half().cpu(), "prototype": part.prototype})

    def part_from(self, state: State) -> _Places:
        """The inverse of `part_state`."""
        return _Places(state.tensors["banks"].to(self.setting.device).float(), state.tensors["prototype"])


def _spread_points(points: Tensor, size: int, first: Tensor) -> Tensor:
    """Of every group of points (G, N, D) those that greedy k-centre takes, (G, size, D), from `first` on."""
    groups = torch.arange(len(points), device=points.device)
    chosen, last = [first], first
    nearest = points.new_full(points.shape[:2], torch.inf)
    while len(chosen) < size:
        distance = (points - points[groups, last][:, None]).square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        nearest[groups, last] = -1.0  # copies are taken last, nothing twice
        last = nearest.argmax(1)
        chosen.append(last)
    return points[groups[:, None], torch.stack(chosen, 1)]


def nearest_around(patches: Tensor, banks: Tensor, radius: int) -> Tensor:
    """Distance (h, w) of patches (h, w, D) from the nearest in the banks (h, w, M, D) of places around.

    A square of places is compared at a time with all banks that any of them may look into; those out of a
    place's own reach do not count for it.
    """
    height, width, _ = patches.shape
    found = patches.new_empty(height, width)
    for top in range(0, height, WINDOW):
        for left in range(0, width, WINDOW):
            rows, columns = _within(top, height, 0), _within(left, width, 0)
            far_rows, far_columns = _within(top, height, radius), _within(left, width, radius)
            around = banks[far_rows][:, far_columns]
            squared = _squared(patches[rows][:, columns].flatten(0, 1), around.flatten(0, 2))
            least = squared.view(len(rows), len(columns), *around.shape[:3]).amin(-1)
            least.masked_fill_(_beyond(rows, far_rows, radius, least)[:, None, :, None], torch.inf)
            least.masked_fill_(_beyond(columns, far_columns, radius, least)[None, :, None, :], torch.inf)
            found[top : top + len(rows), left : left + len(columns)] = least.flatten(2).amin(-1).sqrt()
    return found


def _beyond(here: Tensor, there: Tensor, radius: int, like: Tensor) -> Tensor:
    """Which positions are out of each other's reach, on the device of `like`."""
    return ((here[:, None] - there).abs() > radius).to(like.device)


def _within(start: int, length: int, margin: int) -> Tensor:
    """Positions of a window that begins at `start`, and as many beside it as the margin says."""
    return torch.arange(max(0, start - margin), min(length, start + WINDOW + margin))


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) of nearby points, about their common mean."""
    centre = a.mean(0)
    a, b = a - centre, b - centre
    table = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    return table.add_(a.square().sum(1)[:, None]).clamp_min_(0)
