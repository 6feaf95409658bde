"""A Gaussian for every cell of a coarse grid: where a patch lies decides what is normal there.

The flow sees normalised patches and shares what it knows over the whole image; this companion sees the
patches as they are, with their magnitude, and knows each place by itself. Their calibrated sum is the
anomaly map (measured against each alone in docs/results.md).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Cells


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

    def __init__(self, grid: tuple[int, int], channels: int, config: Cells) -> None:
        super().__init__()
        self.grid, self.config = grid, config
        self.sides = tuple(min(config.side, length) for length in grid)
        self.rank = min(config.rank, channels)
        mean_sides = [min(config.mean_side, length) for length in grid]
        self.register_buffer("mean", torch.zeros(*mean_sides, channels))
        self.register_buffer("directions", torch.zeros(self.sides[0] * self.sides[1], self.rank, channels))
        self.register_buffer("noise", torch.ones(()))
        self.register_buffer("variances", torch.zeros(self.directions.shape[:2]))
        self.register_buffer("rest", torch.zeros(self.directions.shape[0]))
        self.register_buffer("_members", self._numbers(), persistent=False)

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Learns from raw patch features (N, h, w, D) of good images, in closed form."""
        self.mean.copy_(
            F.adaptive_avg_pool2d(_mean_image(features), (self.mean.shape[0], self.mean.shape[1]))[0].permute(
                1, 2, 0
            )
        )
        centre = self._mean_grid()
        channels = features.shape[-1]
        spectra = [self._spectrum(features, centre, cell) for cell in self._cells()]
        # Never below what rounding the mean to 16 bits alone would make of it.
        rounding = float(self.mean.square().mean()) * 2.0**-20
        rho = self.config.ridge * max(float(np.mean([trace for _, _, trace in spectra])), rounding, 1e-12)
        self.noise.fill_(rho)
        for i, (values, vectors, trace) in enumerate(spectra):
            weight = torch.sqrt(values / (values + rho))
            self.directions[i].copy_((vectors * weight).T)
            self.variances[i].copy_(values)
            outside = channels * trace - float(values.sum())
            self.rest[i].fill_(max(outside, 0.0) / max(channels - self.rank, 1))
        # What 16 bits hold, so that saved cells are small and yet the very same ones.
        for tensor in (self.mean, self.directions):
            tensor.copy_(tensor.half().float())

    def forward(self, features: Tensor) -> Tensor:
        """Mahalanobis distance of every patch, (B, h, w), for raw features (B, h, w, D)."""
        x = (features.float() - self._mean_grid()).flatten(1, 2)
        inside = torch.einsum("bcnd,crd->bcnr", x[:, self._members], self.directions).square().sum(-1)
        within = torch.empty_like(x[..., 0])
        within[:, self._members] = inside
        outside = x.square().sum(-1) - within
        return (outside.clamp_min(0) / self.noise).sqrt().unflatten(1, self.grid)

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
        grid = self.mean.permute(2, 0, 1)[None]
        return F.interpolate(grid, size=self.grid, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)

    def _cells(self) -> list[tuple[slice, slice]]:
        rows, columns = (_edges(length, side) for length, side in zip(self.grid, self.sides, strict=True))
        return [(row, column) for row in rows for column in columns]

    def _numbers(self) -> Tensor:
        """Patch numbers of every cell, (cells, most); a smaller cell names its first patch again."""
        numbers = torch.arange(self.grid[0] * self.grid[1]).reshape(self.grid)
        cells = [numbers[rows, columns].flatten() for rows, columns in self._cells()]
        most = max(len(cell) for cell in cells)
        return torch.stack([torch.cat([cell, cell[:1].expand(most - len(cell))]) for cell in cells])

    def _spectrum(
        self, features: Tensor, centre: Tensor, cell: tuple[slice, slice]
    ) -> tuple[Tensor, Tensor, float]:
        """Strongest eigenvalues and -vectors of a cell's covariance, and its mean variance per channel."""
        rows, columns = cell
        x = (features[:, rows, columns].float() - centre[rows, columns]).flatten(0, 2)
        covariance = (x.T @ x / len(x)).double().cpu()
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values[-self.rank :].clamp_min(0), vectors[:, -self.rank :]
        return values.float(), vectors.float(), float(covariance.diagonal().mean())


def _edges(length: int, parts: int) -> list[slice]:
    bounds = [round(i * length / parts) for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _mean_image(features: Tensor) -> Tensor:
    total = torch.zeros(features.shape[1:], device=features.device)
    for chunk in features.split(64):
        total += chunk.float().sum(0)
    return (total / len(features)).permute(2, 0, 1)[None]
