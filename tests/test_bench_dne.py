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
from moleflow.bench.methods.dne import DNE, cut_paste
from moleflow.config import LineConfig, TrainingConfig
from moleflow.data.factory import defect_kinds, make_sample
from moleflow.errors import ConfigError, TaskError, TrainingError
from moleflow.features.extractor import Extractor

SIZE = 64
CONFIG = LineConfig(training=TrainingConfig(steps=60))


@functools.cache
def backbone() -> Extractor:
    return Extractor(image_size=SIZE)


def setting(**options) -> Setting:
    own = backbone()
    return Setting(own.grid, own.dim, own.image_size, **{"config": CONFIG} | options)


@functools.cache
def pictures(product: str, count: int = 12, *, first: int = 0, kind: str = "good") -> Pictures:
    images = [make_sample(product, first + i, kind=kind, size=SIZE).image for i in range(count)]
    features = backbone().features(backbone().stack(images)).half()
    return Pictures(product, features, lambda i, size: images[i])


def learned(*products: str, **options) -> DNE:
    method = DNE(setting(**options))
    for product in products:
        method.learn([pictures(product)], lambda share: None)
    return method


@pytest.fixture(scope="module")
def two() -> DNE:
    return learned("gear", "wood")


def scores(found) -> list[float]:
    return [inspection.score for inspection in found]


def test_faulty_images_score_higher_than_good_ones():
    method = DNE(setting())
    method.learn([pictures("wood", 40)], lambda share: None)
    good = scores(method.inspect(pictures("wood", 20, first=500)))
    kinds = defect_kinds("wood")
    faulty = [s for kind in kinds for s in scores(method.inspect(pictures("wood", 6, first=700, kind=kind)))]
    assert roc_auc_score([0] * len(good) + [1] * len(faulty), good + faulty) > 0.75


def test_the_head_learns_to_tell_pasted_from_normal():
    method = DNE(setting(config=LineConfig(training=TrainingConfig(steps=300))))
    own = pictures("wood", 40)
    method.learn([own], lambda share: None)
    pasted = torch.cat(list(method._pasted([own])))
    with torch.no_grad():
        normal_right = (method._head(own.descriptors.float()).argmax(1) == 0).float().mean()
        pasted_right = (method._head(pasted).argmax(1) == 1).float().mean()
    assert float(normal_right + pasted_right) / 2 > 0.9


def test_a_score_is_the_mahalanobis_distance_from_the_merged_embeddings(monkeypatch):
    """Against scikit-learn's Ledoit-Wolf estimate of current embeddings and draws of the earlier product."""
    monkeypatch.setattr(dne, "RIDGE", 0.0)
    method = learned("gear")
    generator = torch.Generator().manual_seed(0)
    drawn = method._gaussians["gear"].sample(generator)
    method.learn([pictures("wood")], lambda share: None)
    normal = torch.cat([pictures("wood").descriptors.float(), drawn])
    with torch.no_grad():
        embeddings = method._head.embed(normal).numpy()
        probe = method._head.embed(pictures("gear", 4, first=500).descriptors.float()).numpy()
    reference = LedoitWolf().fit(embeddings)
    expected = np.sqrt(reference.mahalanobis(probe))
    np.testing.assert_allclose(scores(method.inspect(pictures("gear", 4, first=500))), expected, rtol=1e-4)


def test_draws_have_the_products_mean_and_covariance():
    rows = (
        torch.randn(300, 6, generator=torch.Generator().manual_seed(1)).double()
        @ torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).double()
        + 3
    )
    gaussian = dne._Gaussian.of(rows)
    drawn = replace(gaussian, images=200_000).sample(torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(drawn.mean(0), rows.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(
        torch.cov(drawn.T), torch.from_numpy(LedoitWolf().fit(rows.numpy()).covariance_), atol=0.2, rtol=0.05
    )


def test_replay_keeps_earlier_products_normal():
    """Without draws of the first product, the density forgets it."""
    probe = pictures("gear", 6, first=500)
    with_draws = learned("gear", "wood")
    without = learned("gear")
    without._gaussians.clear()
    without.learn([pictures("wood")], lambda share: None)
    assert max(scores(with_draws.inspect(probe))) < min(scores(without.inspect(probe)))


def test_an_earlier_products_gaussian_stays_as_it_was(two):
    first, both = learned("gear").state(), two.state()
    for name in ("gear/mean", "gear/root"):
        assert torch.equal(first.tensors[name], both.tensors[name])


def test_a_restored_state_inspects_and_learns_on_to_the_bit(two, tmp_path):
    write_state(tmp_path / "state", two.state())
    other = DNE(setting())
    other.restore(read_state(tmp_path / "state"))
    probe = pictures("gear", 3, first=600)
    assert scores(other.inspect(probe)) == scores(two.inspect(probe))
    straight = learned("gear", "wood", "bottle_cap")
    other.learn([pictures("bottle_cap")], lambda share: None)
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
    method = DNE(setting())
    told: list[float] = []
    method.learn([pictures("gear"), pictures("wood")], told.append)
    assert method.state().notes == {"images": {"gear": 12, "wood": 12}}
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_a_backbone_that_did_not_make_the_features_is_refused():
    method = DNE(setting(weights="random"))
    with pytest.raises(ConfigError, match="another network"):
        method.learn([pictures("gear")], lambda share: None)


def test_a_failed_task_changes_nothing():
    method = learned("gear")
    probe = pictures("gear", 2, first=500)
    before = scores(method.inspect(probe))
    broken = pictures("wood").features.clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match="wood"):
        method.learn([replace(pictures("wood"), features=broken)], lambda share: None)
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
