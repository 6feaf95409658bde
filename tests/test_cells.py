"""Cell Gaussians against Mahalanobis distances written out, on grids that fit badly and with few images.

Fitted weights are rounded to 16 bits, so distances agree with the explicit ones to about a percent.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from moleflow.cells import CellGaussians
from moleflow.config import Cells

CHANNELS = 5
HALF = {"rtol": 1e-3, "atol": 1e-3}
ROUNDED = {"rtol": 1e-2, "atol": 1e-2}
FULL = Cells(side=2, rank=CHANNELS, mean_side=64, ridge=0.3)


def patches(images: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    """Features whose mean and covariance differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    character = torch.Generator().manual_seed(99)
    mixing = torch.randn(*grid, CHANNELS, CHANNELS, generator=character)
    mean = 3 * torch.randn(*grid, CHANNELS, generator=character)
    raw = torch.randn(images, *grid, CHANNELS, generator=generator)
    return torch.einsum("nhwc,hwcd->nhwd", raw, mixing) + mean


def fitted(features: Tensor, config: Cells) -> CellGaussians:
    cells = CellGaussians(tuple(features.shape[1:3]), features.shape[3], config)
    cells.fit(features)
    return cells


def owners(length: int, side: int) -> list[list[int]]:
    """Which rows (or columns) each of the cells along one side holds."""
    parts = min(side, length)
    bounds = [round(i * length / parts) for i in range(parts + 1)]
    return [list(range(a, b)) for a, b in pairwise(bounds)]


def explicit(train: Tensor, test: Tensor, config: Cells) -> Tensor:
    """sqrt((x - mean)^T (C + rho I)^-1 (x - mean)) in float64; the mean is each place's own."""
    train, test = train.double(), test.double()
    _, height, width, channels = train.shape
    mean = train.mean(0)
    places = [(r, c) for r in owners(height, config.side) for c in owners(width, config.side)]
    covariances = []
    for rows, columns in places:
        x = (train - mean)[:, rows][:, :, columns].reshape(-1, channels)
        covariances.append(x.T @ x / len(x))
    rho = config.ridge * torch.stack([c.diagonal().mean() for c in covariances]).mean()
    distance = torch.full(test.shape[:3], torch.nan, dtype=torch.float64)
    for (rows, columns), covariance in zip(places, covariances, strict=True):
        precision = torch.linalg.inv(covariance + rho * torch.eye(channels, dtype=torch.float64))
        for row in rows:
            for column in columns:
                x = test[:, row, column] - mean[row, column]
                distance[:, row, column] = torch.einsum("bi,ij,bj->b", x, precision, x).sqrt()
    return distance


@pytest.mark.parametrize(
    ("grid", "side"),
    [((4, 4), 2), ((5, 7), 2), ((5, 7), 3), ((7, 11), 4), ((2, 3), 8), ((1, 6), 4), ((1, 1), 8), ((4, 6), 1)],
)
def test_with_full_rank_the_distance_is_the_explicit_mahalanobis_distance(grid, side):
    config = replace(FULL, side=side)
    train, test = patches(40, grid), 2 * patches(6, grid, seed=1)
    distance = fitted(train, config)(test)
    assert distance.shape == (6, *grid)
    torch.testing.assert_close(distance.double(), explicit(train, test, config), **ROUNDED)


def test_rank_beyond_the_channels_is_full_rank():
    train, test = patches(40, (4, 4)), patches(6, (4, 4), seed=1)
    wide = fitted(train, replace(FULL, rank=500))
    assert wide.directions.shape == (4, CHANNELS, CHANNELS)
    assert torch.equal(wide(test), fitted(train, FULL)(test))


def test_with_low_rank_everything_outside_the_kept_directions_is_noise():
    config = Cells(side=1, rank=2, mean_side=64, ridge=0.3)
    train, test = patches(200, (1, 1)), patches(6, (1, 1), seed=1)
    x = (train - train.mean(0)).reshape(-1, CHANNELS).double()
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    rho = 0.3 * values.mean()
    kept = torch.cat([torch.zeros(CHANNELS - 2).double(), values[-2:]])
    precision = vectors @ torch.diag(1 / (kept + rho)) @ vectors.T
    offset = (test - train.mean(0)).reshape(-1, CHANNELS).double()
    expected = torch.einsum("bi,ij,bj->b", offset, precision, offset).sqrt()
    got = fitted(train, config)(test).flatten().double()
    torch.testing.assert_close(got, expected, **ROUNDED)
    assert (got - fitted(train, replace(config, rank=CHANNELS))(test).flatten()).abs().max() > 0.1


@pytest.mark.parametrize(("length", "parts"), [(14, 8), (28, 8), (7, 3), (5, 5), (1, 1), (13, 8), (9, 8)])
def test_cells_cover_every_patch_once_and_none_is_empty(length, parts):
    cells = CellGaussians((length, length), CHANNELS, Cells(side=parts))
    covered = torch.zeros(length, length)
    for rows, columns in cells._cells():
        covered[rows, columns] += 1
        assert covered[rows, columns].numel() > 0
    assert torch.equal(covered, torch.ones(length, length))
    assert len(cells._cells()) == len(cells.directions) == parts**2


def test_the_mean_is_the_nearest_to_normal():
    train = patches(40, (4, 4))
    cells = fitted(train, FULL)
    at_mean = cells(train.mean(0, keepdim=True))
    assert at_mean.max() < 0.01
    assert (cells(train).mean(0) > 0.5).all()


def test_distance_grows_with_a_defect_and_only_there():
    train, test = patches(40, (5, 7)), patches(1, (5, 7), seed=1)
    cells = fitted(train, FULL)
    spoiled = test.clone()
    spoiled[0, 2, 3] += 30.0
    before, after = cells(test)[0], cells(spoiled)[0]
    elsewhere = torch.ones(5, 7, dtype=torch.bool)
    elsewhere[2, 3] = False
    assert after[2, 3] > before[2, 3] + 5
    assert torch.equal(after[elsewhere], before[elsewhere])


def test_a_coarse_mean_is_pooled_and_interpolated():
    slope = torch.linspace(0, 1, 12)[None, :, None, None].expand(30, 12, 12, CHANNELS)
    cells = fitted(slope + 0.01 * patches(30, (12, 12)), replace(FULL, mean_side=6))
    assert cells.mean.shape == (6, 6, CHANNELS)
    exact = fitted(slope, replace(FULL, mean_side=6))
    torch.testing.assert_close(exact.mean, slope[0].reshape(6, 2, 6, 2, CHANNELS).mean((1, 3)), **HALF)
    interior = exact._mean_grid()[1:-1]  # a slope survives pooling and interpolation, away from the border
    torch.testing.assert_close(interior, slope[0, 1:-1], **HALF)
    assert torch.isfinite(cells(slope)).all()


def test_fitted_weights_are_what_sixteen_bits_hold():
    cells = fitted(patches(30, (5, 7)), Cells(side=3, rank=2))
    for value in (cells.mean, cells.directions):
        assert value.abs().max() > 0
        assert torch.equal(value.half().float(), value)


def test_places_with_a_spread_of_their_own_judge_by_it():
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(60, 4, 4, CHANNELS, generator=generator)
    train[:, :2] *= 10
    cells = fitted(train, replace(FULL, ridge=0.01))
    off = torch.full((1, 4, 4, CHANNELS), 5.0)
    distance = cells(off)[0]
    assert distance[:2].max() < 0.5 * distance[2:].min()


@pytest.mark.parametrize("grid", [(4, 4), (14, 14), (20, 20)])
def test_one_image_is_enough(grid):
    cells = fitted(patches(1, grid), Cells())
    for features in (patches(1, grid), patches(3, grid, seed=1)):
        assert torch.isfinite(cells(features)).all()
    assert cells(patches(3, grid, seed=1)).min() > 0


@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_features_give_no_nan(images, value):
    constant = torch.full((images, 6, 6, CHANNELS), value)
    cells = fitted(constant, Cells())
    assert all(torch.isfinite(buffer).all() for buffer in cells.state_dict().values())
    torch.testing.assert_close(cells(constant), torch.zeros(images, 6, 6))
    off = cells(constant + 1)
    assert torch.isfinite(off).all()
    assert (off > 0).all()


def test_constant_features_that_sixteen_bits_do_not_hold_give_no_nan():
    constant = torch.full((5, 6, 6, CHANNELS), 0.1)
    assert torch.isfinite(fitted(constant, Cells())(constant)).all()


def test_one_channel_that_never_moves_gives_no_nan_and_is_still_watched():
    train = patches(30, (4, 4))
    train[..., 2] = 1.0
    cells = fitted(train, FULL)
    moved = train[:1].clone()
    moved[..., 2] += 30
    assert torch.isfinite(cells(train)).all()
    assert (cells(moved) > cells(train[:1]) + 5).all()


def test_fitting_twice_gives_the_same_bytes_and_forgets_what_was_before():
    train, other = patches(20, (5, 7)), patches(20, (5, 7), seed=5) + 100
    once = fitted(train, Cells(side=3, rank=2))
    again = fitted(other, Cells(side=3, rank=2))
    again.fit(train)
    for name, value in once.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_an_image_does_not_depend_on_the_others_in_the_batch_nor_is_it_changed():
    train, test = patches(40, (5, 7)), patches(6, (5, 7), seed=1)
    cells, before = fitted(train, FULL), test.clone()
    together = cells(test)
    torch.testing.assert_close(together[2:3], cells(test[2:3]), rtol=1e-5, atol=1e-5)
    assert torch.equal(test, before)


def test_more_images_than_a_chunk_have_the_same_mean():
    train = patches(130, (3, 4))
    torch.testing.assert_close(fitted(train, FULL).mean, train.mean(0), **HALF)


def test_half_precision_features_are_judged_in_full():
    train, test = patches(40, (4, 4)), patches(6, (4, 4), seed=1)
    half = fitted(train.half(), FULL)(test.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, fitted(train, FULL)(test), rtol=1e-2, atol=1e-2)


def test_the_state_is_all_there_is():
    train, test = patches(20, (5, 7)), patches(3, (5, 7), seed=1)
    cells = fitted(train, Cells(side=3, rank=2))
    copy = CellGaussians((5, 7), CHANNELS, Cells(side=3, rank=2))
    copy.load_state_dict(cells.state_dict())
    assert torch.equal(copy(test), cells(test))


def test_samples_have_the_mean_and_covariance_of_every_cell():
    train = patches(200, (4, 6))
    cells = fitted(train, FULL)
    drawn = cells.sample(2000, torch.Generator().manual_seed(0))
    assert drawn.shape == (2000, 4, 6, CHANNELS)
    torch.testing.assert_close(drawn.mean(0), train.mean(0), rtol=0, atol=0.35)
    for rows, columns in cells._cells():
        own, other = ((x - x.mean(0))[:, rows, columns].reshape(-1, CHANNELS) for x in (train, drawn))
        own, other = own.T @ own / len(own), other.T @ other / len(other)
        assert (own - other).norm() < 0.1 * own.norm()


def test_samples_depend_on_the_generator_alone():
    cells = fitted(patches(20, (5, 7)), Cells(side=3, rank=2))
    draws = [cells.sample(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_rounding_cannot_make_a_distance_imaginary():
    cells = CellGaussians((2, 2), CHANNELS, Cells(side=1, rank=1))
    cells.directions[0, 0, 0] = 1.0005  # a direction of huge variance, rounded up beyond a unit vector
    along = torch.zeros(1, 2, 2, CHANNELS)
    along[..., 0] = 100.0
    assert torch.equal(cells(along), torch.zeros(1, 2, 2))
