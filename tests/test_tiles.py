"""Large images in tiles: one grid of features, no seams, the same whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moleflow.errors import ConfigError
from moleflow.features.extractor import Extractor
from moleflow.features.tiles import Tiling

TILE = 256  # its overlap is 96 pixels, 12 cells


@pytest.fixture(scope="module")
def tiled() -> Extractor:
    return Extractor(image_size=TILE, tiles=(1, 2))


@pytest.fixture(scope="module")
def at_once(tiled: Extractor) -> Extractor:
    return Extractor(image_size=tiled.image_size)


def batch(pictures: Any, size: tuple[int, int], count: int = 2) -> torch.Tensor:
    images = [
        np.resize(np.tile(p, (4, 4, 1))[: size[0], : size[1]], (*size, 3)) for p in pictures("wood", count)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def test_grid_and_size_are_the_whole_images(tiled: Extractor, at_once: Extractor) -> None:
    assert tiled.image_size == (256, 416)  # 2 x 256 - 96
    assert (tiled.grid, tiled.dim, tiled.pooled_dim) == (at_once.grid, at_once.dim, at_once.pooled_dim)


@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (3, 4)])
@pytest.mark.parametrize("side", [32, 64, 96, 384])
def test_weights_add_up_to_one(counts: tuple[int, int], side: int) -> None:
    tiling = Tiling.of(counts, (side, side), 16)
    cells = side // 8
    for axis in (0, 1):
        total = torch.zeros(tiling.size[axis] // 8)
        for start, weight in zip(tiling.starts(axis), tiling.weights(axis, cells), strict=True):
            total[start // 8 : start // 8 + cells] += weight
        assert torch.allclose(total, torch.ones_like(total))


def test_far_from_other_tiles_features_are_the_whole_images(
    tiled: Extractor, at_once: Extractor, pictures: Any
) -> None:
    images = batch(pictures, tiled.image_size)
    found, wanted = tiled.features(images), at_once.features(images)
    away = (found - wanted).abs().mean((0, 1, 3)) / wanted.std((0, 1, 2)).mean()
    assert float(away[[*range(6), *range(-6, 0)]].max()) < 0.1  # the overlap is 20 to 32
    assert float(away.max()) < 0.5


def test_a_uniform_image_has_no_seam(tiled: Extractor) -> None:
    found = tiled.features(torch.full((1, 3, *tiled.image_size), 130, dtype=torch.uint8))[0]
    steps = (found[:, 1:] - found[:, :-1]).abs().mean((0, 2))  # from column to column
    assert float(steps[16:35].max()) <= 0.5 * float(steps[:5].max())  # less than at the image's own border


def test_a_part_on_the_seam_looks_as_it_does_elsewhere(tiled: Extractor, at_once: Extractor) -> None:
    plain = torch.full((1, 3, *tiled.image_size), 130, dtype=torch.uint8)
    spot = plain.clone()
    spot[:, :, 120:136, 200:216] = 20  # across the middle of the overlap
    for extractor in (tiled, at_once):
        response = (extractor.features(spot) - extractor.features(plain)).norm(dim=-1)[0]
        row, column = divmod(int(response.argmax()), response.shape[1])
        assert row in (15, 16)
        assert column in (25, 26)
        strong = response[16] > response.max() / 3
        assert int(strong.diff().sum()) == 2  # one region, begun once and ended once


def test_batches_change_nothing(tiled: Extractor, pictures: Any) -> None:
    images = batch(pictures, tiled.image_size, 3)
    together = tiled.see(images)
    for i in range(3):
        alone = tiled.see(images[i : i + 1])
        assert torch.allclose(alone.patches[0], together.patches[i], atol=1e-4)
        assert torch.allclose(alone.pooled[0], together.pooled[i], atol=1e-4)


def test_description_names_tiles_only_where_there_are_some(tiled: Extractor, at_once: Extractor) -> None:
    assert {"tiles", "tile_size"} == set(tiled.describe()) - set(at_once.describe())
    assert Extractor(image_size=TILE, tiles=(1, 1)).describe() == Extractor(image_size=TILE).describe()


@pytest.mark.parametrize("counts", [(0, 1), (1,), (9, 9), ("1", 2), 4, (True, 2)])
def test_impossible_counts_are_refused(counts: Any) -> None:
    with pytest.raises(ConfigError, match="tiles"):
        Tiling.of(counts, (64, 64), 16)


def test_tiles_too_small_to_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 32 pixels"):
        Tiling.of((1, 2), (64, 16), 16)
