"""Linear maps whose weight is shared and frozen, and the low-rank change a product passes in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Lora


class LowRank(nn.Module):
    """What one product adds to one linear map: (alpha / rank) B A and a bias.

    A (rank, in) starts random, B (out, rank) and the bias start at zero: no change (Hu 2021).
    """

    def __init__(self, inputs: int, outputs: int, config: Lora) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(config.rank, inputs))
        if not self.A.is_meta:  # for an outline, without numbers, torch would import its compiler: seconds
            self.A.data = torch.randn(config.rank, inputs) / math.sqrt(inputs)
        self.B = nn.Parameter(torch.zeros(outputs, config.rank))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = config.alpha / config.rank


class SharedLinear(nn.Linear):
    """h = W x + b, or with an adapter h = (W + scale B A) x + b + b_t.

    The product's change is folded into the weight before the rows are touched: that costs
    in * out * rank once, where two thin products would cost every patch.
    """

    def forward(self, x: Tensor, adapter: LowRank | None = None) -> Tensor:
        """Rows x (…, in) to (…, out)."""
        if adapter is None:
            return F.linear(x, self.weight, self.bias)
        weight = torch.addmm(self.weight, adapter.B, adapter.A, alpha=adapter.scale)
        return F.linear(x, weight, self.bias + adapter.bias)
