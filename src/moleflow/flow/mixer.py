"""Spatial context mixer: each channel blended with its 3x3 neighbourhood, invertibly, in two forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Mixer
from .bijections import Bijection, Place
from .stencil import stencil_log_det, stencil_solve

FULL_SUM = 1.9  # bound on the absolute sum of a full kernel's change; times a gate of 1/2 it stays below 1


def mixer_of(channels: int, config: Mixer) -> Bijection:
    """The mixer that the options ask for, as yet the identity."""
    return FullMixer(channels, config) if config.kernel == "full" else ContextMixer(channels, config)


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

    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
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

    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Division by the eigenvalues in the cosine basis."""
        height, width = y.shape[1:3]
        rows, columns = _cosine_basis(height).to(y), _cosine_basis(width).to(y)
        eigenvalues = cosine_eigenvalues(self._weights(), height, width)
        spectrum = torch.einsum("uh,vw,bhwd->buvd", rows, columns, y) / eigenvalues
        return torch.einsum("uh,vw,buvd->bhwd", rows, columns, spectrum), -self._log_det(y)

    def _weights(self) -> Tensor:
        return self.limit * torch.sigmoid(self.gate) * torch.tanh(self.sides) / 12

    def _log_det(self, x: Tensor) -> Tensor:
        """The image's log-determinant, the same for every image, shared out evenly over its patches."""
        height, width = x.shape[1:3]
        total = _worked_out(_cosine_log_det, self._weights(), height, width)
        return (total / (height * width)).expand(x.shape[:-1])


class FullMixer(Bijection):
    """y = (1 - g) x + g * (K x), K any depthwise 3x3 kernel within a bound, g = limit * sigmoid(gate).

    The published form with an inverse. Written as y = x + g * (E x), E = K - 1, all nine weights of E are
    free but for their absolute sum, which is held at `FULL_SUM`: averages whose centre weighs 1/20 or more,
    differences, shifts, all of it. With g at most 1/2 every row of the image's matrix is strictly diagonally
    dominant, by at least 1/20: it has an inverse and a positive determinant, both exact (`stencil`). The
    weights start at zero: the identity.
    """

    def __init__(self, channels: int, config: Mixer) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))
        self.change = nn.Parameter(torch.zeros(3, 3, channels))
        self.limit = config.gate_limit

    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """One depthwise convolution."""
        kernel = self._kernel()
        grid = _pad_by_one(x.permute(0, 3, 1, 2))
        y = F.conv2d(grid, kernel.permute(2, 0, 1)[:, None], groups=x.shape[-1])
        return y.permute(0, 2, 3, 1), self._log_det(kernel, x)

    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Solves for the image row by row."""
        kernel = self._kernel()
        return stencil_solve(kernel.double(), y.double()).to(y.dtype), -self._log_det(kernel, y)

    def _kernel(self) -> Tensor:
        """Of the whole map, (3, 3, D)."""
        over = (self.change.abs().sum((0, 1)) / FULL_SUM).clamp_min(1)
        centre = torch.zeros_like(self.change)
        centre[1, 1] = 1
        return centre + self.limit * torch.sigmoid(self.gate) * self.change / over

    def _log_det(self, kernel: Tensor, x: Tensor) -> Tensor:
        """The image's log-determinant, the same for every image, shared out evenly over its patches."""
        height, width = x.shape[1:3]
        total = _worked_out(stencil_log_det, kernel.double(), height, width)
        return (total / (height * width)).to(x).expand(x.shape[:-1])


def cosine_eigenvalues(weights: Tensor, height: int, width: int) -> Tensor:
    """Of a mirror-symmetric mixer with side weights (3, D), as the class says; (h, w, D)."""
    across, down, diagonal = weights
    u = _cosines(height).to(across)[:, None, None]
    v = _cosines(width).to(across)[None, :, None]
    return 1 + 2 * across * (v - 1) + 2 * down * (u - 1) + 4 * diagonal * (u * v - 1)


def _cosine_log_det(weights: Tensor, height: int, width: int) -> Tensor:
    return cosine_eigenvalues(weights, height, width).log().sum()


LogDet = Callable[[Tensor, int, int], Tensor]  # of a mixer's weights, over one image of (h, w) patches


def _worked_out(log_det: LogDet, weights: Tensor, height: int, width: int) -> Tensor:
    """A log-determinant, a number; of weights that are frozen once, not for every image."""
    if weights.requires_grad:
        return log_det(weights, height, width)
    known = weights.cpu().numpy()
    return torch.tensor(
        _known(log_det, known.tobytes(), known.dtype.str, known.shape, height, width),
        dtype=weights.dtype,
        device=weights.device,
    )


@lru_cache(maxsize=16)
def _known(
    log_det: LogDet, weights: bytes, dtype: str, shape: tuple[int, ...], height: int, width: int
) -> float:
    kernel = np.frombuffer(weights, dtype).reshape(shape)
    return float(log_det(torch.from_numpy(kernel.copy()), height, width))


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
