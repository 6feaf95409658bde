"""The one abstraction of the flow: an invertible map of a patch grid with its exact log-determinant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """Where patches (B, h, w) lie.

    Attributes:
        encoding: what maps see of it, (B or 1, h, w, D) or without the first dimension.
        patches: their numbers on the grid, (B, h, w); None for a whole grid.
    """

    encoding: Tensor
    patches: Tensor | None = None


class Bijection(nn.Module, ABC):
    """An invertible map of patch grids, x (B, h, w, D) -> y (B, h, w, D).

    Both directions return the value and the log-determinant of the direction taken, one number per
    patch (B, h, w); summed over an image's patches it is the log-determinant of the Jacobian of the
    whole image. `adapter` is what a product passes into a shared map, `place` where the patches lie; maps
    that take none ignore it.
    """

    @abstractmethod
    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """y and log|det dy/dx|."""

    @abstractmethod
    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """x and log|det dx/dy|."""


class Affine(Bijection):
    """y = exp(log_scale) * x + shift per channel, fixed after `fit`: a product's closed-form start.

    Args:
        channels: D.
    """

    log_scale: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("log_scale", torch.zeros(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def fit(self, x: Tensor) -> None:
        """Sets scale and shift so that the channels of x (..., D) get mean 0 and spread 1.

        The spread is bounded below by a tenth of the typical channel's: a channel that never moves
        in the good images must not turn the slightest change into a scream.
        """
        flat = x.reshape(-1, x.shape[-1]).cpu().double()
        mean, spread = flat.mean(0), flat.std(0, unbiased=False)
        spread = spread.clamp_min(max(0.1 * float(spread.median()), 1e-6))
        self.log_scale.copy_(-spread.log())
        self.shift.copy_(-mean / spread)

    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scales, then shifts."""
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum().expand(x.shape[:-1])

    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Shifts back, then unscales."""
        return (y - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum().expand(y.shape[:-1])


def halves(x: Tensor, parity: int) -> tuple[Tensor, Tensor]:
    """Passive and active channels of x: views of its first and second half, exchanged where parity is 1."""
    middle = (x.shape[-1] + 1) // 2
    # Parted at once: the gradients of two slices would each be as large as x, and added.
    first, second = x.split((middle, x.shape[-1] - middle), -1)
    return (first, second) if parity == 0 else (second, first)


def joined(passive: Tensor, active: Tensor, parity: int) -> Tensor:
    """The inverse of `halves`."""
    return torch.cat((passive, active) if parity == 0 else (active, passive), dim=-1)


def interleave(x: Tensor) -> Tensor:
    """Every second channel of x first, then the others: both halves then hold channels of every layer."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def soft_clamp(s: Tensor, limit: float) -> Tensor:
    """limit * tanh(s / limit): the identity near zero, never beyond +-limit."""
    return limit * torch.tanh(s / limit)
