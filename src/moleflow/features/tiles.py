"""A large image seen tile after tile by one backbone, put together into one grid of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError

OVERLAP = 0.25  # of a tile's side that it shares with its neighbour
OVERLAP_LEAST = 96  # pixels, where half of a side allows: a tile's own border shows in features this far
MOST_TILES = 64


def overlap(side: int, step: int) -> int:
    """Pixels that tiles of this side share: a quarter, or 96 where half of the side is more than that."""
    wanted = max(int(side * OVERLAP), min(OVERLAP_LEAST, side // 2))
    return max(step, wanted // step * step)


@dataclass(frozen=True)
class Tiling:
    """How R x C overlapping tiles cover an image.

    Attributes:
        counts: (R, C).
        tile: (h, w) of one tile in pixels.
        overlap: pixels that neighbours share, down and across; multiples of the backbone's step.
    """

    counts: tuple[int, int]
    tile: tuple[int, int]
    overlap: tuple[int, int]

    @classmethod
    def of(cls, counts: tuple[int, int], tile: tuple[int, int], step: int) -> Tiling:
        """Tiles of this size, with the overlap of `overlap`.

        Raises:
            ConfigError: counts that are no two numbers above 0, more than 64 tiles, or tiles too small to
                overlap.
        """
        counts = _as_counts(counts)
        for count, side in zip(counts, tile, strict=True):
            if count > 1 and side < 2 * step:
                raise ConfigError(f"expected tiles of at least {2 * step} pixels to overlap, got {side}")
        down, across = (overlap(side, step) for side in tile)
        return cls(counts, tile, (down, across))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image that the tiles cover."""
        sides = zip(self.counts, self.tile, self.overlap, strict=True)
        height, width = (count * side - (count - 1) * shared for count, side, shared in sides)
        return height, width

    def starts(self, axis: int) -> list[int]:
        """Where the tiles begin along an axis, in pixels."""
        return [i * (self.tile[axis] - self.overlap[axis]) for i in range(self.counts[axis])]

    def weights(self, axis: int, cells: int) -> list[Tensor]:
        """What each tile's cells along an axis count, (cells,); over all tiles they add up to 1 everywhere.

        In an overlap the outer quarter, where a tile's own border shows in its features, counts nothing;
        over the middle half one tile fades into the next.
        """
        shared = self.overlap[axis] * cells // self.tile[axis]
        fade = (((torch.arange(shared) + 0.5) / shared - 0.25) / 0.5).clamp(0, 1)
        found = []
        for i in range(self.counts[axis]):
            weight = torch.ones(cells)
            if i > 0:
                weight[:shared] = fade
            if i < self.counts[axis] - 1:
                weight[-shared:] = fade.flip(0)
            found.append(weight)
        return found


class Tiled(nn.Module):
    """A backbone's module over whole images: (B, 3, H, W) values 0..255 to (B, h', w', D) and (B, E).

    One pass for each tile, over all images of the batch, so that memory grows with the batch as without
    tiles. The vector of the whole picture is the mean over its tiles.
    """

    weights: Tensor  # (R * C, h', w', 1)

    def __init__(self, module: nn.Module, tiling: Tiling, grid: tuple[int, int]) -> None:
        super().__init__()
        self.module, self.tiling, self.grid = module, tiling, grid
        rows, columns = (tiling.weights(axis, grid[axis]) for axis in (0, 1))
        weights = torch.stack([torch.outer(row, column) for row in rows for column in columns])
        self.register_buffer("weights", weights[..., None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of whole images, as the class says."""
        tiling, (rows, columns) = self.tiling, self.grid
        height, width = tiling.tile
        starts = [(top, left) for top in tiling.starts(0) for left in tiling.starts(1)]
        whole, total = None, torch.zeros((), device=images.device)
        for weight, (top, left) in zip(self.weights, starts, strict=True):
            patches, pooled = self.module(images[:, :, top : top + height, left : left + width])
            if whole is None:  # `shape` rather than `len`, which a trace would take for a constant
                whole = patches.new_zeros(patches.shape[0], *_cells(tiling, self.grid), patches.shape[-1])
            y, x = top * rows // height, left * columns // width
            whole[:, y : y + rows, x : x + columns] += weight * patches
            total = total + pooled
        assert whole is not None
        return whole, total / len(starts)


def _cells(tiling: Tiling, grid: tuple[int, int]) -> tuple[int, int]:
    height, width = (
        side * cells // tile for side, cells, tile in zip(tiling.size, grid, tiling.tile, strict=True)
    )
    return height, width


def _as_counts(counts: tuple[int, int]) -> tuple[int, int]:
    pair = tuple(counts) if isinstance(counts, tuple | list) else ()
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in pair)
    if len(pair) != 2 or not whole:
        raise ConfigError(f"expected tiles as two numbers above 0 (rows, columns), got {counts!r}")
    if pair[0] * pair[1] > MOST_TILES:
        raise ConfigError(f"expected at most {MOST_TILES} tiles, got {pair[0]}x{pair[1]}")
    return pair[0], pair[1]
