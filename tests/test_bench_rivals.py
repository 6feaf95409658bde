"""The rows that stand beside the line: each by a property that it would lose if it were another method."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from moleflow.bench import ablation
from moleflow.bench.methods import METHODS, PATCH_METHODS, TABLES, WITH_CELLS, make
from moleflow.bench.methods.base import State
from moleflow.bench.methods.gaussians import Gaussian
from moleflow.bench.methods.line import successor
from moleflow.bench.methods.prototypes import _spread_points, nearest_around
from moleflow.config import Dia, override
from moleflow.errors import ConfigError, TrainingError
from moleflow.presets import get_preset
from rows import (
    CONFIG,
    GRID,
    NORMALISED,
    PLACE,
    POOLED,
    SETTING,
    SMALL,
    faulty,
    images,
    setting_of,
    taught,
    tell,
)

OWN_ROUTERS = ("gcr", "dinosaur")
FEATURES_ALONE = [name for name in METHODS if name not in ("dne", "ucad")]


@pytest.mark.long
@pytest.mark.parametrize("name", FEATURES_ALONE)
def test_a_state_comes_back_to_the_bit_and_learns_on(name):
    method = taught(name)
    again = make(name, setting_of(name), SMALL.get(name, {}))
    again.restore(method.state())
    for task in ("a", None):
        assert tell(again.inspect(faulty("a", 2), task)) == tell(method.inspect(faulty("a", 2), task))
    again.remind([images("a"), images("b")])
    for one in (again, method):
        one.learn([images("c")])
    ours, theirs = again.state().tensors, method.state().tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("name", [m.name for m in PATCH_METHODS])
def test_a_defect_scores_above_every_good_image_and_at_its_place(name):
    method = taught(name, ("a",))
    good = [i.score for i in method.inspect(images("a", 8, seed=5), "a")]
    found = list(method.inspect(faulty("a"), "a"))
    assert min(i.score for i in found) > max(good)
    assert all(np.unravel_index(i.patch_map.argmax(), GRID) == PLACE for i in found)


@pytest.mark.parametrize("name", OWN_ROUTERS)
def test_a_router_of_its_own_finds_the_product_and_calls_nothing_unknown(name):
    method = taught(name)
    for product in "ab":
        assert {(i.task, i.known) for i in method.inspect(images(product, 3, seed=4))} == {(product, None)}
    assert not method.rejects
    assert not method.statistics
    assert not any(".router" in key or "router." in key for key in method.state().tensors)


def test_tables_name_methods_that_exist():
    for names in TABLES.values():
        assert set(names) <= set(METHODS)
    assert {method.name for method in WITH_CELLS} <= set(TABLES["with-cells"])
    assert not {n for n in TABLES["all"] if "-with-" in n}
    assert len(TABLES["with-image"]) == len(PATCH_METHODS)


# The line without its flow, and flows with what the line has


WEIGHTLESS = replace(SETTING, config=override(NORMALISED, {"scoring.flow_weight": 0.0}))


def same_maps_and_scores(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one.score, one.threshold) == (other.score, other.threshold)
        assert np.array_equal(one.patch_map, other.patch_map)


def test_cells_alone_say_what_the_line_says_with_no_weight_on_its_flow_and_no_coreset():
    bare = replace(WEIGHTLESS, config=override(WEIGHTLESS.config, {"scoring.coreset": None}))
    line, cells = taught("moleflow", setting=bare), taught("cells", setting=WEIGHTLESS)
    same_maps_and_scores(cells.inspect(faulty("a"), "a"), line.inspect(faulty("a"), "a"))


def test_cells_alone_are_those_that_the_flow_begins_with():
    beginning, beside = taught("cells"), taught("cells", setting=WEIGHTLESS)
    same_maps_and_scores(beginning.inspect(faulty("a"), "a"), beside.inspect(faulty("a"), "a"))


def test_an_expert_that_learns_nothing_is_the_cells_alone():
    """But for the level of its map, which is that of images it learned from, corrected by a gap."""
    nothing = {"scoring.coreset": None, **ablation.NO_FLOW}
    line = taught("moleflow", setting=replace(SETTING, config=override(CONFIG, nothing)))
    cells, probe = taught("cells"), faulty("a")
    part, patches = line.parts["a"], probe.features.float()
    own = part.base.score(part.product.densities.expert, part.base.prepare(patches))
    torch.testing.assert_close(own, cells.parts["a"].product.densities.cells(patches), rtol=0.01, atol=0)
    for ours, theirs in zip(line.inspect(probe, "a"), cells.inspect(probe, "a"), strict=True):
        assert np.corrcoef(ours.patch_map.ravel(), theirs.patch_map.ravel())[0, 1] > 0.9999


def test_cells_beside_a_flow_of_no_weight_are_the_cells():
    flow, cells = taught("fine-tuning-with-cells", setting=WEIGHTLESS), taught("cells")
    for ours, theirs in zip(flow.inspect(faulty("a"), "a"), cells.inspect(faulty("a"), "a"), strict=True):
        np.testing.assert_allclose(ours.patch_map, theirs.patch_map, rtol=0.2, atol=0.3)
    scores = [[i.score for i in m.inspect(faulty("a", 4), "a")] for m in (flow, cells)]
    assert np.argsort(scores[0]).tolist() == np.argsort(scores[1]).tolist()


@pytest.mark.parametrize("name", ["cells", "fine-tuning-with-cells"])
def test_rows_of_cells_have_no_coreset(name):
    tensors = taught(name).state().tensors
    assert [key for key in tensors if key.startswith("a/cells.")]
    assert not [key for key in tensors if "coreset" in key]


@pytest.mark.parametrize("method", WITH_CELLS, ids=lambda m: m.name)
def test_the_flow_beside_cells_is_the_flow_of_the_method_itself(method):
    beside, alone = taught(method.name), taught(method.kind.name)
    ours = {k: v for k, v in beside.state().tensors.items() if k.startswith("shared/")}
    theirs = alone.state().tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert beside.state().bytes_of("shared") == alone.state().bytes_of("shared")
    assert beside.keeps_images == alone.keeps_images
    assert beside.state().notes.get("kept_bytes") == alone.state().notes.get("kept_bytes")


def test_what_stands_beside_a_flow_stays_while_the_flow_forgets():
    method = taught("fine-tuning-with-cells", ("a",))
    before = {k: v.clone() for k, v in method.state().tensors.items() if k.startswith("a/")}
    said = tell(method.inspect(faulty("a"), "a"))
    method.learn([images("b")])
    assert all(torch.equal(value, method.state().tensors[key]) for key, value in before.items())
    assert tell(method.inspect(faulty("a"), "a")) != said


def test_the_successors_shape_follows_from_the_features():
    for given in (CONFIG, NORMALISED):
        config = successor(given, 40)
        assert (config.flow.couplings, config.flow.hidden, config.flow.dia) == (6, 40, Dia(2, 40))
        assert (config.flow.cells, config.flow.normalisation) == (None, "layer")
        assert (config.scoring.cells, config.scoring.coreset, config.scoring.whole) == (None, None, None)
    by_hand = replace(NORMALISED, training=replace(NORMALISED.training, learning_rate=5e-3))
    assert successor(by_hand, 40).training == by_hand.training


@pytest.mark.parametrize("channels", [152, 768])
def test_the_successors_rate_is_that_of_our_rule_for_its_width(channels):
    given = get_preset("default").at(channels)
    rate = successor(given, channels).training.learning_rate
    assert rate * channels == pytest.approx(given.training.learning_rate * given.flow.hidden)


@pytest.mark.parametrize("name", ["cells", "ewc-with-cells"])
def test_cells_cannot_be_left_out_of_what_is_named_after_them(name):
    without = replace(SETTING, config=override(CONFIG, {"flow.cells": None}))
    with pytest.raises(ConfigError, match="cells"):
        make(name, without, {})


# Gaussians over whole pictures


def test_the_image_level_gaussian_is_ledoit_and_wolfs_on_standardised_features():
    method = taught("image-gaussian", ("a",))
    x, probe = images("a").pooled.double().numpy(), images("a", 5, seed=3).pooled.double().numpy()
    mean, spread = x.mean(0), x.std(0)
    reference = LedoitWolf(assume_centered=True).fit((x - mean) / spread)
    expected = np.sqrt(reference.mahalanobis((probe - mean) / spread) / POOLED)
    found = [i.score for i in method.inspect(images("a", 5, seed=3), "a")]
    np.testing.assert_allclose(found, expected, rtol=5e-3)  # directions are kept in 16 bits


def test_one_gaussian_of_merged_moments_is_that_of_all_images():
    parts = [Gaussian.fit(images(product, 40)) for product in "ab"]
    merged = Gaussian.merged(parts)
    rows = torch.cat([images(product, 40).descriptors for product in "ab"])
    torch.testing.assert_close(merged.mean, rows.mean(0), rtol=1e-5, atol=1e-5)
    between = torch.outer(*[parts[0].mean - parts[1].mean] * 2) / 4
    within = (parts[0].covariance + parts[1].covariance) / 2
    torch.testing.assert_close(merged.covariance, within + between)


def test_the_shared_gaussian_does_not_mind_the_order():
    probe = images("a", 3, seed=4)
    one, other = (
        taught("descriptor-gaussian-shared", products) for products in (("a", "b", "c"), ("c", "a", "b"))
    )
    scores = [[i.score for i in method.inspect(probe)] for method in (one, other)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_the_shared_gaussian_keeps_one_however_many_products():
    kept = [taught("descriptor-gaussian-shared", "abc"[:n]).state().bytes_of() for n in (1, 3)]
    assert kept[0] == kept[1] == 4 * (SETTING.channels + SETTING.channels**2)


def test_bytes_of_a_fused_method_hold_what_the_patch_method_notes():
    state = taught("memory-bank-calibrated-with-image").state()
    without = State(state.tensors, {"products": state.notes["products"]})
    noted = json.dumps(list(taught("memory-bank-calibrated").state().notes["products"].values()))
    assert state.bytes_of() - without.bytes_of() == pytest.approx(len(noted), abs=4)


def test_pictures_without_pooled_features_are_refused():
    bare = replace(images("a"), pooled=torch.empty(0, 0))
    for name in ("image-gaussian", "padim-with-image"):
        with pytest.raises(ConfigError, match="pooled"):
            make(name, SETTING, {}).learn([bare])
    with pytest.raises(TrainingError, match="'a'"):
        make("image-gaussian", SETTING, {}).learn([images("a", 0)])


@pytest.mark.parametrize("kind", PATCH_METHODS, ids=lambda m: m.name)
def test_the_image_level_beside_a_patch_method_leaves_its_map_alone(kind):
    fused, alone = taught(f"{kind.name}-with-image"), taught(kind.name)
    odd = images("a", 3, seed=8)
    odd.pooled[:] += 3.0  # as a whole the picture is another
    for pictures in (faulty("a", 2), odd):
        for ours, theirs in zip(fused.inspect(pictures), alone.inspect(pictures), strict=True):
            assert np.array_equal(ours.patch_map, theirs.patch_map)
            assert (ours.task, ours.known) == (theirs.task, theirs.known)
    good = max(i.score for i in fused.inspect(images("a", 6, seed=9)))
    assert min(i.score for i in fused.inspect(odd)) > good
    assert min(i.score for i in fused.inspect(faulty("a"))) > good


# Prototypes and places


def test_an_energy_is_the_soft_minimum_over_the_nearest_prototypes():
    method = taught("gcr", ("a",), replace(SETTING, config=override(CONFIG, {"scoring.smoothing": 0.0})))
    probe = images("a", 1, seed=3)
    patches, bank = probe.features[0].float().flatten(0, 1).double(), method.parts["a"].patches.double()
    near = torch.cdist(patches, bank).square().sort(1).values[:, :5]
    expected = -torch.logsumexp(-near / 2, 1) + np.log(len(bank))
    found = next(iter(method.inspect(probe, "a"))).patch_map
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-3)


@pytest.mark.parametrize("radius", [0, 1, 3, 20])
def test_neighbours_are_sought_around_a_place_alone(radius):
    generator = torch.Generator().manual_seed(0)
    banks = torch.randn(11, 9, 3, 5, generator=generator)
    patches = torch.randn(11, 9, 5, generator=generator)
    found = nearest_around(patches, banks, radius)
    for row, column in [(0, 0), (5, 4), (10, 8), (7, 8), (8, 1)]:
        rows = slice(max(0, row - radius), row + radius + 1)
        columns = slice(max(0, column - radius), column + radius + 1)
        near = banks[rows, columns].flatten(0, 2)
        expected = float((near - patches[row, column]).norm(dim=1).min())
        assert float(found[row, column]) == pytest.approx(expected, rel=1e-4)


def test_every_place_keeps_what_is_farthest_apart_there():
    points = torch.randn(4, 12, 3, generator=torch.Generator().manual_seed(0))
    kept = _spread_points(points, 5, torch.tensor([0, 3, 1, 2]))
    for group, first, found in zip(points, (0, 3, 1, 2), kept, strict=True):
        chosen = [first]
        while len(chosen) < 5:
            chosen.append(int(torch.cdist(group, group[chosen]).amin(1).argmax()))
        assert torch.equal(found, group[chosen])


def test_a_patch_between_two_kept_ones_is_ordinary_to_a_projection():
    """Half-way between neighbours a look-up finds a distance; a mixture of both leaves next to nothing."""
    method = make("projection-bank", SETTING, {"neighbours": 2})
    bank = torch.tensor([[0.0, 0.0], [2.0, 0.0], [50.0, 50.0]])
    between, beside = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert float(method._left(between, bank)) == pytest.approx(0.0, abs=1e-6)
    assert float(method._left(beside, bank)) == pytest.approx(1.0)


def test_a_projections_temperature_is_of_the_image_it_looks_at():
    """A strange patch in the same picture changes what is left of the others, and the scale does not."""
    method = make("projection-bank", SETTING, {"neighbours": 2})
    bank = torch.tensor([[0.0, 0.0], [2.0, 0.0], [50.0, 50.0]])
    patches = torch.tensor([[0.5, 0.2], [0.4, 0.1], [1.8, 0.3]])
    alone = method._left(patches, bank)
    beside = method._left(torch.cat([patches, torch.full((9, 2), 20.0)]), bank)[:3]
    assert not torch.allclose(alone, beside)
    assert torch.allclose(method._left(10 * patches, 10 * bank), 10 * alone)


def test_every_layer_of_a_projected_patch_is_of_length_one():
    """So that no layer speaks louder than another for having greater numbers."""
    widths = (SETTING.channels - 2, 2)
    setting, quiet = replace(SETTING, widths=widths), images("a")
    loud = replace(quiet, features=quiet.features.clone())
    loud.features[..., -2:] *= 50
    scores = []
    for pictures in (quiet, loud):
        method = taught("projection-bank", (), setting)
        method.learn([pictures])
        parts = method.state().tensors["a/banks"].float().split(widths, dim=-1)
        assert all(torch.allclose(part.norm(dim=-1), torch.ones(()), atol=1e-3) for part in parts)
        scores.append([found.score for found in method.inspect(pictures, "a")])
    assert scores[1] == pytest.approx(scores[0], rel=0.02)
