"""Cell Gaussians against Mahalanobis distances written out, on grids that fit badly and with few images.

Fitted weights are rounded to 16 or 8 bits, so distances agree with the explicit ones to a percent or a few.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from moleflow.config import Cells
from moleflow.flow.cells import CellGaussians, fit_without_each

CHANNELS = 5
HALF = {"rtol": 1e-3, "atol": 1e-3}
ROUNDED = {"rtol": 1e-2, "atol": 1e-2}
FULL = Cells(side=2, rank=CHANNELS, mean_side=64, ridge=0.3, bits=16)
in_bits = pytest.mark.parametrize("bits", [8, 16])
in_few = pytest.mark.parametrize("bits", [4, 8, 16])


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
    in_8 = fitted(train, replace(config, bits=8))(test)
    torch.testing.assert_close(in_8.double(), explicit(train, test, config), rtol=5e-2, atol=5e-2)
    assert not torch.equal(in_8, distance)


def test_rank_beyond_the_channels_is_full_rank():
    train, test = patches(40, (4, 4)), patches(6, (4, 4), seed=1)
    wide = fitted(train, replace(FULL, rank=500))
    assert wide.directions.shape == (4, CHANNELS, CHANNELS)
    assert torch.equal(wide(test), fitted(train, FULL)(test))


def test_with_low_rank_everything_outside_the_kept_directions_is_noise():
    config = Cells(side=1, rank=2, mean_side=64, ridge=0.3, bits=16)
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
    cells = fitted(patches(30, (5, 7)), Cells(side=3, rank=2, bits=16))
    for value in (cells.mean, cells.directions):
        assert value.abs().max() > 0
        assert torch.equal(value.half().float(), value)
    assert cells.kept()["mean"].dtype == cells.kept()["directions"].dtype == torch.float16


@pytest.mark.parametrize("bits", [4, 8])
def test_in_few_bits_a_direction_keeps_its_length_and_about_its_way(bits):
    train = patches(40, (4, 4))
    exact, few = (fitted(train, replace(FULL, rank=3, bits=b)).directions for b in (16, bits))
    torch.testing.assert_close(few.norm(dim=-1), exact.norm(dim=-1), rtol=2e-3, atol=2e-3)
    cosine = torch.cosine_similarity(few, exact, dim=-1)
    assert cosine.min() > (0.98 if bits == 4 else 0.9998)
    assert not torch.equal(few, exact)


def test_in_eight_bits_every_direction_has_its_own_range_and_of_the_mean_every_channel():
    train = patches(30, (5, 7)) * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1.0])
    cells = fitted(train, Cells(side=3, rank=2, bits=8))
    kept = cells.kept()
    assert kept["mean.codes"].dtype == kept["directions.codes"].dtype == torch.int8
    assert kept["mean.codes"].numel() == cells.mean.numel()
    assert kept["mean.step"].numel() == CHANNELS
    assert kept["directions.step"].shape == (9, 2, 1)
    exact = fitted(train, Cells(side=3, rank=2, bits=16)).mean
    largest = exact.abs().flatten(0, 1).amax(0)
    apart = (cells.mean - exact).abs().flatten(0, 1).amax(0)
    assert (apart < largest / 127 / 2 * 1.05 + largest * 1e-3).all()
    assert (apart > 0).all()


@in_few
@pytest.mark.parametrize("rank", [2, 500])
@pytest.mark.parametrize(("images", "grid"), [(30, (5, 7)), (1, (5, 7)), (1, (2, 2)), (3, (1, 1))])
def test_what_is_kept_gives_the_very_same_cells_to_the_bit(bits, rank, images, grid):
    config = Cells(side=3, rank=rank, mean_side=4, bits=bits)
    cells = fitted(patches(images, grid), config)
    again = CellGaussians.from_kept(grid, CHANNELS, config, cells.kept())
    assert again.state_dict().keys() == cells.state_dict().keys()
    for name, value in cells.state_dict().items():
        assert again.state_dict()[name].dtype == value.dtype
        assert torch.equal(again.state_dict()[name], value), name
    for name, value in cells.kept().items():
        assert torch.equal(again.kept()[name], value), name
    test = patches(3, grid, seed=1)
    assert torch.equal(again(test), cells(test))
    for one, other in zip(again.whiten(test), cells.whiten(test), strict=True):
        assert torch.equal(one, other)


@in_few
def test_what_is_kept_survives_many_ways_there_and_back_at_the_width_of_real_features(bits):
    """More directions than there are images, so most of them are of no variance at all."""
    features = torch.randn(2, 3, 3, 70, generator=torch.Generator().manual_seed(0)) ** 3
    config = Cells(side=3, rank=24, bits=bits)
    cells = CellGaussians((3, 3), 70, config)
    cells.fit(features)
    first = cells.kept()
    for _ in range(3):
        cells = CellGaussians.from_kept((3, 3), 70, config, cells.kept())
    assert all(torch.equal(value, first[name]) for name, value in cells.kept().items())


@in_few
def test_kept_parts_that_are_missing_or_of_another_shape_are_refused(bits):
    config = Cells(side=3, rank=2, bits=bits)
    kept = fitted(patches(10, (5, 7)), config).kept()
    names = {4: ("mean.codes", "directions.nibbles_odd"), 8: ("mean.codes", "directions.codes")}
    for name in (*names.get(bits, ("mean", "directions")), "noise"):
        with pytest.raises((KeyError, RuntimeError)):
            CellGaussians.from_kept((5, 7), CHANNELS, config, {k: v for k, v in kept.items() if k != name})
    for other in (replace(config, rank=3), replace(config, side=2), replace(config, mean_side=2)):
        with pytest.raises((KeyError, RuntimeError)):
            CellGaussians.from_kept((5, 7), CHANNELS, other, kept)


# -- white features ----------------------------------------------------------------------------------


@in_bits
@pytest.mark.parametrize("rank", [1, 3, CHANNELS])
@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (1, 1), (7, 2)])
def test_the_length_of_a_white_patch_is_its_mahalanobis_distance(bits, rank, grid):
    config = replace(FULL, side=3, rank=rank, bits=bits)
    cells, test = fitted(patches(40, grid), config), 2 * patches(6, grid, seed=1)
    white, _ = cells.whiten(test)
    rounded = 1e-2 if bits == 8 else 1e-3  # directions once rounded are not quite at right angles
    torch.testing.assert_close(white.norm(dim=-1), cells(test), rtol=rounded, atol=rounded)


def test_white_patches_of_a_cell_have_the_covariance_that_its_variances_and_the_ridge_leave():
    config = replace(FULL, side=1)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=generator)
    train = torch.randn(500, 1, 1, CHANNELS, generator=generator) @ mixing
    white = fitted(train, config).whiten(train)[0].reshape(-1, CHANNELS)
    covariance = train.reshape(-1, CHANNELS).T.cov(correction=0).double()
    values = torch.linalg.eigvalsh(covariance)
    expected = values / (values + 0.3 * values.mean())
    got = torch.linalg.eigvalsh(white.T.cov(correction=0).double())
    torch.testing.assert_close(got, expected.sort().values, rtol=1e-2, atol=1e-2)


@in_bits
@pytest.mark.parametrize("rank", [1, 3, CHANNELS])
def test_whitening_is_the_symmetric_root_of_the_precision(bits, rank):
    config = replace(FULL, rank=rank, bits=bits)
    cells = fitted(patches(40, (4, 4)), config)
    with torch.no_grad():
        offset = cells._mean_grid().expand(CHANNELS, 4, 4, CHANNELS).clone()
        offset += torch.eye(CHANNELS)[:, None, None]
    roots = cells.whiten(offset)[0].permute(1, 2, 0, 3)  # (h, w, D, D): of every unit vector
    _, log_det = cells.whiten(offset)
    rounded = 1e-2 if bits == 8 else 1e-3
    for i, (rows, columns) in enumerate(cells._cells()):
        root = roots[rows, columns].flatten(0, 1)
        torch.testing.assert_close(root, root.mT, rtol=rounded, atol=rounded)
        own = cells.directions[i]
        precision = (torch.eye(CHANNELS) - own.T @ own) / cells.noise
        torch.testing.assert_close(root @ root, precision.expand_as(root), rtol=rounded, atol=rounded)
        expected = torch.linalg.slogdet(root.double()).logabsdet.float()
        torch.testing.assert_close(log_det[0, rows, columns].flatten(), expected, rtol=1e-4, atol=1e-4)


@in_few
@pytest.mark.parametrize("rank", [1, 3, CHANNELS])
@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (1, 1)])
def test_unwhitening_undoes_whitening_and_negates_its_log_det(bits, rank, grid):
    cells = fitted(patches(40, grid), replace(FULL, side=3, rank=rank, bits=bits))
    test = 2 * patches(6, grid, seed=1)
    white, log_det = cells.whiten(test)
    back, inverse_log_det = cells.unwhiten(white)
    torch.testing.assert_close(back, test, rtol=1e-4, atol=1e-4)
    assert torch.equal(inverse_log_det, -log_det)
    assert log_det.shape == (6, *grid)


def test_numbered_patches_are_whitened_as_they_are_where_they_lie():
    cells, test = fitted(patches(40, (5, 7)), replace(FULL, side=3, rank=2)), patches(2, (5, 7), seed=1)
    numbers = torch.tensor([[[33, 0], [8, 8]], [[6, 34], [12, 20]]])
    image = torch.arange(2)[:, None, None]
    whole, log_det = cells.whiten(test)
    own, own_log_det = cells.whiten(test.flatten(1, 2)[image, numbers], numbers)
    torch.testing.assert_close(own, whole.flatten(1, 2)[image, numbers], rtol=1e-5, atol=1e-5)
    assert torch.equal(own_log_det, log_det.flatten(1)[image, numbers])


def test_what_whitening_worked_out_is_not_remembered_of_other_cells():
    train, other, test = patches(30, (4, 4)), 5 * patches(30, (4, 4), seed=5), patches(2, (4, 4), seed=1)
    cells = fitted(train, FULL)
    before = cells.whiten(test)
    cells.fit(other)
    after, fresh = cells.whiten(test), fitted(other, FULL).whiten(test)
    for then, now, expected in zip(before, after, fresh, strict=True):
        assert torch.equal(now, expected)
        assert not torch.equal(now, then)
    in_double = cells.double().whiten(test)[0]
    assert in_double.dtype == torch.float64
    torch.testing.assert_close(in_double.float(), after[0], rtol=1e-4, atol=1e-4)


@in_few
def test_a_direction_of_huge_variance_whitens_to_numbers(bits):
    cells = CellGaussians((2, 2), CHANNELS, Cells(side=1, rank=1, bits=bits))
    cells.directions[0, 0, 0] = 1.0005  # rounded up beyond a unit vector
    along = torch.zeros(1, 2, 2, CHANNELS)
    along[..., 0] = 100.0
    white, log_det = cells.whiten(along)
    assert torch.isfinite(white).all()
    assert torch.isfinite(log_det).all()
    torch.testing.assert_close(cells.unwhiten(white)[0], along, rtol=1e-2, atol=1e-2)


# -- without each block ------------------------------------------------------------------------------


@in_bits
def test_cells_without_a_block_are_those_of_the_other_images(bits):
    train, config = patches(30, (4, 4)), replace(FULL, bits=bits)
    blocks = [None if i < 6 else i % 3 for i in range(30)]
    every, without = fit_without_each(train, blocks, config)
    test, rounded = patches(3, (4, 4), seed=1), (2e-2 if bits == 8 else 2e-3)
    torch.testing.assert_close(every(test), fitted(train, config)(test), rtol=1e-4, atol=1e-4)
    assert len(without) == 3
    for block, cells in enumerate(without):
        others = fitted(train[[i for i, own in enumerate(blocks) if own != block]], config)
        torch.testing.assert_close(cells(test), others(test), rtol=rounded, atol=rounded)
        assert (cells(test) - every(test)).abs().max() > 0.05


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
    for bits in (8, 16):
        cells = fitted(constant, Cells(bits=bits))
        assert all(torch.isfinite(buffer).all() for buffer in cells.state_dict().values())
        off = cells(constant + 1)
        assert torch.isfinite(off).all()
        assert (off > cells(constant) + 1).all()
        white, log_det = cells.whiten(constant)
        assert torch.isfinite(white).all()
        assert torch.isfinite(log_det).all()
    torch.testing.assert_close(cells(constant), torch.zeros(images, 6, 6))  # sixteen bits hold it


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
    cells = CellGaussians((2, 2), CHANNELS, Cells(side=1, rank=1, bits=16))
    cells.directions[0, 0, 0] = 1.0005  # a direction of huge variance, rounded up beyond a unit vector
    along = torch.zeros(1, 2, 2, CHANNELS)
    along[..., 0] = 100.0
    assert torch.equal(cells(along), torch.zeros(1, 2, 2))
