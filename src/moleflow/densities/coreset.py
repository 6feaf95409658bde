"""A few remembered patches of a product: how far a patch lies from the nearest thing that was ever good.

A Gaussian says how unusual a patch is for its place; a remembered patch says that something like it was seen
at all. What a density finds ordinary because it lies between two kinds of good patches is far from both.
Patches are compared in what they show, whatever its contrast: every layer of the backbone is of one length in
them, so that none speaks louder for having more channels or greater numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Coreset
from ..errors import ConfigError
from ..features.finite import require_finite
from ..flow.whitening import layer_norm
from ..packing import nibbles, pack, packed, paired, parted, unpack

ROUNDING = 1e-6  # squared distances below this share of the largest squared norm are float32's own error
AT_HAND = 2048  # farthest points among which the next centres are sought
WIDE = 512  # channels from which on axes are found by iteration
ITERATIONS = 4
ROWS = 1024  # patches compared at a time: their table of distances stays in the cache
ALONG = 128  # the same along axes, from more patches


@dataclass(frozen=True, eq=False)
class PatchCoreset:
    """Normalised patches of good images such that no good one is far from all of them, in few bits.

    A patch is kept as numbers along a few axes about a centre, in which these patches differ most. That is
    rounding like any other: distances are exact ones, from the patches that are kept, over all channels.

    Attributes:
        codes: (m, r) uint8.
        low: (r,), what code 0 stands for.
        step: (r,), between two codes.
        frame: what the numbers are counted along; None: the channels themselves, r = D.
        bits: that a file keeps a code in.
        layers: as of `normalised`.
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    frame: Frame | None = None
    bits: int = 8
    layers: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, patches: Tensor, bits: int = 8, layers: tuple[int, ...] = (), rank: int | None = None
    ) -> PatchCoreset:
        """Of normalised patches (m, D), rounded to 16 or 256 levels of their range along each axis."""
        frame = None if rank is None or rank >= patches.shape[1] else Frame.of(patches, rank)
        along = patches if frame is None else frame.along(patches)
        low, high = along.min(0).values, along.max(0).values
        most = 2**bits - 1
        step = ((high - low) / most).clamp_min(1e-9)
        codes = ((along - low) / step).round().clamp(0, most).to(torch.uint8)
        return cls(codes, low, step, frame, bits, layers)

    @property
    def points(self) -> Tensor:
        """Where along the axes the patches lie, (m, r) float32."""
        return torch.addcmul(self.low, self.codes.float(), self.step)

    @property
    def patches(self) -> Tensor:
        """(m, D) float32, as they are compared."""
        return self.points if self.frame is None else self.frame.patches(self.points)

    def __call__(self, features: Tensor) -> Tensor:
        """Euclidean distance of every patch from the nearest, (B, h, w), for raw features (B, h, w, D)."""
        if self.frame is None:
            return distances(features, self.patches, self.layers)
        points = self.points
        return distances_along(features, points, self.frame.norms(points), self.frame, self.layers)

    def to(self, device: torch.device | str) -> PatchCoreset:
        """On another device."""
        kept = (self.codes.to(device), self.low.to(device), self.step.to(device))
        frame = None if self.frame is None else self.frame.to(device)
        return PatchCoreset(*kept, frame, self.bits, self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        own = self.codes.nbytes + self.low.nbytes + self.step.nbytes
        return own if self.frame is None else own + self.frame.centre.nbytes + self.frame.axes.nbytes

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        kept = {"low": self.low, "step": self.step}
        if self.bits == 8:
            kept["codes"] = self.codes
        else:
            kept[nibbles(len(self.low)).lstrip(".")] = paired(self.codes)
        return kept if self.frame is None else kept | self.frame.tensors()

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], layers: tuple[int, ...] = ()) -> PatchCoreset:
        """The inverse of `tensors`, to the bit."""
        low, step, frame = tensors["low"], tensors["step"], Frame.from_tensors(tensors)
        if "codes" in tensors:
            return cls(tensors["codes"], low, step, frame, 8, layers)
        codes = parted(tensors[nibbles(len(low)).lstrip(".")], len(low))
        return cls(codes, low, step, frame, 4, layers)


@dataclass(frozen=True, eq=False)
class Frame:
    """A few axes about a centre, that patches are counted along.

    Attributes:
        centre: (D,).
        axes: (r, D), nearly at right angles: as 8 bits a number hold them.
    """

    centre: Tensor
    axes: Tensor

    @classmethod
    def of(cls, patches: Tensor, rank: int) -> Frame:
        """The principal axes of patches (m, D)."""
        centre = patches.mean(0)
        own = (patches - centre).double()
        if own.shape[1] <= WIDE:
            axes = torch.linalg.eigh(own.T @ own).eigenvectors[:, -rank:]
        else:
            axes = _leading(own, rank)
        return cls(centre, unpack(*pack(axes.T.flip(0).float())))

    def to(self, device: torch.device | str) -> Frame:
        """On another device."""
        return Frame(self.centre.to(device), self.axes.to(device))

    def along(self, patches: Tensor) -> Tensor:
        """What of patches (m, D) comes nearest to them along the axes, (m, r)."""
        return torch.linalg.lstsq(self.axes.T, (patches - self.centre).T).solution.T

    def patches(self, points: Tensor) -> Tensor:
        """Patches (m, D) at points (m, r) along the axes."""
        return torch.addmm(self.centre, points, self.axes)

    def norms(self, points: Tensor) -> Tensor:
        """Squared distances of points (m, r) along the axes from the centre, (m,)."""
        return (points @ self.axes).square().sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        return {"centre": self.centre, **packed("axes", self.axes)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Frame | None:
        """The inverse of `tensors`, to the bit; None where there is none among them."""
        if "centre" not in tensors:
            return None
        return cls(tensors["centre"], unpack(tensors["axes.codes"], tensors["axes.step"]))


def _leading(rows: Tensor, rank: int) -> Tensor:
    """Nearly the `rank` principal axes (D, rank) of rows (m, D), the greatest last: by subspace iteration.

    The full decomposition takes seconds where there are more than a thousand channels.
    """
    generator = torch.Generator().manual_seed(0)
    begun = torch.randn(rows.shape[1], min(2 * rank, rows.shape[1]), generator=generator, dtype=torch.float64)
    basis = begun.to(rows.device)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    inside = rows @ basis
    return basis @ torch.linalg.eigh(inside.T @ inside).eigenvectors[:, -rank:]


def normalised(features: Tensor, layers: Sequence[int]) -> Tensor:
    """Patches (…, D) as they are compared.

    With layers, their numbers of channels one behind the other, the part of each has the same length;
    without, patches are layer-normalised as a whole. A whole patch has the length of its channels' root.
    """
    if not layers:
        return layer_norm(features)
    length = math.sqrt(features.shape[-1] / len(layers))
    # As `F.normalize`, without writing every length as often as there are channels.
    parts = [
        part / part.norm(dim=-1, keepdim=True).clamp_min(1e-12) for part in features.split(list(layers), -1)
    ]
    return torch.cat([part * length for part in parts], -1)


def distances(features: Tensor, patches: Tensor, layers: Sequence[int] = ()) -> Tensor:
    """Euclidean distance of every patch from the nearest of `patches` (m, D), normalised; (B, h, w)."""
    # About their mean: smaller numbers, smaller errors of their products.
    centre = patches.mean(0)
    own = patches - centre
    x = normalised(features.float(), layers).flatten(0, 2) - centre
    return _nearest(x, x, own, own.square().sum(1), ROWS).view(features.shape[:3])


def distances_along(
    features: Tensor, points: Tensor, norms: Tensor, frame: Frame, layers: Sequence[int] = ()
) -> Tensor:
    """The same, (B, h, w), of patches that lie at points (m, r) of a frame, `norms` (m,) from its centre.

    What a patch x has across the axes is in |x|^2: |x - p A|^2 = |x|^2 - 2 (x A^T) p^T + |p A|^2.
    """
    x = normalised(features.float(), layers).flatten(0, 2) - frame.centre
    return _nearest(x, x @ frame.axes.T, points, norms, ALONG).view(features.shape[:3])


def _nearest(x: Tensor, along: Tensor, points: Tensor, norms: Tensor, rows: int) -> Tensor:
    """Distances (n,) of patches (n, D), that lie so along the axes (n, r), from the nearest of the points."""
    squared = torch.cat(
        [torch.addmm(norms, part, points.T, alpha=-2).amin(1) for part in along.split(rows)]
    ) + x.square().sum(1)
    return squared.clamp_min(0).sqrt()


@dataclass(frozen=True, eq=False)
class Candidates:
    """Patches that coresets of one product are selected from, and which of them the coreset of all has.

    Attributes:
        mean: of the normalised patches, (D,).
        points: these about it, (n, D) float32: smaller numbers, smaller errors of their products.
        owners: the block of each, -1 for none, (n,).
        options: how many are selected.
        chosen: by the coreset of all, in the order of the choice.
        nearest: of each owner's chosen ones, how far the nearest is from every point, squared, (k, n).
        names: whose these are, (k,).
    """

    mean: Tensor
    points: Tensor
    owners: Tensor
    options: Coreset
    chosen: Tensor
    nearest: Tensor
    names: Tensor

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
            blocks: of each image; None for one that is never left out.
            options: how many.
            seed: of what chance decides.
            known: normalised patches (m, D) that are candidates whatever is left out.

        Raises:
            TrainingError: features that are no numbers.
            ConfigError: no layers, or of other channels than the features have.
        """
        require_finite(features)
        layers = options.compared
        if layers and sum(layers) != features.shape[-1]:
            raise ConfigError(f"Coreset.layers: expected {features.shape[-1]} channels in all, got {layers}")
        count, height, width, channels = features.shape
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count * height * width, generator=generator)
        drawn = order[: options.candidates].sort().values
        image, place = drawn // (height * width), drawn % (height * width)
        points = torch.cat(
            [
                normalised(
                    features[i].reshape(-1, channels)[place[image == i].to(features.device)].float(),
                    layers,
                )
                for i in image.unique().tolist()
            ]
        )
        owners = torch.tensor([-1 if block is None else block for block in blocks])[image]
        if known is not None and len(known):
            points = torch.cat([points, known.to(points)])
            owners = torch.cat([owners, torch.full((len(known),), -1)])
        mean, owners = points.mean(0), owners.to(points.device)
        points = points - mean
        return cls(mean, points, owners, options, *_chosen(points, owners, options.patches))

    def coreset(self) -> PatchCoreset:
        """Of all candidates."""
        return self._coreset(self.chosen)

    @torch.no_grad()
    def without(self, block: int) -> PatchCoreset:
        """Of all but a block's: those of the others that are chosen anyway, and the farthest from these.

        Not quite what would be selected if the block did not exist: where one of its patches was chosen
        its like were not, and are now only if they are among the farthest. So its patches are a little far.
        """
        own, size = self.owners == block, self.options.patches
        kept = (~own).nonzero()[:, 0]
        if len(kept) <= size:
            return self._coreset(kept)
        begun = self.chosen[~own[self.chosen]]
        if len(begun):
            nearest = self.nearest[self.names != block].amin(0)
        else:
            begun = kept[_middle(self.points[kept])][None]
            nearest = (self.points - self.points[begun]).square().sum(1)
        nearest = nearest.masked_fill(own, -torch.inf)  # never the farthest
        return self._coreset(torch.tensor(greedy_centres(self.points, size, begun.tolist(), nearest)))

    def _coreset(self, chosen: Tensor) -> PatchCoreset:
        own = self.options
        return PatchCoreset.of(self.points[chosen] + self.mean, own.bits, own.compared, own.rank)


def _chosen(points: Tensor, owners: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Up to `size` centres of points (n, d) about their mean, as `greedy_centres` takes them.

    What costs is to read all points for every centre. So the farthest ones are kept at hand: distances only
    shrink, and as long as one of these is still as far as the nearest of them was when they were taken, it is
    the farthest of all. All points are read once for all centres found so.

    Returns:
        Indices of the centres; of all points where they are no more. How far the nearest of each owner's is
        from every point, squared, (k, n). The owners (k,).
    """
    names = owners.unique()
    nearest = torch.full((len(names), len(points)), torch.inf, device=points.device)
    if len(points) <= size:
        return torch.arange(len(points), device=points.device), nearest, names
    norms = points.square().sum(1)
    centres: list[int] = []
    found = [_middle(points)]
    while found:
        centres += found
        whose = owners[found].tolist()
        _approach(
            nearest,
            points,
            norms,
            [[i for i, owner in zip(found, whose, strict=True) if owner == name] for name in names.tolist()],
        )
        least = ROUNDING * float(norms.max())
        found = _farthest(points, norms, nearest.amin(0), size - len(centres), least)
    return torch.tensor(centres, device=points.device), nearest, names


def _middle(points: Tensor) -> int:
    """Which point (n, d) is nearest to their mean."""
    return int((points - points.mean(0)).square().sum(1).argmin())


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
    names = sorted(set(itertools.chain(*found)))
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
