"""Spatial context mixer: each channel blended with its 3x3 neighbourhood, invertibly."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Mixer
from .bijections import Bijection


class ContextMixer(Bijection):
    """y = (1 - g) x + g * (K x), K a depthwise 3x3 convolution, g = limit * sigmoid(gate).

    K is mirror-symmetric and the border is reflected, so the cosine transform (DCT-II) diagonalises
    the whole map: its eigenvalues, hence log-determinant and inverse, are exact and cheap (Strang,
    "The discrete cosine transform", 1999). K sums to one and its side weights are bounded by 1/12,
    which keeps every eigenvalue positive. The weights start at zero: the identity.
    """

    def __init__(self, channels: int, config: Mixer) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))
        self.sides = nn.Parameter(torch.zeros(3, channels))  # horizontal, vertical, diagonal neighbours
        self.limit = config.gate_limit

    def forward(self, x: Tensor, adapter: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """One depthwise convolution."""
        across, down, diagonal = self._weights()
        centre = 1 - 2 * across - 2 * down - 4 * diagonal
        kernel = torch.stack(
            [
                torch.stack([diagonal, down, diagonal]),
                torch.stack([across, centre, across]),
                torch.stack([diagonal, down, diagonal]),
            ]
        )  # 3,3,D
        grid = _pad_by_one(x.permute(0, 3, 1, 2))
        y = F.conv2d(grid, kernel.permute(2, 0, 1)[:, None], groups=x.shape[-1])
        return y.permute(0, 2, 3, 1), self._log_det(x)

    def inverse(self, y: Tensor, adapter: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Division by the eigenvalues in the cosine basis."""
        height, width = y.shape[1:3]
        rows, columns = _cosine_basis(height).to(y), _cosine_basis(width).to(y)
        spectrum = torch.einsum("uh,vw,bhwd->buvd", rows, columns, y) / self._eigenvalues(height, width)
        return torch.einsum("uh,vw,buvd->bhwd", rows, columns, spectrum), -self._log_det(y)

    def _weights(self) -> Tensor:
        return self.limit * torch.sigmoid(self.gate) * torch.tanh(self.sides) / 12

    def _eigenvalues(self, height: int, width: int) -> Tensor:
        across, down, diagonal = self._weights()
        u = _cosines(height).to(across)[:, None, None]
        v = _cosines(width).to(across)[None, :, None]
        return 1 + 2 * across * (v - 1) + 2 * down * (u - 1) + 4 * diagonal * (u * v - 1)

    def _log_det(self, x: Tensor) -> Tensor:
        """The image's log-determinant, the same for every image, shared out evenly over its patches."""
        height, width = x.shape[1:3]
        total = self._eigenvalues(height, width).log().sum()
        return (total / (height * width)).expand(x.shape[:-1])


def _pad_by_one(grid: Tensor) -> Tensor:
    """Half-sample symmetric border: the outermost row repeated, which is what DCT-II assumes."""
    return F.pad(grid, (1, 1, 1, 1), mode="replicate")


def _cosines(n: int) -> Tensor:
    return torch.cos(math.pi * torch.arange(n, dtype=torch.float64) / n)


@lru_cache(maxsize=16)
def _cosine_basis(n: int) -> Tensor:
    """Orthonormal DCT-II matrix (n, n): row k is the k-th cosine."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis
