"""A Gaussian for every cell of a coarse grid: where a patch lies decides what is normal there.

It sees patches as they are, with their magnitude, and knows each place by itself. A product's flow begins
with it (`flow.start`); a flow over normalised patches has it beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Cells
from ..packing import levels, packed, unpacked
from ..threads import one_thread


class CellGaussians(nn.Module):
    """Mean per place and covariance per cell of a patch grid (PaDiM, Defard 2021, made small).

    The mean is kept on a `mean_side` x `mean_side` grid and interpolated; a cell's covariance keeps its
    `rank` strongest directions, and everything else counts as noise of variance rho, so that

        squared_mahalanobis(x) = (|x - mean|^2 - |A (x - mean)|^2) / rho

    with the rows of A the directions u_i * sqrt(lambda_i / (lambda_i + rho)) (Woodbury).

    Args:
        grid: patch grid (h, w).
        channels: D.
        config: sizes and the ridge.
    """

    mean: Tensor
    directions: Tensor
    noise: Tensor
    variances: (
        Tensor  # (cells, rank) along the directions, (cells,) outside of them: only `sample` needs them
    )
    rest: Tensor
    _members: Tensor
    _cell_of: Tensor

    def __init__(self, grid: tuple[int, int], channels: int, config: Cells) -> None:
        super().__init__()
        self.grid, self.config = grid, config
        self.sides = min(config.side, grid[0]), min(config.side, grid[1])
        self.rank = min(config.rank, channels)
        mean_sides = [min(config.mean_side, length) for length in grid]
        self.register_buffer("mean", torch.zeros(*mean_sides, channels))
        self.register_buffer("directions", torch.zeros(self.sides[0] * self.sides[1], self.rank, channels))
        self.register_buffer("noise", torch.ones(()))
        self.register_buffer("variances", torch.zeros(self.directions.shape[:2]))
        self.register_buffer("rest", torch.zeros(self.directions.shape[0]))
        members, owners = _parting(grid, self.sides)
        self.register_buffer("_members", torch.from_numpy(members.copy()), persistent=False)
        self.register_buffer("_cell_of", torch.from_numpy(owners.copy()), persistent=False)
        self._known: tuple[Tensor, int, tuple[Tensor, Tensor, Tensor]] | None = None
        self._places: tuple[Tensor, int, Tensor] | None = None

    @classmethod
    def of(cls, features: Tensor, config: Cells) -> CellGaussians:
        """Learned from raw patch features (N, h, w, D) of good images, in closed form, where these lie."""
        return fit_without_each(features, [None] * len(features), config)[0]

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Learns the same in place."""
        self.load_state_dict(CellGaussians.of(features, self.config).state_dict())

    def forward(self, features: Tensor) -> Tensor:
        """Mahalanobis distance of every patch, (B, h, w), for raw features (B, h, w, D)."""
        if self.config.bits < 16:  # directions are not quite at right angles, and whitening knows
            return self.whiten(features)[0].norm(dim=-1)
        x = (features.float() - self._mean_grid()).flatten(1, 2)
        inside = torch.einsum("bcnd,crd->bcnr", x[:, self._members], self.directions).square().sum(-1)
        within = torch.empty_like(x[..., 0])
        within[:, self._members] = inside
        outside = x.square().sum(-1) - within
        return (outside.clamp_min(0) / self.noise).sqrt().unflatten(1, self.grid)

    def whiten(self, features: Tensor, patches: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raw features (B, h, w, D) to white ones, and the log-determinant per patch (B, h, w).

        y = (1 + U (sqrt(rho / (lambda + rho)) - 1) U^T) (x - mean) / sqrt(rho), the symmetric square root of
        the Gaussian's precision: |y| is the Mahalanobis distance.

        Args:
            features: of the whole grid, or of any patches.
            patches: their numbers on the grid, (B, h, w); the whole grid's by default.
        """
        if patches is None:
            x = (features.float() - self._mean_grid()).flatten(1, 2)
            gathered = x[:, self._members]  # B, cells, most, D
            axes, shrink, log_dets = self._white
            cell = self._cell_of
            along = torch.einsum("bcnd,crd->bcnr", gathered, axes)
            y = torch.empty_like(x)
            y[:, self._members] = gathered + torch.einsum("bcnr,cr,crd->bcnd", along, shrink, axes)
            y = y.unflatten(1, self.grid)
            log_det = log_dets[cell].view(1, *self.grid).expand(y.shape[:-1])
        else:
            axes, shrink, log_dets = self._white
            cell = self._cell_of[patches.flatten()]
            x = (features.float() - self._mean_grid().flatten(0, 1)[patches]).flatten(0, -2)
            members, slot = _grouped(cell, len(axes))
            gathered = x[members]  # by cell as above: axes gathered by patch would be many times as large
            along = torch.einsum("cnd,crd->cnr", gathered, axes)
            grouped = gathered + torch.einsum("cnr,cr,crd->cnd", along, shrink, axes)
            y = grouped[cell, slot].view(features.shape)
            log_det = log_dets[cell].view(patches.shape)
        return y / self.noise.sqrt(), log_det

    def unwhiten(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `whiten` over the whole grid, and its log-determinant."""
        x = (white * self.noise.sqrt()).flatten(1, 2)
        axes, shrink, log_dets = self._white
        gathered, axes, shrink = x[:, self._members], axes.double(), shrink.double()
        # (1 + U S U^T)^-1 = 1 - U (1 + S U^T U)^-1 S U^T
        inner = torch.eye(axes.shape[1], device=axes.device) + shrink[..., None] * (axes @ axes.mT)
        undo = torch.linalg.solve(inner, torch.diag_embed(shrink) @ axes)
        along = torch.einsum("bcnd,crd->bcnr", gathered.double(), undo)
        y = torch.empty_like(x)
        y[:, self._members] = gathered - torch.einsum("bcnr,crd->bcnd", along, axes).float()
        log_det = -log_dets[self._cell_of].view(1, *self.grid).expand(white.shape[:-1])
        return y.unflatten(1, self.grid) + self._mean_grid(), log_det

    @property
    def _white(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `whiten` needs of every cell, worked out once for the same directions.

        The axes u_i (cells, rank, D), orthonormal but for rounding, zeros where there are fewer; what is
        added to 1 along each, sqrt(rho / (lambda + rho)) - 1 (cells, rank), from the length of the
        directions; and the log-determinants (cells,).
        """
        source, version = self.directions, self.directions._version
        if self._known is None or self._known[0] is not source or self._known[1] != version:
            axes = F.normalize(self.directions, dim=-1)
            length = self.directions.square().sum(-1).clamp(max=1 - 1e-6)
            shrink = (1 - length).sqrt() - 1
            # det(1 + U S U^T) = det(1 + S U^T U), where U is orthonormal but for rounding
            inner = torch.eye(axes.shape[1], device=axes.device)
            inner = inner + shrink.double()[..., None] * (axes.double() @ axes.double().mT)
            scale = 0.5 * self.mean.shape[-1] * self.noise.double().log()
            log_dets = (torch.linalg.slogdet(inner).logabsdet - scale).float()
            self._known = source, version, (axes, shrink, log_dets)
        return self._known[2]

    @property
    def nbytes(self) -> int:
        """Bytes in memory once it has been used: what it holds, and what it works out of that once."""
        numbers = sum(tensor.nbytes for tensor in self.buffers())
        worked_out = 2 * self.directions.nbytes + self.mean.nbytes * math.prod(self.grid) // max(
            1, math.prod(self.mean.shape[:2])
        )
        return numbers + worked_out

    def kept(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        parts: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            if name not in ("mean", "directions"):
                parts[name] = tensor
            elif self.config.bits == 16:
                parts[name] = tensor.half()
            elif name == "mean":  # every channel in its own range
                parts |= packed(name, tensor.flatten(0, 1).T)
            else:
                parts |= packed(name, tensor, self.config.bits, lengths=True)
        return parts

    @classmethod
    def from_kept(
        cls, grid: tuple[int, int], channels: int, config: Cells, kept: dict[str, Tensor]
    ) -> CellGaussians:
        """The inverse of `kept`, to the bit. Raises KeyError or RuntimeError on a misfit."""
        cells = cls(grid, channels, config)
        cells.load_state_dict(cells._state(kept))
        return cells

    def _state(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        state = unpacked(kept)
        state["mean"] = state["mean"].T if state["mean"].ndim == 2 else state["mean"]
        return state | {"mean": state["mean"].reshape(self.mean.shape)}

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Raw features (count, h, w, D) drawn from the Gaussians: what the product used to look like."""
        channels = self.mean.shape[-1]
        x = self._mean_grid().cpu().expand(count, *self.grid, channels).clone()
        for i, (rows, columns) in enumerate(self._cells()):
            axes = F.normalize(self.directions[i].cpu(), dim=1)
            shape = x[:, rows, columns].shape
            along = torch.randn(*shape[:-1], self.rank, generator=generator) * self.variances[i].cpu().sqrt()
            noise = torch.randn(shape, generator=generator) * self.rest[i].cpu().sqrt()
            noise -= (noise @ axes.T) @ axes  # the rest lies outside the directions
            x[:, rows, columns] += along @ axes + noise
        return x.to(self.mean.device)

    def _mean_grid(self) -> Tensor:
        """The mean of every place, (h, w, D), interpolated once for the same mean."""
        source, version = self.mean, self.mean._version
        if self._places is None or self._places[0] is not source or self._places[1] != version:
            grid = F.interpolate(
                source.permute(2, 0, 1)[None], size=self.grid, mode="bilinear", align_corners=False
            )
            self._places = source, version, grid[0].permute(1, 2, 0).contiguous()
        return self._places[2]

    def _cells(self) -> list[tuple[slice, slice]]:
        return _cells(self.grid, self.sides)

    def _take(self, spectra: list[_Spectrum]) -> None:
        """Directions and noise from every cell's spectrum; the mean stands already."""
        channels = self.mean.shape[-1]
        # Never below what rounding the mean alone would make of it.
        if self.config.bits == 16:
            rounding = float(self.mean.square().mean()) * 2.0**-20
        else:
            rounding = float(self.mean.flatten(0, 1).abs().amax(0).square().mean()) / levels(8) ** 2
        rho = self.config.ridge * max(float(np.mean([s.average for s in spectra])), rounding, 1e-12)
        self.noise.fill_(rho)
        for i, s in enumerate(spectra):
            self.directions[i].copy_((s.vectors * torch.sqrt(s.values / (s.values + rho))).T)
            self.variances[i].copy_(s.values)
            outside = channels * s.average - float(s.values.sum())
            self.rest[i].fill_(max(outside, 0.0) / max(channels - self.rank, 1))
        # What is kept, so that saved cells are small and yet the very same ones.
        self.load_state_dict(self._state(self.kept()))


def _grouped(cell: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Patches by their cell: the numbers of each cell's, (cells, most), and every patch's slot among them.

    A cell with fewer names the first of all patches in the slots it leaves free.
    """
    order = cell.argsort(stable=True)
    counts = torch.bincount(cell, minlength=cells)
    first = counts.cumsum(0) - counts
    slot = torch.empty_like(cell)
    slot[order] = torch.arange(len(cell), device=cell.device) - first[cell[order]]
    members = cell.new_zeros(cells, int(counts.max()))
    members[cell, slot] = torch.arange(len(cell), device=cell.device)
    return members, slot


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Of one cell: its strongest variances (r,) and their directions (D, r), and the mean per channel."""

    values: Tensor
    vectors: Tensor
    average: float


@torch.no_grad()
@one_thread()
def fit_without_each(
    features: Tensor, blocks: Sequence[int | None], config: Cells
) -> tuple[CellGaussians, list[CellGaussians]]:
    """Cells of all images, and for every block those of all images outside of it.

    A block's share is taken out of the sums over all images, so that leaving every block out once costs
    little more than one fit: its moments are exact, and its directions start from those of all images
    and are improved by subspace iteration (Golub and Van Loan, Matrix Computations, 8.2).

    Args:
        features: raw patch features (N, h, w, D) of good images.
        blocks: of each image, 0, 1, ... without a gap; None for one that is never left out.
        config: sizes and the ridge.

    Returns:
        The cells of all images, and of all but block 0, all but block 1, and so on.
    """
    count, height, width, channels = features.shape
    members = _members(blocks)
    fits = [CellGaussians((height, width), channels, config).to(features.device) for _ in members]
    sums = torch.stack([_total(features, images) for images in members])  # the last is of no block
    left_out = sums[:-1]
    reference = sums.sum(0) / count
    shifts, totals = [], []
    for k, cells in enumerate(fits):
        kept = count - (len(members[k]) if k < len(left_out) else 0)
        total = sums.sum(0) - (left_out[k] if k < len(left_out) else 0)
        cells.mean.copy_(_reduced(total / kept, cells.mean.shape[0], cells.mean.shape[1]))
        shifts.append((cells._mean_grid() - reference, kept))
        totals.append(total - kept * reference)
    spectra: list[list[_Spectrum]] = [[] for _ in fits]
    for rows, columns in fits[-1]._cells():
        here = features[:, rows, columns]  # a view: only the cell's own patches are copied, block by block
        parts = [_scatter(here[images], reference[rows, columns]) for images in members]
        whole = torch.stack(parts).sum(0)
        start: Tensor | None = None
        for k in reversed(range(len(fits))):  # that of all images first: the others begin with its directions
            shift, kept = shifts[k][0][rows, columns].flatten(0, 1).double(), shifts[k][1]
            cross = totals[k][rows, columns].flatten(0, 1).double().T @ shift
            scatter = whole - parts[k] if k < len(left_out) else whole
            scatter = scatter - cross - cross.T + kept * shift.T @ shift
            covariance = (scatter / (kept * len(shift))).cpu()
            values, vectors = _strongest(covariance, fits[k].rank, start)
            start = vectors if start is None else start
            rank = slice(-fits[k].rank, None)
            spectrum = values[rank].clamp_min(0).float(), vectors[:, rank].float()
            spectra[k].append(_Spectrum(*spectrum, float(covariance.diagonal().mean())))
    for cells, found in zip(fits, spectra, strict=True):
        cells._take(found)
    return fits[-1], fits[:-1]


SPARE = 8  # directions beyond the rank that subspace iteration carries along
ITERATIONS = 3  # of it


def _strongest(covariance: Tensor, rank: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and -vectors of a matrix (D, D): the strongest `rank` and some more."""
    if start is None or rank + SPARE >= len(covariance):
        values, vectors = torch.linalg.eigh(covariance)
        return values[-rank - SPARE :], vectors[:, -rank - SPARE :]
    basis = start
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(covariance @ basis).Q
    values, inside = torch.linalg.eigh(basis.T @ covariance @ basis)
    return values, basis @ inside


def _members(blocks: Sequence[int | None]) -> list[list[int]]:
    """Positions of every block's images, and at the end those of no block."""
    count = max((block for block in blocks if block is not None), default=-1) + 1
    named = [[i for i, block in enumerate(blocks) if block == k] for k in range(count)]
    return [*named, [i for i, block in enumerate(blocks) if block is None]]


def _scatter(part: Tensor, reference: Tensor) -> Tensor:
    """Sum over images and places of the outer products of deviations, (D, D) float64."""
    x = (part.float() - reference).flatten(0, 2)
    return (x.T @ x).double()


@lru_cache(maxsize=16)
def _parting(grid: tuple[int, int], sides: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Patch numbers of every cell, (cells, most), a smaller cell naming its first patch again; of every patch
    its cell, (h w,).

    Worked out once for a grid, for every product that is read has its cells. Not as tensors, which are of the
    mode that they are made in: for inference, or without numbers while a network is traced.
    """
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    cells = [numbers[rows, columns].ravel() for rows, columns in _cells(grid, sides)]
    most = max(map(len, cells))
    owners = np.empty(grid[0] * grid[1], np.int64)
    for i, cell in enumerate(cells):
        owners[cell] = i
    return np.stack([np.append(cell, cell[:1].repeat(most - len(cell))) for cell in cells]), owners


def _cells(grid: tuple[int, int], sides: tuple[int, int]) -> list[tuple[slice, slice]]:
    rows, columns = (_edges(length, side) for length, side in zip(grid, sides, strict=True))
    return [(row, column) for row in rows for column in columns]


def _edges(length: int, parts: int) -> list[slice]:
    bounds = [round(i * length / parts) for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _total(features: Tensor, images: list[int]) -> Tensor:
    """Sum over these images, (h, w, D)."""
    total = torch.zeros(features.shape[1:], device=features.device)
    for i in images:
        total += features[i].float()
    return total


def _reduced(image: Tensor, height: int, width: int) -> Tensor:
    """An image of features (h, w, D) averaged down to (height, width, D)."""
    return F.adaptive_avg_pool2d(image.permute(2, 0, 1)[None], (height, width))[0].permute(1, 2, 0)
