"""Depthwise convolution, and a faster way to learn one where the grid is hardly larger than the kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_PLACES = 16  # up to which one matrix for each channel learns faster than a convolution


def depthwise(grid: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of a grid (B, h, w, C) with its own of the kernels (C, 1, k, k), zeros around the grid.

    The windows that are learned from are so small that most of a kernel lies outside of them, where the
    gradient of a convolution on the CPU takes five times as long as the products with the matrices (h w, h w)
    that the kernels are on such a window. Sums are in another order, so answers are always convolved.
    """
    learning = torch.is_grad_enabled() and (grid.requires_grad or kernel.requires_grad)
    if learning and grid.shape[1] * grid.shape[2] <= FEW_PLACES:
        return _multiplied(grid, kernel)
    padding = kernel.shape[-1] // 2
    convolved = F.conv2d(grid.permute(0, 3, 1, 2), kernel, padding=padding, groups=len(kernel))
    return convolved.permute(0, 2, 3, 1)


def _multiplied(grid: Tensor, kernel: Tensor) -> Tensor:
    batch, height, width, channels = grid.shape
    places = height * width
    taps = _taps(height, width, kernel.shape[-1]).to(kernel)
    matrices = (kernel.flatten(1) @ taps).view(channels, places, places)  # from, to
    found: Tensor = _Product.apply(grid.reshape(batch, places, channels), matrices)
    return found.view_as(grid)


class _Product(torch.autograd.Function):
    """Rows (B, p, C) times a matrix (C, p, q) for every channel, (B, q, C).

    As torch's own, which copies and multiplies one channel after the other, forth and back, where the rows of
    a channel do not lie behind one another: here they are laid out once for all.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrices: Tensor) -> Tensor:
        """By channel."""
        own = rows.permute(2, 0, 1).contiguous()
        ctx.save_for_backward(own, matrices)
        return (own @ matrices).permute(1, 2, 0).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Likewise."""
        own, matrices = ctx.saved_tensors
        given = gradient.permute(2, 0, 1).contiguous()
        of_rows = (given @ matrices.mT).permute(1, 2, 0) if ctx.needs_input_grad[0] else None
        return of_rows, own.mT @ given if ctx.needs_input_grad[1] else None


@lru_cache(maxsize=16)
def _taps(height: int, width: int, side: int) -> Tensor:
    """(side², (h w)²): which weight of a kernel leads from one place of a grid to another."""
    impulses = torch.eye(side * side).view(-1, 1, side, side)
    places = torch.eye(height * width).view(-1, 1, height, width)
    return F.conv2d(places, impulses, padding=side // 2).transpose(0, 1).reshape(side * side, -1)
