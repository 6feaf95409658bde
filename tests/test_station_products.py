"""What the station tells of products and changes of a line, also of one that is damaged."""

import shutil

import numpy as np
import pytest

from moleflow import Detector
from moleflow.errors import LineError
from moleflow.export import export_line
from moleflow.results import Failure, Prediction
from moleflow.station import Station
from moleflow.station.current import CurrentLine
from moleflow.store import LineStore
from station import SMALL, code_of, eventually, files, inspect, served, settings_of


@pytest.fixture(scope="module")
def shared(_saved_line, tmp_path_factory):
    """A station over the line of three products, for tests that change nothing of the line."""
    line = shutil.copytree(_saved_line, tmp_path_factory.mktemp("shared") / "line")
    with served(line, limits=SMALL) as client:
        yield client


def test_a_product_tells_its_costs_and_its_curve(shared, line):
    told = shared.get("/api/v1/products/gear").json()
    info = line.info("gear")
    assert (told["threshold"], told["bytes"], told["images"]) == (info.threshold, info.bytes, info.images)
    thresholds = [point["threshold"] for point in told["curve"]]
    assert len(thresholds) == 60
    assert thresholds == sorted(thresholds, reverse=True)
    brief = next(one for one in shared.get("/api/v1/line").json()["products"] if one["name"] == "gear")
    assert brief["seconds"] == pytest.approx(sum(told["seconds"].values()))
    assert code_of(shared.get("/api/v1/products/cable"), 404) == "unknown_product"
    assert code_of(shared.get("/api/v1/products/..%2Fgear"), 404)


def test_a_threshold_says_how_past_verdicts_would_be(saved, pictures):
    with served(saved) as client:
        told = inspect(client, pictures("gear", 8, first=200))
        scores = sorted(one["pred_score"] for one in told if one["known"])
        assert scores
        path = "/api/v1/products/gear/threshold"
        preview = client.get(f"{path}?false_alarm_rate=0.5").json()
        assert preview["past"]["inspections"] == len(scores)
        was = [one for one in told if one["known"] and one["pred_score"] <= one["threshold"]]
        turned = sum(one["pred_score"] > preview["threshold"] for one in was)
        assert preview["past"]["to_defective"] == turned
        assert client.get("/api/v1/products/gear").json()["threshold"] == told[0]["threshold"]
        assert client.put(path, json={"false_alarm_rate": 0.5}).json()["threshold"] == preview["threshold"]
        assert inspect(client, pictures("gear", 1))[0]["threshold"] == preview["threshold"]
        assert client.put(path, json={"threshold": 1.5}).json()["false_alarm_rate"] is None
        for wrong in (
            {},
            {"threshold": 1, "false_alarm_rate": 0.1},
            {"false_alarm_rate": 1},
            {"threshold": "x"},
        ):
            assert code_of(client.put(path, json=wrong), 422) == "unusable"
        assert code_of(client.get(f"{path}?false_alarm_rate=nan"), 422) == "unusable"
    assert Detector.load(saved, device="cpu").info("gear").threshold == 1.5


@pytest.fixture
def updated(saved, pictures):
    """A station that has not yet seen that another process updated gear."""
    with served(saved, poll=3600.0) as client:
        line = Detector.load(saved, device="cpu")
        line.update_task("gear", pictures("gear", 6, first=50))
        line.save()
        assert client.get("/api/v1/products/gear").json()["version"] == "0001"
        yield client


@pytest.mark.parametrize(
    "given",
    [{"threshold": 1.5}, {"threshold": 1.5, "version": "0001"}, {"false_alarm_rate": 0.5, "version": "0001"}],
    ids=["by hand", "by hand for a version", "by a rate for a version"],
)
def test_a_threshold_for_one_version_never_lands_on_another(saved, updated, given):
    path = "/api/v1/products/gear/threshold"
    answer = updated.put(path, json=given)
    assert code_of(answer, 409) == "other_version"
    said = answer.json()["error"]["message"]
    assert "version 0002 is in use, and this was meant for 0001" in said
    assert LineStore(saved).read_task("gear").overrides == {}
    assert updated.get("/api/v1/audit").json()["items"][0]["outcome"] == f"failed: {said}"
    told = updated.get("/api/v1/products/gear").json()  # the station saw it by that
    assert (told["version"], told["curve"] != []) == ("0002", True)
    assert updated.put(path, json=given | {"version": "0002"}).status_code == 200
    assert LineStore(saved).read_task("gear").overrides == {k: v for k, v in given.items() if k != "version"}


def test_a_rate_is_for_every_version_and_the_version_in_use_is_the_lines(saved, updated):
    path = "/api/v1/products/gear/threshold"
    told = updated.put(path, json={"false_alarm_rate": 0.25}).json()
    assert (told["version"], told["false_alarm_rate"]) == ("0002", 0.25)
    LineStore(saved).point("gear", "0001")
    told = updated.put(path, json={"threshold": 2.5, "version": "0001"}).json()
    assert (told["version"], told["threshold"]) == ("0001", 2.5)
    for wrong in ("1", "../1", 1):
        assert code_of(updated.put(path, json={"threshold": 2.5, "version": wrong}), 422) == "unusable"
    LineStore(saved).remove("gear")
    answer = updated.put(path, json={"threshold": 2.5, "version": "0001"})
    assert code_of(answer, 404) == "unknown_product"


def test_rollback_and_removal_reach_the_line_and_the_audit_log(saved, pictures):
    line = Detector.load(saved, device="cpu")
    line.update_task("gear", pictures("gear", 6, first=50))
    line.save()
    with served(saved) as client:
        assert [one["current"] for one in client.get("/api/v1/products/gear").json()["versions"]] == [
            False,
            True,
        ]
        path = "/api/v1/products/gear/rollback"
        assert client.post(path, json={"version": "0001"}).json()["version"] == "0001"
        assert inspect(client, pictures("gear", 1))[0]["version"] == "0001"
        assert code_of(client.post(path, json={"version": "0007"}), 404) == "unknown_version"
        assert code_of(client.post(path, json={"version": "../1"}), 422) == "unusable"
        assert client.delete("/api/v1/products/wood").status_code == 204
        assert code_of(client.delete("/api/v1/products/wood"), 404) == "unknown_product"
        assert inspect(client, pictures("wood", 1))[0]["task"] != "wood"
        changes = client.get("/api/v1/audit").json()["items"]
        assert [(one["action"], one["product"], one["outcome"][:6]) for one in changes] == [
            ("remove", "wood", "done"),
            ("rollback", "gear", "failed"),
            ("rollback", "gear", "done"),
        ]
        assert changes[2]["detail"] == {"version": "0001", "before": "0002"}
        assert changes[0]["role"] == "admin"
    assert Detector.load(saved, device="cpu").tasks == ("gear", "bottle_cap")


def test_drift_is_told_from_the_history(saved, pictures):
    dark = [(picture * 0.3).astype(np.uint8) for picture in pictures("gear", 12, first=200)]
    with served(saved) as client:
        inspect(client, pictures("gear", 12, first=200), task="gear")
        steady = client.get("/api/v1/products/gear/drift").json()
        assert steady["state"] == "steady"
        for _ in range(3):
            inspect(client, dark, task="gear")
        moved = client.get("/api/v1/products/gear/drift").json()
    assert moved["state"] == "moved"
    assert "darker" in moved["sentences"][0]
    light = next(one for one in moved["series"] if one["channel"] == "light")
    assert len(light["points"]) == 48
    assert light["points"][-1]["value"] < light["low"]


# A line that others change, and one that is damaged


def test_a_change_from_the_command_line_is_noticed(saved, pictures):
    with served(saved) as client:
        before = inspect(client, pictures("gear", 1))[0]
        LineStore(saved).override("gear", {"threshold": 9.5})
        assert eventually(lambda: inspect(client, pictures("gear", 1))[0]["threshold"] == 9.5)
        assert before["threshold"] != 9.5
        index = (saved / "line.json").read_bytes()
        (saved / "line.json").write_bytes(b"{")
        assert eventually(lambda: client.get("/api/v1/line").json()["problem"])
        assert inspect(client, pictures("gear", 1))[0]["threshold"] == 9.5  # the old state goes on
        (saved / "line.json").write_bytes(index)
        assert eventually(lambda: client.get("/api/v1/line").json()["problem"] is None)


def test_a_line_whose_folder_is_away_goes_on(saved, pictures, tmp_path):
    with served(saved) as client:
        saved.rename(tmp_path / "away")
        problem = eventually(lambda: client.get("/api/v1/line").json()["problem"])
        assert "expected the folder of the line, found none" in problem
        assert inspect(client, pictures("gear", 1, first=300))[0]["task"] == "gear"
        answer = client.put("/api/v1/products/gear/threshold", json={"threshold": 1.0})
        assert code_of(answer, 503) == "line"
        (tmp_path / "away").rename(saved)
        assert eventually(lambda: client.get("/api/v1/line").json()["problem"] is None)


def test_a_damaged_product_is_quarantined_and_the_others_work(saved, pictures):
    line = Detector.load(saved, device="cpu")
    line.update_task("wood", pictures("wood", 6, first=50))
    line.save()
    expert = saved / "tasks" / "wood" / "0002" / "expert.safetensors"
    expert.write_bytes(expert.read_bytes()[:-8])
    with served(saved) as client:
        told = {one["name"]: one for one in client.get("/api/v1/line").json()["products"]}
        assert told["wood"]["quarantined"]
        assert "expert.safetensors" in told["wood"]["reason"]
        assert not told["gear"]["quarantined"]
        assert inspect(client, pictures("gear", 1, first=300))[0]["task"] == "gear"
        answer = client.post("/api/v1/inspections", files=files(pictures("wood", 1)), data={"task": "wood"})
        assert code_of(answer, 503) == "quarantined"
        assert client.get("/api/v1/products/wood").json()["curve"] == []
        assert code_of(client.put("/api/v1/products/wood/threshold", json={"threshold": 1}), 409)
        answer = client.post("/api/v1/products/wood/rollback", json={"version": "0001"})
        assert not answer.json()["quarantined"]
        assert inspect(client, pictures("wood", 1, first=300))[0]["task"] == "wood"


def test_a_line_that_is_not_there_yet_is_begun_with_its_first_product(tmp_path):
    with served(tmp_path / "line") as client:
        assert client.get("/api/v1/line").json()["products"] == []
        assert client.get("/health/ready").status_code == 200
        answer = client.post("/api/v1/inspections", files=files([np.zeros((9, 9, 3), np.uint8)]))
        assert code_of(answer, 503) == "nothing_taught"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    with pytest.raises(LineError, match="found something else"):
        Station(settings_of(tmp_path / "photos"))


def test_a_damaged_product_of_an_export_is_quarantined_and_the_others_work(saved, tmp_path, probe):
    export_line(saved, tmp_path / "out", images=probe[:1])
    (tmp_path / "out" / "products" / "gear.safetensors").write_bytes(b"")
    with served(tmp_path / "out") as client:
        told = {one["name"]: one for one in client.get("/api/v1/line").json()["products"]}
        assert [one["quarantined"] for one in told.values()] == [False, False, True]
        assert "gear.safetensors" in told["gear"]["reason"]
        found = client.post("/api/v1/inspections", files=files(probe[:3])).json()["results"]
        assert found[0]["error"]["code"] == "line"  # nearest to what cannot be asked
        assert "'gear' is damaged" in found[0]["error"]["message"]
        assert [one["task"] for one in found[1:]] == ["wood", "bottle_cap"]
        assert len(client.get("/api/v1/inspections").json()["items"]) == 2
        answer = client.post("/api/v1/inspections", files=files(probe[:1]), data={"task": "gear"})
        assert code_of(answer, 503) == "quarantined"


@pytest.mark.parametrize(
    ("kind", "refused"), [(np.uint8, 0), (np.uint16, 1), (np.float32, 2)], ids=["8 bits", "16 bits", "floats"]
)
def test_a_line_of_any_kind_of_images_is_warm_before_it_is_swapped_in(
    new_line, pictures, tmp_path, monkeypatch, kind, refused
):
    line = new_line()
    scale = kind(1 if kind is np.uint8 else 40)
    line.add_task("gear", [picture.astype(kind) * scale for picture in pictures("gear", 4)])
    line.save(tmp_path / "line")
    said, predict = [], Detector.predict

    def noted(self, images, **options):
        said.extend(predict(self, images, **options))
        return said[-1:]

    monkeypatch.setattr(Detector, "predict", noted)
    CurrentLine(settings_of(tmp_path / "line"))
    assert [type(one) for one in said] == [Failure] * refused + [Prediction]


@pytest.mark.long
def test_an_exported_line_is_inspected_and_not_changed(saved, tmp_path, probe, line):
    export_line(saved, tmp_path / "out")
    with served(tmp_path / "out") as client:
        told = inspect(client, probe)
        assert [one["task"] for one in told] == [one.task for one in line.predict(probe)]
        assert client.get("/api/v1/line").json()["learning"] is False
        assert client.get("/api/v1/products/gear").json()["curve"] == []
        assert client.get("/api/v1/products/gear/drift").json()["state"] == "unwatched"
        assert code_of(client.delete("/api/v1/products/gear"), 409) == "exported"
        answer = client.post("/api/v1/jobs", files=files(probe), data={"kind": "teach", "name": "x"})
        assert code_of(answer, 409) == "no_learning"
        (tmp_path / "out").rename(tmp_path / "old")  # as a new export does for a moment
        assert eventually(lambda: client.get("/api/v1/line").json()["problem"])
        for name in ("gear", "wood", "bottle_cap"):
            assert inspect(client, probe[:1], task=name)
        (tmp_path / "old").rename(tmp_path / "out")
        assert eventually(lambda: client.get("/api/v1/line").json()["problem"] is None)
