"""DNE: one merged Gaussian, replay from Gaussians instead of images, CutPaste, and a state to the bit."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from moleflow.bench.files import read_state, write_state
from moleflow.bench.methods import dne
from moleflow.bench.methods.base import Pictures, Setting
from moleflow.bench.methods.dne import DNE, DneOptions, cut_paste
from moleflow.data.factory import defect_kinds, make_sample
from moleflow.errors import ConfigError, TaskError, TrainingError
from moleflow.features.extractor import Extractor

pytestmark = pytest.mark.long

SIZE = 64
QUICK = DneOptions(epochs=20, batch=8, learning_rate=1e-3, redrawn=2)


@functools.cache
def backbone() -> Extractor:
    return Extractor(image_size=SIZE)


def setting(**options) -> Setting:
    own = backbone()
    return Setting(own.grid, own.dim, own.image_size, **options)


@functools.cache
def pictures(product: str, count: int = 12, *, first: int = 0, kind: str = "good") -> Pictures:
    images = [make_sample(product, first + i, kind=kind, size=SIZE).image for i in range(count)]
    features = backbone().features(backbone().stack(images)).half()
    return Pictures(product, features, lambda i, size: images[i])


def learned(*products: str, **options) -> DNE:
    method = DNE(setting(**options), QUICK)
    for product in products:
        method.learn([pictures(product)])
    return method


@pytest.fixture(scope="module")
def two() -> DNE:
    return learned("gear", "wood")


def scores(found) -> list[float]:
    return [inspection.score for inspection in found]


def test_faulty_images_score_higher_than_good_ones():
    method = DNE(setting(), QUICK)
    method.learn([pictures("wood", 40)])
    good = scores(method.inspect(pictures("wood", 20, first=500)))
    kinds = defect_kinds("wood")
    faulty = [s for kind in kinds for s in scores(method.inspect(pictures("wood", 6, first=700, kind=kind)))]
    assert roc_auc_score([0] * len(good) + [1] * len(faulty), good + faulty) > 0.75


def test_the_head_learns_to_tell_pasted_from_normal():
    options = DneOptions(epochs=80, batch=8, learning_rate=3e-3, redrawn=2)
    method = DNE(setting(), options)
    own = pictures("wood", 24)
    method.learn([own])
    pasted = dne._Copies([own], backbone(), options, 5).features
    with torch.no_grad():
        normal_right = (method._head(own.descriptors.float()).argmax(1) == 0).float().mean()
        pasted_right = (method._head(pasted).argmax(1) == 1).float().mean()
    assert float(normal_right + pasted_right) / 2 > 0.7  # of copies that it has not seen


def test_learning_begins_with_the_pretrained_features():
    head = dne._new_head(setting())
    head.start(pictures("wood").descriptors)
    x = pictures("wood").descriptors.float()
    with torch.no_grad():
        torch.testing.assert_close(
            head.embed(x), torch.nn.functional.normalize(x.double(), dim=-1), rtol=1e-5, atol=1e-6
        )


def test_some_copies_are_drawn_anew_in_every_epoch_and_each_in_its_turn():
    copies = dne._Copies([pictures("wood", 6)], backbone(), replace(QUICK, batch=6), 0)
    generator = torch.Generator().manual_seed(0)
    changed, before = [], copies.features.clone()
    for _ in range(4):
        copies.batch(generator)  # an epoch
        changed.append((copies.features != before).any(1).nonzero()[:, 0].tolist())
        before = copies.features.clone()
    assert changed == [[0, 1], [2, 3], [4, 5], [0, 1]]
    fixed = dne._Copies([pictures("wood", 6)], backbone(), replace(QUICK, redrawn=0), 0)
    before = fixed.features.clone()
    fixed.batch(generator)
    assert torch.equal(fixed.features, before)


def test_a_score_is_the_mahalanobis_distance_from_the_merged_embeddings(monkeypatch):
    """Against scikit-learn's Ledoit-Wolf estimate of current embeddings and draws of the earlier product."""
    monkeypatch.setattr(dne, "RIDGE", 0.0)
    method = learned("gear")
    drawn = method._gaussians["gear"].sample(torch.Generator().manual_seed(0))
    method.learn([pictures("wood")])
    embeddings = torch.cat([method._head.embed(pictures("wood").descriptors.float()), drawn]).numpy()
    probe = method._head.embed(pictures("gear", 4, first=500).descriptors.float()).numpy()
    reference = LedoitWolf().fit(embeddings)
    expected = np.sqrt(reference.mahalanobis(probe))
    np.testing.assert_allclose(scores(method.inspect(pictures("gear", 4, first=500))), expected, rtol=1e-4)


def test_draws_have_length_1_and_the_products_mean_and_covariance():
    """Near the sphere, in the plane that touches it, where taking the length away changes nothing."""
    spread = 0.02 * torch.randn(300, 6, generator=torch.Generator().manual_seed(1)).double()
    spread[:, 0] = 1
    rows = torch.nn.functional.normalize(spread, dim=-1)
    drawn = replace(dne._Gaussian.of(rows), images=200_000).sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(200_000).double())
    torch.testing.assert_close(drawn.mean(0), rows.mean(0), atol=1e-3, rtol=0)
    expected = torch.from_numpy(LedoitWolf().fit(rows.numpy()).covariance_)
    torch.testing.assert_close(torch.cov(drawn[:, 1:].T), expected[1:, 1:], atol=2e-5, rtol=0.05)


def test_replay_keeps_earlier_products_more_normal():
    """Without draws of the first product, the density forgets it altogether."""
    probe = pictures("gear", 6, first=500)
    without = learned("gear")
    without._gaussians.clear()
    without.learn([pictures("wood")])
    assert np.mean(scores(learned("gear", "wood").inspect(probe))) < np.mean(scores(without.inspect(probe)))


def test_an_earlier_products_gaussian_stays_where_it_was_while_the_head_moves_on(two):
    first, both = learned("gear").state().tensors, two.state().tensors
    for name in ("gear/mean", "gear/root"):
        assert torch.equal(first[name], both[name])
    body = [name for name in first if name.startswith("shared/head.adapter.")]
    assert not any(torch.equal(first[name], both[name]) for name in body)
    then = learned("gear")._head.embed(pictures("gear").descriptors.float())
    now = two._head.embed(pictures("gear").descriptors.float())
    assert (now - then).norm(dim=1).mean() > 0.01  # the images are no longer where their Gaussian is


def test_the_classifier_is_learned_with_the_first_task_alone(two):
    first, both = learned("gear").state().tensors, two.state().tensors
    fresh = dne._new_head(setting()).state_dict()
    for name in ("classify.weight", "classify.bias"):
        assert torch.equal(first[f"shared/head.{name}"], both[f"shared/head.{name}"])
        assert not torch.equal(first[f"shared/head.{name}"], fresh[name])


def test_earlier_gaussians_do_not_teach_the_head(two):
    """The head learns from good and pasted images of its task and nothing else."""
    other = learned("gear")
    other._gaussians.clear()
    other.learn([pictures("wood")])
    for name, tensor in other._head.state_dict().items():
        assert torch.equal(tensor, two._head.state_dict()[name])


def test_the_report_hears_of_the_frozen_backbone():
    frozen, copies = DNE(setting(), QUICK).notes
    assert frozen.startswith("frozen efficientnet_lite0")
    assert copies == "20 epochs of 256 pasted copies at most, 2 drawn anew in each"


def test_a_restored_state_inspects_and_learns_on_to_the_bit(two, tmp_path):
    write_state(tmp_path / "state", two.state())
    other = DNE(setting(), QUICK)
    other.restore(read_state(tmp_path / "state"))
    probe = pictures("gear", 3, first=600)
    assert scores(other.inspect(probe)) == scores(two.inspect(probe))
    straight = learned("gear", "wood", "bottle_cap")
    other.learn([pictures("bottle_cap")])
    assert scores(other.inspect(probe)) == scores(straight.inspect(probe))


def test_the_seed_decides_every_byte(two):
    def same(a: DNE, b: DNE) -> bool:
        mine, theirs = a.state().tensors, b.state().tensors
        return all(torch.equal(mine[name], theirs[name]) for name in mine | theirs)

    torch.manual_seed(99)  # the global state must not matter
    assert same(two, learned("gear", "wood"))
    assert not same(two, learned("gear", "wood", seed=1))


def test_an_image_is_judged_alone_and_without_a_product(two):
    probe = pictures("wood", 5, first=500)
    together = list(two.inspect(probe))
    alone = [next(iter(two.inspect(probe.take([i])))) for i in range(len(probe))]
    assert scores(together) == scores(alone) == scores(two.inspect(probe, task="gear"))
    assert len(set(scores(together))) == len(probe)
    assert {(found.task, found.known, found.patch_map) for found in together} == {(None, None, None)}


def test_a_task_of_two_products_leaves_two_gaussians():
    method = DNE(setting(), QUICK)
    method.learn([pictures("gear"), pictures("wood")])
    assert method.state().notes == {"images": {"gear": 12, "wood": 12}}


def test_a_backbone_that_did_not_make_the_features_is_refused():
    method = DNE(setting(weights="random"), QUICK)
    with pytest.raises(ConfigError, match="another network"):
        method.learn([pictures("gear")])


def test_a_failed_task_changes_nothing():
    method = learned("gear")
    probe = pictures("gear", 2, first=500)
    before = scores(method.inspect(probe))
    broken = pictures("wood").features.clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match="wood"):
        method.learn([replace(pictures("wood"), features=broken)])
    assert scores(method.inspect(probe)) == before
    assert set(method.state().notes["images"]) == {"gear"}


def test_nothing_learned_is_said():
    with pytest.raises(TaskError):
        next(iter(DNE(setting()).inspect(pictures("gear"))))


@pytest.mark.parametrize("shape", [(64, 64), (40, 96)])
def test_cut_paste_changes_one_rectangle_of_the_right_size(shape):
    """On a gradient every move shows; what lies outside of the rectangle is as it was."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)
    kept = image.copy()
    areas = []
    for seed in range(50):
        changed = (cut_paste(image, np.random.default_rng(seed)) != image).any(-1)
        ys, xs = np.nonzero(changed)
        areas.append((np.ptp(ys) + 1) * (np.ptp(xs) + 1) / changed.size)
    assert np.array_equal(image, kept)
    assert max(areas) < 0.17
    assert min(areas) > 0.01
    assert max(areas) > 2 * min(areas)


def test_cut_paste_takes_the_rectangle_from_the_image(monkeypatch):
    """Without recolouring, every pixel's colour is one that the image has."""
    monkeypatch.setattr(dne, "JITTER", 0.0)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pasted = cut_paste(image, np.random.default_rng(1))
    colours = {tuple(pixel) for pixel in image.reshape(-1, 3)}
    assert not np.array_equal(pasted, image)
    assert {tuple(pixel) for pixel in pasted.reshape(-1, 3)} <= colours
