"""Where a flow begins: a product's own cells, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .bijections import Bijection, Place, interleave
from .cells import CellGaussians


class CellWhitening(Bijection):
    """Raw features to white ones by a product's cells, channels then in the order that couplings part them.

    With the identity behind it the density is a Gaussian for every cell: |z| is what `CellGaussians` says.
    """

    def __init__(self, gaussians: CellGaussians) -> None:
        super().__init__()
        self.gaussians = gaussians

    def forward(
        self, x: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Centres by place, whitens by cell."""
        white, log_det = self.gaussians.whiten(x, None if place is None else place.patches)
        return interleave(white), log_det

    def inverse(
        self, y: Tensor, adapter: nn.Module | None = None, place: Place | None = None
    ) -> tuple[Tensor, Tensor]:
        """Colours by cell; of whole grids only."""
        return self.gaussians.unwhiten(_deinterleaved(y))


def _deinterleaved(x: Tensor) -> Tensor:
    """The inverse of `interleave`."""
    middle = (x.shape[-1] + 1) // 2
    out = torch.empty_like(x)
    out[..., 0::2], out[..., 1::2] = x[..., :middle], x[..., middle:]
    return out
