"""Coresets against brute force: how far a patch lies from the nearest that is remembered, and which are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import moleflow.densities.coreset as remembering
from moleflow.config import Coreset, ScoringConfig
from moleflow.densities.coreset import Candidates, PatchCoreset, _chosen, greedy_centres, normalised
from moleflow.errors import ConfigError, TrainingError
from moleflow.flow.whitening import layer_norm
from moleflow.learning.blocks import make_blocks
from moleflow.learning.left_out import CoresetLeftOut
from moleflow.threads import Beside

GRID, CHANNELS = (4, 5), 7
ALL = Coreset(patches=10_000, candidates=10_000, bits=8, layers=())
FEW = Coreset(patches=12, candidates=10_000, bits=8, layers=())


def raw(images: int, seed: int = 0, level: float = 0.0) -> Tensor:
    """Features (N, h, w, D) of many contrasts."""
    generator = torch.Generator().manual_seed(seed)
    contrast = 10 ** torch.randn(images, *GRID, 1, generator=generator)
    return contrast * torch.randn(images, *GRID, CHANNELS, generator=generator) + level


def coreset_of(features: Tensor, options: Coreset = ALL, seed: int = 0) -> PatchCoreset:
    return coresets_without_each(features, [None] * len(features), options, seed=seed)[0]


def coresets_without_each(features, blocks, options, **more):
    candidates = Candidates.of(features, blocks, options, **more)
    last = max((block for block in blocks if block is not None), default=-1)
    return candidates.coreset(), [candidates.without(block) for block in range(last + 1)]


def same(first: PatchCoreset, second: PatchCoreset) -> bool:
    mine, other = first.tensors(), second.tensors()
    return all(torch.equal(mine[name], other[name]) for name in mine)


def rows(tensor: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in tensor.reshape(-1, tensor.shape[-1]).tolist()}


# -- distances ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [ALL, FEW, Coreset(patches=1, layers=()), replace(FEW, rank=3), replace(ALL, rank=1, bits=4)],
    ids=["all", "few", "one", "along-three", "along-one"],
)
def test_the_distance_is_that_from_the_nearest_remembered_patch(options):
    coreset, test = coreset_of(raw(6), options), raw(3, seed=1)
    distance = coreset(test)
    assert distance.shape == (3, *GRID)
    low, step = coreset.low.double(), coreset.step.double()
    remembered = [low + code.double() * step for code in coreset.codes]
    if coreset.frame is not None:
        axes = coreset.frame.axes.double()
        remembered = [coreset.frame.centre + point @ axes for point in remembered]
    for patch, own in zip(test.reshape(-1, CHANNELS), distance.flatten(), strict=True):
        centred = patch.double() - patch.double().mean()
        normalised = centred / (centred.square().mean() + 1e-5).sqrt()
        expected = min(float((normalised - other).norm()) for other in remembered)
        assert float(own) == pytest.approx(expected, rel=1e-3, abs=2e-3)


def test_many_patches_are_compared_in_turn_as_each_by_itself():
    coreset, test = coreset_of(raw(6), FEW), raw(120, seed=1)
    together = coreset(test)
    assert together.numel() > 2 * 1024
    alone = torch.cat([coreset(image[None]) for image in test])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_remembered_patch_is_at_hardly_any_distance():
    features = raw(6)
    coreset = coreset_of(features)
    half_a_step = float((coreset.step / 2).norm())  # of rounding, in every channel at once
    assert coreset(features).max() <= half_a_step * 1.01 + 2e-3
    assert half_a_step < 0.05
    assert coreset(raw(6, seed=1)).mean() > 0.3


def test_what_was_remembered_of_few_is_near_and_the_rest_within_the_radius():
    features = raw(6)
    coreset = coreset_of(features, FEW)
    distance = coreset(features).flatten()
    nearest = distance.sort().values
    assert nearest[:12].max() < 0.05
    assert nearest[12:].min() > 0.1


def test_the_contrast_and_level_of_a_patch_change_nothing():
    coreset, test = coreset_of(raw(6), FEW), layer_norm(raw(3, seed=1))
    before = coreset(test)
    scale = 10 ** torch.rand(3, *GRID, 1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(coreset(scale * test), before, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(coreset(100 * test + 3), before, rtol=1e-2, atol=1e-2)
    assert (coreset(test.flip(-1)) - before).abs().max() > 0.3  # what it shows does


def test_a_patch_that_nothing_good_looks_like_is_far_although_it_lies_between_two_kinds():
    one = torch.tensor([2.0, -1, 0, 0, 0, 0, -1])
    other = torch.tensor([0.0, 0, -1, 2, -1, 0, 0])
    train = torch.stack([one, other])[:, None, None].expand(2, *GRID, CHANNELS).contiguous()
    coreset = coreset_of(train)
    between = ((one + other) / 2).expand(1, *GRID, CHANNELS)
    assert coreset(train).max() < 0.02
    assert coreset(between).min() > 1


def test_half_precision_features_are_compared_in_full_and_left_alone():
    coreset, test = coreset_of(raw(6), FEW), raw(3, seed=1)
    before = test.half().clone()
    got = coreset(before)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, coreset(before.float()))
    assert torch.equal(before, test.half())


def test_a_patch_without_contrast_is_at_a_finite_distance():
    coreset = coreset_of(raw(6), FEW)
    assert torch.isfinite(coreset(torch.full((1, *GRID, CHANNELS), 3.0))).all()
    flat = coreset_of(torch.full((2, *GRID, CHANNELS), 3.0))
    assert torch.isfinite(flat(raw(1))).all()
    assert flat(torch.full((1, *GRID, CHANNELS), 9.0)).max() < 1e-3


# -- few bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_moves_no_number_by_more_than_half_a_level_of_its_channels_range(bits):
    patches = layer_norm(raw(6).reshape(-1, CHANNELS)) * torch.tensor([1.0, 10, 0.1, 1, 1, 5, 1])
    coreset = PatchCoreset.of(patches, bits)
    span = patches.max(0).values - patches.min(0).values
    assert coreset.codes.dtype == torch.uint8
    assert coreset.codes.shape == patches.shape
    torch.testing.assert_close(coreset.step, span / (2**bits - 1))
    assert ((coreset.patches - patches).abs() <= 0.501 * coreset.step + 1e-6).all()
    assert (coreset.codes.amin(0) == 0).all()
    assert (coreset.codes.amax(0) == 2**bits - 1).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_patches_that_differ_along_few_axes_are_kept_along_these(seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(200, 3, generator=generator) * torch.tensor([5.0, 2, 1])
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q[:3]
    patches = spread @ turn + torch.randn(CHANNELS, generator=generator)
    for rank in (3, 5):
        coreset = PatchCoreset.of(patches, rank=rank)
        assert coreset.frame is not None
        assert coreset.codes.shape == (200, rank)
        assert (coreset.patches - patches).norm(dim=1).max() <= 0.65 * coreset.step.norm()
    lost = (PatchCoreset.of(patches, rank=2).patches - patches).square().sum(1).mean()
    assert 0.8 < float(lost) < 1.3  # the variance along the third
    assert PatchCoreset.of(patches, rank=CHANNELS).frame is None  # every channel


def test_axes_of_many_channels_are_found_by_iteration(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(300, 60, generator=generator) * torch.linspace(3, 0.3, 60)
    exact = PatchCoreset.of(patches, rank=12)
    monkeypatch.setattr(remembering, "WIDE", 59)
    state = torch.get_rng_state()
    found = PatchCoreset.of(patches, rank=12)
    assert torch.equal(torch.get_rng_state(), state)
    lost = [float((one.patches - patches).square().mean()) for one in (exact, found)]
    assert lost[0] <= lost[1] <= 1.01 * lost[0]


def test_fewer_patches_than_axes_are_kept_as_well():
    patches = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(0))
    for count in (1, 2, 3):
        kept = PatchCoreset.of(patches[:count], rank=5)
        torch.testing.assert_close(kept.patches, patches[:count], rtol=0, atol=0.05)


def test_what_a_patch_has_across_the_axes_makes_it_strange():
    """None of the remembered ones has any of it."""
    axis = torch.eye(CHANNELS)[:3]
    patches = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) @ axis
    coreset = PatchCoreset.of(layer_norm(patches), rank=3)
    near, far = patches[None, :5, None], patches[None, :5, None] + 2 * torch.eye(CHANNELS)[5]
    assert (coreset(far) > coreset(near) + 0.5).all()


LAYERED = replace(FEW, layers=(2, CHANNELS - 2))


def test_no_layer_speaks_louder_for_greater_numbers():
    """Of patches as a whole the loud layer would decide alone."""
    quiet, test = raw(6), raw(3, seed=1)
    loud, louder = (torch.cat([50 * x[..., :2], x[..., 2:]], -1) for x in (quiet, test))
    torch.testing.assert_close(coreset_of(loud, LAYERED)(louder), coreset_of(quiet, LAYERED)(test))
    plain = coreset_of(quiet, FEW)(test)
    assert not torch.allclose(coreset_of(loud, FEW)(louder), plain, rtol=0.1)


def test_layers_share_the_length_of_a_patch_evenly():
    parts = normalised(raw(2), LAYERED.layers).split(LAYERED.layers, -1)
    assert all(torch.allclose(part.norm(dim=-1), torch.tensor((CHANNELS / 2) ** 0.5)) for part in parts)
    assert torch.equal(normalised(raw(2), ()), layer_norm(raw(2)))
    assert torch.isfinite(normalised(torch.zeros(1, 2, 2, CHANNELS), LAYERED.layers)).all()


def test_layers_of_other_features_are_refused():
    with pytest.raises(ConfigError, match=f"expected {CHANNELS} channels in all"):
        coreset_of(raw(6), replace(FEW, layers=(40, 112)))
    with pytest.raises(ConfigError, match="expected those of a backbone"):
        coreset_of(raw(6), replace(FEW, layers=None))
    for wrong in ((0, 7), (2.5, 4), ("a",), 40, True, "()"):
        with pytest.raises(ConfigError, match=r"Coreset\.layers: expected whole numbers"):
            replace(FEW, layers=wrong)


@pytest.mark.parametrize(("bits", "row"), [(4, (CHANNELS + 1) // 2), (8, CHANNELS)])
@pytest.mark.parametrize(
    ("layers", "rank"), [((), None), (LAYERED.layers, None), ((), 5), (LAYERED.layers, 5)]
)
def test_what_a_line_keeps_gives_the_very_same_coreset(bits, row, layers, rank):
    options = replace(FEW, bits=bits, layers=layers, rank=rank)
    coreset, test = coreset_of(raw(6), options), raw(3, seed=1)
    row = row if rank is None else rank if bits == 8 else (rank + 1) // 2
    kept = coreset.tensors()
    again = PatchCoreset.from_tensors({name: tensor.clone() for name, tensor in kept.items()}, layers)
    assert again.tensors().keys() == kept.keys()
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in kept.items())
    assert torch.equal(again.patches, coreset.patches)
    assert torch.equal(again(test), coreset(test))
    assert torch.equal(coreset.to("cpu")(test), coreset(test))
    codes = kept["codes" if bits == 8 else "nibbles_odd"]
    assert codes.element_size() == 1
    assert codes.shape == (12, row)


def test_a_channel_that_never_moves_is_remembered_as_it_is():
    patches = torch.randn(9, CHANNELS, generator=torch.Generator().manual_seed(0))
    patches[:, 2] = 0.75
    assert torch.equal(PatchCoreset.of(patches).patches[:, 2], patches[:, 2])
    lone = PatchCoreset.of(patches[:1])
    torch.testing.assert_close(lone.patches, patches[:1])


# -- which are remembered ----------------------------------------------------------------------------


def test_centres_leave_at_most_twice_the_least_possible_radius():
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(3))
    table = torch.cdist(points, points)
    for count in (2, 3):
        chosen = greedy_centres(points, count, [0])
        radius = float(table[:, chosen].amin(1).max())
        choices = torch.combinations(torch.arange(9), count)
        least = min(float(table[:, choice].amin(1).max()) for choice in choices)
        assert least <= radius + 1e-6
        assert radius <= 2 * least + 1e-6


def one_by_one(points: Tensor, count: int, *begun: int) -> list[int]:
    """Up to `count` centres of points (n, d), every distance written out; it ends where all are chosen."""
    chosen, points = list(begun), points.double()
    nearest = torch.cdist(points, points[chosen]).amin(1)
    while len(chosen) < count and float(nearest.max()) > 1e-3:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).norm(dim=1))
    return chosen


@pytest.mark.parametrize("at_hand", [1, 2, 9, 60, 2048])
def test_every_centre_is_the_farthest_from_those_before_it(at_hand, monkeypatch):
    monkeypatch.setattr(remembering, "AT_HAND", at_hand)
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(3))
    assert greedy_centres(points, 40, [7]) == one_by_one(points, 40, 7)
    points[200:] = points[:100]
    assert greedy_centres(points, 250, [7]) == one_by_one(points, 250, 7)
    assert len(greedy_centres(points, 250, [7])) == 200


@pytest.mark.parametrize("at_hand", [3, 2048])
def test_a_selection_goes_on_from_those_it_began_with(at_hand, monkeypatch):
    monkeypatch.setattr(remembering, "AT_HAND", at_hand)
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(3))
    every = greedy_centres(points, 40, [7])
    assert greedy_centres(points, 40, every[:12]) == every
    known = torch.cdist(points, points[every[:12]]).amin(1).square()
    before = known.clone()
    assert greedy_centres(points, 40, every[:12], known) == every
    assert torch.equal(known, before)
    assert greedy_centres(points, 5, every[:12]) == every[:12]


def test_nothing_is_remembered_twice():
    different = raw(1)
    coreset = coreset_of(different.expand(5, *GRID, CHANNELS), replace(FEW, patches=50))
    assert len(coreset.codes) == GRID[0] * GRID[1]


def test_so_many_patches_as_asked_for_are_remembered_and_no_more_than_there_are():
    assert len(coreset_of(raw(6), FEW).codes) == 12
    assert len(coreset_of(raw(6), replace(FEW, patches=37)).codes) == 37
    assert len(coreset_of(raw(6)).codes) == 6 * 20
    assert len(coreset_of(raw(6), replace(ALL, candidates=11)).codes) == 11


def test_what_is_remembered_was_seen():
    features = raw(6)
    coreset = coreset_of(features, FEW)
    seen = layer_norm(features).reshape(-1, CHANNELS)
    nearest = torch.cdist(coreset.patches, seen).amin(1)
    assert nearest.max() <= float(coreset.step.norm())


def test_candidates_are_drawn_from_all_images():
    features = raw(6)
    for i in range(6):
        features[i, ..., 0] = (1 + i) * 1e3 * (features[i, ..., 1].abs() + 1)
    drawn = coreset_of(features, replace(ALL, candidates=60))
    shown = layer_norm(features)
    near = torch.cdist(drawn.patches, shown.reshape(-1, CHANNELS)).argmin(1) // 20
    assert len(near.unique()) >= 4


def test_the_seed_decides_by_itself():
    options = replace(FEW, candidates=60)
    torch.manual_seed(5)
    first = coreset_of(raw(6), options, seed=1)
    state = torch.get_rng_state()
    again = coreset_of(raw(6), options, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    other = coreset_of(raw(6), options, seed=2)
    assert not torch.equal(other.codes, first.codes)


def test_features_that_are_no_numbers_are_an_error():
    features = raw(3)
    features[1, 2, 3, 4] = math.nan
    with pytest.raises(TrainingError, match="image 1 of 3"):
        coreset_of(features)


# -- without each block ------------------------------------------------------------------------------

BLOCKS = [0, 1, None, 2, 0, 1]


@pytest.mark.parametrize("options", [ALL, FEW], ids=["all", "few"])
def test_leaving_a_block_out_is_a_coreset_of_the_others(options):
    features = raw(6)
    every, without = coresets_without_each(features, BLOCKS, options, seed=3)
    assert len(without) == 3
    assert same(every, coreset_of(features, options, seed=3))
    own = layer_norm(features)
    for block, coreset in enumerate(without):
        inside = [i for i, name in enumerate(BLOCKS) if name == block]
        outside = [i for i, name in enumerate(BLOCKS) if name != block]
        others = coreset_of(features[outside], options, seed=3)
        assert len(coreset.codes) == len(others.codes)
        assert coreset(features[outside]).max() < 1.2 * others(features[outside]).max() + 0.05
        step = float(coreset.step.norm())
        near = torch.cdist(coreset.patches, own[outside].reshape(-1, CHANNELS)).amin(1)
        assert near.max() <= step
        far = torch.cdist(coreset.patches, own[inside].reshape(-1, CHANNELS)).amin(1)
        assert far.min() > step


def test_a_block_of_which_no_patch_was_drawn_is_left_out_all_the_same():
    every, without = coresets_without_each(raw(6), [0, 0, 1, 1, 2, 3], replace(ALL, candidates=3), seed=3)
    assert len(without) == 4
    assert any(same(coreset, every) for coreset in without), "three patches are not of four blocks"


def test_a_left_out_image_is_farther_than_one_that_is_remembered():
    features = raw(6)
    every, without = coresets_without_each(features, BLOCKS, ALL, seed=3)
    assert without[2](features[3:4]).min() > every(features[3:4]).max()
    torch.testing.assert_close(without[2](features[:3]), every(features[:3]), rtol=0, atol=0.05)


def test_what_is_known_is_a_candidate_whatever_is_left_out():
    features = raw(6)
    known = layer_norm(raw(1, seed=9).reshape(-1, CHANNELS))[:5]
    every, without = coresets_without_each(features, BLOCKS, ALL, seed=3, known=known)
    assert [len(coreset.codes) for coreset in (every, *without)] == [125, 85, 85, 105]
    plain, _ = coresets_without_each(features, BLOCKS, ALL, seed=3)
    for coreset in (every, *without):
        assert torch.cdist(known, coreset.patches).amin(1).max() <= float(coreset.step.norm())
    assert torch.cdist(known, plain.patches).amin(1).min() > 0.1
    few, _ = coresets_without_each(features, BLOCKS, replace(ALL, candidates=3), seed=3, known=known)
    assert len(few.codes) == 3 + 5  # they take no place from those that are drawn


def test_what_is_known_may_be_left_for_what_is_farther():
    features = raw(6)
    known = layer_norm(features[:2].reshape(-1, CHANNELS))
    coreset, _ = coresets_without_each(features, [None] * 6, FEW, seed=3, known=known)
    assert len(coreset.codes) == 12
    assert coreset(features).max() == pytest.approx(
        float(coreset_of(features, FEW)(features).max()), rel=0.05
    )


def test_nothing_known_is_as_if_nothing_was_said():
    features = raw(6)
    plain, _ = coresets_without_each(features, BLOCKS, FEW, seed=3)
    none, _ = coresets_without_each(features, BLOCKS, FEW, seed=3, known=torch.empty(0, CHANNELS))
    assert same(plain, none)


# -- of a product ------------------------------------------------------------------------------------


def left_out_of(features, memory, known, blocks, scoring):
    remembered = CoresetLeftOut(features, memory, known, blocks, scoring, 4, Beside(None))
    remembered.go_on()
    return remembered.outcome()


def test_every_image_is_judged_by_the_coreset_without_its_own_block():
    features, scoring = raw(6), ScoringConfig(coreset=ALL, blocks=3, single_up_to=2)
    blocks = make_blocks(6, scoring)
    assert blocks.count == 3
    coreset, left_out = left_out_of(features, features[:0], None, blocks, scoring)
    every, without = coresets_without_each(features, blocks.left_out, ALL, seed=4)
    assert same(coreset, every)
    for i, block in enumerate(blocks.left_out):
        torch.testing.assert_close(left_out[i], without[block](features[i : i + 1])[0])
    assert (left_out.mean((1, 2)) > every(features).mean((1, 2))).all()


def test_an_earlier_versions_patches_stand_for_its_images_and_else_the_memory_does():
    features, memory, scoring = raw(6), raw(4, seed=8), ScoringConfig(coreset=ALL)
    blocks = make_blocks(6, scoring)
    known = layer_norm(raw(1, seed=9).reshape(-1, CHANNELS))[:5]
    remembering, _ = left_out_of(features, memory, known, blocks, scoring)
    assert len(remembering.codes) == 6 * 20 + 5
    drawn, _ = left_out_of(features, memory, None, blocks, scoring)
    assert len(drawn.codes) == 10 * 20


def test_a_single_image_is_judged_by_the_coreset_that_has_it():
    features, scoring = raw(1), ScoringConfig(coreset=ALL)
    coreset, left_out = left_out_of(features, features[:0], None, make_blocks(1, scoring), scoring)
    assert torch.equal(left_out, coreset(features))


def test_without_a_coreset_there_is_none():
    features, scoring = raw(3), ScoringConfig(coreset=None)
    blocks = make_blocks(3, scoring)
    assert left_out_of(features, features[:0], None, blocks, scoring) == (None, None)


@pytest.mark.parametrize("at_hand", [1, 2, 9, 60, 2048])
@pytest.mark.parametrize("size", [1, 7, 40, 250])
def test_without_a_block_the_selection_goes_on_from_what_is_left_of_it(size, at_hand, monkeypatch):
    monkeypatch.setattr(remembering, "AT_HAND", at_hand)
    points = torch.randn(400, 9, generator=torch.Generator().manual_seed(3))
    points[300:] = points[:100]  # copies, which end a selection early where it takes all there is
    points -= points.mean(0)
    owners = torch.arange(400) // 100 - 1
    options = Coreset(patches=size, rank=None, bits=8, layers=())
    drawn = Candidates(torch.zeros(9), points, owners, options, *_chosen(points, owners, size))
    every = one_by_one(points, size, int(points.square().sum(1).argmin()))
    assert drawn.chosen.tolist() == every
    for block in (0, 1, 2):
        kept = (owners != block).nonzero()[:, 0]
        begun = [int((kept == i).nonzero()) for i in every if owners[i] != block]
        middle = int((points[kept] - points[kept].mean(0)).square().sum(1).argmin())
        expected = kept[one_by_one(points[kept], size, *(begun or [middle]))]
        found = drawn.without(block).patches
        assert len(found) == min(size, len(torch.unique(points[kept], dim=0)))
        torch.testing.assert_close(found, points[expected], rtol=0, atol=0.02)


def test_left_out_of_its_coreset_a_block_is_as_far_as_from_that_of_the_others_or_a_little_farther():
    features = raw(24)
    options = replace(FEW, patches=60)
    blocks = [i % 4 for i in range(24)]
    _, without = coresets_without_each(features, blocks, options, seed=0)
    for block in range(4):
        own = features[block::4]
        others = coreset_of(features[[i for i in range(24) if i % 4 != block]], options)
        ratio = float(without[block](own).mean() / others(own).mean())
        assert 0.98 < ratio < 1.05
