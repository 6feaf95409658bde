"""What runs the backbone: compiled copies say what eager torch says, or are not used."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from moleflow import Detector, compiling
from moleflow.cli import app
from moleflow.errors import BackboneError, ConfigError, LineError
from moleflow.features import runtime
from moleflow.features.backbones import get_backbone
from moleflow.features.extractor import Extractor, Features
from moleflow.runtime import engines
from saying import write_index

NAMES = ("onnxruntime", "openvino")
SIZE = (64, 96)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder of copies, and none opened."""
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_open", {})
    monkeypatch.setattr(compiling, "_impossible", {})
    return tmp_path / "cache" / "backbones"


def images(count, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def apart(one, other):
    """Largest difference, in spreads."""
    return max(
        float((ours - theirs).abs().max() / theirs.std())
        for ours, theirs in ((one.patches, other.patches), (one.pooled, other.pooled))
    )


def no_export(*args):
    raise AssertionError("expected the kept copy")


@pytest.mark.parametrize("tiles", [None, (1, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_says_what_eager_torch_says(name, tiles):
    compiled = Extractor(image_size=SIZE, tiles=tiles, runtime=name)
    eager = Extractor(image_size=SIZE, tiles=tiles)
    assert eager.runtime.startswith("torch ")
    assert compiled.runtime.startswith(f"{name} ")
    for count in (1, 4):
        batch = images(count, compiled.image_size)
        found, expected = compiled.see(batch), eager.see(batch)
        assert found.patches.shape == expected.patches.shape
        assert found.pooled.shape == expected.pooled.shape
        assert 0 < apart(found, expected) < 1e-4  # not the same computation, and the same features
    assert compiled.describe() == eager.describe()


@pytest.mark.long
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("width", [30, 56])  # of 40 and 112 channels, or nine times as many
def test_a_copy_averages_channels_as_eager_torch_does(width, pool):
    row = get_backbone("efficientnet_lite0")
    row = replace(row, aggregation="mean", width=width, pool=pool)
    batch = images(2)
    found, expected = (
        Extractor(row, image_size=SIZE, runtime=name).see(batch) for name in ("onnxruntime", "torch")
    )
    assert found.patches.shape == (2, SIZE[0] // 8, SIZE[1] // 8, width)
    assert 0 < apart(found, expected) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_threads_share_a_copy(name):
    extractor = Extractor(image_size=SIZE, runtime=name)
    batches = [images(2, seed=seed) for seed in range(6)]
    alone = [extractor.features(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(extractor.features, batches))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.long
def test_auto_takes_the_first_that_is_installed(monkeypatch, cache):
    assert Extractor(image_size=SIZE, runtime="auto").runtime.startswith("onnxruntime ")
    monkeypatch.setattr(runtime, "installed", lambda name: name == "openvino")
    assert Extractor(image_size=SIZE, runtime="auto").runtime.startswith("openvino ")
    monkeypatch.setattr(runtime, "installed", lambda name: False)
    assert Extractor(image_size=SIZE, runtime="auto").runtime.startswith("torch ")
    with pytest.raises(ConfigError, match="'openvino' is not installed: pip install openvino"):
        Extractor(image_size=SIZE, runtime="openvino")
    with pytest.raises(ConfigError, match=r"expected a runtime among auto, torch, .* got 'tensorrt'"):
        Extractor(image_size=SIZE, runtime="tensorrt")


def test_a_copy_is_made_once(monkeypatch, cache):
    first = Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))
    monkeypatch.setattr(compiling, "_open", {})
    monkeypatch.setattr(compiling, "_impossible", {})
    monkeypatch.setattr(runtime, "exported_backbone", no_export)
    assert torch.equal(Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1)), first)
    with pytest.raises(BackboneError, match="no copy for it could be made"):  # another size is another copy
        Extractor(image_size=64, runtime="onnxruntime").features(images(1, (64, 64)))
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".lock", ".lock", ".onnx"]


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".onnx", ".json"])
def test_a_damaged_copy_is_made_anew(monkeypatch, cache, suffix):
    first = Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))
    monkeypatch.setattr(compiling, "_open", {})
    monkeypatch.setattr(compiling, "_impossible", {})
    (kept,) = cache.glob(f"*{suffix}")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1)), first)
    assert kept.read_bytes() == whole


@pytest.mark.long
def test_a_kept_copy_that_the_engine_refuses_is_made_anew(monkeypatch, cache):
    first = Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))
    monkeypatch.setattr(compiling, "_open", {})
    monkeypatch.setattr(compiling, "_impossible", {})
    (network,), (known,) = cache.glob("*.onnx"), cache.glob("*.json")
    whole = network.read_bytes()
    network.write_bytes(b"no network")
    told = json.loads(known.read_text()) | {"sha256": hashlib.sha256(b"no network").hexdigest()}
    known.write_text(json.dumps(told))
    assert torch.equal(Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1)), first)
    assert network.read_bytes() == whole


@pytest.mark.long
@pytest.mark.parametrize("cannot", ["make the folder", "keep the copy"])
def test_a_folder_that_cannot_be_written_costs_time_alone(monkeypatch, cache, cannot):
    def full(*args):
        raise OSError("no space left")

    made, export = [], runtime.exported_backbone
    monkeypatch.setattr(runtime, "exported_backbone", lambda *args: made.append(args) or export(*args))
    if cannot == "keep the copy":
        monkeypatch.setattr(compiling, "_keep", full)
    else:
        cache.parent.parent.mkdir(exist_ok=True)
        cache.parent.write_text("a file where the folder would be")
    extractor = Extractor(image_size=SIZE, runtime="onnxruntime")
    assert apart(extractor.see(images(1)), Extractor(image_size=SIZE).see(images(1))) < 1e-4
    assert len(made) == 1


def test_a_copy_that_says_something_else_is_refused(monkeypatch, cache):
    original = engines._OPENERS["onnxruntime"]

    def wrong(network, threads):
        run = original(network, threads)
        return lambda inputs: [output * np.float32(1.01) for output in run(inputs)]

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", wrong)
    with pytest.raises(BackboneError, match=r"copy of efficientnet_lite0 differs by 0\.\d+ spreads"):
        Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))
    monkeypatch.setitem(engines._OPENERS, "onnxruntime", original)  # what was found is remembered
    monkeypatch.setattr(runtime, "installed", lambda name: name == "onnxruntime")
    with pytest.warns(UserWarning, match="the backbone does not run in onnxruntime: its copy"):
        found = Extractor(image_size=SIZE, runtime="auto").features(images(1))
    assert torch.equal(found, Extractor(image_size=SIZE).features(images(1)))


@pytest.mark.parametrize("which", [0, 1], ids=["patches", "pooled"])
def test_a_copy_that_says_what_is_no_number_is_refused(monkeypatch, cache, which):
    original = engines._OPENERS["onnxruntime"]

    def wrong(network, threads):
        run = original(network, threads)
        return lambda inputs: [
            output * np.float32("nan") if i == which else output for i, output in enumerate(run(inputs))
        ]

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", wrong)
    with pytest.raises(BackboneError, match="differs by nan spreads"):
        Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))


@pytest.mark.long
def test_a_copy_that_another_version_of_the_library_made_is_made_anew(monkeypatch, cache):
    Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))
    monkeypatch.setattr(compiling, "_open", {})
    monkeypatch.setattr(compiling, "_library", lambda: "another")
    Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))
    assert len(list(cache.glob("*.onnx"))) == 2


@pytest.mark.long
def test_copies_that_nobody_asks_for_any_more_go_when_another_is_made(monkeypatch, cache):
    def see(size):
        monkeypatch.setattr(compiling, "_open", {})
        Extractor(image_size=size, runtime="onnxruntime").features(images(1, size))

    for size in (SIZE, (64, 64)):
        see(size)
    (cache / "killed.onnx.0123").write_bytes(b"half a copy")
    long_ago = time.time() - (compiling.UNUSED_DAYS + 1) * 86_400
    for path in cache.iterdir():
        os.utime(path, (long_ago, long_ago))
    see(SIZE)  # of use again
    see((96, 64))
    assert sorted(path.suffix for path in cache.iterdir() if path.suffix != ".lock") == 2 * [".json"] + 2 * [
        ".onnx"
    ]
    monkeypatch.setattr(runtime, "exported_backbone", no_export)
    see(SIZE)


def test_a_lock_that_is_not_given_up_costs_time_alone(monkeypatch, cache):
    monkeypatch.setattr(compiling, "WAIT", 0.05)
    locked = []
    original = compiling.FileLock

    def held(path, timeout):
        lock = original(path)
        lock.acquire()
        locked.append(lock)
        return original(path, timeout=timeout, is_singleton=False)

    monkeypatch.setattr(compiling, "FileLock", held)
    Extractor(image_size=SIZE, runtime="onnxruntime").features(images(1))
    assert len(locked) == 1
    assert not list(cache.glob("*.onnx"))


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    def homeless(name):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv(compiling.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(compiling, "user_cache_path", homeless)
    monkeypatch.setattr(compiling, "_open", {})
    extractor = Extractor(image_size=SIZE, runtime="onnxruntime")
    assert extractor.features(images(1)).isfinite().all()
    assert extractor.runtime.startswith("onnxruntime")


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_any_size_is_seen_as_its_images_are(cache, name):
    extractor = Extractor(image_size=SIZE, runtime=name)
    some = images(2 * engines.AT_ONCE[name] + 1)
    seen = extractor.see(some)
    assert seen.patches.shape[0] == seen.pooled.shape[0] == len(some)
    assert apart(seen, Features.of([extractor.see(part) for part in some.split(4)])) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_images_that_threads_see_side_by_side_are_seen_as_each_alone(monkeypatch, count):
    module = Extractor(image_size=SIZE).module
    network = runtime.exported_backbone(module, images(2))
    asked = []
    original = engines._OPENERS["onnxruntime"]

    def counting(network, threads):
        run = original(network, threads)

        def told(inputs):
            asked.append((threads, len(inputs["images"]), threading.current_thread().name))
            return run(inputs)

        return told

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", counting)
    running, batch = engines.Running("onnxruntime", network, 3), images(count).numpy()
    alone = [running({"images": batch[i : i + 1]}) for i in range(count)]
    asked.clear()
    found = running.of_images(batch)

    for one, other in zip(found, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(other))
    beside = [name for threads, _, name in asked if threads == 1]
    assert {size for _, size, _ in asked} == {1}
    assert len(beside) == count - count % 3
    assert all(name.startswith("images") for name in beside)
    assert len(asked) == count


def test_what_goes_wrong_with_one_of_several_images_is_raised(monkeypatch):
    def run(inputs):
        if inputs["images"].max() == 3:
            raise RuntimeError("no memory is left")
        return [inputs["images"]]

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", lambda network, threads: run)
    running = engines.Running("onnxruntime", b"", 2)
    np.testing.assert_array_equal(running.of_images(np.array([0, 1, 2])), [[0, 1, 2]])
    with pytest.raises(RuntimeError, match="no memory is left"):
        running.of_images(np.array([0, 1, 2, 3]))


def test_what_an_uninstalled_engine_left_behind_is_no_engine(tmp_path, monkeypatch):
    (tmp_path / "leftover" / "capi").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not engines.installed("leftover")
    assert engines.installed("numpy")


def test_nobody_is_told_of_inspections(tmp_path):
    """ONNX Runtime begins to report when it is imported: it keeps a queue in the user's folder for caches."""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    program = "from moleflow.runtime import engines; engines.imported('onnxruntime')"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_what_a_converter_raises_is_told(monkeypatch, cache):
    def broken(*args):
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(runtime, "exported_backbone", broken)
    with pytest.raises(BackboneError, match=r"no copy for it could be made: no such operator$"):
        Extractor(image_size=SIZE, runtime="openvino").features(images(1))


# Lines


def test_a_line_says_the_same_on_every_runtime(saved, line, probe):
    said = line.predict(probe)
    assert line.extractor.runtime.startswith("onnxruntime ")
    for name in ("torch", "openvino"):
        other = Detector.load(saved, device="cpu", runtime=name)
        for ours, theirs in zip(other.predict(probe), said, strict=True):
            assert (ours.task, ours.known, ours.pred_label) == (theirs.task, theirs.known, theirs.pred_label)
            assert ours.pred_score == pytest.approx(theirs.pred_score, abs=1e-3)
            np.testing.assert_allclose(ours.patch_map, theirs.patch_map, atol=1e-2)


def test_a_line_remembers_what_its_backbone_saw(saved, probe):
    document = json.loads((saved / "line.json").read_text())
    witness = document["settings"]["witness"]
    assert witness["runtime"].startswith("onnxruntime ")
    witness["patches"][5] += 0.1
    write_index(saved / "line.json", document)
    other = Detector.load(saved, device="cpu")
    for _ in range(2):
        with pytest.raises(BackboneError, match=r"features here differ by .* \(onnxruntime .*at most 0.01"):
            other.predict(probe)
    del document["settings"]["witness"]  # as of lines before it
    write_index(saved / "line.json", document)
    assert len(Detector.load(saved, device="cpu").predict(probe)) == len(probe)


@pytest.mark.parametrize("witness", [None, [], {}, {"runtime": "torch", "patches": [1.0]}, {"patches": "no"}])
def test_a_witness_that_is_none_is_a_damaged_line(saved, witness):
    document = json.loads((saved / "line.json").read_text())
    document["settings"]["witness"] = witness
    write_index(saved / "line.json", document)
    with pytest.raises(LineError, match="expected a complete line"):
        Detector.load(saved, device="cpu")


@pytest.mark.parametrize("name", ["torch", *NAMES])
def test_no_image_has_no_features(name):
    extractor = Extractor(image_size=SIZE, runtime=name)
    seen = extractor.see(extractor.stack([]))
    assert seen.patches.shape == (0, *extractor.grid, extractor.dim)
    assert seen.pooled.shape == (0, extractor.pooled_dim)


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_command_line_takes_a_runtime(saved, tmp_path, monkeypatch, pictures, how):
    from PIL import Image

    seen = []
    original = Detector.load.__func__

    def load(cls, *args, **options):
        seen.append(options["runtime"])
        return original(cls, *args, **options)

    monkeypatch.setattr(Detector, "load", classmethod(load))
    Image.fromarray(pictures("gear", 1)[0]).save(tmp_path / "one.png")
    arguments = ["predict", str(saved), str(tmp_path / "one.png")]
    if how == "option":
        result = CliRunner().invoke(app, [*arguments, "--runtime", "torch"])
    else:
        result = CliRunner().invoke(app, arguments, env={"MOLEFLOW_RUNTIME": "torch"})
    assert result.exit_code in (0, 1), result.output
    assert seen == ["torch"]
