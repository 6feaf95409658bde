"""Tables of timings: what is measured, that a killed run goes on, and that options are checked."""

import json

import pytest
from typer.testing import CliRunner

from moleflow import Detector
from moleflow.bench import speed
from moleflow.bench.speed import SpeedOptions, Table, measure_speed, speed_options
from moleflow.bench.speed.table import in_turns, ratio
from moleflow.cli import app
from moleflow.errors import BackboneError, BenchError, ConfigError

SMALL = ["sizes=[64]", "batches=[1,2]", "rounds=1", "lessons=[3]", "products=[2]", "wide=[]", "image_size=64"]


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


def test_works_take_turns_and_the_first_round_only_warms_up():
    order = []
    taken = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert [len(seconds) for seconds in taken.values()] == [3, 3]


def test_a_ratio_is_of_the_same_round():
    assert ratio([2.0, 40.0, 6.0], [1.0, 20.0, 3.0]) == 2.0


def test_a_killed_run_goes_on_and_another_one_is_refused(tmp_path, monkeypatch):
    asked = []

    def table(name):
        def measure(options):
            asked.append(name)
            if name == "many" and len(asked) < 3:
                raise KeyboardInterrupt
            return Table(name, ["", "x"], [["a", "1"]], "said below")

        return measure

    monkeypatch.setattr(speed, "TABLES", {name: table(name) for name in ("images", "many")})
    options = SpeedOptions(tables=("images", "many"))
    with pytest.raises(KeyboardInterrupt):
        measure_speed(options, tmp_path, command="c")
    path = measure_speed(options, tmp_path, command="the command")
    assert asked == ["images", "many", "many"]
    text = path.read_text()
    assert text.startswith("`the command`\n\n")
    assert "## images\n\n|  | x |\n| --- | ---: |\n| a | 1 |\n\nsaid below" in text
    with pytest.raises(BenchError, match="other options"):
        measure_speed(SpeedOptions(tables=("images",)), tmp_path, command="c")


@pytest.mark.long
def test_a_runtime_that_does_not_run_a_backbone_is_noted_and_the_others_are_measured(monkeypatch):
    original = Detector.load.__func__

    def load(cls, *args, runtime, **options):
        line = original(cls, *args, runtime=runtime, **options)
        if runtime == "openvino":
            monkeypatch.setattr(line, "predict", refused)
        return line

    def refused(images):
        raise BackboneError("no copy for it could be made")

    monkeypatch.setattr(Detector, "load", classmethod(load))
    table = speed.TABLES["images"](SpeedOptions(sizes=(64,), batches=(1,), rounds=1, wide=()))
    assert [row[1] for row in table.rows] == ["torch", "onnxruntime"]
    assert "openvino does not run efficientnet_lite0: no copy for it could be made." in table.note


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": [64]}, "unknown option 'size'; known are tables, sizes"),
        ({"tables": ["image"]}, "unknown table 'image'; known are images, lessons, many, exports"),
        ({"sizes": ["64"]}, "sizes: expected positive numbers"),
        ({"rounds": 0}, "rounds: expected positive numbers"),
        ({"wide": [3]}, "wide: expected words"),
    ],
)
def test_options_are_checked(values, said):
    with pytest.raises(ConfigError, match=said):
        speed_options(values)


def test_a_single_value_stands_for_a_list():
    assert speed_options({"tables": "many", "products": 3}).products == (3,)


@pytest.mark.slow
def test_the_command_writes_what_was_asked_for(tmp_path):
    settings = [part for setting in (*SMALL, "tables=[images]") for part in ("--set", setting)]
    result = run("--speed", "--out", tmp_path / "out", *settings)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert list(found["tables"]) == ["images"]
    images = found["tables"]["images"]
    runtimes = {row[1] for row in images["rows"]}
    assert "torch" in runtimes
    assert len(images["rows"]) == 2 * len(runtimes)
    assert all(len(row) == len(images["head"]) for row in images["rows"])
    assert "| inspection ÷ backbone |" in result.output


def test_speed_takes_no_folder_and_a_comparison_needs_one(tmp_path):
    assert "expected no folder" in run(tmp_path, "--speed").output
    assert "expected DATA" in run().output


@pytest.mark.slow
def test_every_table_can_be_measured(tmp_path):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    assert run("--speed", "--out", tmp_path / "out", *settings).exit_code == 0
    found = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert set(found["tables"]) == {"images", "lessons", "many", "exports"}
