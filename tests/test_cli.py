"""The command line on a tiny line: every command, its files, its errors, and the page that documents it."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from filelock import FileLock, Timeout
from PIL import Image
from typer.testing import CliRunner

from moleflow import Cells, Coreset, Detector, FlowConfig, LineConfig, ScoringConfig, TrainingConfig
from moleflow.cli import adding, app
from moleflow.cli import products as module
from moleflow.cli.inspection import map_names
from moleflow.cli.learned import _say_rerouted
from moleflow.cli.screen import LESSON_ENDED, amount
from moleflow.config import with_layers
from moleflow.data.factory import make_sample, write_product
from moleflow.data.layouts import read_dataset
from moleflow.errors import ImageError, MoleFlowError
from moleflow.evaluation import evaluate
from moleflow.intake import Intake
from moleflow.maps.overlay import overlay
from moleflow.presets import PRESETS, get_preset
from moleflow.store import LineStore
from moleflow.verdict.calibration import calibration_from_dict
from moleflow.verdict.changes import Changes

DOCS = Path(__file__).parent.parent / "docs" / "cli.md"
COMMANDS = typer.main.get_command(app).commands
SMALL = LineConfig(
    flow=FlowConfig(cells=Cells(side=2, rank=8, mean_side=4)),
    training=TrainingConfig(steps=5, base_steps=5, patches=256),
    scoring=ScoringConfig(coreset=Coreset(patches=60)),
)


def run(*args, code=0, **more):
    result = CliRunner().invoke(app, [str(a) for a in args], **more)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def sentence(*args, code=1, **more):
    """Run what fails, and return its one line."""
    result = run(*args, code=code, **more)
    errors = re.findall(r"Error: .*$", result.stderr, re.MULTILINE)
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    return errors[0]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for product in ("gear", "wood"):
        write_product(product, root, train=8, test_good=3, test_defective=3, size=64)
    return root


@pytest.fixture(scope="session")
def saved(data, tmp_path_factory):
    detector = Detector(image_size=64, config=SMALL)
    for product in ("gear", "wood"):
        detector.add_task(product, data / product / "train" / "good")
    detector.save(tmp_path_factory.mktemp("lines") / "line")
    return detector.path


@pytest.fixture
def line(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "line"))


def good(data, product="gear"):
    return data / product / "train" / "good"


def tree(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Help and documentation


def test_version():
    assert re.fullmatch(r"moleflow \d+\.\d+.*\n", run("--version").stdout)


def test_help_lists_every_command():
    said = run("--help").stdout
    assert all(re.search(rf"^ +{name}\b", said, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_an_example_that_keeps_its_line(name):
    assert re.search(rf"Example:\n +moleflow {name}\b.*\n", run(name, "--help").stdout)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented(name):
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section on {name}"
    for parameter in COMMANDS[name].params:
        for option in [o for o in parameter.opts if o.startswith("-") and o not in ("-h", "--help")]:
            assert re.search(rf"`{option}[` ]", found[1]), f"{name} {option} is not documented"
        if not parameter.opts[0].startswith("-"):
            assert parameter.metavar in found[1]


def test_the_page_documents_nothing_else():
    assert set(re.findall(r"^## (.+)$", DOCS.read_text(), re.MULTILINE)) == set(COMMANDS)


# predict


def test_predict_shows_a_line_per_image_and_writes_nothing(saved, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tree(saved)
    result = run("predict", saved, data / "gear" / "test" / "good", good(data, "wood"))
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["source", "product", "score", "p-value", "verdict"]
    assert len(lines) == 1 + 3 + 8
    assert all(line.split()[-1] in ("good", "defective") for line in lines[1:])
    assert list(tmp_path.iterdir()) == []
    assert tree(saved) == before


def test_predict_writes_json_lines_in_the_order_of_the_images(saved, data, tmp_path):
    folder = data / "gear" / "test" / "good"
    told = run("predict", saved, folder, "--json", tmp_path / "r.jsonl", "--batch-size", 2).stderr
    assert told.endswith(f"drifting\nresults: {tmp_path / 'r.jsonl'}\n")
    objects = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [o["source"] for o in objects] == [str(folder / f"00{i}.png") for i in range(3)]
    assert objects[0].keys() >= {"task", "known", "pred_score", "p_value", "threshold", "pred_label"}
    to_stdout = run("predict", saved, folder, "--json", "-", "--task", "gear")
    assert "results:" not in to_stdout.stderr
    routed = [json.loads(line)["routing"] for line in to_stdout.stdout.splitlines()]
    assert routed == [None] * 3


def test_predict_writes_maps_that_do_not_collide(saved, data, tmp_path):
    (tmp_path / "maps").mkdir()
    photo = tmp_path / "maps" / "000_map.png"
    shutil.copy(data / "gear" / "test" / "good" / "000.png", photo)
    images = [str(photo), *[str(data / p / "test" / "good") for p in ("gear", "wood")]]
    before = photo.read_bytes()
    run("predict", saved, *images, "--maps", tmp_path / "maps", "--no-legend")
    assert photo.read_bytes() == before
    written = [path for path in (tmp_path / "maps").iterdir() if path != photo]
    assert len(written) == 7
    assert all(Image.open(path).size == (64, 64) for path in written)


def test_predict_writes_every_kind_of_map(saved, data, tmp_path):
    photo, maps = data / "gear" / "test" / "good" / "000.png", tmp_path / "maps"
    run("predict", saved, photo, "--maps", maps, "--map-format", "npy, tiff,mask,overlay,npy")
    assert {path.name for path in maps.iterdir()} == {
        "000_map.png",
        "000_mask.png",
        "000_scores.npy",
        "000_scores.tiff",
    }
    scores = np.load(maps / "000_scores.npy")
    assert (scores.shape, scores.dtype) == ((64, 64), np.float32)
    overlaid = Image.open(maps / "000_map.png")  # with a legend, below
    assert overlaid.height > 64
    run("predict", saved, photo, "--maps", tmp_path / "bare", "--no-legend")
    bare = Image.open(tmp_path / "bare" / "000_map.png")
    np.testing.assert_array_equal(np.array(overlaid)[:64, :64], np.array(bare))


def test_predict_lists_regions(line, data):
    photo = data / "gear" / "test" / "good" / "000.png"

    def listed(*options):
        shown = run("predict", line, photo, "--task", "gear", "--json", "-", *options).stdout
        return json.loads(shown)

    run("threshold", line, "gear", "--value", 1e6)
    assert listed()["regions"] == []
    run("threshold", line, "gear", "--value", -1e6)
    (whole,) = listed()["regions"]
    assert (whole["area"], whole["box"]) == (64 * 64, [0, 0, 64, 64])
    assert "regions" not in listed("--no-regions")


def test_regions_of_images_called_good_are_listed_when_asked(line, data):
    photos = sorted((data / "gear" / "test" / "good").glob("*.png"))
    told = Detector.load(line).predict(photos, task="gear")
    # Of which the map says more than the picture as a whole. Just above the image's score, which is a mean
    # of the highest patches: the highest of them lies above.
    photo, prediction = max(
        zip(photos, told, strict=True), key=lambda pair: pair[1].place_score - pair[1].whole_score
    )
    run("threshold", line, "gear", "--value", prediction.pred_score + 0.001)
    for options, listed in ((), False), (("--regions",), True):
        shown = run("predict", line, photo, "--task", "gear", "--json", "-", *options).stdout
        found = json.loads(shown)
        assert not found["pred_label"]
        assert bool(found["regions"]) == listed


def test_map_names_are_safe_and_apart():
    paths = [Path(p) for p in ("a/x.png", "b/X.png", "b/x.jpg", "a/con.png", "a/ \x1b[2J.png", "a/....png")]
    names = map_names(paths, ["_map.png", "_scores.npy"], taken={"con_scores.npy"})
    assert len({name.casefold() for own in names for name in own}) == 2 * len(paths)
    assert all(re.fullmatch(r"[\w-][\w.-]*_map\.png", own[0]) for own in names)
    assert all(own[1] == own[0].replace("_map.png", "_scores.npy") for own in names)
    assert "con_scores.npy" not in {own[1] for own in names}


@pytest.fixture
def belt(data, tmp_path):
    """Two photographs, one of them in a folder of its own, and two bad files."""
    (tmp_path / "belt" / "late").mkdir(parents=True)
    shutil.copy(data / "gear" / "test" / "good" / "000.png", tmp_path / "belt" / "b.png")
    shutil.copy(data / "wood" / "test" / "good" / "000.png", tmp_path / "belt" / "late" / "z.png")
    (tmp_path / "belt" / "a.png").write_text("no picture")
    (tmp_path / "belt" / "c.png").write_bytes(b"")
    return tmp_path / "belt"


@pytest.mark.parametrize("json_file", [None, "-"])
def test_predict_says_what_an_image_took(saved, belt, json_file):
    result = run("predict", saved, belt, "--timings", *(["--json", json_file] if json_file else []), code=3)
    said = result.stderr if json_file else result.stdout
    rows = dict(re.findall(r"^  (\w+(?: all)?) +([\d.]+) +[\d.]+ +[\d.]+$", said, re.MULTILINE))
    assert list(rows) == ["decode", "backbone", "routing", "expert", "verdict", "writing", "in all"]
    assert float(rows["backbone"]) > 0
    assert "milliseconds" not in run("predict", saved, belt, code=3).output


def test_predict_goes_on_after_a_bad_file(saved, belt, tmp_path):
    result = run("predict", saved, belt, "-r", "--json", tmp_path / "r", "--maps", tmp_path / "m", code=3)
    rows = {row.split()[0]: row for row in result.stdout.splitlines()[1:]}
    assert [Path(name).name for name in rows] == ["a.png", "b.png", "c.png", "z.png"]
    assert "error: not an image" in rows[str(belt / "a.png")]
    assert "2 of 4 images could not be inspected" in result.stderr
    assert result.stderr.endswith(f"maps: {tmp_path / 'm'}\nresults: {tmp_path / 'r'}\n")
    objects = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert ["error" in one for one in objects] == [True, False, True, False]
    assert objects[0].keys() == {"source", "error"}
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["b_map.png", "z_map.png"]


def test_predict_names_bad_files_on_stderr_where_stdout_has_the_json(saved, belt):
    result = run("predict", saved, belt, "--json", "-", code=3)
    assert [json.loads(line).get("error") is None for line in result.stdout.splitlines()] == [
        False,
        True,
        False,
    ]
    assert len(re.findall(r"[ac]\.png .*error: ", result.stderr)) == 2


def test_predict_stops_at_a_bad_file_where_it_is_told_to(saved, belt):
    assert "a.png: not an image" in sentence("predict", saved, belt, "--strict")


def test_a_map_that_cannot_be_drawn_is_named_and_ends_nothing(saved, belt, tmp_path, monkeypatch):
    for bad in ("a.png", "c.png"):
        (belt / bad).unlink()
    shown = Intake.shown

    def gone(self, source, *args):
        if Path(source).name == "b.png":
            raise ImageError(f"{source}: no such file")
        return shown(self, source, *args)

    monkeypatch.setattr(Intake, "shown", gone)
    args = "predict", saved, belt, belt / "late", "--json", tmp_path / "r", "--maps", tmp_path / "m"
    result = run(*args, code=3)
    assert re.search(r"no map: .*b\.png: no such file", result.stderr)
    objects = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert all("pred_score" in one for one in objects)
    assert len(list((tmp_path / "m").iterdir())) == len(objects) - 1
    assert "b.png: no such file" in sentence(*args, "--strict")


def test_predict_takes_lists(saved, belt):
    (belt / "shift.csv").write_text("lot;image\n1;late/z.png\n1;gone.png\n")
    rows = run("predict", saved, belt / "shift.csv", code=3).stdout.splitlines()
    assert "z.png" in rows[1]
    assert "gone.png" in rows[2]
    assert "error: no such file" in rows[2]
    assert "shift.csv, line 3" in sentence("predict", saved, belt / "shift.csv", "--strict")


def test_predict_names_the_way_into_folders(saved, data):
    said = sentence("predict", saved, data)
    assert "--recursive" in said
    assert "--each" not in said


@pytest.mark.parametrize(
    ("extra", "said"),
    [(["nowhere"], "no such file"), (["--task", "cable"], "no product"), (["--device", "cuda:99"], "device")],
)
def test_predict_says_what_is_wrong(saved, data, extra, said):
    assert said in sentence("predict", saved, good(data), *extra)


def test_predict_says_before_inspecting_that_a_watch_cannot_be_kept(line, data, tmp_path, monkeypatch):
    monkeypatch.setattr("moleflow.detector.Detector.load", lambda *a, **k: pytest.fail("loaded"))
    (line / ".lock").unlink(missing_ok=True)
    (line / ".lock").mkdir()  # as a folder that cannot be written to, for root as well
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text("kept")
    said = sentence("predict", line, good(data), "--monitor", "--json", earlier)
    assert "cannot lock the line" in said
    assert earlier.read_text() == "kept"


def test_predict_refuses_to_write_over_an_image(saved, tmp_path, data):
    photo = Path(shutil.copy(good(data) / "000.png", tmp_path))
    assert "one of the files that are read" in sentence("predict", saved, photo, "--json", photo)
    listed = tmp_path / "list.txt"
    listed.write_text(str(photo))
    assert "one of the files that are read" in sentence("predict", saved, listed, "--json", listed)
    for command in (("predict", saved, photo), ("drift", saved), ("evaluate", saved, data)):
        assert "outside of the line's folder" in sentence(*command, "--json", saved / "line.json")
    report = ("--report", saved / "line.json")
    assert "outside of the line's folder" in sentence("add", saved, "new", good(data), *report)
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text("kept")
    assert "cannot hold the maps" in sentence("predict", saved, photo, "--json", earlier, "--maps", listed)
    assert earlier.read_text() == "kept"
    assert "cannot be written" in sentence("predict", saved, photo, "--json", tmp_path / "no" / "r")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_predict_names_the_file_that_has_no_room_for_results(saved, data):
    assert "/dev/full: cannot be written: No space" in sentence(
        "predict", saved, good(data) / "000.png", "--json", "/dev/full"
    )


# add and update


@pytest.fixture
def quick(monkeypatch):
    """Lines are made with few steps: the command line has no option for it."""

    class Quick(Detector):
        def __init__(self, *args, **more):
            super().__init__(*args, **{"config": SMALL} | more)

    monkeypatch.setattr("moleflow.detector.Detector", Quick)


def test_add_creates_a_line_and_adds_to_it(quick, data, tmp_path):
    folder = tmp_path / "new" / "line"
    own = ("--image-size", 64, "--false-alarm-rate", 0.02)
    first = run("add", folder, "gear", good(data), *own, "--base", "learn")
    assert [s.split()[0] for s in first.stderr.splitlines()] == [
        "backbone",
        "base",
        "learning",
        "calibration",
    ]
    run(
        "add",
        folder,
        "wood",
        good(data, "wood"),
        "--seed",
        0,
        "--image-size",
        "64x64",
        "--false-alarm-rate",
        0.1,
    )
    detector = Detector.load(folder)
    assert detector.tasks == ("gear", "wood")
    assert [detector.info(name).false_alarm_rate for name in detector.tasks] == [0.02, 0.1]
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp-")]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gear"], "'gear' is on this line already"),
        (["GEAR"], "'gear' is on this line already"),
        (["a/b"], "cannot name a product"),
        (["cap", "--image-size", "96"], "--image-size 64x64, got 96x96"),
        (["cap", "--backbone", "wide_resnet50"], "--backbone efficientnet_lite0, got wide_resnet50"),
        (["cap", "--seed", "3"], "--seed 0, got 3"),
        (["cap", "--intensity", "12"], "--intensity 8, got 12"),
        (["cap", "--base", "learn"], "--base auto, got learn"),
        (["cap", "--fit", "letterbox"], "--fit squeeze, got letterbox"),
        (["cap", "--tiles", "1x2"], "--tiles 1x1, got 1x2"),
        (["cap", "--smallest-defect", "9"], "no --smallest-defect, got 9"),
    ],
)
def test_add_fails_before_learning(saved, data, args, said, monkeypatch):
    monkeypatch.setattr("moleflow.detector.Detector.load", lambda *a, **k: pytest.fail("loaded"))
    before = tree(saved)
    assert said in sentence("add", saved, args[0], good(data), *args[1:])
    assert tree(saved) == before


def test_add_names_the_ways_into_folders(data, tmp_path):
    said = sentence("add", tmp_path / "line", "gear", data)
    assert "--recursive" in said
    assert "--each" in said


def test_learning_a_folder_of_products_is_advised_to_add_alone(saved, data):
    for command in (["update"], ["correct", "--missed", good(data)]):
        said = sentence(*command, saved, "gear", data)
        assert "--recursive" in said
        assert "--each" not in said


def test_the_second_to_create_a_line_says_that_it_waits(tmp_path, monkeypatch):
    line, told = tmp_path / "line", []
    line.mkdir()
    first = FileLock(line / ".tmp-first.lock")
    first.acquire()

    def said(text):
        told.append(text)
        first.release()

    monkeypatch.setattr(adding, "complain", said)
    for _ in range(2):  # the second time nobody else is there
        with (
            adding._first_to_create(line),
            pytest.raises(Timeout),
            FileLock(line / ".tmp-first.lock", timeout=0),
        ):
            pytest.fail("the lock is free")
    assert told == [f"{line}: another process is creating this line; this one waits until it has"]


@pytest.mark.parametrize(
    ("command", "stopped", "said"),
    [
        ("add", "moleflow.data.images.find_entries", "Error: interrupted; the line is as before"),
        ("add", "moleflow.detector.Detector.load", "Error: interrupted; the line is as before"),
        ("add", "moleflow.detector.Detector.add_task", f"Error: interrupted; {LESSON_ENDED}"),
        ("update", "moleflow.detector.Detector.load", "Error: interrupted; the line is as before"),
        ("update", "moleflow.detector.Detector.update_task", f"Error: interrupted; {LESSON_ENDED}"),
        ("correct", "moleflow.detector.Detector.load", "Error: interrupted; the line is as before"),
        ("correct", "moleflow.detector.Detector.correct_task", f"Error: interrupted; {LESSON_ENDED}"),
    ],
)
def test_what_the_backbone_saw_is_spoken_of_once_it_saw_anything(
    saved, data, monkeypatch, command, stopped, said
):
    def stop(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, stop)
    missed = ["--missed", data / "gear" / "test" / "good"] if command == "correct" else []
    product = "cap" if command == "add" else "gear"
    assert sentence(command, saved, product, good(data), *missed, code=130) == said


def test_correct_says_that_fewer_good_images_are_given_than_taught(saved, data, tmp_path, monkeypatch):
    def stop(*args, **more):
        raise MoleFlowError("no")

    monkeypatch.setattr(Detector, "correct_task", stop)
    for i in range(6):
        shutil.copy(good(data) / f"00{i}.png", tmp_path)
    missed = ["--missed", data / "gear" / "test" / "good" / "000.png"]
    note = "note: gear was learned from 8 good images, and 6 are given"
    assert note in run("correct", saved, "gear", tmp_path, *missed, code=1).stderr
    assert "note:" not in run("correct", saved, "gear", good(data), *missed, code=1).stderr


@pytest.fixture
def shelf(data, tmp_path):
    """A folder of products, laid out in each of the ways that are known, and one that holds nothing."""
    root = tmp_path / "shelf"
    for product, place in (
        ("gear", "gear10/train/good"),
        ("gear", "gear10/test/bad"),
        ("wood", "Wood/good"),
        ("gear", "gear9"),
        ("gear", ".hidden"),
    ):
        (root / place).mkdir(parents=True)
        for name in ("000.png", "001.png"):
            shutil.copy(good(data, product) / name, root / place)
    (root / "nothing").mkdir()
    (root / "notes.txt").write_text("")
    return root


def test_add_each_learns_a_product_a_folder(quick, shelf, tmp_path):
    line = tmp_path / "line"
    run("add", line, "wood", shelf / "Wood" / "good", "--image-size", 64)
    result = run("add", line, "--each", shelf, "--report", tmp_path / "lessons.html", code=3)
    assert "Wood: on" in result.stdout
    assert "Error: nothing:" in result.stderr
    assert "2 learned, 1 skipped, 1 failed: nothing" in result.stdout
    assert {page.name for page in tmp_path.glob("*.html")} == {"lessons-gear9.html", "lessons-gear10.html"}
    assert "What gear10 was taught from" in (tmp_path / "lessons-gear10.html").read_text()
    detector = Detector.load(line)
    assert detector.tasks == ("wood", "gear9", "gear10")
    assert [detector.info(name).images for name in detector.tasks] == [2, 2, 2]
    assert "--image-size 64x64, got 96x96" in sentence("add", line, "--each", shelf, "--image-size", 96)
    assert "holds none" in sentence("add", line, "--each", shelf / "nothing")


def test_one_photograph_is_told_in_the_singular_and_nothing_reaches_its_threshold(data, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(next((data / "gear" / "train" / "good").iterdir()), alone)
    result = run("add", tmp_path / "line", "gear", alone, "--image-size", 64)
    assert "note: with 1 independent photograph hardly any defect is found; give 15 or more" in result.stderr
    told = result.stdout
    assert "learned from 1 good image\n" in told
    assert "threshold out of reach for 1.000% false alarms, from 1 in-sample image\n" in told
    assert "1 photograph shows by itself a false-alarm rate" in told
    assert "out of reach" in run("list", tmp_path / "line").stdout
    assert "threshold out of reach" in run("threshold", tmp_path / "line", "gear").stdout
    low = run("threshold", tmp_path / "line", "gear", "--value", -2e6).stdout
    assert "threshold -2e+06, set by hand" in low  # everything gets there


def test_add_mixed_finds_the_products(quick, data, tmp_path):
    line, heap = tmp_path / "line", tmp_path / "heap"
    heap.mkdir()
    for name in ("gear", "wood"):
        for image in good(data, name).iterdir():
            shutil.copy(image, heap / f"{image.stem}-{name}.png")
    first = sorted(heap.iterdir())[0].name
    mixed = ("add", line, "--mixed", heap)
    said = sentence(*mixed, "--image-size", 64, "--names", "cog,")
    assert "cannot name a product: it is empty" in said
    said = sentence(*mixed, "--image-size", 64, "--names", "cog")
    assert "expected 1 products (cog), found 2 in the images" in said
    assert first in said
    assert not line.exists()
    args = (*mixed, "--image-size", 64, "--names", "cog, plank", "--report", tmp_path / "lessons.html")
    result = run(*args)
    counts = [len(list(good(data, name).iterdir())) for name in ("gear", "wood")]
    assert f"cog: {counts[0]} images, {first}" in result.stderr
    assert f"plank: version 0001 on {line}, learned from {counts[1]} good images" in result.stdout
    assert {page.name for page in tmp_path.glob("*.html")} == {"lessons-cog.html", "lessons-plank.html"}
    assert Detector.load(line).tasks == ("cog", "plank")
    assert "not to be told from cog, which this line knows" in sentence(*mixed)


def test_add_each_keeps_what_was_learned_before_it_stops(quick, shelf, tmp_path, monkeypatch):
    learn = Detector.add_task

    def stop(self, name, *args, **more):
        if name == "gear10":
            raise KeyboardInterrupt
        return learn(self, name, *args, **more)

    monkeypatch.setattr(Detector, "add_task", stop)
    args = ["add", tmp_path / "line", "--each", shelf, "--image-size", 64]
    assert "those before it are" in sentence(*args, code=130)
    assert Detector.load(tmp_path / "line").tasks == ("gear9",)


def test_add_leaves_out_what_cannot_be_read_and_says_so(quick, data, tmp_path):
    folder = tmp_path / "lot"
    for copy in range(3):
        shutil.copytree(good(data), folder / str(copy))
    (folder / "0" / "000.png").write_text("no picture")
    args = [tmp_path / "line", "gear", folder, "-r", "--group", "folder", "--image-size", 64]
    assert "000.png" in sentence("add", *args, "--strict")
    result = run("add", *args)
    assert "grouped by folder: 3 groups of 8 to 8 images" in result.stderr
    assert re.search(r"left out: .*0/000\.png: not an image", result.stderr)
    assert "from 23 good images" in result.stdout
    assert re.search(r"left out .*0/000\.png: not an image", run("info", tmp_path / "line").stdout)


@pytest.mark.slow
def test_a_cameras_range_is_chosen_shown_kept_and_drawn_by(quick, data, tmp_path):
    photos, folder = tmp_path / "thermal", tmp_path / "line"
    photos.mkdir()
    for path in sorted(good(data).iterdir()):
        kelvin = 290 + np.asarray(Image.open(path).convert("L"), np.float32) / 25
        Image.fromarray(kelvin).save(photos / f"{path.stem}.tif")
    said = run("add", folder, "gear", photos, "--image-size", 64).stdout
    found = re.search(r"intensity: float band, (\S+)\.\.(\S+); chosen from the first images", said)
    low, high = map(float, found.groups())
    assert 270 < low < 290
    assert high > 300
    for command in ("info", "list"):
        assert found[0] in run(command, folder).stdout
    run("add", folder, "again", photos, "--intensity", "auto")
    run("add", folder, "same", photos, "--intensity", f"{low}:{high}")
    assert "--intensity" in sentence("add", folder, "other", photos, "--intensity", "280:300")
    run("predict", folder, photos, "--maps", tmp_path / "maps")
    drawn = np.asarray(Image.open(next((tmp_path / "maps").iterdir())))
    assert drawn.std() > 10  # the part can be seen, although no file holds a number from 0 to 1
    dark = tmp_path / "dark"
    dark.mkdir()
    Image.fromarray(np.full((64, 64), 150, np.float32)).save(dark / "0.tif")
    assert "100.0% of these images' pixels lie beyond" in run("add", folder, "dark", dark).stderr


@pytest.mark.parametrize("asked", ["11", "9:3", "bright"])
def test_an_intensity_that_is_none_is_wrong_usage(data, tmp_path, asked):
    result = run("add", tmp_path / "line", "gear", good(data), "--intensity", asked, code=2)
    assert "auto, full, 8, 10, 12, 14, 16 (bits) or LOW:HIGH" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt(), 130, "the line is as before"), (MoleFlowError("no"), 1, "no")],
)
def test_what_stops_learning_leaves_nothing_behind(quick, data, tmp_path, monkeypatch, error, code, said):
    def stop(*args, **more):
        raise error

    monkeypatch.setattr(Detector, "add_task", stop)
    args = ["add", tmp_path / "a" / "line", "gear", good(data), "--image-size", 64]
    assert said in sentence(*args, code=code)
    assert list(tmp_path.iterdir()) == []


def strips(folder, count=2):
    """Photographs of 64 x 256."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(90, 160, (64, 256, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_a_new_line_says_its_size_and_cost_before_it_learns(data, tmp_path, monkeypatch):
    def stop(*args, **more):
        raise MoleFlowError("no")

    monkeypatch.setattr(Detector, "add_task", stop)
    monkeypatch.setenv("MOLEFLOW_RUNTIME", "torch")  # no copy for sizes that nothing is learned at
    folder = strips(tmp_path / "strips")
    said = run("add", tmp_path / "line", "strip", folder, "--smallest-defect", 8, code=1).stdout
    assert "images 64x256 (height x width) are brought to 256x1024, squeezed;" in said
    assert "a defect of 8 pixels covers 4.0 cells" in said
    assert re.search(r"about \d+ ms an image", said)
    said = run("add", tmp_path / "line", "strip", folder, "--smallest-defect", 1, code=1).stdout
    assert "would take 1024x4096, more than four times" in said
    said = run("add", tmp_path / "line", "gear", good(data), code=1).stdout
    assert "images 64x64 (height x width) are brought to 512x512, squeezed;" in said
    assert not (tmp_path / "line").exists()


def test_tiles_and_fit_stay_with_the_line(quick, tmp_path):
    folder, line = strips(tmp_path / "strips"), tmp_path / "line"
    options = ["--image-size", 64, "--tiles", "1x2", "--fit", "letterbox"]
    first = run("add", line, "strip", folder, *options)
    assert "brought to 64x96, letterboxed, seen in 1x2 tiles of 64x64" in first.stdout
    run("add", line, "again", folder, *options)  # the same wishes are no contradiction
    assert "fit: letterbox, seen in 1x2 tiles of 64x64" in run("info", line).stdout
    maps = tmp_path / "maps"
    run("predict", line, folder, "--maps", maps, "--no-legend")
    with Image.open(maps / "0_map.png") as drawn:
        assert drawn.size == (256, 64)


def test_images_much_unlike_the_lines_size_are_noted(quick, line, tmp_path):
    said = run("add", line, "strip", strips(tmp_path / "strips")).stderr
    assert "squeezed by 4.0 to each other, to 64x64" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tiles", "3"], "ROWSxCOLUMNS"),
        (["--fit", "crop"], "squeeze or letterbox"),
        (["--image-size", "64", "--smallest-defect", "5"], "got both"),
    ],
)
def test_impossible_shapes_are_wrong_usage(tmp_path, options, said):
    assert said in run("add", tmp_path / "line", "strip", tmp_path, *options, code=2).stderr


def test_update_then_rollback(line, data, tmp_path):
    new = Path(shutil.copytree(data / "gear" / "test" / "good", tmp_path / "new"))
    before = tree(line)
    said = sentence("update", line, "gear", new)
    assert "expected at least 4 independent ones" in said
    assert "got 3 among 3 images; nothing changed" in said
    assert tree(line) == before
    Image.fromarray(make_sample("gear", 900, size=64).image).save(new / "003.png")
    first = Detector.load(line).info("gear").threshold
    told = run("update", line, "gear", new)
    assert "version 0002" in told.stdout
    second = Detector.load(line).info("gear").threshold
    assert f"  threshold {second:.5g}, before it was {first:.5g}\n" in told.stdout
    assert told.stdout.endswith(f"  to take it back: moleflow rollback {line} gear 0001\n")
    assert "hardly any defect" not in told.stderr  # of four photographs
    assert "before it was 0002" in run("rollback", line, "gear").stdout
    assert "no version before 0001" in sentence("rollback", line, "gear")
    run("rollback", line, "gear", 2)
    assert Detector.load(line).info("gear").version == "0002"
    assert "no version '0009'" in sentence("rollback", line, "gear", 9)
    assert "no product" in sentence("update", line, "cable", good(data))


def test_only_the_number_of_a_version_is_filled_up(line):
    assert "no version 'abc'" in sentence("rollback", line, "gear", "abc")
    assert "no version '0009'" in sentence("rollback", line, "gear", "9")


# What needs no model


@pytest.fixture
def no_models(monkeypatch):
    monkeypatch.setattr("moleflow.detector.Detector.load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr("moleflow.store.line.load_tensors", lambda *a, **k: pytest.fail("tensors were read"))


def test_list_and_info(saved, no_models):
    listed = run("list", saved).stdout
    assert [row.split()[:3] for row in listed.splitlines()[1:3]] == [
        ["gear", "0001", "8"],
        ["wood", "0001", "8"],
    ]
    assert listed.splitlines()[3] == "intensity: 8-bit, 0..255; chosen from the first images"
    shown = run("info", saved, "wood").stdout
    assert "intensity: 8-bit, 0..255" in shown
    assert "efficientnet_lite0" in shown
    assert "[0001]" in shown
    assert "gear" not in shown
    assert "gear" in run("info", saved).stdout


def test_list_and_info_in_json_say_what_the_library_says(saved, loaded, tmp_path):
    def objects(text):
        return [json.loads(row) for row in text.splitlines()]

    listed = objects(run("list", saved, "--json", "-").stdout)
    run("info", saved, "--json", tmp_path / "line.jsonl")
    shown = objects((tmp_path / "line.jsonl").read_text())

    assert [row["product"] for row in listed] == [row["product"] for row in shown] == list(loaded.tasks)
    for less, more in zip(listed, shown, strict=True):
        known = dataclasses.asdict(loaded.info(less["product"]))
        known["seconds"] = {stage: pytest.approx(value) for stage, value in known["seconds"].items()}
        assert less.items() <= more.items()
        assert more["versions"] == ["0001"]
        for name in more.keys() - {"product", "versions", "pose", "unreadable"}:
            assert more[name] == known[name], name
        assert more["unreadable"] == list(known["unreadable"])
    assert objects(run("info", saved, "wood", "--json", "-").stdout) == [shown[1]]


@pytest.mark.parametrize("command", ["list", "info"])
def test_json_is_not_written_into_the_line(saved, command):
    refused = sentence(command, saved, "--json", saved / "other.json")
    assert "outside of the line's folder" in refused


def test_what_the_library_warns_of_is_a_sentence_and_others_are_not_ours(monkeypatch, capsys):
    application = sys.modules["moleflow.cli.app"]
    monkeypatch.setattr(application, "_show_others_warning", lambda message, *more: print("other:", message))
    application._show_warning(UserWarning("slow here"), UserWarning, application.__file__, 3)
    application._show_warning(UserWarning("old call"), UserWarning, "/else/torch/nn.py", 3)
    shown = capsys.readouterr()
    assert shown.err == "note: slow here\n"
    assert shown.out == "other: old call\n"


def test_info_says_the_bytes_that_the_library_says(saved, loaded):
    for name in loaded.tasks:
        expected = amount(loaded.info(name).bytes)
        (row,) = [one for one in run("info", saved, name).stdout.splitlines() if one.startswith(name + " ")]
        assert f" {expected} " in row


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--task", "cable"], "no product of this line; known: gear, wood"),
        (["--json", "nowhere/results.jsonl"], "nowhere/results.jsonl: cannot be written"),
        (["--maps", __file__], "cannot hold the maps"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(saved, data, no_models, options, told):
    assert told in sentence("predict", saved, good(data), *options)


def test_threshold_agrees_with_the_library(line):
    expected = Detector.load(line).info("gear").threshold
    assert f"threshold {expected:.5g}, for 1.000% false alarms" in run("threshold", line, "gear").stdout
    assert "threshold 2.5, set by hand" in run("threshold", line, "gear", "--value", 2.5).stdout
    loaded = Detector.load(line)
    assert (loaded.info("gear").threshold, loaded.info("gear").false_alarm_rate) == (2.5, None)
    changed = loaded.set_threshold("gear", false_alarm_rate=0.1).threshold
    assert (
        f"threshold {changed:.5g}, for 10" in run("threshold", line, "gear", "--false-alarm-rate", 0.1).stdout
    )
    assert Detector.load(line).info("gear").threshold == changed


def test_a_threshold_set_by_hand_says_what_it_makes_of_good_images(line):
    calibrated = "of the 8 good images that calibrated it would be called defective"
    for value, above in ((-1e6, 8), (1e6, 0)):
        told = run("threshold", line, "gear", "--value", value).stdout
        assert told.splitlines()[1:] == [f"gear: {above} {calibrated}"]
    scores = np.sort(
        calibration_from_dict(LineStore(line).read_task("gear").info["calibration"]).scores_of_good()
    )
    assert f"gear: 3 {calibrated}" in run("threshold", line, "gear", "--value", scores[4]).stdout
    back = run("threshold", line, "gear", "--false-alarm-rate", 0.01).stdout
    assert calibrated not in back
    assert "a false-alarm rate of" in back


def test_a_damaged_expert_is_told_with_a_way_out(line, data):
    expert = line / "tasks" / "wood" / "0001" / "expert.safetensors"
    expert.write_bytes(expert.read_bytes()[:-1] + b"?")
    for command in (("predict", line, good(data)), ("add", line, "third", good(data))):
        said = sentence(*command)
        assert "expert.safetensors: damaged or changed" in said
        assert said.endswith("; roll 'wood' back or remove it")


@pytest.mark.parametrize(
    ("rerouted", "version_before", "told"),
    [
        (
            {"gear": 5, "new": 8},
            None,
            [
                "warning: most images of gear are now taken for new: 5 of 8 good images",
                "warning: most images of new are now taken for another product: 8 of 8 good images",
                "note: where this is not meant: moleflow remove 'a line' new",
            ],
        ),
        (
            {"gear": 4},
            None,
            ["note: now taken for new: 4 of 8 good images of gear", "note: where this is not"],
        ),
        ({"gear": 4}, "0001", ["note: now taken for new: 4 of 8 good images of gear"]),
        ({}, None, []),
    ],
)
def test_who_takes_the_images_of_whom_is_told(rerouted, version_before, told, capsys):
    learned = types.SimpleNamespace(
        name="new", images=8, rerouted=rerouted, changes=None if version_before is None else Changes(8)
    )
    detector = types.SimpleNamespace(tasks=("gear", "wood", "new"), info=lambda name: learned)
    _say_rerouted(detector, learned, Path("a line"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True))


def test_the_same_photographs_under_a_second_name_are_a_warning(quick, line, data):
    told = run("add", line, "cog", good(data)).stderr
    assert "warning: most images of gear are now taken for cog: 8 of 8 good images\n" in told
    assert f"where this is not meant: moleflow remove {line} cog\n" in told


def test_remove_asks_first(line, no_models):
    before = tree(line)
    sentence("remove", line, "gear", input="n\n")
    assert "--yes removes without asking" in sentence("remove", line, "gear", input="")
    assert tree(line) == before
    run("remove", line, "gear", "--yes")
    assert "gear" not in run("list", line).stdout
    assert "no product" in sentence("remove", line, "gear", "--yes")


def test_an_interrupted_question_is_no_answer(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[typer.confirm.__module__], "visible_prompt_func", interrupt)
    with pytest.raises(KeyboardInterrupt):
        module._confirmed("Remove it?")


def test_a_damaged_product_keeps_nobody_from_the_others_and_can_go(line, no_models):
    store = LineStore(line)
    store.adopt(line / "tasks" / "wood" / "0001")
    (line / "tasks" / "wood" / "0002" / "task.json").write_text("{")
    listed = run("list", line)
    assert "gear" in listed.stdout
    assert "wood is damaged" in listed.stderr
    assert "set by hand" in run("threshold", line, "gear", "--value", 2.5).stdout
    assert "wood is damaged" in sentence("threshold", line, "wood")
    assert "before it was 0002" in run("rollback", line, "wood").stdout
    assert not store.read(tensors=False).damaged
    store.point("wood", "0001")
    (line / "tasks" / "wood" / "0001" / "task.json").unlink()
    run("remove", line, "wood", "--yes")
    assert store.names() == ("gear",)


@pytest.mark.parametrize(
    ("name", "more"),
    [("list", []), ("info", []), ("drift", []), ("remove", ["gear"]), ("update", ["gear", "images"])],
)
def test_no_line_is_one_sentence(name, more, data, tmp_path):
    line, more = tmp_path / "none", [good(data) if one == "images" else one for one in more]
    said = f"Error: {line}: there is no line here; moleflow add {line} PRODUCT IMAGES begins one"
    assert sentence(name, line, *more) == said
    line.mkdir()
    assert sentence(name, line, *more) == said
    (line / "base.safetensors").touch()  # where no line could be begun
    assert "line.json: expected the index of a line, found no such file" in sentence(name, line, *more)


def test_an_export_is_named_where_a_line_is_expected(data, tmp_path):
    (tmp_path / "exported.json").touch()
    for args in (["add", tmp_path, "gear", good(data)], ["list", tmp_path]):
        assert "expected a line, found an exported one" in sentence(*args)


@pytest.mark.parametrize(
    "args",
    [
        ["paint"],
        ["list"],
        ["list", "a", "--colour"],
        ["add", "a", "b", "c", "--image-size", "big"],
        ["add", "a", "b", "c", "--false-alarm-rate", "1.5"],
        ["threshold", "a", "b", "--value", "1", "--false-alarm-rate", "0.1"],
        ["threshold", "a", "b", "--value", "nan"],
        ["add", "a"],
        ["add", "a", "b"],
        ["add", "a", "b", "--each", "c"],
        ["add", "a", "b", "c", "--each", "d"],
        ["add", "a", "b", "--mixed", "c"],
        ["add", "a", "--each", "b", "--mixed", "c"],
        ["add", "a", "b", "c", "--names", "d,e"],
        ["add", "a", "b", "c", "--group", "day"],
        ["update", "a", "b", "c", "--group", "name:("],
        ["predict", "a", "b", "--batch-size", "0"],
        ["predict", "a", "b", "--maps", "c", "--map-format", "overlay,bmp"],
        ["predict", "a", "b", "--map-format", "npy"],
        ["predict", "a", "b", "--regions"],
    ],
)
def test_wrong_usage_is_2(args):
    run(*args, code=2)


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["add", "a", "b", "c", "--tiles", "3"], "--tiles"),
        (["add", "a", "b", "c", "--image-size", "x"], "--image-size"),
        (["add", "a", "b", "c", "--intensity", "x"], "--intensity"),
        (["evaluate", "a", "b", "--eval-size", "x"], "--eval-size"),
        (["predict", "a", "b", "--device", "gpu"], "--device"),
        (["benchmark", "a", "--device", "gpu"], "--device"),
    ],
)
def test_a_value_that_is_none_names_its_option(args, option):
    said = run(*args, code=2).stderr
    assert re.search(f"Invalid value for '?{option}'?: ", said)
    assert option != "--device" or "expected auto, cpu, cuda, cuda:N or mps, got 'gpu'" in said


def test_the_sizes_of_a_benchmark_name_their_options(data, tmp_path):
    for option in ("--image-size", "--eval-size"):
        said = run("benchmark", data, "--out", tmp_path / "out", option, "x", code=2).stderr
        assert f"Invalid value for {option}: expected a side" in said


def test_an_interrupt_while_the_command_line_is_imported_is_one_sentence():
    """Typer stands for all that the command line imports; the entry point itself imports none of it."""
    code = (
        "import importlib.abc, runpy, sys\n"
        "class Interrupted(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "runpy.run_module('moleflow', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Error: interrupted\n")
    project = (DOCS.parent.parent / "pyproject.toml").read_text()
    assert '\nmoleflow = "moleflow.entry:main"\n' in project


def test_interrupts_are_130(saved, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "read_line", stop)
    assert "interrupted" in sentence("list", saved, code=130)


# evaluate, overlay, demo


def test_evaluate(saved, data, tmp_path):
    result = run("evaluate", saved, data, "--oracle", "--json", tmp_path / "f.json")
    shown = result.stdout
    assert f"results: {tmp_path / 'f.json'}\n" in result.stderr
    assert "oracle" in shown
    assert "AUPRO@0.3" in shown
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["images"] == {"gear": [3, 3], "wood": [3, 3]}
    routed = figures["routed"]["products"]["gear"]
    assert all(0 <= routed[key] <= 1 for key in routed)
    assert figures["oracle"]["products"]["gear"]["routing_good"] is None
    mean = np.mean([p["aupro_30"] for p in figures["routed"]["products"].values()])
    assert figures["routed"]["mean"]["aupro_30"] == pytest.approx(mean)


def test_evaluate_counts_foreign_products_and_untested_ones_apart(saved, data):
    detector = Detector.load(saved)
    detector.remove_task("wood")
    result = evaluate(detector, read_dataset(data), eval_size=32)
    assert list(result.routed.products) == ["gear"]
    assert list(result.foreign) == ["wood"]
    assert result.eval_size == (32, 32)
    only_wood = evaluate(Detector.load(saved), read_dataset(data / "wood"))
    assert only_wood.untested == ("gear",)


def test_evaluate_goes_on_where_masks_vanish_at_its_size(saved, data):
    result = evaluate(Detector.load(saved), read_dataset(data), eval_size=1)
    gear = result.routed.products["gear"]
    assert gear.pixel_ap is None
    assert gear.image_auroc is not None


def test_evaluate_lists_what_it_could_not_read(saved, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "gear" / "test" / "good" / "001.png").write_text("no picture")
    result = run("evaluate", saved, tmp_path / "data", "--json", tmp_path / "f.json", code=3)
    assert "001.png: not an image" in result.stderr
    assert "1 test images could not be inspected" in result.stderr
    assert json.loads((tmp_path / "f.json").read_text())["images"] == {"gear": [2, 3], "wood": [3, 3]}
    assert "001.png" in sentence("evaluate", saved, tmp_path / "data", "--strict")


def test_evaluate_says_when_nothing_can_be_tested(saved, data, tmp_path):
    shutil.copytree(data / "gear", tmp_path / "data" / "cog")
    assert "found those of: cog" in sentence("evaluate", saved, tmp_path / "data")
    assert "unknown layout" in sentence("evaluate", saved, data, "--layout", "heap")


def test_overlay_leaves_typical_pixels_alone_and_outlines_the_rest():
    image = np.full((40, 60, 3), 90, np.uint8)
    scores = np.zeros((40, 60), np.float32)
    scores[10:20, 10:20] = 9.0
    drawn = overlay(image, scores, threshold=3.0)
    assert (drawn[scores == 0] == 90).all()
    assert (drawn[10, 10] == (0, 255, 255)).all()
    assert (drawn[15, 15] != 90).any()
    assert (overlay(image, scores - 2, threshold=-1.0)[15, 15] != 90).any()
    with pytest.raises(MoleFlowError, match="size"):
        overlay(image, scores[:5], threshold=3.0)


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    seen = {}
    fake = types.ModuleType("moleflow.demo")
    fake.run = lambda out, **more: seen.update(more, out=out) or out / "report.html"
    monkeypatch.setitem(sys.modules, "moleflow.demo", fake)
    monkeypatch.setattr("moleflow.demo", fake, raising=False)
    assert "report.html" in run("demo", "--quick", "--out", tmp_path, "--seed", 4).stdout
    assert (seen["out"], seen["quick"], seen["seed"]) == (tmp_path, True, 4)


# Presets


def test_a_new_line_takes_a_preset_and_an_old_one_refuses_another(data, tmp_path, monkeypatch):
    quick = replace(get_preset("deck"), name="quick", says=SMALL, follows={})
    monkeypatch.setitem(PRESETS, "quick", quick)
    line = tmp_path / "line"
    begun = ["--image-size", "64", "--preset", "quick"]
    run("add", line, "gear", good(data), *begun)
    assert Detector.load(line).config == with_layers(SMALL, (40, 112))
    assert "preset quick" in run("info", line).stdout
    said = sentence("add", line, "wood", good(data, "wood"), "--preset", "deck")
    assert "this line has --preset quick, got deck" in said


@pytest.mark.parametrize("command", ["add", "benchmark", "ablate", "sweep"])
def test_an_unknown_preset_is_wrong_usage(command, data, tmp_path):
    arguments = [tmp_path / "line", "gear", good(data)] if command == "add" else [data]
    result = run(command, *arguments, "--preset", "dekc", code=2)
    assert "unknown preset" in result.output
