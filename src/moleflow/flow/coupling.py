"""Coupling layers: the base's, adapted by a product's LoRA, and the product's own affine blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Context, Lora
from .bijections import Bijection, Place, halves, joined, soft_clamp
from .depthwise import depthwise
from .lora import LowRank, SharedLinear


class Subnet(nn.Module):
    """Two shared linear maps with a ReLU between them; the last starts at zero.

    `adapter`, where given, holds one LowRank for each map.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.first = SharedLinear(inputs, hidden)
        self.last = SharedLinear(hidden, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, adapter: SubnetAdapter | None = None) -> Tensor:
        """Rows (…, inputs) to (…, outputs)."""
        first, last = (adapter.first, adapter.last) if adapter is not None else (None, None)
        return self.last(torch.relu(self.first(x, first)), last)


class SubnetAdapter(nn.Module):
    """LoRA for both maps of one subnet."""

    def __init__(self, subnet: Subnet, config: Lora) -> None:
        super().__init__()
        self.first = LowRank(subnet.first.in_features, subnet.first.out_features, config)
        self.last = LowRank(subnet.last.in_features, subnet.last.out_features, config)


class NeighbourContext(nn.Module):
    """Depthwise k x k convolution times a learned gate: what a patch's surroundings look like.

    The convolution starts at zero, the gate at a small value.
    """

    def __init__(self, channels: int, config: Context) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, config.kernel, padding=config.kernel // 2, groups=channels, bias=False
        )
        nn.init.zeros_(self.conv.weight)
        self.gate = nn.Parameter(torch.tensor(config.gate))

    def forward(self, x: Tensor) -> Tensor:
        """Grid (B, h, w, C) to (B, h, w, C)."""
        return self.gate * depthwise(x, self.conv.weight)


def _placed(passive: Tensor, place: Place | None, parity: int) -> Tensor:
    """What a subnet sees: passive channels, their share of the place's encoding added to them."""
    return passive if place is None else passive + halves(place.encoding, parity)[0]


class MoleCoupling(Bijection):
    """Affine coupling of the base: y1 = x1, y2 = x2 * exp(s([x1; ctx(x1)])) + t(x1).

    The scale sees a patch and its surroundings, the translation the patch alone. The context looks
    at passive channels only, so the Jacobian of the whole image is triangular and the
    log-determinant of a patch is exactly the sum of its s. `adapter` is a product's CouplingAdapter. Given
    a place, s and t see x1 with its encoding added to it.
    """

    def __init__(
        self, channels: int, parity: int, *, hidden: int, clamp: float, context: Context | None
    ) -> None:
        super().__init__()
        passive, active = (channels + 1 - parity) // 2, (channels + parity) // 2
        self.parity, self.clamp = parity, clamp
        self.context = NeighbourContext(passive, context) if context else None
        self.scale = Subnet(passive * 2 if context else passive, active, hidden)
        self.translation = Subnet(passive, active, hidden)

    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scales and translates the active channels."""
        passive, active = halves(x, self.parity)
        s, t = self._scale_and_translation(passive, adapter, place)
        return joined(passive, torch.addcmul(t, active, s.exp()), self.parity), s.sum(-1)

    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Undoes translation and scale of the active channels."""
        passive, active = halves(y, self.parity)
        s, t = self._scale_and_translation(passive, adapter, place)
        return joined(passive, (active - t) * (-s).exp(), self.parity), -s.sum(-1)

    def _scale_and_translation(
        self, passive: Tensor, adapter: nn.Module | None, place: Place | None
    ) -> tuple[Tensor, Tensor]:
        if adapter is not None and not isinstance(adapter, CouplingAdapter):
            raise TypeError(f"expected a CouplingAdapter, got {type(adapter).__name__}")
        scale, translation = (adapter.scale, adapter.translation) if adapter is not None else (None, None)
        placed = _placed(passive, place, self.parity)
        seen = placed
        if self.context is not None:
            seen = torch.cat([placed, self.context(passive)], dim=-1)
        return soft_clamp(self.scale(seen, scale), self.clamp), self.translation(placed, translation)


class CouplingAdapter(nn.Module):
    """LoRA for the four linear maps of one MoleCoupling."""

    def __init__(self, coupling: MoleCoupling, config: Lora) -> None:
        super().__init__()
        self.scale = SubnetAdapter(coupling.scale, config)
        self.translation = SubnetAdapter(coupling.translation, config)


class AffineCoupling(Bijection):
    """A block of the deep invertible adapter: one net gives scale and translation of the active half.

    Owned by a product; the last map starts at zero, so the block starts at the identity.
    """

    def __init__(self, channels: int, parity: int, *, hidden: int, clamp: float) -> None:
        super().__init__()
        passive, active = (channels + 1 - parity) // 2, (channels + parity) // 2
        self.parity, self.clamp = parity, clamp
        self.net = Subnet(passive, 2 * active, hidden)

    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scales and translates the active channels."""
        passive, active = halves(x, self.parity)
        s, t = self._scale_and_translation(passive, place)
        return joined(passive, torch.addcmul(t, active, s.exp()), self.parity), s.sum(-1)

    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Undoes translation and scale of the active channels."""
        passive, active = halves(y, self.parity)
        s, t = self._scale_and_translation(passive, place)
        return joined(passive, (active - t) * (-s).exp(), self.parity), -s.sum(-1)

    def _scale_and_translation(self, passive: Tensor, place: Place | None) -> tuple[Tensor, Tensor]:
        s, t = self.net(_placed(passive, place, self.parity)).chunk(2, dim=-1)
        return soft_clamp(s, self.clamp), t
