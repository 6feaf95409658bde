"""An exported line says what the line says, without torch, or it is not written."""

import errno
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import types
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from moleflow import Cells, Detector, FlowConfig, RouterConfig
from moleflow.cli import app
from moleflow.data.factory import make_sample
from moleflow.data.layouts import Item, read_dataset
from moleflow.errors import BackboneError, ConfigError, ExportError, ImageError, LineError, TaskError
from moleflow.export import TOLERANCE, Agreement, _put, compare, export_line
from moleflow.line.network import ordinary
from moleflow.runtime import Inspector, engines, is_exported
from moleflow.store import LineStore
from saying import write_index

ROOT = Path(__file__).parents[1]
FORMATS = ("onnx", "openvino")

# Raises as an interpreter does that has neither.
WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        own = name.partition(".")[0]
        if own in ("torch", "timm"):
            raise ModuleNotFoundError(f"No module named {own!r}", name=own)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def agreed(_saved_line, tmp_path_factory):
    """The line of three products, exported, and what was said of it."""
    folder = tmp_path_factory.mktemp("exported") / "line"
    return folder, export_line(_saved_line, folder)


@pytest.fixture(scope="module")
def out(agreed):
    """That export, for tests that only look."""
    return agreed[0]


@pytest.fixture
def written(out, monkeypatch):
    """An export of that line finds its files as they were written once; it is compared and put in place."""
    monkeypatch.setattr("moleflow.export._write", lambda line, beside, *rest: shutil.copytree(out, beside))


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        one, two = ours.to_dict(), theirs.to_dict()
        assert one.keys() == two.keys()
        for key in ("task", "status", "known", "pred_label", "image_size", "facts"):
            assert key == "facts" or one[key] == two[key], key
        size = max(1, abs(theirs.pred_score))
        assert abs(ours.pred_score - theirs.pred_score) <= TOLERANCE * size
        assert ours.threshold == theirs.threshold
        np.testing.assert_allclose(ours.patch_map, theirs.patch_map, rtol=TOLERANCE, atol=TOLERANCE)
        assert ours.patch_map.dtype == theirs.patch_map.dtype
        if theirs.routing is not None:
            assert ours.routing.distances == pytest.approx(theirs.routing.distances, rel=1e-4)
            assert ours.routing.distance_limit == theirs.routing.distance_limit


# The same answers


def test_an_export_says_what_the_line_says(agreed, line, probe):
    says_what_the_line_says(*agreed, line, probe)


@pytest.mark.long
def test_an_export_for_openvino_says_what_the_line_says(saved, line, probe, tmp_path):
    agreement = export_line(saved, tmp_path / "out", format="openvino")
    says_what_the_line_says(tmp_path / "out", agreement, line, probe)


def says_what_the_line_says(folder, agreement, line, probe):
    assert agreement.holds
    assert agreement.pictures == 15
    inspector = Inspector(folder)
    assert inspector.tasks == line.tasks
    assert inspector.intake == line.intake
    assert_same(inspector.predict(probe), line.predict(probe))
    for task in line.tasks:
        assert_same(inspector.predict(probe, task=task), line.predict(probe, task=task))
    assert_same(inspector.predict(probe, batch_size=1), inspector.predict(probe, batch_size=3))


@pytest.mark.long
def test_an_aligned_product_is_exported_with_its_mean(new_line, pictures, tmp_path):
    line = new_line()
    line.add_task("gear", pictures("gear", 8), pose="on")
    line.add_task("wood", pictures("wood", 4), pose="off")
    line.save(tmp_path / "line")
    gears = [*pictures("gear", 2, first=80), *pictures("gear", 1, kind="missing_tooth", first=80)]
    shown = [np.rot90(image, k).copy() for k, image in enumerate(gears)] + pictures("wood", 1, first=80)
    assert export_line(tmp_path / "line", tmp_path / "out", images=shown).holds
    inspector = Inspector(tmp_path / "out")
    found, expected = (one.predict(shown, task="gear") for one in (inspector, line))
    assert_same(found, expected)
    assert [p.placement for p in found] == [p.placement for p in expected]
    assert any(p.placement is not None and abs(p.placement.angle) > 1 for p in found)
    assert_same(inspector.predict(shown), line.predict(shown))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.anomaly_map, two.anomaly_map, rtol=TOLERANCE, atol=TOLERANCE)


def layered(config):
    """A flow over normalised patches with cells beside it, and every product in its own metric."""
    flow = replace(config.flow, cells=None, normalisation="layer", statistics=True)
    scoring = replace(config.scoring, cells=Cells(side=3, rank=5, mean_side=5, bits=16))
    return replace(config, flow=flow, scoring=scoring, router=RouterConfig(metric="product"))


def lean(config):
    """No learned part, no coreset, no voice of the whole, everything in 16 bits."""
    flow = FlowConfig(
        cells=Cells(side=3, rank=4, mean_side=5, bits=16),
        couplings=0,
        mixer=None,
        whitening=None,
        dia=None,
        lora=None,
        bits=16,
    )
    return replace(config, flow=flow, scoring=replace(config.scoring, coreset=None, whole=None))


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "wishes"),
    [
        (layered, {}),
        (lean, {"fit": "letterbox"}),
        (lambda config: config, {"tiles": (1, 2)}),
        (lambda config: config, {"image_size": 16}),
        (lambda config: replace(config, scoring=replace(config.scoring, smoothing=9.0)), {}),
    ],
    ids=["layered", "lean", "tiles", "four patches", "wide smoothing"],
)
def test_every_kind_of_line_is_exported(new_line, quick, pictures, probe, tmp_path, change, wishes):
    line = new_line(config=change(quick), **wishes)
    for product in ("gear", "wood"):
        line.add_task(product, pictures(product, 6))
    line.set_threshold("wood", threshold=3.0)
    line.save(tmp_path / "line")
    export_line(tmp_path / "line", tmp_path / "out")
    shown = [*probe, np.ascontiguousarray(probe[0][:40])]
    assert_same(Inspector(tmp_path / "out").predict(shown), line.predict(shown))


@pytest.mark.long
def test_what_known_defects_taught_is_exported(saved, pictures, probe, tmp_path):
    line = Detector.load(saved, device="cpu")
    defects = pictures("gear", 3, first=600, kind="missing_tooth")
    line.correct_task("gear", pictures("gear", 8), missed=defects)
    line.save()
    export_line(saved, tmp_path / "out")
    inspector = Inspector(tmp_path / "out")
    assert_same(inspector.predict(probe), line.predict(probe))
    plain = json.loads((tmp_path / "out" / "exported.json").read_text())["products"]
    assert len({entry["network"] for entry in plain}) == 2  # one for those that were shown nothing


def test_images_that_are_given_are_compared(saved, written, tmp_path, pictures):
    for i, picture in enumerate(pictures("wood", 3, first=700)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    agreement = export_line(saved, tmp_path / "out", images=sorted(tmp_path.glob("*.png")))
    assert agreement.pictures == 3
    assert max(agreement.features, agreement.score, agreement.map, agreement.distance) <= 1e-4


def test_errors_are_those_of_the_line(out, tmp_path, probe):
    inspector = Inspector(out)
    (tmp_path / "no.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"no\.png"):
        inspector.predict(tmp_path / "no.png")
    (failure,) = inspector.predict(tmp_path / "no.png", errors="yield")
    assert "no.png" in failure.error
    with pytest.raises(TaskError, match="'cable' is no product of this line; known: 'gear', 'wood'"):
        inspector.predict(probe, task="cable")
    with pytest.raises(ConfigError, match="batch size"):
        inspector.predict(probe, batch_size=0)
    with pytest.raises(ConfigError, match="at least 1 thread"):
        Inspector(out, threads=0)


# What is on disk


def test_a_product_costs_what_it_costs_on_the_line(out, saved):
    assert is_exported(out)
    assert not is_exported(saved)
    for name in ("gear", "wood", "bottle_cap"):
        kept = (saved / "tasks" / name / "0001" / "expert.safetensors").stat().st_size
        assert (out / "products" / f"{name}.safetensors").stat().st_size < kept
        json.loads((out / "products" / f"{name}.json").read_text())
    assert {path.suffix for path in tree(out)} == {".json", ".onnx", ".safetensors"}


@pytest.mark.parametrize(
    "name",
    [
        "backbone.onnx",
        "density-0.onnx",
        "router.safetensors",
        "products/gear.safetensors",
        "products/gear.json",
        "exported.json",
    ],
)
@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_export_is_refused_before_any_image(out, tmp_path, name, harm):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2 if name != "exported.json" else 0] ^= 255
    if harm == "flipped":
        (folder / name).write_bytes(data)
    else:
        (folder / name).unlink()
    with pytest.raises(LineError, match=Path(name).name.replace(".", r"\.")):
        Inspector(folder)


@pytest.mark.parametrize(
    "name", ["backbone.onnx", "density-0.onnx", "products/wood.safetensors", "products/wood.json"]
)
def test_what_was_damaged_since_it_was_opened_is_named_when_it_is_held(out, tmp_path, name):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    inspector = Inspector(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(LineError, match=rf"{Path(name).name}: damaged or changed"):
        inspector.hold()


def harm(file):
    file.write_bytes(file.read_bytes() + b"?")


@pytest.mark.parametrize("name", ["products/gear.safetensors", "products/gear.json"])
def test_a_damaged_product_may_be_left_out_and_is_judged_by_no_other(out, tmp_path, probe, name):
    folder, whole = Path(shutil.copytree(out, tmp_path / "copy")), Inspector(out)
    harm(folder / name)
    inspector = Inspector(folder, damaged="quarantine")
    inspector.hold()
    assert inspector.tasks == ("wood", "bottle_cap")
    assert list(inspector.damaged) == ["gear"]
    assert f"{Path(name).name}: damaged or changed" in inspector.damaged["gear"]
    others = [image for image, said in zip(probe, whole.predict(probe), strict=True) if said.task != "gear"]
    assert 0 < len(others) < len(probe)
    assert_same(inspector.predict(others), whole.predict(others))
    for image in probe:
        if not any(image is other for other in others):
            with pytest.raises(LineError, match=r"'gear' is damaged and cannot be inspected: .*gear"):
                inspector.predict([image])
    with pytest.raises(LineError, match="'gear' is damaged"):
        inspector.predict(others, task="gear")
    with pytest.raises(TaskError, match="known: 'wood', 'bottle_cap'"):
        inspector.predict(others, task="cable")


@pytest.mark.parametrize("name", ["backbone.onnx", "router.safetensors", "density-0.onnx"])
def test_what_all_products_need_cannot_be_left_out(out, tmp_path, name):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    harm(folder / name)
    with pytest.raises(LineError, match=f"{name}: damaged or changed"):
        Inspector(folder, damaged="quarantine")
    with pytest.raises(ConfigError, match="quarantine"):
        Inspector(out, damaged="ignore")


def test_a_file_that_the_index_does_not_list_is_missed_before_any_image(out, tmp_path):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    index = json.loads((folder / "exported.json").read_text())
    del index["files"]["products/wood.json"]
    write_index(folder / "exported.json", index)
    with pytest.raises(LineError, match=r"expected the SHA-256 of products/wood\.json, found none"):
        Inspector(folder)


@pytest.mark.long
@pytest.mark.parametrize("format", FORMATS)
def test_what_becomes_of_the_files_does_not_reach_what_was_held(saved, probe, tmp_path, format):
    folder = tmp_path / "out"
    export_line(saved, folder, format=format, images=probe[:1])
    inspector = Inspector(folder)
    inspector.hold()
    expected = [one.to_dict() for one in inspector.predict(probe)]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("r+b") as file:  # the same file, as `cp` and `rsync --inplace` write it
            file.write(bytes(path.stat().st_size))
    assert [one.to_dict() for one in inspector.predict(probe)] == expected
    for path in tree(folder):
        os.truncate(folder / path, 0)
    with ThreadPoolExecutor(1) as pool:  # a thread that has not asked before
        assert [one.to_dict() for one in pool.submit(inspector.predict, probe).result()] == expected


# What the backbone saw


def test_an_export_remembers_what_the_backbone_of_its_line_saw(out, saved, tmp_path, probe):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    index = json.loads((folder / "exported.json").read_text())
    assert index["witness"] == json.loads((saved / "line.json").read_text())["settings"]["witness"]
    index["witness"]["patches"][5] += 0.1
    write_index(folder / "exported.json", index)
    inspector = Inspector(folder)
    for _ in range(2):
        with pytest.raises(BackboneError, match=r"features here differ by .* \(onnxruntime .*at most 0.01"):
            inspector.predict(probe, errors="yield")
    with pytest.raises(BackboneError, match="features here differ"):
        inspector.hold()
    del index["witness"]  # as of exports before it
    write_index(folder / "exported.json", index)
    assert_same(Inspector(folder).predict(probe), Inspector(out).predict(probe))


@pytest.mark.parametrize("factor", [1.02, float("nan")])
def test_a_machine_whose_backbone_sees_something_else_is_noticed(out, probe, monkeypatch, factor):
    original = engines._OPENERS["onnxruntime"]
    shown = []

    def wrong(network, threads):
        run = original(network, threads)

        def other(inputs):
            shown.append(inputs)
            return [output * np.float32(factor) for output in run(inputs)]

        return other

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", wrong)
    with pytest.raises(BackboneError, match="features here differ by"):
        Inspector(out).predict(probe)
    assert [inputs["images"].shape for inputs in shown] == [(1, 3, 64, 64)]  # and none of the images


@pytest.mark.parametrize("witness", [None, [], {}, {"runtime": "torch", "patches": [1.0]}, {"patches": "no"}])
def test_a_witness_that_is_none_is_a_damaged_export(out, tmp_path, witness):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    index = json.loads((folder / "exported.json").read_text()) | {"witness": witness}
    write_index(folder / "exported.json", index)
    with pytest.raises(LineError, match="expected a complete exported line"):
        Inspector(folder)


def test_the_export_of_a_line_that_remembers_nothing_has_what_was_seen_as_it_was_written(
    saved, probe, tmp_path
):
    document = json.loads((saved / "line.json").read_text())
    theirs = document["settings"].pop("witness")
    write_index(saved / "line.json", document)
    export_line(saved, tmp_path / "out", images=probe[:1])
    witness = json.loads((tmp_path / "out" / "exported.json").read_text())["witness"]
    assert witness["runtime"].startswith("torch ")
    assert witness["patches"] == pytest.approx(theirs["patches"], abs=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 4, "library": "9.9"}, r"expected format 3 or earlier, got 4: .* moleflow 9\.9"),
        ({"engine": "abacus"}, "expected an engine among onnxruntime, openvino"),
        ({"router": None}, "expected a complete exported line"),
        ({"scoring": {}}, "expected a complete exported line"),
        ({"false_alarm_rate": "often"}, "expected a complete exported line"),
        ({"products": [{"name": "../gear"}]}, "complete exported line|name"),
        ({"files": {}}, "expected the SHA-256 of router.safetensors"),
    ],
)
def test_an_index_that_says_something_else_is_refused(out, tmp_path, change, message):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    index = json.loads((folder / "exported.json").read_text()) | change
    write_index(folder / "exported.json", index)
    with pytest.raises((LineError, TaskError), match=message):
        Inspector(folder)


def test_an_index_that_was_changed_is_refused_and_one_of_before_is_not(out, tmp_path, probe):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    index = json.loads((folder / "exported.json").read_text())
    (folder / "exported.json").write_text(json.dumps(index | {"false_alarm_rate": 0.5}))
    with pytest.raises(LineError, match=r"exported\.json: damaged or changed"):
        Inspector(folder)
    (folder / "exported.json").write_text(json.dumps(dict(reversed(index.items()))))  # says the same
    Inspector(folder)
    del index["sha256"]
    (folder / "exported.json").write_text(json.dumps(index))
    assert_same(Inspector(folder).predict(probe), Inspector(out).predict(probe))


@pytest.mark.long
@pytest.mark.parametrize(
    ("network", "said"),
    [("images", "features here differ by"), ("patches", "features differ by .*, over 15 pictures")],
)
def test_an_export_that_says_something_else_is_not_written(saved, out, tmp_path, monkeypatch, network, said):
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    before = tree(folder)
    original = engines._OPENERS["onnxruntime"]

    def wrong(data, threads):
        run = original(data, threads)
        return lambda inputs: [
            output * np.float32(1.02 if network in inputs else 1) for output in run(inputs)
        ]

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", wrong)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(ExportError, match=rf"does not say what the line says: {said}"):
            export_line(saved, place)
    assert tree(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line", "out"]  # nothing beside it


def test_a_backbone_in_coarser_numbers_is_not_written(saved, written, tmp_path, monkeypatch):
    """What is said of drawn pictures would let it pass: to a product they are all equally foreign."""
    original, unit = engines._OPENERS["onnxruntime"], np.float32(1 / 64)

    def coarse(data, threads):
        run = original(data, threads)
        return lambda inputs: [unit * np.round(x / unit) if "images" in inputs else x for x in run(inputs)]

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", coarse)
    with pytest.raises(ExportError, match=r"features differ by up to 0\.00\d+ spreads"):
        export_line(saved, tmp_path / "new")


def test_what_a_product_says_of_its_own_patches_is_compared_too(saved, written, probe, tmp_path, monkeypatch):
    shown = []
    original = engines._OPENERS["onnxruntime"]

    def noted(data, threads):
        run = original(data, threads)
        return lambda inputs: shown.append(inputs.get("patches")) or run(inputs)

    monkeypatch.setitem(engines._OPENERS, "onnxruntime", noted)
    export_line(saved, tmp_path / "out", images=probe[:1])
    line = Detector.load(saved, runtime="torch")._line
    for product in line.products.values():
        for patches in ordinary(line.base, product, 2).split(1):
            assert any(other is not None and np.array_equal(other, patches.numpy()) for other in shown)


def test_a_line_without_products_is_not_exported(saved, tmp_path):
    for name in LineStore(saved).names():
        LineStore(saved).remove(name)
    with pytest.raises(ExportError, match="the line knows none"):
        export_line(saved, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_was_opened_outlasts_an_export_that_takes_its_place(out, line, probe, tmp_path):
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    inspector = Inspector(folder)
    inspector.hold()
    shutil.rmtree(folder)
    assert_same(inspector.predict(probe), line.predict(probe))


def test_an_export_that_takes_the_place_of_one_in_use_is_named(out, tmp_path, probe):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    inspector = Inspector(folder)
    index = json.loads((folder / "exported.json").read_text())
    data = (folder / "products" / "gear.json").read_bytes() + b" "
    (folder / "products" / "gear.json").write_bytes(data)
    files = index["files"] | {"products/gear.json": hashlib.sha256(data).hexdigest()}
    index |= {"files": files}
    write_index(folder / "exported.json", index)
    with pytest.raises(LineError, match="exported anew since it was opened; open it again to go on with"):
        inspector.predict(probe)
    assert Inspector(folder).predict(probe)


def test_a_network_that_the_engine_cannot_run_is_named(out, tmp_path, probe):
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    index = json.loads((folder / "exported.json").read_text())
    (folder / "backbone.onnx").write_bytes(b"no network")
    files = index["files"] | {"backbone.onnx": hashlib.sha256(b"no network").hexdigest()}
    index |= {"files": files}
    write_index(folder / "exported.json", index)
    with pytest.raises(LineError, match=r"backbone\.onnx: onnxruntime cannot run it"):
        Inspector(folder).predict(probe)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_threads_are_a_number_of_them(out, threads):
    with pytest.raises(ConfigError, match="expected at least 1 thread"):
        Inspector(out, threads=threads)


def test_what_killed_exports_left_is_cleared_away(saved, written, probe, tmp_path):
    left = [tmp_path / name for name in (".out.01234567", ".out.89abcdef", ".out.mine", ".other.01234567")]
    for folder in left:
        folder.mkdir()
        (folder / "backbone.onnx").write_bytes(b"half")
        if folder.name != ".out.89abcdef":  # which another process is writing
            os.utime(folder, (0, 0))
    export_line(saved, tmp_path / "out", images=probe[:1])
    assert [folder.exists() for folder in left] == [False, True, True, True]


def test_an_export_to_a_link_is_where_the_link_leads(saved, out, written, probe, tmp_path):
    folder = Path(shutil.copytree(out, tmp_path / "real"))
    was = folder.stat().st_ino
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    export_line(saved, tmp_path / "link", images=probe[:1])
    assert (tmp_path / "link").is_symlink()
    assert folder.stat().st_ino != was
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line", "link", "real"]


@pytest.mark.long
def test_an_earlier_export_is_replaced_and_nothing_else(saved, out, tmp_path, pictures):
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    index = json.loads((folder / "exported.json").read_text())
    write_index(folder / "exported.json", index | {"files": index["files"] | {"products/gone.json": ""}})
    (folder / "products" / "gone.json").write_text("{}")
    (folder / ".lock").touch()  # as the store of a line leaves it
    line = Detector.load(saved, device="cpu")
    line.add_task("cable", pictures("circuit_board", 6))
    line.save()
    export_line(saved, folder)
    assert Inspector(folder).tasks == line.tasks
    assert not (folder / "products" / "gone.json").exists()
    kept = Path("products") / "gear.safetensors"
    assert (folder / kept).read_bytes() == (out / kept).read_bytes()


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        ("results.jsonl", "results.jsonl"),
        ("line/line.json", "line"),
        ("products/gear.png", "products/gear.png"),
        ("backbone.onnx/mine.txt", "backbone.onnx/mine.txt"),
        ("empty/", "empty"),
    ],
)
@pytest.mark.parametrize("exported", [True, False], ids=["an export", "a folder"])
def test_what_lies_beside_an_export_is_not_lost_with_it(
    saved, out, tmp_path, monkeypatch, mine, named, exported
):
    folder = tmp_path / "out"
    if exported:
        shutil.copytree(out, folder)
    place = folder / mine
    if mine.startswith("backbone.onnx"):
        (folder / "backbone.onnx").unlink(missing_ok=True)
    (place if mine.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
    if not mine.endswith("/"):
        place.write_text("mine")
    before = tree(folder)
    monkeypatch.setattr("moleflow.export.Detector", None)  # nothing is loaded for it
    if not exported:
        named = Path(mine).parts[0]
    expected = "expected an empty folder or an earlier export with nothing beside it"
    with pytest.raises(ExportError, match=rf"out: {expected}, found {named}, which would be lost"):
        export_line(saved, folder)
    assert tree(folder) == before
    assert place.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 7}', '{"files": ["../../mine"]}'])
def test_an_export_that_does_not_say_what_it_holds_is_not_replaced(saved, out, tmp_path, text):
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    (folder / "exported.json").write_text(text)
    with pytest.raises(ExportError, match="expected the files of an earlier export, found none listed"):
        export_line(saved, folder)
    assert (folder / "backbone.onnx").is_file()


def test_what_came_while_an_export_was_compared_is_not_lost(saved, out, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(out, tmp_path / "out"))

    def compared(*args):
        (folder / "results.jsonl").write_text("mine")
        return Agreement(1, 0.0, 0.0, 0.0, 0.0, 0)

    monkeypatch.setattr("moleflow.export._write", lambda line, beside, *rest: shutil.copytree(out, beside))
    monkeypatch.setattr("moleflow.export.compare", compared)
    with pytest.raises(ExportError, match=r"found results\.jsonl, which would be lost"):
        export_line(saved, folder)
    assert (folder / "results.jsonl").read_text() == "mine"


def test_a_line_and_its_export_are_apart(saved, out, tmp_path, monkeypatch):
    monkeypatch.setattr("moleflow.export.Detector", None)
    shutil.copytree(out, tmp_path / "deploy")
    shutil.move(saved, tmp_path / "deploy" / "line")
    (tmp_path / "link").symlink_to(tmp_path / "deploy" / "line", target_is_directory=True)
    places = [
        ("deploy/line", "deploy"),
        ("link", "deploy"),
        ("link", "link"),
        ("deploy/line", "link/tasks/out"),
    ]
    for line, place in places:
        with pytest.raises(
            ExportError, match=r"expected a folder apart from that of the line, which is .*line"
        ):
            export_line(tmp_path / line, tmp_path / place)
    assert LineStore(tmp_path / "link").names() == ("gear", "wood", "bottle_cap")
    assert not (tmp_path / "link" / "tasks" / "out").exists()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupted_export_leaves_the_earlier_one(out, tmp_path, monkeypatch, when, number):
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    beside = Path(shutil.copytree(out, tmp_path / ".out.01234567"))
    (beside / "router.safetensors").write_bytes(b"new")
    before, rename, calls = tree(folder), Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == number and when == "before":
            raise KeyboardInterrupt
        rename(self, target)
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _put(beside, folder)
    assert tree(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.01234567", "out"]


def test_an_export_that_was_set_aside_comes_back(saved, out, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    half = Path(shutil.copytree(out, tmp_path / ".out.89abcdef"))  # written, and never compared
    monkeypatch.setattr("moleflow.export.sync_tree", lambda written: None)

    class Killed(BaseException):
        pass

    def killed(self, target):
        raise Killed

    shutil.copytree(out, folder)
    os.utime(folder, (0, 0))
    (folder / "router.safetensors").write_bytes(b"last")
    before, rename = tree(folder), Path.rename
    with monkeypatch.context() as patch:
        calls = iter([rename, killed, killed])  # nor is it put back
        patch.setattr(Path, "rename", lambda self, target: next(calls)(self, target))
        with pytest.raises(Killed):
            _put(half, folder)
    older = Path(shutil.copytree(out, tmp_path / ".out.01234567.old"))
    os.utime(older, (0, 0))
    assert not folder.exists()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("moleflow.export._write", full)
    with pytest.raises(ExportError, match="out: cannot be written: No space left on device"):
        export_line(saved, folder)
    assert tree(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.89abcdef", "line", "out"]


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_an_export_is_on_the_disk_before_the_earlier_one_goes(out, tmp_path, monkeypatch):
    folder, beside = (Path(shutil.copytree(out, tmp_path / name)) for name in ("out", ".out.01234567"))
    sync, delete, synced, missing = os.fsync, shutil.rmtree, set(), []

    def noted(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def deleted(path, **options):
        parts = [tmp_path, folder, *folder.rglob("*")]
        missing.append([part.name for part in parts if part.stat().st_ino not in synced])
        delete(path, **options)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(shutil, "rmtree", deleted)
    _put(beside, folder)
    assert missing == [[]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_named_and_leaves_the_earlier_export(
    saved, out, probe, tmp_path, monkeypatch, request
):
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    before = tree(folder)

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ExportError, match=r"out: cannot be written: No space left on device"):
            export_line(saved, folder)
    request.getfixturevalue("written")
    rename = Path.rename

    def late(self, target):
        if Path(target) == folder and self.suffix != ".old":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", late)
        with pytest.raises(ExportError, match="cannot be written"):
            export_line(saved, folder, images=probe[:1])
    assert tree(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line", "out"]


def test_what_cannot_be_exported_is_named(saved, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="expected a format among onnx, openvino, got 'tensorrt'"):
        export_line(saved, tmp_path / "out", format="tensorrt")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="file: expected a folder, found a file"):
        export_line(saved, tmp_path / "file")
    with pytest.raises(ExportError, match="out: cannot be written"):
        export_line(saved, tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ExportError, match="got the one this runs in"):
        export_line(saved, ".")
    monkeypatch.setattr("moleflow.export.installed", lambda engine: False)
    with pytest.raises(ConfigError, match="format 'openvino' needs openvino: pip install openvino"):
        export_line(saved, tmp_path / "out", format="openvino")
    assert not (tmp_path / "out").exists()


def test_eight_bits_are_judged_without_masks_too(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    judged = importlib.import_module("quantised").judged
    items = [Item(Path(f"{kind}.png"), "gear", "test", kind) for kind in ("good", "bent")]
    said = [types.SimpleNamespace(pred_score=score) for score in (0.1, 0.9)]
    assert judged([("gear", item) for item in items], said) == (1.0, None)


def test_an_export_whose_backbone_was_quantised_is_listed_as_it_stands_now(out, probe, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    copy = shutil.copytree(out, tmp_path / "copy")
    with (copy / "backbone.onnx").open("ab") as backbone:
        backbone.write(b"\x72\x00")  # a field without a name in it: the same network
    with pytest.raises(LineError, match=r"backbone\.onnx"):
        Inspector(copy).predict(probe[:1])
    importlib.import_module("quantised").rehash(copy)
    assert Inspector(copy).predict(probe[:1])


# Without torch


def alone(code, *arguments, environment=None):
    """Runs code in an interpreter that has neither torch nor timm."""
    source = WITHOUT_TORCH + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def photograph(folder, probe):
    folder.mkdir(parents=True)
    for i, picture in enumerate(probe):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def test_nothing_of_it_needs_torch(out, line, probe, tmp_path):
    belt = photograph(tmp_path / "belt", probe)
    code = """
    import json, sys
    from moleflow.runtime import Inspector
    found = Inspector(sys.argv[1], threads=1).predict(sys.argv[2])
    print(json.dumps([one.to_dict() | {"mask": int(one.pred_mask.sum())} for one in found]))
    assert not {"torch", "timm"} & set(sys.modules)
    """
    done = alone(code, out, belt)
    assert done.returncode == 0, done.stderr
    for said, expected in zip(json.loads(done.stdout), line.predict(belt), strict=True):
        assert said["status"] == expected.status
        assert said["task"] == expected.task
        assert said["pred_score"] == pytest.approx(expected.pred_score, abs=1e-3)
        assert said["mask"] == expected.pred_mask.sum()


def test_the_command_line_needs_no_torch_for_it(out, saved, probe, tmp_path):
    belt = photograph(tmp_path / "belt", probe)
    code = "from moleflow.cli import main\nmain()"
    done = alone(code, "predict", out, belt, "--json", tmp_path / "found.jsonl", "--maps", tmp_path / "maps")
    assert done.returncode == 0, done.stderr
    with_torch = CliRunner().invoke(
        app, ["predict", str(saved), str(belt), "--json", str(tmp_path / "expected.jsonl")]
    )
    assert with_torch.exit_code == 0, with_torch.output
    found, expected = (
        [json.loads(row) for row in (tmp_path / name).read_text().splitlines()]
        for name in ("found.jsonl", "expected.jsonl")
    )
    assert [one.keys() for one in found] == [one.keys() for one in expected]
    assert [one["reason"] for one in found] == [one["reason"] for one in expected]
    assert len(list((tmp_path / "maps").iterdir())) == len(probe)
    done = alone(code, "predict", saved, belt)
    assert done.returncode == 1
    assert "this needs torch, which is not installed: pip install 'moleflow[learn]'" in done.stderr
    done = alone("from moleflow import Detector")
    assert "ImportError: this needs torch" in done.stderr


@pytest.mark.parametrize(
    "command", [("list",), ("info",), ("drift",), ("threshold", "gear"), ("evaluate", "data")]
)
def test_commands_that_need_the_line_say_that_an_export_is_none(out, probe, tmp_path, command):
    for part in ("train", "test"):
        photograph(tmp_path / "data" / "gear" / part / "good", probe[:1])
    name, *rest = (tmp_path / "data" if word == "data" else word for word in command)
    result = CliRunner().invoke(app, [name, str(out), *map(str, rest)])
    assert result.exit_code == 1
    said = "expected a line, found an exported one, which inspects and nothing else: ask the line that it was"
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize("option", [("--device", "cuda"), ("--runtime", "torch"), ("--monitor",)])
def test_options_that_an_export_does_not_have_are_refused(out, probe, tmp_path, option):
    belt = photograph(tmp_path / "belt", probe[:1])
    result = CliRunner().invoke(app, ["predict", str(out), str(belt), *option])
    assert result.exit_code == 2
    assert "an exported line takes none" in result.output


def test_the_variable_for_all_commands_does_not_hinder_an_export(out, probe, tmp_path, monkeypatch):
    monkeypatch.setenv("MOLEFLOW_RUNTIME", "torch")
    belt = photograph(tmp_path / "belt", probe[:1])
    assert CliRunner().invoke(app, ["predict", str(out), str(belt)]).exit_code == 0


def test_the_command_says_what_was_compared(saved, written, tmp_path):
    result = CliRunner().invoke(app, ["export", str(saved), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "3 products" in result.output
    assert "over 15 pictures every verdict is the line's" in result.output.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MOLEFLOW_REALDATA"), reason="MOLEFLOW_REALDATA is unset")
@pytest.mark.parametrize("format", FORMATS)
def test_exports_of_real_products_say_what_the_line_says(tmp_path, format):
    line = Detector(device="cpu")
    products = read_dataset(os.environ["MOLEFLOW_REALDATA"]).products
    for name, product in products.items():
        line.add_task(name, [item.path for item in product.train[:60]], pose="off")
    line.save(tmp_path / "line")
    shown = [item.path for product in products.values() for item in product.test[::8]]
    agreement = export_line(tmp_path / "line", tmp_path / "out", format=format, images=shown)
    assert agreement.holds
    pictures = [line.intake.read(path, path) for path in shown[:5]]
    assert compare(line, Inspector(tmp_path / "out"), pictures, len(pictures)).holds


@pytest.mark.slow
def test_an_environment_without_torch_inspects(out, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{ROOT}[runtime]"], check=True)
    Image.fromarray(make_sample("gear", 900, size=64).image).save(tmp_path / "one.png")
    command = [tmp_path / "venv" / "bin" / "moleflow", "predict", out, tmp_path / "one.png", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["task"] == "gear"
    missing = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert missing.returncode == 1
