"""UCAD: keys route, prompts learn, knowledge scores; each product by itself, and a state to the bit."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moleflow.bench.files import read_state, write_state
from moleflow.bench.methods import options_of, ucad
from moleflow.bench.methods.base import Inspection, Pictures, Setting
from moleflow.bench.methods.ucad import (
    NEIGHBOURS,
    PUBLISHED,
    QUICK,
    UCAD,
    Schedule,
    UcadOptions,
    farthest_points,
    find_regions,
    structure_loss,
)
from moleflow.data.factory import make_sample
from moleflow.errors import ConfigError, TaskError
from moleflow.features.extractor import Extractor
from moleflow.verdict.maps import smooth

pytestmark = pytest.mark.long

TINY = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@11"
SIZE = 96
SETTING = Setting((1, 1), 1, (SIZE, SIZE))  # of cached features, which UCAD does not use
OPTIONS = {
    "backbone": TINY,
    "weights": "random",
    "image_size": (SIZE, SIZE),
    "layers": 3,
    "epochs": 2,
    "key_size": 24,
    "knowledge_size": 40,
    "regions": 4,
    "patch": 1,
}


@functools.cache
def pictures(product: str, count: int = 10, *, first: int = 0) -> Pictures:
    return of_images(product, [make_sample(product, first + i, size=SIZE).image for i in range(count)])


def of_images(product: str, images: list[np.ndarray]) -> Pictures:
    return Pictures(product, torch.empty(len(images), 1, 1, 1), lambda i, size: images[i])


def learned(*products: str, seed: int = 0, **options) -> UCAD:
    method = UCAD(
        Setting((1, 1), 1, (SIZE, SIZE), seed=seed),
        UcadOptions(**OPTIONS | options),
    )
    for product in products:
        method.learn([pictures(product)])
    return method


@pytest.fixture(scope="module")
def two() -> UCAD:
    return learned("gear", "wood")


def same(one: Inspection, other: Inspection) -> bool:
    maps = np.array_equal(one.patch_map, other.patch_map)
    return maps and (one.task, one.score, one.known) == (other.task, other.score, other.known)


def all_same(some, others) -> bool:
    return all(same(a, b) for a, b in zip(some, others, strict=True))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_defect_scores_higher_and_where_it_is(two):
    image = pictures("gear", 1, first=500).read(0, (SIZE, SIZE)).copy()
    good = next(iter(two.inspect(of_images("gear", [image]))))
    image[32:48, 64:80] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    faulty = next(iter(two.inspect(of_images("gear", [image]))))
    assert faulty.score > 1.3 * good.score
    assert np.unravel_index((faulty.patch_map - good.patch_map).argmax(), (6, 6)) == (2, 4)


def test_images_find_their_product_and_one_given_is_obeyed(two):
    for product in ("gear", "wood"):
        found = list(two.inspect(pictures(product, 6, first=500)))
        assert {(i.task, i.known) for i in found} == {(product, None)}
        assert all_same(found, two.inspect(pictures(product, 6, first=500), task=product))
    strayed = list(two.inspect(pictures("gear", 6, first=500), task="wood"))
    assert {i.task for i in strayed} == {"wood"}
    right = two.inspect(pictures("gear", 6, first=500))
    assert all(wrong.score > own.score for wrong, own in zip(strayed, right, strict=True))


def test_routing_takes_the_least_sum_of_distances_from_a_key(two):
    """Against a plain loop over patches and entries."""
    image = pictures("wood", 1, first=600).read(0, (SIZE, SIZE))
    extractor = two._backbone()
    patches = two._local(extractor.features(extractor.stack([image])))[0].flatten(0, 1)
    sums = {}
    for product in ("gear", "wood"):
        key = two.state().tensors[f"{product}/key"].float()
        sums[product] = sum(min(float((p - k).norm()) for k in key) for p in patches)
    assert two._nearest_key(patches) == min(sums, key=lambda name: sums[name])


def test_zero_prompts_leave_the_frozen_transformer_and_others_do_not(two):
    extractor = two._backbone()
    images = two._images(pictures("gear"), range(3))
    frozen = Extractor(f"{TINY.partition('@')[0]}@2", weights="random", image_size=SIZE).features(
        images
    )  # its third block, as anyone would take it
    zeros = torch.zeros(OPTIONS["layers"], extractor.dim)
    torch.testing.assert_close(two._prompted(images, zeros), frozen, rtol=1e-4, atol=1e-5)
    for layer in range(OPTIONS["layers"]):
        prompt = zeros.clone()
        prompt[layer, ::2] = 0.5
        assert (two._prompted(images, prompt) - frozen).abs().max() > 1e-2


def test_prompts_learn_the_structure(two):
    """The loss on the images learned from falls, and more with more epochs."""
    images = two._images(pictures("wood"), range(10))
    labels = torch.stack([find_regions(f, OPTIONS["regions"]) for f in two._frozen(images)]).flatten(1)

    def loss(prompt: torch.Tensor) -> float:
        with torch.no_grad():
            return float(structure_loss(two._prompted(images, prompt).flatten(1, 2), labels, 0.5))

    none = loss(torch.zeros(OPTIONS["layers"], two._backbone().dim))
    brief = loss(two.state().tensors["wood/prompt"])
    longer = loss(learned("wood", epochs=8).state().tensors["wood/prompt"])
    assert longer < brief < none


def test_learning_another_product_leaves_the_first_untouched(two):
    alone, both = learned("gear").state(), two.state()
    for name, tensor in alone.tensors.items():
        assert torch.equal(tensor, both.tensors[name])
    assert set(both.tensors) - set(alone.tensors) == {"wood/key", "wood/prompt", "wood/knowledge"}
    probe = pictures("gear", 3, first=500)
    assert all_same(learned("gear").inspect(probe, task="gear"), two.inspect(probe, task="gear"))


def test_products_of_one_task_are_learned_as_if_one_after_another(two):
    method = UCAD(SETTING, UcadOptions(**OPTIONS))
    method.learn([pictures("gear"), pictures("wood")])
    assert all(torch.equal(method.state().tensors[k], v) for k, v in two.state().tensors.items())


def test_a_restored_state_inspects_to_the_bit(two, tmp_path):
    write_state(tmp_path / "state", two.state())
    other = UCAD(SETTING, UcadOptions(**OPTIONS))
    other.restore(read_state(tmp_path / "state"))
    probe = pictures("wood", 3, first=600)
    assert all_same(other.inspect(probe), two.inspect(probe))


def test_the_seed_decides_every_byte(two):
    def equal(a: UCAD, b: UCAD) -> bool:
        return all(torch.equal(v, b.state().tensors[k]) for k, v in a.state().tensors.items())

    torch.manual_seed(99)  # the global state must not matter
    assert equal(two, learned("gear", "wood"))
    assert not equal(learned("gear"), learned("gear", seed=1))


def test_an_image_is_judged_alone(two):
    probe = pictures("wood", 4, first=500)
    alone = [next(iter(two.inspect(probe.take([i])))) for i in range(len(probe))]
    assert all_same(two.inspect(probe), alone)


def test_the_state_holds_what_was_asked_for_and_no_transformer(two):
    shapes = {name: tuple(t.shape) for name, t in two.state().tensors.items() if name.startswith("gear/")}
    dim = two._backbone().dim
    assert shapes == {"gear/key": (24, dim), "gear/prompt": (3, dim), "gear/knowledge": (40, dim)}
    assert two.state().bytes_of("shared") == 0


def test_fewer_images_are_read_than_there_are():
    read: list[int] = []
    images = [make_sample("gear", i, size=SIZE).image for i in range(10)]

    def reader(i: int, size: tuple[int, int]) -> np.ndarray:
        read.append(i)
        return images[i]

    method = UCAD(SETTING, UcadOptions(**OPTIONS | {"images": 2, "memory_images": 4}))
    method.learn([Pictures("gear", torch.empty(10, 1, 1, 1), reader)])
    assert len(set(read)) == 4


def test_the_report_hears_of_random_weights():
    assert "random weights" in UCAD(SETTING, UcadOptions(backbone=TINY, weights="random")).notes
    assert "random weights" not in UCAD(SETTING, UcadOptions(backbone=TINY)).notes


def test_the_report_hears_of_every_departure():
    notes = "; ".join(UCAD(SETTING, UcadOptions(backbone=TINY)).notes)
    assert "tiny_patch16_224.augreg_in21k_ft_in1k at 224x224 of its own, 6 blocks" in notes
    assert "SAM" in notes
    assert "prefixes" in notes
    assert "25 epochs over all images at 0.0005, none chosen on test images" in notes
    assert "key and knowledge from 256 images" in notes
    quick = "; ".join(UCAD(SETTING, UcadOptions(backbone=TINY, weights="random")).notes)
    assert "5 epochs over at most 64 images at 0.01 instead of 25 epochs over all images at 0.0005" in quick


def test_the_weights_choose_the_schedule_and_options_change_it():
    assert UcadOptions().schedule == UcadOptions(weights="vit.safetensors").schedule == PUBLISHED
    assert UcadOptions(weights="random").schedule == QUICK
    assert UcadOptions(epochs=3).schedule == Schedule(None, 3, 5e-4)
    assert UcadOptions(weights="random", images=200).schedule == Schedule(200, 5, 1e-2)


def test_every_image_teaches_where_none_is_left_out(monkeypatch):
    monkeypatch.setattr(ucad, "QUICK", Schedule(None, 1, 1e-2))
    read: set[int] = set()

    def reader(i: int, size: tuple[int, int]) -> np.ndarray:
        read.add(i)
        return make_sample("gear", i, size=SIZE).image

    method = UCAD(SETTING, UcadOptions(**OPTIONS | {"memory_images": 3, "epochs": None}))
    method.learn([Pictures("gear", torch.empty(12, 1, 1, 1), reader)])
    assert read == set(range(12))


def test_a_single_number_is_a_square_image():
    assert UcadOptions(**{"image_size": 96}).image_size == (96, 96)
    assert UcadOptions(**{"image_size": [96, 64]}).image_size == (96, 64)
    assert options_of("ucad", {"image_size": 96}).image_size == (96, 96)


def test_smoothing_is_in_pixels_of_the_transformers_image():
    plain, smoothed = learned("gear", smoothing=1e-3), learned("gear", smoothing=16.0)
    image = pictures("gear", 1, first=500)
    raw, map16 = (next(iter(m.inspect(image))).patch_map for m in (plain, smoothed))
    one_patch = smooth(torch.from_numpy(raw)[None], 1.0)[0].numpy()  # a patch is 16 pixels wide
    np.testing.assert_allclose(map16, one_patch, rtol=1e-5)


def test_the_image_score_is_that_of_the_memory_banks(two):
    image = pictures("gear", 1, first=500)
    memory = two._memories["gear"]
    patches = two._local(two._prompted(two._images(image, [0]), memory.prompt))[0].flatten(0, 1).double()
    table = torch.cdist(patches, memory.knowledge.double()).numpy()
    worst = table.min(1).argmax()
    entry = table[worst].argmin()
    near = torch.cdist(memory.knowledge.double(), memory.knowledge.double())[entry].argsort()[:NEIGHBOURS]
    weight = 1 - np.exp(table[worst, entry]) / np.exp(table[worst, near]).sum()
    found = next(iter(two.inspect(image, task="gear")))
    assert found.score == pytest.approx(weight * table[worst, entry], rel=1e-4)


def test_patches_are_means_over_their_square(two):
    features = random(1, 5, 6, 4)
    local = UCAD(SETTING, UcadOptions(**OPTIONS | {"patch": 3}))._local(features)
    torch.testing.assert_close(local[0, 2, 3], features[0, 1:4, 2:5].mean((0, 1)))
    torch.testing.assert_close(local[0, 0, 5], features[0, :2, 4:].mean((0, 1)))
    torch.testing.assert_close(two._local(features), features)


def test_a_transformer_with_too_few_blocks_is_named():
    method = UCAD(SETTING, UcadOptions(**OPTIONS | {"layers": 13}))
    with pytest.raises(ConfigError, match=r"layer 12 asked for, it has 0 to 11"):
        method.learn([pictures("gear")])


def test_farthest_points_against_brute_force():
    points = random(60, 5)
    chosen = [points[(points - points.mean(0)).norm(dim=1).argmin()]]
    while len(chosen) < 12:
        nearest = torch.stack([torch.stack([(p - c).norm() for c in chosen]).min() for p in points])
        chosen.append(points[nearest.argmax()])
    assert torch.equal(farthest_points(points, 12), torch.stack(chosen))


def test_farthest_points_ends_with_the_last_different_one():
    points = random(4, 3).repeat(5, 1)
    assert len(farthest_points(points, 10)) == 4


def test_regions_are_the_parts_of_an_image():
    """Three flat parts, one of them in two places with equal features: found as drawn."""
    drawn = torch.zeros(8, 8, dtype=torch.long)
    drawn[:, 4:], drawn[5:, :4] = 1, 2
    features = random(3, 16, seed=1)[drawn] + 0.01 * random(8, 8, 16, seed=2)
    found = find_regions(features, 3)
    pairs = set(zip(drawn.flatten().tolist(), found.flatten().tolist(), strict=True))
    assert len(pairs) == 3


def test_regions_of_a_flat_image_follow_position():
    found = find_regions(torch.ones(6, 6, 4), 4)
    assert len(found.unique()) == 4
    for region in found.unique():
        places = (found == region).nonzero()
        assert int((places.amax(0) - places.amin(0)).max()) < 5  # none spans the image


def test_structure_loss_against_a_loop_over_pairs():
    features, labels = random(2, 7, 5), torch.tensor([[0, 0, 1, 1, 2, 0, 1], [0, 1, 0, 1, 0, 1, 0]])
    expected = []
    for image, regions in zip(features, labels, strict=True):
        for a in range(7):
            for b in range(7):
                alike = float(F.cosine_similarity(image[a], image[b], dim=0)) / 0.5
                expected.append(-alike if regions[a] == regions[b] else math.exp(alike))
    assert float(structure_loss(features, labels, 0.5)) == pytest.approx(np.mean(expected), abs=1e-5)


def test_structure_loss_of_one_region_stays_finite():
    assert torch.isfinite(structure_loss(random(1, 4, 3), torch.zeros(1, 4, dtype=torch.long), 0.5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"regions": -1},
        {"regions": None},
        {"key_size": 64.5},
        {"learning_rate": 0.0},
        {"images": True},
        {"image_size": 0},
        {"image_size": 96.0},
        {"image_size": [96, 96, 3]},
        {"image_size": "96"},
        {"patch": 2},
        {"temperature": 0.0},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        UcadOptions(**wrong)


def test_a_convolutional_backbone_is_refused():
    method = UCAD(SETTING, UcadOptions(backbone="efficientnet_lite0", image_size=(64, 64), layers=3))
    with pytest.raises(ConfigError, match="vision transformer"):
        method.learn([pictures("gear")])


def test_a_product_that_was_not_learned_is_named(two):
    with pytest.raises(TaskError, match="bottle_cap"):
        next(iter(two.inspect(pictures("gear"), task="bottle_cap")))
    with pytest.raises(TaskError):
        next(iter(UCAD(SETTING, UcadOptions(**OPTIONS)).inspect(pictures("gear"))))
