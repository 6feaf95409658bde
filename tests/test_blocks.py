"""Which images are left out together, the density of whole pictures, and cells without each block."""

import numpy as np
import pytest
import torch

from moleflow.config import Cells, ScoringConfig, Whole
from moleflow.densities.whole import WholeGaussian
from moleflow.flow.cells import CellGaussians, fit_without_each
from moleflow.learning.blocks import Blocks, make_blocks

CONFIG = ScoringConfig()


@pytest.mark.parametrize("count", [1, 2, 7, 32, 33, 200])
def test_every_image_is_left_out_once(count):
    blocks = make_blocks(count, CONFIG)
    assert sorted(i for k in range(blocks.count) for i in blocks.images_of(k)) == list(range(count))
    assert all(blocks.images_of(k) for k in range(blocks.count))
    assert sorted(blocks.half(0) + blocks.half(1)) == list(range(count))
    assert len(blocks.sessions) == len(blocks.first) == count
    assert blocks.count == (count if count <= 32 else 8)


def test_blocks_are_runs_of_neighbours():
    left_out = make_blocks(100, CONFIG).left_out
    assert list(left_out) == sorted(left_out)


def test_near_copies_are_never_parted_and_count_once():
    copies = [0, 0, 1, 2, 2, 2, 3, 0]
    blocks = make_blocks(8, CONFIG, copies=copies)
    for i, j in np.ndindex(8, 8):
        assert (copies[i] == copies[j]) == (blocks.left_out[i] == blocks.left_out[j])
    assert blocks.first == (0, 2, 3, 6)
    assert len(blocks.sessions) == 4


def test_together_every_half_leaves_out_that_half_of_every_product():
    parts = [make_blocks(5, CONFIG), make_blocks(40, CONFIG), make_blocks(4, CONFIG, copies=[0, 0, 1, 2])]
    blocks = Blocks.together(parts)
    assert blocks.left_out == tuple(block for part in parts for block in part.left_out)
    assert blocks.first == (*range(45), 45, 47, 48)
    assert len(blocks.sessions) == len(blocks.first)
    assert len(set(blocks.sessions)) == sum(len(set(part.sessions)) for part in parts)
    assert Blocks.together(parts[:1]) == parts[0]


def test_twelve_times_the_same_photograph_is_one():
    blocks = make_blocks(12, CONFIG, copies=[0] * 12)
    assert (blocks.count, blocks.first) == (1, (0,))


def test_groups_take_the_place_of_the_order():
    groups = ["b", "a", "c"] * 20
    blocks = make_blocks(60, CONFIG, groups=groups)
    assert blocks.count == 3
    for k in range(3):
        assert len({groups[i] for i in blocks.images_of(k)}) == 1


def test_many_groups_become_blocks_of_whole_groups():
    groups = [i // 5 for i in range(100)]
    blocks = make_blocks(100, CONFIG, groups=groups)
    assert blocks.count == 8
    sizes = [len(blocks.images_of(k)) for k in range(8)]
    assert max(sizes) <= 15
    for lot in range(20):
        assert len({blocks.left_out[i] for i in range(100) if groups[i] == lot}) == 1


@pytest.mark.parametrize("sizes", [[1] * 9 + [80], [80] + [1] * 9, [1, 40] * 6, [5] * 16])
def test_groups_of_any_size_become_as_many_blocks_as_there_may_be(sizes):
    labels = [group for group, size in enumerate(sizes) for _ in range(size)]
    blocks = make_blocks(len(labels), ScoringConfig(), groups=labels)
    assert blocks.count == ScoringConfig().blocks
    assert list(blocks.left_out) == sorted(blocks.left_out), "neighbours go together"
    assert all(
        len({blocks.left_out[i] for i, own in enumerate(labels) if own == g}) == 1 for g in set(labels)
    )


def test_two_groups_do_not_show_how_groups_differ():
    assert make_blocks(60, CONFIG, groups=[0] * 30 + [1] * 30) == make_blocks(60, CONFIG)


# Cells without each block


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=generator)
    place = torch.randn(6, 6, 24, generator=generator)
    return place + torch.randn(count, 6, 6, 24, generator=generator) @ mixing


@pytest.mark.parametrize("rank", [4, 24])
def test_cells_without_a_block_are_those_of_the_other_images(rank):
    config = Cells(side=2, rank=rank, mean_side=3)
    x, blocks = features(24), [0] * 8 + [1] * 10 + [2] * 4 + [None] * 2
    whole, without = fit_without_each(x, blocks, config)
    probe = features(3, seed=1)
    for cells, kept in ((whole, x), *((without[k], x[[b != k for b in blocks]]) for k in range(3))):
        alone = CellGaussians((6, 6), 24, config)
        alone.fit(kept)
        torch.testing.assert_close(cells.mean, alone.mean, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(cells(probe), alone(probe), rtol=0.02, atol=0)


# The picture as a whole


def pooled(count, seed=0, channels=40):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(channels, channels))
    return torch.from_numpy(5 + rng.normal(size=(count, channels)) @ mixing).float()


@pytest.mark.parametrize("count", [1, 2, 5, 60])
def test_the_whole_is_finite_and_comes_back_to_the_bit(count):
    whole = WholeGaussian.fit(pooled(count), Whole(rank=8))
    again = WholeGaussian.from_tensors(whole.tensors())
    probe = pooled(7, seed=1)
    assert torch.isfinite(whole(probe)).all()
    assert torch.equal(whole(probe), again(probe))


def test_good_pictures_lie_near_and_others_far():
    whole = WholeGaussian.fit(pooled(200), Whole(rank=24))
    good, moved = whole(pooled(50, seed=1)), whole(pooled(50, seed=2) + 20)
    assert 0.7 < float(good.median()) < 1.5
    assert float(moved.min()) > float(good.max())


def test_with_all_directions_it_is_the_shrunk_gaussian():
    x = pooled(300)
    whole = WholeGaussian.fit(x, Whole(rank=39, bits=16))
    z = ((x.double() - whole.mean) / whole.spread).numpy()
    covariance = z.T @ z / len(z)
    level = np.trace(covariance) / 40
    squared = (z**2).sum(1)
    error = ((squared**2).mean() - (covariance**2).sum()) / len(z)
    weight = error / ((covariance - level * np.eye(40)) ** 2).sum()
    shrunk = (1 - weight) * covariance + weight * level * np.eye(40)
    probe = (pooled(5, seed=1).double() - whole.mean) / whole.spread
    expected = np.sqrt(np.einsum("nd,de,ne->n", probe, np.linalg.inv(shrunk), probe) / 40)
    np.testing.assert_allclose(whole(pooled(5, seed=1)).numpy(), expected, rtol=0.02)


def test_what_it_draws_looks_like_what_it_learned():
    whole = WholeGaussian.fit(pooled(200), Whole(rank=24))
    drawn = whole.sample(200, torch.Generator().manual_seed(0))
    assert float(whole(drawn).median()) == pytest.approx(float(whole(pooled(200, seed=3)).median()), rel=0.3)


@pytest.mark.parametrize("still", [1, 4])
def test_numbers_that_never_moved_do_not_scream_when_they_do(still):
    x, probe = pooled(30, channels=400), pooled(5, seed=1, channels=400)
    typical = float(x.std(0).median())
    x[:, :still] = probe[:, :still] = 3.0
    whole = WholeGaussian.fit(x, Whole(rank=8))
    ordinary = whole(probe)
    probe[:, :still] += typical
    assert float(whole(probe).max()) < 6 * float(ordinary.max())


def test_a_number_that_moves_little_keeps_its_spread():
    x = pooled(60)
    x[:, 0] = 3 + (x[:, 0] - 5) * 0.04 * x.std(0).median() / x[:, 0].std()
    torch.testing.assert_close(WholeGaussian.fit(x, Whole(rank=8)).spread[0], x[:, 0].std(correction=0))
