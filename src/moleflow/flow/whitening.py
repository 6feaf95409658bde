"""From raw patch features to what the flow sees: normalisation, position, bounded whitening."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Whitening
from .bijections import Bijection, Place


def layer_norm(features: Tensor) -> Tensor:
    """Each patch (…, D) to mean 0 and variance 1 over its channels: removes exposure.

    A fixed feature map in front of the density, not part of it: it is not invertible and has no
    log-determinant. What it throws away, a patch's magnitude, the cell Gaussians look at.
    """
    return F.layer_norm(features, features.shape[-1:])


def sinusoidal_position(height: int, width: int, channels: int) -> Tensor:
    """2-D sinusoidal encoding (h, w, D): the first half of the channels for x, the rest for y.

    Sine and cosine pairs with wavelengths from 2 pi to 10000 * 2 pi patches (Vaswani 2017, in 2-D).
    """
    half = channels // 2
    return torch.cat(
        [
            _sinusoid(width, half).expand(height, width, half),
            _sinusoid(height, channels - half)[:, None].expand(height, width, channels - half),
        ],
        dim=-1,
    )


def _sinusoid(length: int, channels: int) -> Tensor:
    pairs = (channels + 1) // 2
    rate = torch.exp(-math.log(10_000.0) * torch.arange(pairs) / max(pairs, 1))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :channels]


class BoundedAffine(Bijection):
    """Step two of the whitening adapter: y = gamma * x + beta with gamma and beta bounded.

    gamma = limit^tanh(a) lies in [1/limit, limit] (a sigmoid on the logarithmic scale, so that 1 sits
    in the middle), beta = limit * tanh(b). Both parameters start at zero: the identity.
    """

    def __init__(self, channels: int, config: Whitening) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(channels))
        self.b = nn.Parameter(torch.zeros(channels))
        self.log_limit = math.log(config.scale_limit)
        self.shift_limit = config.shift_limit

    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scales, then shifts."""
        log_gamma, beta = self._bounded()
        return x * log_gamma.exp() + beta, log_gamma.sum().expand(x.shape[:-1])

    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Shifts back, then unscales."""
        log_gamma, beta = self._bounded()
        return (y - beta) * (-log_gamma).exp(), -log_gamma.sum().expand(y.shape[:-1])

    def _bounded(self) -> tuple[Tensor, Tensor]:
        return self.log_limit * torch.tanh(self.a), self.shift_limit * torch.tanh(self.b)
