"""The shared base and the expert a product passes into it: together a density over patch features."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..config import Dia, FlowConfig
from .bijections import Affine, Bijection, interleave
from .coupling import AffineCoupling, CouplingAdapter, MoleCoupling
from .mixer import ContextMixer
from .whitening import BoundedAffine, layer_norm, sinusoidal_position


class Base(nn.Module):
    """What all products share: spatial mixer and coupling layers. It holds no product.

    Args:
        grid: patch grid (h, w).
        channels: D.
        config: the shape of the flow.
    """

    position: Tensor

    def __init__(self, grid: tuple[int, int], channels: int, config: FlowConfig) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        position = config.position * interleave(sinusoidal_position(*grid, channels))
        self.register_buffer("position", position, persistent=False)
        self.mixer = ContextMixer(channels, config.mixer) if config.mixer else None
        self.couplings = nn.ModuleList(
            MoleCoupling(channels, i % 2, hidden=config.hidden, clamp=config.clamp, context=config.context)
            for i in range(config.couplings)
        )

    def prepare(self, features: Tensor) -> Tensor:
        """Raw features (B, h, w, D) to what the density is over: normalised per patch, channels in the
        order that couplings part them. No parameters."""
        features = interleave(features.float())
        return layer_norm(features) if self.config.normalisation == "layer" else features

    def log_prob(self, expert: Expert, x: Tensor, *, position: Tensor | None = None) -> Tensor:
        """log p of every patch, (B, h, w), for prepared features x (B, h, w, D).

        Args:
            expert: the product whose density is meant.
            x: what `prepare` returns.
            position: encoding (B or 1, h, w, D) of the patches in x; the whole grid's by default.
        """
        z, log_det = self.latent(expert, x, position=position)
        return -0.5 * z.square().sum(-1) - 0.5 * self.channels * math.log(2 * math.pi) + log_det

    def latent(self, expert: Expert, x: Tensor, *, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (B, h, w, D) and the log-determinant (B, h, w) of the whole chain from x to z."""
        z = x + (self.position if position is None else position)
        log_det = torch.zeros((), device=x.device)
        for bijection, adapter in self.chain(expert):
            z, step = bijection(z, adapter)
            log_det = log_det + step
        return z, log_det.expand(z.shape[:-1])

    def inverse(self, expert: Expert, z: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared features x and the log-determinant (B, h, w) of the chain from z back to x."""
        log_det = torch.zeros((), device=z.device)
        for bijection, adapter in reversed(list(self.chain(expert))):
            z, step = bijection.inverse(z, adapter)
            log_det = log_det + step
        return z - self.position, log_det.expand(z.shape[:-1])

    def chain(self, expert: Expert) -> Iterator[tuple[Bijection, nn.Module | None]]:
        """The maps an image passes through, in order, each with what the expert passes into it."""
        for owned in (expert.statistics, expert.whitening):
            if owned is not None:
                yield owned, None
        if self.mixer is not None:
            yield self.mixer, None
        for i, coupling in enumerate(self.couplings):
            yield coupling, expert.adapters[i] if expert.adapters else None  # type: ignore[misc]
        for block in expert.dia:
            yield block, None  # type: ignore[misc]


class Expert(nn.Module):
    """What one product owns: statistics, whitening, LoRA for every coupling, and the adapter (DIA).

    As constructed it is the identity around the base, apart from `statistics`, which `start` fits.
    """

    def __init__(self, base: Base) -> None:
        super().__init__()
        config, channels = base.config, base.channels
        dia = config.dia or Dia(blocks=0)
        self.statistics = Affine(channels) if config.statistics else None
        self.whitening = BoundedAffine(channels, config.whitening) if config.whitening else None
        self.adapters = nn.ModuleList(
            CouplingAdapter(coupling, config.lora)  # type: ignore[arg-type]
            for coupling in (base.couplings if config.lora else ())
        )
        self.dia = nn.ModuleList(
            AffineCoupling(channels, i % 2, hidden=dia.hidden, clamp=config.clamp) for i in range(dia.blocks)
        )

    def start(self, base: Base, x: Tensor) -> None:
        """Fits the closed-form statistics to prepared features x (N, h, w, D) of the product."""
        if self.statistics is not None:
            self.statistics.fit(x + base.position)
