"""The shared base and the expert a product passes into it: together a density over patch features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Dia, FlowConfig
from ..errors import ConfigError
from .bijections import Affine, Bijection, interleave
from .coordinates import sphere_chart, sphere_log_det
from .coupling import AffineCoupling, CouplingAdapter, MoleCoupling
from .mixer import mixer_of
from .whitening import BoundedAffine, layer_norm, sinusoidal_position


class Passage(NamedTuple):
    """What the chain makes of prepared features x (B, h, w, d).

    Attributes:
        z: (B, h, w, d).
        log_det: of the whole chain from x to z, (B, h, w).
        log_det_flow: of its couplings and DIA alone, (B, h, w).
        log_det_chart: of what `prepare` did to volumes, (B, h, w) or a single 0.
    """

    z: Tensor
    log_det: Tensor
    log_det_flow: Tensor
    log_det_chart: Tensor

    @property
    def log_prob(self) -> Tensor:
        """log p of every patch (B, h, w), but for a constant."""
        return self.log_det - 0.5 * self.z.square().sum(-1) + self.log_det_chart

    def penalised(self, whose: Literal["chain", "flow"]) -> Tensor:
        """The log-determinants (B, h, w) that learning asks to be small."""
        return self.log_det if whose == "chain" else self.log_det_flow


class Base(nn.Module):
    """What all products share: spatial mixer and coupling layers. It holds no product.

    Args:
        grid: patch grid (h, w).
        channels: D.
        config: the shape of the flow.

    Attributes:
        dim: d, coordinates that the density is over: D, or D - 2 on the sphere.
    """

    position: Tensor

    def __init__(self, grid: tuple[int, int], channels: int, config: FlowConfig) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.dim = channels - 2 if config.normalisation == "sphere" else channels
        if self.dim < 2:
            raise ConfigError(f"expected at least two coordinates for the flow, got {self.dim}")
        position = config.position * interleave(sinusoidal_position(*grid, self.dim))
        self.register_buffer("position", position, persistent=False)
        self.mixer = mixer_of(self.dim, config.mixer) if config.mixer else None
        self.couplings = nn.ModuleList(
            MoleCoupling(self.dim, i % 2, hidden=config.hidden, clamp=config.clamp, context=config.context)
            for i in range(config.couplings)
        )

    @property
    def reach(self) -> int:
        """How many patches away another patch may have a part in a patch's z."""
        around = self.config.context.kernel // 2 if self.config.context else 0
        return (1 if self.mixer is not None else 0) + around * len(self.couplings)

    def prepare(self, features: Tensor) -> Tensor:
        """Raw features (B, h, w, D) to what the density is over (B, h, w, d): normalised per patch, channels
        in the order that couplings part them. No parameters."""
        features = interleave(features.float())
        if self.config.normalisation == "sphere":
            return sphere_chart(features)
        return layer_norm(features) if self.config.normalisation == "layer" else features

    def log_prob(self, expert: Expert, x: Tensor, *, position: Tensor | None = None) -> Tensor:
        """log p of every patch, (B, h, w), for prepared features x (B, h, w, d).

        Per unit of what the features fill: of D-dimensional volume, or of the sphere's surface.

        Args:
            expert: the product whose density is meant.
            x: what `prepare` returns.
            position: encoding (B or 1, h, w, d) of the patches in x; the whole grid's by default.
        """
        z, log_det, _, chart = self.passage(expert, x, position=position)
        return -0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi) + log_det + chart

    def latent(self, expert: Expert, x: Tensor, *, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (B, h, w, d) and the log-determinant (B, h, w) of the whole chain from x to z."""
        return self.passage(expert, x, position=position)[:2]

    def passage(self, expert: Expert, x: Tensor, *, position: Tensor | None = None) -> Passage:
        """All that the chain makes of x; arguments as for `log_prob`."""
        z = x + (self.position if position is None else position)
        log_det = log_det_flow = torch.zeros((), device=x.device)
        for bijection, adapter in self.chain(expert):
            z, step = bijection(z, adapter)
            log_det = log_det + step
            if isinstance(bijection, MoleCoupling | AffineCoupling):
                log_det_flow = log_det_flow + step
        on_sphere = self.config.normalisation == "sphere"
        chart = sphere_log_det(x) if on_sphere else torch.zeros((), device=x.device)
        return Passage(z, log_det.expand(z.shape[:-1]), log_det_flow.expand(z.shape[:-1]), chart)

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
        config, channels = base.config, base.dim
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
