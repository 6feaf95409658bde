"""A line in its folder: what is written, by several processes too, what is refused and what is left out."""

import ast
import json
import os
import threading
from pathlib import Path

import pytest

import moleflow
from moleflow import Detector, LineConfig
from moleflow.config import with_layers
from moleflow.errors import (
    BackboneError,
    ConfigError,
    LineError,
    MoleFlowError,
    TaskError,
)
from moleflow.line.archive import Archive
from moleflow.results import STAGES
from moleflow.store import LineStore
from saying import THREE, by_task, files, said, snapshot, write_index

# On disk


def test_only_what_changed_is_written(loaded, pictures):
    before = files(loaded.path)
    loaded.save()
    assert files(loaded.path).keys() == before.keys()
    loaded.update_task("wood", pictures("wood", 4, first=40))
    loaded.save()
    after = files(loaded.path)
    assert after.keys() - before.keys() == {
        "tasks/wood/0002/expert.safetensors".replace("/", os.sep),
        "tasks/wood/0002/task.json".replace("/", os.sep),
    }
    follow = ("line.json", "derived.safetensors")
    assert {k: v for k, v in before.items() if k not in follow} == {
        k: after[k] for k in before if k not in follow
    }


def test_a_changed_threshold_rewrites_the_index_only(loaded):
    before = files(loaded.path)
    loaded.set_threshold("gear", threshold=2.0)
    loaded.save()
    after = files(loaded.path)
    assert {name for name in before if before[name] != after[name]} == {"line.json"}
    assert after.keys() == before.keys()


def test_a_product_that_is_removed_while_the_line_is_saved_goes_with_the_next_save(loaded, monkeypatch):
    write = Archive.write
    removing = threading.Thread(target=loaded.remove_task, args=("wood",))

    def meanwhile(*args):
        removing.start()
        removing.join(0.5)
        return write(*args)

    monkeypatch.setattr(Archive, "write", meanwhile)
    loaded.save()
    monkeypatch.setattr(Archive, "write", write)
    removing.join()
    loaded.save()
    assert "wood" not in LineStore(loaded.path).names()


def test_a_router_that_cannot_be_kept_takes_no_saved_product_with_it(loaded, pictures, monkeypatch):
    def damaged(*args):
        raise LineError("unreadable just now")

    loaded.update_task("wood", pictures("wood", 4, first=40))
    with monkeypatch.context() as patch:
        patch.setattr(LineStore, "write_derived", damaged)
        loaded.save()
    assert LineStore(loaded.path).in_use()["wood"] == "0002"
    loaded.save()  # it knows that all is there


def test_products_added_by_two_processes_both_survive(saved, probe, pictures):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.add_task("cloth", pictures("woven_cloth", 2))
    two.add_task("metal", pictures("brushed_metal", 2))
    one.save()
    two.save()
    again = Detector.load(saved, device="cpu")
    assert again.tasks == (*THREE, "cloth", "metal")
    assert by_task(again, probe, ["cloth"]) == by_task(one, probe, ["cloth"])
    assert by_task(again, probe, ["metal"]) == by_task(two, probe, ["metal"])


def test_one_name_added_by_two_processes_is_refused(saved, pictures):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.add_task("cloth", pictures("woven_cloth", 2))
    two.add_task("cloth", pictures("brushed_metal", 2))
    one.save()
    before = files(saved)
    with pytest.raises(TaskError, match="another process"):
        two.save()
    assert files(saved) == before


def test_a_product_removed_by_another_process_stays_removed(saved):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.remove_task("wood")
    one.save()
    two.save()
    two.save()
    assert "wood" not in Detector.load(saved, device="cpu").tasks


def test_a_product_removed_by_another_process_has_no_version(saved):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.remove_task("wood")
    one.save()
    two.save()
    assert two.info("wood").version is None


def test_a_version_written_by_another_process_is_not_claimed(saved, pictures):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.update_task("wood", pictures("wood", 4, first=70))
    one.save()
    two.save()
    assert two.info("wood").version != one.info("wood").version


def test_what_another_process_changed_meanwhile_is_not_replaced(saved, pictures):
    one, two, three = (Detector.load(saved, device="cpu") for _ in range(3))
    for line, first in ((one, 60), (two, 20), (three, 40)):
        line.update_task("wood", pictures("wood", 4, first=first))
    one.save()
    before = files(saved)
    with pytest.raises(TaskError, match="from version 0001 and has version 0002 by now, by another process"):
        two.save()
    assert files(saved) == before
    one.remove_task("wood")
    one.save()
    with pytest.raises(TaskError, match="from version 0001 and was removed meanwhile"):
        three.save()


def test_a_rate_set_by_another_process_during_an_update_stays_and_a_threshold_is_dropped(saved, pictures):
    two = Detector.load(saved, device="cpu")
    two.set_threshold("gear", false_alarm_rate=0.1)
    two.save()
    one = Detector.load(saved, device="cpu")
    one.set_threshold("wood", false_alarm_rate=0.2)
    one.set_threshold("gear", threshold=9.0)
    one.save()
    for name in ("wood", "gear"):
        two.update_task(name, pictures(name, 4, first=70))
    two.save()
    assert Detector.load(saved, device="cpu").info("wood").false_alarm_rate == 0.2
    assert Detector.load(saved, device="cpu").info("gear").false_alarm_rate == 0.1


def test_what_was_set_here_after_an_update_counts_more_than_what_another_process_set(saved, pictures):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.set_threshold("wood", false_alarm_rate=0.2)
    one.save()
    two.update_task("wood", pictures("wood", 4, first=70))
    two.set_threshold("wood", false_alarm_rate=0.1)
    two.save()
    assert Detector.load(saved, device="cpu").info("wood").false_alarm_rate == 0.1


def test_what_is_set_for_a_version_that_another_process_replaced_is_not_lost_in_silence(saved, pictures):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.update_task("wood", pictures("wood", 4, first=70))
    one.save()
    two.set_threshold("wood", threshold=9.0)
    before = files(saved)
    with pytest.raises(TaskError, match="set for version 0001, and it has version 0002 by now"):
        two.save()
    assert files(saved) == before


def test_what_is_set_for_a_product_that_another_process_removed_keeps_nothing_from_being_saved(
    saved, pictures
):
    one, two = (Detector.load(saved, device="cpu") for _ in range(2))
    one.remove_task("wood")
    one.save()
    two.save()
    two.set_threshold("wood", threshold=3.0)
    two.add_task("cloth", pictures("woven_cloth", 2))
    two.save()
    assert Detector.load(saved, device="cpu").tasks == ("gear", "bottle_cap", "cloth")


def test_a_removed_product_stays_removed(loaded, probe):
    loaded.remove_task("wood")
    loaded.save()
    again = Detector.load(loaded.path, device="cpu")
    assert again.tasks == ("gear", "bottle_cap")
    assert not (loaded.path / "tasks" / "wood").exists()


def test_a_removed_and_newly_taught_product_is_the_new_one(loaded, probe, pictures):
    loaded.remove_task("wood")
    loaded.add_task("wood", pictures("brushed_metal", 2))
    loaded.save()
    again = Detector.load(loaded.path, device="cpu")
    assert by_task(again, probe) == by_task(loaded, probe)


def test_a_removed_and_newly_taught_product_comes_last(loaded, pictures):
    loaded.remove_task("gear")
    loaded.add_task("gear", pictures("gear", 1))
    loaded.save()
    assert Detector.load(loaded.path, device="cpu").tasks == loaded.tasks == ("wood", "bottle_cap", "gear")


def test_a_line_is_copied_by_saving_it_elsewhere(loaded, probe, tmp_path):
    loaded.set_threshold("gear", threshold=1.25)
    original = files(loaded.path)
    loaded.save(tmp_path / "copy")
    assert snapshot(Detector.load(tmp_path / "copy", device="cpu"), probe) == snapshot(loaded, probe)
    assert files(tmp_path / "line") == original


def test_another_line_is_not_overwritten(new_line, saved, pictures):
    detector = new_line(seed=5)
    detector.add_task("gear", pictures("gear", 1))
    before = files(saved)
    with pytest.raises(LineError, match="found a line"):
        detector.save(saved)
    assert files(saved) == before


def test_a_folder_may_be_spelled_in_another_way(loaded, monkeypatch):
    monkeypatch.chdir(loaded.path.parent)
    loaded.set_threshold("gear", threshold=1.25)
    loaded.save(loaded.path.name)
    assert Detector.load(loaded.path.name, device="cpu").info("gear").threshold == 1.25


def test_a_removal_does_not_reach_a_line_put_in_the_same_place(loaded, new_line, pictures):
    other = new_line(seed=5)
    other.add_task("wood", pictures("wood", 1))
    path = loaded.path
    os.rename(path, path.with_name("moved"))
    other.save(path)
    loaded.remove_task("wood")
    with pytest.raises(LineError):
        loaded.save()
    assert Detector.load(path, device="cpu").tasks == ("wood",)


def test_saving_needs_a_folder_and_something_learned(new_line, line, tmp_path):
    with pytest.raises(LineError, match="never saved"):
        line.save()
    with pytest.raises(LineError, match="nothing to save"):
        new_line().save(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_random_weights_come_back(new_line, pictures, tmp_path):
    detector = new_line(weights="random", seed=7)
    detector.add_task("gear", pictures("gear", 2))
    detector.save(tmp_path / "line")
    again = Detector.load(tmp_path / "line", device="cpu")
    images = pictures("gear", 2, first=500)
    assert said(again.predict(images)) == said(detector.predict(images))


# A line that is not what it was


def test_other_weights_are_refused(saved):
    with pytest.raises(BackboneError, match="weights_hash"):
        Detector.load(saved, weights="random", device="cpu")


def test_an_expert_of_another_base_is_refused(new_line, saved, pictures, tmp_path):
    other = new_line(seed=5)
    other.add_task("cloth", pictures("woven_cloth", 1))
    other.save(tmp_path / "other")
    with pytest.raises(LineError, match="another base"):
        LineStore(saved).adopt(tmp_path / "other" / "tasks" / "cloth" / "0001")
    assert Detector.load(saved, device="cpu").tasks == THREE


def test_an_expert_of_the_same_base_is_adopted_as_it_is(saved, loaded, probe, pictures, tmp_path):
    loaded.add_task("cloth", pictures("woven_cloth", 2))
    loaded.save(tmp_path / "other")
    LineStore(saved).adopt(tmp_path / "other" / "tasks" / "cloth" / "0001")
    assert by_task(Detector.load(saved, device="cpu"), probe, ["cloth"]) == by_task(loaded, probe, ["cloth"])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def newer(path):
    document = json.loads(path.read_text())
    write_index(path, document | {"format": document["format"] + 1})


DAMAGES = {
    "expert": (lambda p: flip(p / "tasks/wood/0001/expert.safetensors"), r"expert\.safetensors.*damaged"),
    "base": (lambda p: flip(p / "base.safetensors"), r"base\.safetensors.*damaged"),
    "info": (lambda p: flip(p / "tasks/wood/0001/task.json"), r"task\.json.*damaged"),
    "missing base": (lambda p: (p / "base.safetensors").unlink(), r"base\.safetensors"),
    "missing index": (lambda p: (p / "line.json").unlink(), r"line\.json"),
    "newer format": (lambda p: newer(p / "line.json"), "format"),
    "index": (lambda p: (p / "line.json").write_text("{"), "JSON"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_line_is_refused_by_name(saved, kind):
    damage, message = DAMAGES[kind]
    damage(saved)
    with pytest.raises(LineError, match=message):
        Detector.load(saved, device="cpu")


@pytest.mark.parametrize("drop", ["backbone", "seed", "config", "false_alarm_rate", "random_weights"])
def test_a_line_with_incomplete_settings_is_refused(saved, drop):
    document = json.loads((saved / "line.json").read_text())
    del document["settings"][drop]
    write_index(saved / "line.json", document)
    with pytest.raises(LineError, match=drop):
        Detector.load(saved, device="cpu")


def test_an_option_of_a_later_library_is_refused(saved):
    document = json.loads((saved / "line.json").read_text())
    document["settings"]["config"]["flow"]["quantum"] = 1
    write_index(saved / "line.json", document)
    with pytest.raises(MoleFlowError, match="quantum"):
        Detector.load(saved, device="cpu")


def test_no_line_is_refused(tmp_path):
    with pytest.raises(LineError, match=r"line\.json"):
        Detector.load(tmp_path)


def test_nothing_is_pickled():
    """By name, wherever the package uses it; weights files of others are opened without code in them."""
    found = set()
    root = Path(moleflow.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    modules = {alias.name.partition(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module), level=0):
                    modules = {module.partition(".")[0]}
                case ast.Call(func=ast.Attribute(value=ast.Name("torch"), attr="load"), keywords=keywords):
                    safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in keywords)
                    modules = {"torch.load with code" if not safe else f"torch.load in {path.name}"}
                case ast.Attribute(value=ast.Name("torch"), attr="save"):
                    modules = {"torch.save"}
                case ast.Call(func=ast.Name("eval" | "exec" as name)):
                    modules = {name}
                case _:
                    continue
            found |= modules
    unsafe = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch.save", "eval", "exec"}
    assert not found & {*unsafe, "torch.load with code"}
    assert {entry for entry in found if entry.startswith("torch.load")} == {"torch.load in backbones.py"}


def test_the_default_line_is_the_configured_one(new_line):
    line = new_line(config=None)
    assert line.config == with_layers(LineConfig(), line.extractor.widths)


def test_a_prediction_says_what_it_took(line, probe):
    for given in (None, "gear"):
        for found in line.predict(probe, task=given, batch_size=3):
            assert tuple(found.seconds) == STAGES
            assert all(seconds >= 0 for seconds in found.seconds.values())
            assert found.seconds["backbone"] > 0
            assert "seconds" not in found.to_dict()


# A damaged product


@pytest.mark.parametrize("file", ["expert.safetensors", "task.json"])
def test_a_damaged_product_is_left_out_and_named(saved, line, probe, file):
    path = saved / "tasks" / "wood" / "0001" / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LineError, match=r"wood.*damaged"):
        Detector.load(saved, device="cpu")
    left = Detector.load(saved, device="cpu", damaged="quarantine")
    assert left.tasks == ("gear", "bottle_cap")
    assert list(left.damaged) == ["wood"]
    assert "damaged or changed" in left.damaged["wood"]
    for name in left.tasks:
        said, before = left.predict(probe, task=name), line.predict(probe, task=name)
        assert [one.pred_score for one in said] == [one.pred_score for one in before]
    with pytest.raises(TaskError, match="damaged"):
        left.add_task("Wood", probe)
    left.set_threshold("gear", threshold=5.0)
    left.save()
    path.write_bytes(whole)  # what was left out is on disk as it was
    again = Detector.load(saved, device="cpu", damaged="quarantine")
    assert again.tasks == ("gear", "wood", "bottle_cap")
    assert again.damaged == {}
    with pytest.raises(ConfigError, match="quarantine"):
        Detector.load(saved, device="cpu", damaged="ignore")


def test_a_line_without_its_base_is_refused_whatever_is_wished(saved):
    (saved / "base.safetensors").write_bytes(b"")
    with pytest.raises(LineError, match="base"):
        Detector.load(saved, device="cpu", damaged="quarantine")
