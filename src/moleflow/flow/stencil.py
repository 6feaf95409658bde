"""A depthwise 3x3 convolution with repeated borders as the block-tridiagonal matrix that it is.

One block for each row of the grid. Eliminating row after row leaves pivots (Golub and Van Loan, "Matrix
Computations", 4.5): the sum of their log-determinants is the matrix's own, and two sweeps solve for the
input. Nothing is exchanged on the way, which is sound where the matrix is strictly diagonally dominant.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stencil_log_det(kernel: Tensor, height: int, width: int) -> Tensor:
    """log|det| over one image of all channels, a number, for a kernel (3, 3, D)."""
    lower, middle, upper = (_tridiagonal(taps, width) for taps in kernel)
    return torch.linalg.slogdet(torch.stack(_pivots(lower, middle, upper, height))).logabsdet.sum()


def stencil_solve(kernel: Tensor, y: Tensor) -> Tensor:
    """The grid (B, h, w, D) that a kernel (3, 3, D) convolves to y (B, h, w, D)."""
    lower, middle, upper = (_tridiagonal(taps, y.shape[2]) for taps in kernel)
    rows = list(y.permute(1, 3, 2, 0))  # h times (D, w, B)
    pivots = _pivots(lower, middle, upper, len(rows))
    for i in range(1, len(rows)):
        rows[i] = rows[i] - lower @ torch.linalg.solve(pivots[i - 1], rows[i - 1])
    found = [torch.linalg.solve(pivots[-1], rows[-1])]
    for pivot, row in zip(pivots[-2::-1], rows[-2::-1], strict=True):
        found.append(torch.linalg.solve(pivot, row - upper @ found[-1]))
    return torch.stack(found[::-1]).permute(3, 0, 2, 1)


def _pivots(lower: Tensor, middle: Tensor, upper: Tensor, height: int) -> list[Tensor]:
    """What stands on the diagonal once every row is eliminated from the next, each (D, w, w)."""
    pivots: list[Tensor] = []
    for row in range(height):
        block = middle
        if row == 0:
            block = block + lower  # above the first row stands the first row again
        if row == height - 1:
            block = block + upper
        if row > 0:
            block = block - lower @ torch.linalg.solve(pivots[-1], upper)
        pivots.append(block)
    return pivots


def _tridiagonal(taps: Tensor, width: int) -> Tensor:
    """(D, w, w) matrices of one row of a kernel (3, D): left neighbour, itself, right neighbour."""
    itself = torch.eye(width, dtype=taps.dtype, device=taps.device)
    left, right = itself.roll(-1, 1), itself.roll(1, 1)
    left[0], right[-1] = itself[0], itself[-1]  # rather than around: the border repeated
    return torch.einsum("td,tij->dij", taps, torch.stack([left, itself, right]))
