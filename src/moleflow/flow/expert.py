"""The shared base and the expert a product passes into it: together a density over patch features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Dia, FlowConfig
from ..errors import ConfigError
from ..packing import packed, unpacked
from .bijections import Affine, Bijection, Place, interleave
from .cells import CellGaussians
from .coordinates import sphere_chart, sphere_log_det
from .coupling import AffineCoupling, CouplingAdapter, MoleCoupling
from .mixer import mixer_of
from .start import CellWhitening
from .whitening import BoundedAffine, layer_norm, sinusoidal_position

_CELLS = "start_cells."  # tensors of the cells, which are rounded and kept by themselves


class Passage(NamedTuple):
    """What the chain makes of prepared features x (B, h, w, d).

    Attributes:
        z: (B, h, w, d).
        log_det: of the whole chain from x to z, (B, h, w).
        log_det_start: of the product's cells, where the chain begins with them; (B, h, w) or a single 0.
        log_det_flow: of its couplings and DIA alone, (B, h, w).
        log_det_chart: of what `prepare` did to volumes, (B, h, w) or a single 0.
    """

    z: Tensor
    log_det: Tensor
    log_det_start: Tensor
    log_det_flow: Tensor
    log_det_chart: Tensor

    @property
    def log_prob(self) -> Tensor:
        """log p of every patch (B, h, w), but for a constant."""
        return self.log_det - 0.5 * self.z.square().sum(-1) + self.log_det_chart

    def penalised(self, whose: Literal["chain", "flow"]) -> Tensor:
        """The log-determinants (B, h, w) that learning asks to be small; never of the closed-form start."""
        return self.log_det - self.log_det_start if whose == "chain" else self.log_det_flow

    @property
    def squared_score(self) -> Tensor:
        """|z|^2 - 2 log-det of all but the start, (B, h, w): a squared distance, bent by what was learned."""
        return self.z.square().sum(-1) - 2 * (self.log_det - self.log_det_start)


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
        """Raw features (B, h, w, D) to what the density is over (B, h, w, d). No parameters.

        As they are where a flow begins with cells, else normalised per patch, channels in the order that
        couplings part them.
        """
        if self.config.cells is not None:
            return features.float()
        features = interleave(features.float())
        if self.config.normalisation == "sphere":
            return sphere_chart(features)
        return layer_norm(features) if self.config.normalisation == "layer" else features

    def log_prob(self, expert: Expert, x: Tensor, *, place: Place | None = None) -> Tensor:
        """log p of every patch, (B, h, w), for prepared features x (B, h, w, d).

        Per unit of what the features fill: of D-dimensional volume, or of the sphere's surface.

        Args:
            expert: the product whose density is meant.
            x: what `prepare` returns.
            place: of the patches in x; the whole grid by default.
        """
        passage = self.passage(expert, x, place=place)
        return passage.log_prob - 0.5 * self.dim * math.log(2 * math.pi)

    def score(self, expert: Expert, x: Tensor) -> Tensor:
        """How strange every patch is, (B, h, w), for prepared features x (B, h, w, d) of whole grids.

        A distance where the flow begins with cells: before anything is learned the Mahalanobis distance of
        the patch in its cell. Otherwise -log p.
        """
        if self.config.cells is None:
            return -self.log_prob(expert, x)
        return self.passage(expert, x).squared_score.clamp_min(0).sqrt()

    def latent(self, expert: Expert, x: Tensor, *, place: Place | None = None) -> tuple[Tensor, Tensor]:
        """z (B, h, w, d) and the log-determinant (B, h, w) of the whole chain from x to z."""
        return self.passage(expert, x, place=place)[:2]

    def passage(
        self, expert: Expert, x: Tensor, *, place: Place | None = None, noise: Tensor | None = None
    ) -> Passage:
        """All that the chain makes of x; arguments as for `log_prob`.

        `noise` is added to what the learned maps begin with: white features behind cells, else x itself.
        """
        place = Place(self.position) if place is None else place
        log_det = log_det_flow = log_det_start = torch.zeros((), device=x.device)
        if expert.start_cells is not None:
            z, log_det_start = expert.start_cells(x, None, place)
            z, log_det = z if noise is None else z + noise, log_det_start
        else:
            z = (x if noise is None else x + noise) + place.encoding
        for bijection, adapter in self._learned(expert):
            z, step = bijection(z, adapter, self._shown(place))
            log_det = log_det + step
            if isinstance(bijection, MoleCoupling | AffineCoupling):
                log_det_flow = log_det_flow + step
        on_sphere = self.config.normalisation == "sphere"
        chart = sphere_log_det(x) if on_sphere else torch.zeros((), device=x.device)
        shape = z.shape[:-1]
        return Passage(z, log_det.expand(shape), log_det_start, log_det_flow.expand(shape), chart)

    def inverse(self, expert: Expert, z: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared features x and the log-determinant (B, h, w) of the chain from z back to x."""
        log_det = torch.zeros((), device=z.device)
        place = Place(self.position)
        for bijection, adapter in reversed(list(self._learned(expert))):
            z, step = bijection.inverse(z, adapter, self._shown(place))
            log_det = log_det + step
        if expert.start_cells is None:
            return z - self.position, log_det.expand(z.shape[:-1])
        x, step = expert.start_cells.inverse(z)
        return x, log_det + step

    def _shown(self, place: Place) -> Place | None:
        """What maps are told of the place: nothing where it was added to the features."""
        return place if self.config.cells is not None else None

    def chain(self, expert: Expert) -> Iterator[tuple[Bijection, nn.Module | None]]:
        """The maps an image passes through, in order, each with what the expert passes into it."""
        if expert.start_cells is not None:
            yield expert.start_cells, None
        yield from self._learned(expert)

    def _learned(self, expert: Expert) -> Iterator[tuple[Bijection, nn.Module | None]]:
        """All of the chain but the cells that it may begin with."""
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
    """What one product owns: its start, whitening, LoRA for every coupling, and the adapter (DIA).

    As constructed it is the identity around the base, apart from the start, which `start` fits: cells, or
    statistics per channel.
    """

    def __init__(self, base: Base) -> None:
        super().__init__()
        config, channels = base.config, base.dim
        self.bits = config.bits
        dia = config.dia or Dia(blocks=0)
        grid = base.position.shape[0], base.position.shape[1]
        self.start_cells = (
            CellWhitening(CellGaussians(grid, channels, config.cells)) if config.cells else None
        )
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
        """Fits the closed-form start to features x (N, h, w, D) of the product, as of `Base.prepare`."""
        if self.start_cells is not None:
            self.start_cells.gaussians.fit(x)
        if self.statistics is not None:
            self.statistics.fit(x + base.position)

    def kept(self) -> dict[str, Tensor]:
        """What a saved line keeps of all but the cells: matrices in `FlowConfig.bits`, the rest in 16."""
        parts: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            if not name.startswith(_CELLS):
                few = self.bits < 16 and tensor.ndim == 2
                parts |= packed(name, tensor, self.bits) if few else {name: tensor.half()}
        return parts

    def take_kept(self, kept: dict[str, Tensor]) -> None:
        """The inverse of `kept`, to the bit where it was rounded. Raises RuntimeError on a misfit."""
        cells = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(_CELLS)}
        self.load_state_dict(unpacked(kept) | cells)

    @classmethod
    def from_kept(cls, base: Base, kept: dict[str, Tensor]) -> Expert:
        """The expert that `kept` is of; nothing random is drawn. Raises RuntimeError on a misfit."""
        with torch.device("meta"):  # of this thread alone; numbers come with the file
            expert = cls(base)
        cells = {name: tensor for name, tensor in expert.state_dict().items() if name.startswith(_CELLS)}
        expert.load_state_dict(unpacked(kept) | cells, assign=True)
        return expert

    def round_to_kept(self) -> None:
        """Rounds to what `kept` holds, so that a saved expert is small and yet the very same one."""
        self.take_kept(self.kept())

    @property
    def gaussians(self) -> CellGaussians | None:
        """The cells that it begins with."""
        return None if self.start_cells is None else self.start_cells.gaussians

    def beginning_with(self, gaussians: CellGaussians) -> Expert:
        """The same maps behind other cells."""
        other = copy.copy(self)
        other._modules = {**self._modules, "start_cells": CellWhitening(gaussians)}
        return other
