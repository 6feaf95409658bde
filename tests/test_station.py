"""The station inspects, remembers and teaches; nothing that was answered is lost."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

from moleflow import Detector
from moleflow.errors import LineError
from moleflow.export import export_line
from moleflow.station import Station, lesson, teaching
from moleflow.store import LineStore
from station import SMALL, code_of, eventually, files, inspect, served, settings_of, teach, waits_for


@pytest.fixture(scope="module")
def shared(_saved_line, tmp_path_factory):
    """A station over the line of three products, for tests that change nothing of the line."""
    line = shutil.copytree(_saved_line, tmp_path_factory.mktemp("shared") / "line")
    with served(line, limits=SMALL) as client:
        yield client


def test_an_inspection_says_what_the_line_says(shared, line, probe):
    told = inspect(shared, probe)
    for one, said in zip(told, line.predict(probe), strict=True):
        assert one["status"] == said.status
        assert one["task"] == said.task
        assert one["pred_score"] == pytest.approx(said.pred_score, rel=1e-4)
        assert one["version"] == "0001"
        assert one["recorded"]
    assert [one["source"] for one in told] == [f"{i}.png" for i in range(len(probe))]
    again = shared.get(f"/api/v1/inspections/{told[0]['id']}").json()
    assert again == told[0]


def test_an_unusable_image_is_a_result_of_its_own_and_all_are_an_error(shared, probe):
    sent = [*files(probe[:1]), ("images", ("lie.png", b"GIF is what I am not", "image/png"))]
    told = shared.post("/api/v1/inspections", files=sent).json()["results"]
    assert told[0]["status"]
    assert told[1]["source"] == "lie.png"
    assert told[1]["error"]["code"] == "not_an_image"
    assert code_of(shared.post("/api/v1/inspections", files=sent[1:]), 415) == "not_an_image"


def test_the_product_may_be_given(shared, line, probe):
    (told,) = inspect(shared, probe[:1], task="wood")
    assert told["task"] == "wood"
    assert told["certainty"] is None
    assert code_of(shared.post("/api/v1/inspections", files=files(probe[:1]), data={"task": "cable"}), 404)
    answer = shared.post("/api/v1/inspections", files=files(probe[:1]), data={"task": "../gear"})
    assert code_of(answer, 404) == "unknown_product"


class Here:
    """A lesson in this process, which saves the seconds that another one takes to begin."""

    def __init__(self, home):
        told = []
        review = lesson.learn(lesson.Wish.read(home), home / "draft", lambda *progress: told.append(progress))
        assert told[0] == ("reading", 0.0)
        self.stdout, self.stdin = [json.dumps({"review": review})], None

    def wait(self):
        return 0


def test_a_new_product_is_taught_reviewed_and_live(saved, pictures, monkeypatch):
    monkeypatch.setattr(teaching, "_start", Here)
    new = pictures("circuit_board", 8)
    odd = pictures("wood", 1, first=40)
    with served(saved) as client:
        before = inspect(client, pictures("gear", 1, first=300))[0]
        job = teach(client, "teach", "board", [*new, *odd])
        told = waits_for(client, job, "review")
        assert told["progress"] == 1
        assert told["review"]["flips"] == {"inspections": 0, "to_good": [], "to_defective": []}
        assert (
            client.get("/api/v1/products/board").status_code == 404
        )  # nothing is live before it is accepted
        assert LineStore(saved).names() == ("gear", "wood", "bottle_cap")
        picture = client.get(f"/api/v1/jobs/{job}/images/8?side=32")
        assert Image.open(io.BytesIO(picture.content)).size == (32, 32)
        told = client.post(f"/api/v1/jobs/{job}/accept", json={"drop": [8]}).json()
        assert told["images"] == 8
        waits_for(client, job, "review")
        assert client.post(f"/api/v1/jobs/{job}/accept").json()["state"] == "live"
        assert inspect(client, pictures("circuit_board", 1, first=300))[0]["task"] == "board"
        after = inspect(client, pictures("gear", 1, first=300))[0]
        assert (after["pred_score"], after["threshold"]) == (before["pred_score"], before["threshold"])
        changes = client.get("/api/v1/audit").json()["items"]
        assert [(c["action"], c["outcome"]) for c in changes] == [("teach", "done"), ("teach begins", "done")]
    line = Detector.load(saved, device="cpu")
    assert line.tasks == ("gear", "wood", "bottle_cap", "board")
    assert line.info("board").images == 8


# What is remembered


def test_history_is_found_again(shared, pictures):
    first = inspect(shared, pictures("wood", 3, first=700))
    last = inspect(shared, pictures("gear", 2, first=600, kind="missing_tooth"))
    page = shared.get("/api/v1/inspections?limit=2").json()
    assert [one["id"] for one in page["items"]] == [last[1]["id"], last[0]["id"]]
    assert page["next"] == last[0]["id"]
    page = shared.get(f"/api/v1/inspections?limit=3&before={page['next']}").json()
    assert [one["id"] for one in page["items"]] == [one["id"] for one in first[::-1]]

    def found(**wanted):
        return [one["id"] for one in shared.get("/api/v1/inspections", params=wanted).json()["items"]]

    assert found(sha256=first[1]["sha256"])[0] == first[1]["id"]
    assert set(found(product="wood", since=first[0]["time"])) == {one["id"] for one in first}
    assert found(until=first[0]["time"], since=last[0]["time"]) == []
    assert found(text="%") == []  # a wildcard is a letter like any other
    assert len(found(text=".PNG", limit=500)) == len(found(limit=500))
    assert found(text="\\") == []
    assert {found(status=status, limit=1)[0] for status in {one["status"] for one in first}}
    assert code_of(shared.get("/api/v1/inspections?status=fine"), 422) == "unusable"
    assert code_of(shared.get("/api/v1/inspections/0"), 422) == "unusable"
    assert code_of(shared.get("/api/v1/inspections/123456789"), 404) == "not_found"


def test_picture_and_map_are_kept_and_lie_on_each_other(shared, pictures):
    tall = Image.fromarray(pictures("gear", 1, first=600, kind="missing_tooth")[0]).resize((100, 150))
    (told,) = inspect(shared, [tall])
    shown = {}
    for kind in ("image", "map"):
        for side in (1024, 60):
            answer = shared.get(f"/api/v1/inspections/{told['id']}/{kind}?side={side}")
            shown[kind, side] = Image.open(io.BytesIO(answer.content))
    assert shown["image", 1024].size == shown["map", 1024].size == (100, 150)
    assert shown["image", 60].size == shown["map", 60].size == (40, 60)
    drawn = np.asarray(shown["map", 1024])
    assert drawn.shape == (150, 100, 4)
    assert drawn[..., 3].min() < drawn[..., 3].max()
    assert code_of(shared.get(f"/api/v1/inspections/{told['id']}/map?side=5000"), 422) == "unusable"


def test_the_map_is_coloured_by_the_products_scale(shared, line, probe):
    from moleflow.scale import Scale, layer

    (told,) = inspect(shared, probe[3:])
    (said,) = line.predict(probe[3:])
    answer = shared.get(f"/api/v1/inspections/{told['id']}/map")
    drawn = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    expected = layer(Scale(said.map_threshold).levels(said.anomaly_map)).astype(int)
    assert np.abs(drawn[..., 3] - expected[..., 3]).max() <= 2  # kept in 16 bits
    stops = shared.get("/api/v1/scale").json()["stops"]
    assert (stops[0]["at"], stops[-1]["at"]) == (0, 1)


def test_people_mark_inspections(shared, probe):
    (told,) = inspect(shared, probe[:1])
    path = f"/api/v1/inspections/{told['id']}/mark"
    marked = shared.put(path, json={"kind": "wrong_product", "task": "wood", "note": "=1+1"}).json()
    assert marked["mark"] | {"time": 0} == {
        "kind": "wrong_product",
        "task": "wood",
        "note": "=1+1",
        "time": 0,
    }
    for mark in ("wrong_product", "any"):
        assert shared.get(f"/api/v1/inspections?mark={mark}").json()["items"][0]["id"] == told["id"]
    rows = list(csv.DictReader(io.StringIO(shared.get("/api/v1/inspections.csv?mark=any").text)))
    assert rows[0]["mark_note"] == "'=1+1"  # no spreadsheet runs it
    assert float(rows[0]["pred_score"]) == told["pred_score"]
    assert shared.delete(path).json()["mark"] is None
    assert code_of(shared.put(path, json={"kind": "bad"}), 422) == "unusable"
    assert code_of(shared.put(path, json={"kind": "missed", "task": "cable"}), 404) == "unknown_product"
    assert code_of(shared.put(path, content=b"{", headers={"Content-Type": "application/json"}), 400)


def test_csv_holds_every_row(shared, probe):
    inspect(shared, probe)
    rows = list(csv.DictReader(io.StringIO(shared.get("/api/v1/inspections.csv").text)))
    newest = shared.get("/api/v1/inspections?limit=1").json()["items"][0]["id"]
    assert [int(row["id"]) for row in rows] == list(range(newest, 0, -1))


# Products


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


# Lessons


class Pretended:
    """Lessons that a word on the disk directs: they read `learns` again and again until it says something."""

    CODE = """
import json, pathlib, sys, time
print(json.dumps({"stage": "learning", "progress": 0.4}), flush=True)
file = pathlib.Path(sys.argv[1])
while not file.exists():
    time.sleep(0.01)
print(file.read_text(), flush=True)
"""

    def __init__(self, folder, monkeypatch):
        self.word = folder / "learns"
        self.begun = []

        def start(home):
            self.begun.append(json.loads((home / "lesson.json").read_text()))
            command = [sys.executable, "-S", "-E", "-c", self.CODE, str(self.word)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            return subprocess.Popen(command, **pipes)

        monkeypatch.setattr(teaching, "_start", start)

    def say(self, said):
        draft = self.word.with_suffix(".tmp")
        draft.write_text(json.dumps(said))
        draft.rename(self.word)


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    return Pretended(tmp_path, monkeypatch)


REVIEW = {
    "base_version": None,
    "suspects": [],
    "unreadable": [],
    "promise": "",
    "threshold": 1.0,
    "bytes": 1,
    "flips": {"inspections": 0, "to_good": [], "to_defective": []},
}


def test_a_lesson_tells_how_far_it_is_and_never_stops_inspection(saved, pictures, pretended):
    with served(saved) as client:
        job = teach(client, "teach", "board", pictures("circuit_board", 2))
        told = eventually(lambda: (t := client.get(f"/api/v1/jobs/{job}").json())["progress"] and t)
        assert (told["state"], told["stage"], told["progress"]) == ("learning", "learning", 0.4)
        assert told["seconds_left"] >= 0
        assert inspect(client, pictures("gear", 1))
        assert "moleflow_learning 1.0" in client.get("/metrics").text
        second = teach(client, "teach", "cable", pictures("wood", 1))
        assert client.get(f"/api/v1/jobs/{second}").json()["state"] == "queued"  # one at a time
        assert code_of(client.post(f"/api/v1/jobs/{job}/accept"), 409) == "wrong_state"
        pretended.say({"error": "too few"})
        assert waits_for(client, job, "failed")["error"] == "too few"
        assert waits_for(client, second, "failed")
        assert [one["id"] for one in client.get("/api/v1/jobs").json()] == [second, job]
        assert [wish["name"] for wish in pretended.begun] == ["board", "cable"]


def test_a_lesson_is_cancelled_and_resumed(saved, pictures, pretended):
    with served(saved) as client:
        job = teach(client, "teach", "board", pictures("circuit_board", 3))
        assert eventually(lambda: pretended.begun)
        assert client.post(f"/api/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        assert eventually(lambda: not client.station.lessons.teaching.learning)
        assert client.get(f"/api/v1/jobs/{job}").json()["state"] == "cancelled"
        assert code_of(client.post(f"/api/v1/jobs/{job}/cancel"), 409) == "wrong_state"
        pretended.say({"review": REVIEW})
        assert client.post(f"/api/v1/jobs/{job}/resume").json()["state"] == "queued"
        waits_for(client, job, "review")
        assert code_of(client.post(f"/api/v1/jobs/{job}/accept", json={"drop": [3]}), 404) == "not_found"
        assert code_of(client.post(f"/api/v1/jobs/{job}/accept", json={"drop": [0, 1, 2]}), 409)
        again = client.post(f"/api/v1/jobs/{job}/accept", json={"drop": [1]}).json()
        assert (again["images"], again["dropped"]) == (2, [1])
        assert waits_for(client, job, "review")
        assert list(pretended.begun[-1]["photos"]) == ["0", "2"]
        assert client.get(f"/api/v1/jobs/{job}/images/2").headers["content-type"] == "image/jpeg"
        assert code_of(client.get(f"/api/v1/jobs/{job}/images/3"), 404) == "not_found"
        assert code_of(client.get("/api/v1/jobs/77"), 404) == "not_found"


def test_a_lesson_outlives_the_station(saved, pictures, pretended):
    with served(saved) as client:
        job = teach(client, "teach", "board", pictures("circuit_board", 2))
        assert eventually(lambda: pretended.begun)
    with served(saved) as client:
        assert client.get(f"/api/v1/jobs/{job}").json()["state"] == "interrupted"
        pretended.say({"review": REVIEW})
        client.post(f"/api/v1/jobs/{job}/resume")
        waits_for(client, job, "review")


def test_what_cannot_be_a_lesson_is_refused(shared, pictures, probe):
    def begin(sent=None, **data):
        return shared.post("/api/v1/jobs", files=sent or files(probe[:1]), data=data)

    assert code_of(begin(kind="teach", name="../evil"), 422) == "unusable_name"
    assert code_of(begin(kind="teach", name="con"), 422) == "unusable_name"
    assert code_of(begin(kind="teach", name="GEAR"), 409) == "taken"
    assert code_of(begin(kind="update", name="cable"), 404) == "unknown_product"
    assert code_of(begin(kind="unteach", name="gear"), 422) == "unusable"
    assert code_of(begin([("images", ("a.png", b"no", "image/png"))], kind="teach", name="x"), 415)
    assert code_of(begin(kind="teach", name="x", inspections="1;2"), 422) == "unusable"
    assert code_of(begin(kind="teach", name="x", inspections="99999"), 404) == "not_found"
    form = {"kind": (None, "teach"), "name": (None, "x")}
    assert code_of(shared.post("/api/v1/jobs", files=form), 422) == "no_images"
    assert not list((shared.station.settings.data / "arriving").iterdir())
    assert shared.get("/api/v1/jobs").json() == []


def test_marked_false_alarms_become_good_images_and_verdicts_flip(saved, pictures):
    """With a lesson of its own process: it says which past verdicts the draft turns, before it goes live."""
    with served(saved) as client:
        client.put("/api/v1/products/gear/threshold", json={"threshold": -50})
        told = inspect(client, pictures("gear", 4, first=400))
        alarms = [one["id"] for one in told if one["status"] == "defective"]
        assert alarms
        for number in alarms:
            client.put(f"/api/v1/inspections/{number}/mark", json={"kind": "false_alarm"})
        numbers = ",".join(map(str, alarms))
        job = teach(client, "update", "gear", pictures("gear", 5, first=420), inspections=numbers)
        told = waits_for(client, job, "review")
        assert told["images"] == 5 + len(alarms)
        flips = told["review"]["flips"]
        assert flips["inspections"] == 4
        assert set(flips["to_good"]) <= set(alarms)  # the threshold set by hand is dropped
        assert flips["to_good"]
        assert client.get("/api/v1/products/gear").json()["version"] == "0001"
        assert client.post(f"/api/v1/jobs/{job}/accept").json()["state"] == "live"
        assert client.get("/api/v1/products/gear").json()["version"] == "0002"
        assert code_of(client.get(f"/api/v1/jobs/{job}/images/0"), 404) == "not_found"
    assert LineStore(saved).versions("gear") == ["0001", "0002"]


def test_an_update_of_what_changed_meanwhile_does_not_go_live(saved, pictures, pretended, loaded):
    loaded.update_task("gear", pictures("gear", 4, first=60))
    with served(saved) as client:
        job = teach(client, "update", "gear", pictures("gear", 2))
        pretended.say({"review": REVIEW | {"base_version": "0001"}})
        waits_for(client, job, "review")
        shutil.copytree(saved, client.station.lessons.teaching.folder(job) / "draft")
        loaded.save()  # by the command line
        assert code_of(client.post(f"/api/v1/jobs/{job}/accept"), 409) == "conflict"
        assert client.get(f"/api/v1/jobs/{job}").json()["state"] == "review"
    assert LineStore(saved).versions("gear") == ["0001", "0002"]


def test_the_first_product_begins_the_line(tmp_path, pictures, quick, monkeypatch):
    class Small(Detector):
        def __init__(self, *given, **options):
            if "config" not in options:
                options |= {"image_size": 64, "config": quick}
            super().__init__(*given, **options)

    monkeypatch.setattr("moleflow.detector.Detector", Small)
    monkeypatch.setattr(teaching, "_start", Here)
    with served(tmp_path / "line") as client:
        job = teach(client, "teach", "gear", pictures("gear", 5))
        waits_for(client, job, "review")
        assert not (tmp_path / "line").exists()
        assert client.post(f"/api/v1/jobs/{job}/accept").json()["state"] == "live"
        assert inspect(client, pictures("gear", 1, first=300))[0]["task"] == "gear"
    assert Detector.load(tmp_path / "line", device="cpu").tasks == ("gear",)


@pytest.mark.slow
def test_a_lesson_ends_with_the_process_that_began_it(saved, tmp_path, pictures):
    photos = {}
    for i, picture in enumerate(pictures("circuit_board", 40)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        photos[i] = str(tmp_path / f"{i}.png")
    wish = lesson.Wish(str(saved), "teach", "x", photos, dict(photos), {}, 1, "cpu", "torch", None)
    wish.write(tmp_path)
    code = (
        "import pathlib, sys, time\nfrom moleflow.station.teaching import _start\n"
        "process = _start(pathlib.Path(sys.argv[1]))\nprint(process.pid, flush=True)\ntime.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as station:
        try:
            learning = psutil.Process(int(station.stdout.readline()))
            own = psutil.Process(station.pid).nice()
            assert eventually(lambda: learning.nice() == min(own + lesson.NICE, 19), 60)
        finally:
            station.kill()
    assert eventually(lambda: not learning.is_running() or learning.status() == psutil.STATUS_ZOMBIE, 20)
    assert not (tmp_path / "draft").exists()
