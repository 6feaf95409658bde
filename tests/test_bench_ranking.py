"""Rank correlations, their intervals, and choosing on some products for another."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moleflow.bench.ranking import spearman
from moleflow.errors import ConfigError
from moleflow.metrics import image_auroc

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def ranking(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("ranking")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_correlations_are_those_of_scipy(ranking, rng):
    a, b = rng.integers(5, size=20).astype(float), rng.normal(size=20)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert ranking.kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert spearman(np.ones(20), b) == ranking.kendall(np.ones(20), b) == 0


def test_a_criterion_that_ranks_has_an_interval_above_zero_and_noise_has_not(ranking, rng):
    figure = rng.normal(size=(6, 30))
    good = ranking.agreement(figure + 0.5 * rng.normal(size=figure.shape), figure, draws=100)
    noise = ranking.agreement(rng.normal(size=figure.shape), figure, draws=100)
    assert good.spearman_interval[0] > 0.5
    assert good.kendall_interval[0] > 0.3
    assert noise.spearman_interval[0] < 0 < noise.spearman_interval[1]
    assert good.spearman_interval[0] <= good.spearman <= good.spearman_interval[1]
    assert len(good.by_product) == 6


def test_what_test_images_leave_open_widens_the_interval(ranking, rng):
    """A figure that images hardly settle cannot be ranked surely."""
    criterion = np.tile(np.arange(12.0), (3, 1))
    sure = ranking.agreement(criterion, criterion, draws=50)
    open_ = ranking.agreement(
        criterion, criterion, redrawn=lambda r: criterion + 20 * r.normal(size=(3, 12)), draws=50
    )
    assert sure.spearman_interval == (pytest.approx(1), pytest.approx(1))
    assert open_.spearman_interval[0] < 0.5


def test_impossible_tables(ranking, rng):
    table = rng.normal(size=(2, 5))
    with pytest.raises(ConfigError, match="one shape"):
        ranking.agreement(table, table[:, :4])
    with pytest.raises(ConfigError, match="finite"):
        ranking.agreement(table, np.full_like(table, np.nan))
    with pytest.raises(ConfigError, match="two products"):
        ranking.chosen_on_others(table[:1])


def test_areas_are_image_auroc(ranking, rng):
    scores, labels = rng.integers(6, size=(3, 15)).astype(float), np.array([0] * 6 + [1] * 9)
    assert ranking.areas(scores, labels) == pytest.approx([image_auroc(row, labels) for row in scores])
    at = ranking.drawn_again(labels, rng)
    assert labels[at].sum() == 9
    assert len(at) == 15


def test_a_product_has_no_part_in_its_own_choice(ranking, rng):
    """Whatever its own ranks say, the choice for it stays."""
    table = rng.random((4, 9))
    chosen = ranking.chosen_on_others(table)
    for product in range(4):
        changed = table.copy()
        changed[product] = rng.random(9)
        assert ranking.chosen_on_others(changed)[product] == chosen[product]
    best = np.delete(table, 0, axis=0).mean(0)
    assert best[chosen[0]] == best.max()


def test_ranks_are_between_zero_and_one(ranking):
    assert ranking.ranks(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 9.0]])).tolist() == [
        [1, 0, 0.5],
        [0.25, 0.25, 1],
    ]


def test_a_difference_is_paired(ranking, rng):
    """What all configurations have in common cancels out, drawn again or not."""
    figure = np.tile([[0.5, 0.6]], (4, 1))
    gap, (low, high) = ranking.difference(
        figure,
        np.ones(4, int),
        np.zeros(4, int),
        redrawn=lambda r: figure + r.normal(size=(4, 1)),
        draws=40,
    )
    assert (gap, low, high) == pytest.approx((0.1, 0.1, 0.1))
