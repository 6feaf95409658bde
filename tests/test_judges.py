"""Who asks a product: a network says what eager torch says, or is not used."""

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from moleflow import Detector, compiling
from moleflow.config import override
from moleflow.errors import BackboneError
from moleflow.line import judges
from moleflow.line.judges import EagerJudge, NetworkJudge
from moleflow.presets import NO_FLOW
from moleflow.runtime import engines


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder of copies of products, and none opened; those of the backbone are of all tests."""
    backbones = compiling.cache_folder("backbones")
    backbones.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "backbones").symlink_to(backbones, target_is_directory=True)
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_open", {})
    monkeypatch.setattr(compiling, "_impossible", {})
    return tmp_path / "cache" / "densities"


@contextmanager
def asked_by(line, judge):
    """Its products asked by another for a while."""
    before = line._line
    line._line = replace(before, asks=judge)
    yield
    line._line = before


def told(predictions):
    return [
        (p.task, p.pred_score, p.patch_map.tobytes(), p.routing and p.routing.strangeness)
        for p in predictions
    ]


def layered(config):
    """A flow over normalised patches, cells beside it."""
    flow = replace(config.flow, cells=None, normalisation="layer", statistics=True)
    return replace(config, flow=flow, scoring=replace(config.scoring, cells=config.flow.cells))


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, NO_FLOW], ids=["default", "lean"])
def test_a_network_says_what_eager_torch_says(new_line, quick, pictures, options, cache):
    line = new_line(config=override(quick, options))
    for product in ("gear", "wood"):
        line.add_task(product, pictures(product, 6))
    shown = [*pictures("gear", 1, first=80), *pictures("wood", 1, first=80)]
    shown += pictures("gear", 1, first=80, kind="missing_tooth")
    same_as_eager(line, shown)
    assert len(list(cache.glob("*.onnx"))) == 1


def test_cells_beside_a_flow_are_left_to_torch_without_a_word(new_line, quick, pictures, cache, recwarn):
    line = new_line(config=layered(quick))
    line.add_task("gear", pictures("gear", 2))
    found = told(line.predict(pictures("gear", 2, first=80)))
    with asked_by(line, EagerJudge()):
        assert told(line.predict(pictures("gear", 2, first=80))) == found
    assert not cache.exists()
    assert not [one for one in recwarn if "eager torch" in str(one.message)]


@pytest.mark.long
def test_a_product_that_knows_defects_has_a_network_of_its_own(new_line, pictures, cache):
    line = new_line()
    for product in ("gear", "wood"):
        line.add_task(product, pictures(product, 6))
    line.predict(pictures("gear", 1))
    line.correct_task("gear", pictures("gear", 6), missed=pictures("gear", 2, kind="missing_tooth"))
    same_as_eager(line, pictures("gear", 2, first=80, kind="missing_tooth"))
    assert len(list(cache.glob("*.onnx"))) == 2


def same_as_eager(line, shown):
    """Whatever product is given, and not to the bit, or it would be eager torch itself."""
    assert isinstance(line._line.asks, NetworkJudge)
    for task in (None, *line.tasks):
        found = line.predict(shown, task=task)
        with asked_by(line, EagerJudge()):
            expected = line.predict(shown, task=task)
        for one, other in zip(found, expected, strict=True):
            assert (one.task, one.known, one.pred_label) == (other.task, other.known, other.pred_label)
            assert one.pred_score == pytest.approx(other.pred_score, rel=1e-4, abs=1e-4)
            np.testing.assert_allclose(one.patch_map, other.patch_map, rtol=1e-3, atol=1e-3)
            assert one.patch_map.dtype == other.patch_map.dtype
        assert told(found) != told(expected)


def test_a_loaded_line_says_the_same_to_the_bit(line, saved, probe):
    said = told(line.predict(probe))
    assert isinstance(line._line.asks, NetworkJudge)
    assert told(Detector.load(saved, device="cpu").predict(probe)) == said
    assert (
        told(Detector.load(saved, device="cpu", memory=1).predict(probe)) == said
    )  # made ready anew each time
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: told(line.predict(probe)), range(4)))
    assert all(one == said for one in together)


def test_what_an_older_product_says_does_not_change_by_a_bit_when_others_come(taught_line, pictures):
    line = taught_line(gear=8)
    shown = pictures("gear", 2, first=80)
    before = [p.patch_map.tobytes() for p in line.predict(shown, task="gear")]
    line.add_task("wood", pictures("wood", 4))
    line.predict(pictures("wood", 1), task="wood")
    assert [p.patch_map.tobytes() for p in line.predict(shown, task="gear")] == before


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_another_runtime_leaves_products_to_torch(saved, runtime):
    assert isinstance(Detector.load(saved, device="cpu", runtime=runtime)._line.asks, EagerJudge)


def test_without_the_engine_products_are_left_to_torch(saved, monkeypatch):
    monkeypatch.setattr(judges, "installed", lambda name: False)
    assert isinstance(Detector.load(saved, device="cpu")._line.asks, EagerJudge)


def test_a_copy_is_made_once_and_serves_all_products(saved, probe, cache, monkeypatch):
    said = told(Detector.load(saved, device="cpu").predict(probe))
    assert len({task for task, *_ in said}) > 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".lock", ".onnx"]
    (known,) = cache.glob("*.json")
    assert json.loads(known.read_text())["difference"] < 1e-4
    monkeypatch.setattr(compiling, "_open", {})
    monkeypatch.setattr(compiling, "_impossible", {})
    monkeypatch.setattr(judges, "density_network", None)  # another would have to be made by it
    assert told(Detector.load(saved, device="cpu").predict(probe)) == said


@pytest.mark.long
@pytest.mark.parametrize("how", ["says something else", "cannot be made"])
def test_where_there_can_be_no_copy_eager_torch_stands_in_and_says_so(saved, probe, cache, monkeypatch, how):
    line = Detector.load(saved, device="cpu")
    line.extractor.witness()  # its copy of the backbone is right
    with asked_by(line, EagerJudge()):
        expected = told(line.predict(probe))
    if how == "cannot be made":
        monkeypatch.setattr(judges, "density_network", None)
        reason = "no copy for it could be made: 'NoneType' object is not callable"
    else:
        monkeypatch.setitem(engines._OPENERS, "onnxruntime", a_little_more)
        reason = r"its copy of the products' densities differs by .* spreads"
    with pytest.warns(UserWarning, match=f"products are asked in eager torch, not in onnxruntime: {reason}"):
        found = line.predict(probe)
    assert told(found) == expected
    named = Detector.load(saved, device="cpu", runtime="onnxruntime")
    monkeypatch.setattr(named, "extractor", line.extractor)
    with pytest.raises(BackboneError, match=reason):
        named.predict(probe)


def a_little_more(network, threads):
    run = engines._open_onnxruntime(network, threads)
    return lambda inputs: [output * np.float32(1.01) for output in run(inputs)]


def test_products_that_are_gone_are_forgotten(saved, probe):
    line = Detector.load(saved, device="cpu", memory=1)  # one product at a time
    for task in line.tasks:
        line.predict(probe, task=task)
    gc.collect()
    assert len(line._line.asks._known) == 1
