"""Lessons at the station: beside inspection, reviewed before they go live, and never lost."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import psutil
import pytest
import torch
from PIL import Image

from moleflow import Detector
from moleflow.station import changing, lesson, teaching
from moleflow.station.history.audit import Person
from moleflow.station.history.clock import Moment
from moleflow.station.lessons import Lessons
from moleflow.station.problems import Conflict, Unready
from moleflow.store import LineStore, TaskRecord
from station import SMALL, code_of, eventually, files, inspect, served, teach, waits_for


@pytest.fixture(scope="module")
def shared(_saved_line, tmp_path_factory):
    """A station over the line of three products, for tests that change nothing of the line."""
    line = shutil.copytree(_saved_line, tmp_path_factory.mktemp("shared") / "line")
    with served(line, limits=SMALL) as client:
        yield client


@pytest.fixture
def processes(monkeypatch):
    """Those of all lessons, as they begin."""
    begun, start = [], teaching._start

    def kept(home):
        begun.append(start(home))
        return begun[-1]

    monkeypatch.setattr(teaching, "_start", kept)
    return begun


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
        self.begun, self.processes = [], []

        def start(home):
            self.begun.append(json.loads((home / "lesson.json").read_text()))
            command = [sys.executable, "-S", "-E", "-c", self.CODE, str(self.word)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, **pipes))
            return self.processes[-1]

        monkeypatch.setattr(teaching, "_start", start)

    def say(self, said):
        self.write(json.dumps(said))

    def write(self, text):
        draft = self.word.with_suffix(".tmp")
        draft.write_text(text)
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
    "false_alarm_rate": 0.01,
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
        told = client.get(f"/api/v1/jobs/{job}").json()
        assert told["review"]["swallowed"] == []  # also of a review from before there were any
        again = client.post(f"/api/v1/jobs/{job}/accept", json={"drop": [1]}).json()
        assert (again["images"], again["dropped"]) == (2, [1])
        assert waits_for(client, job, "review")
        assert list(pretended.begun[-1]["photos"]) == ["0", "2"]
        assert client.get(f"/api/v1/jobs/{job}/images/2").headers["content-type"] == "image/jpeg"
        assert code_of(client.get(f"/api/v1/jobs/{job}/images/3"), 404) == "not_found"
        assert code_of(client.get("/api/v1/jobs/77"), 404) == "not_found"


def test_what_cannot_be_read_is_left_out_of_the_next_attempt(saved, pictures, pretended):
    with served(saved) as client:
        photos = files(pictures("circuit_board", 3))
        photos[1:1] = [("images", ("half.png", photos[0][1][1][:-4000], "image/png"))]
        answer = client.post("/api/v1/jobs", files=photos, data={"kind": "teach", "name": "board"})
        job = answer.json()["id"]
        assert eventually(lambda: pretended.begun)
        wish = lesson.Wish.read(client.station.lessons.teaching.folder(job))
        assert lesson._unreadable(wish) == [1]
        pretended.say({"error": "1 of 4 images cannot be read", "unreadable": [1]})
        told = waits_for(client, job, "failed")
        assert told["unreadable"] == [1]
        pretended.say({"review": REVIEW})
        again = client.post(f"/api/v1/jobs/{job}/resume", json={"drop": told["unreadable"]}).json()
        assert (again["dropped"], again["unreadable"], again["images"]) == ([1], [], 3)
        waits_for(client, job, "review")
        assert list(pretended.begun[-1]["photos"]) == ["0", "2", "3"]


def test_what_became_of_a_lesson_waits_for_a_full_database(saved, pictures, pretended, monkeypatch):
    monkeypatch.setattr(teaching, "PATIENCE", 0.01)
    with served(saved) as client:
        jobs, refused = client.station.lessons.jobs, []
        move = jobs.move

        def full(number, to, **values):
            if to == "review" and len(refused) < 3:
                refused.append(to)
                raise Unready("the disk is full", "disk_full")
            return move(number, to, **values)

        monkeypatch.setattr(jobs, "move", full)
        job = teach(client, "teach", "board", pictures("circuit_board", 2))
        pretended.say({"review": REVIEW})
        waits_for(client, job, "review")
        assert len(refused) == 3
        assert len(pretended.begun) == 1  # nothing is learned twice


@pytest.mark.parametrize("word", ['{"review": {"susp', '{"stage": "learning"}'], ids=["broken", "wrong"])
def test_a_lesson_that_ends_in_the_middle_of_a_word_has_failed(saved, pictures, pretended, word):
    with served(saved) as client:
        job = teach(client, "teach", "board", pictures("circuit_board", 2))
        pretended.write(word)
        told = waits_for(client, job, "failed")
        assert ("ended by itself" in told["error"]) == (word[2] == "r")
        assert not client.station.lessons.teaching.learning
        assert pretended.processes[0].returncode is not None  # it was waited for


@pytest.mark.long
def test_what_nobody_expected_is_told_and_a_lesson_does_not_hear_the_stations_signals(
    saved, pictures, processes, monkeypatch
):
    """With a lesson of its own process: torch takes no such number of threads."""
    prepare = Lessons._wish
    monkeypatch.setattr(Lessons, "_wish", lambda *own: replace(prepare(*own), threads=-1))
    with served(saved) as client:
        job = teach(client, "teach", "board", pictures("circuit_board", 2))
        assert eventually(lambda: processes)
        assert os.getsid(processes[0].pid) == processes[0].pid
        told = waits_for(client, job, "failed")
        assert told["error"].startswith("RuntimeError: set_num_threads expects")
        assert processes[0].wait() == 1


def test_a_lesson_outlives_the_station(saved, pictures, pretended):
    with served(saved) as client:
        job = teach(client, "teach", "board", pictures("circuit_board", 2))
        assert eventually(lambda: pretended.begun)
        waited = {"created": 0.0}  # for long
        client.station.lessons.jobs.move(job, "learning", among=("learning",), **waited)
    with served(saved) as client:
        told = client.get(f"/api/v1/jobs/{job}").json()
        assert (told["state"], bool(told["finished"])) == ("interrupted", True)
        client.station.lessons.tidy(Moment(time.time(), time.time()))  # its time begins with the interruption
        pretended.say({"review": REVIEW})
        client.post(f"/api/v1/jobs/{job}/resume")
        waits_for(client, job, "review")


def test_what_cannot_be_a_lesson_is_refused(shared, pictures, probe):
    def begin(sent=None, **data):
        return shared.post("/api/v1/jobs", files=sent or files(probe[:1]), data=data)

    assert code_of(begin(kind="teach", name="../evil"), 422) == "unusable_name"
    assert code_of(begin(kind="teach", name="con"), 422) == "unusable_name"
    assert code_of(begin(kind="teach", name="unknown"), 422) == "unusable_name"
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


@pytest.mark.long
def test_marked_false_alarms_become_good_images_and_verdicts_flip(saved, pictures, processes):
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
        assert processes[0].wait() == 0
        assert told["images"] == 5 + len(alarms)
        flips = told["review"]["flips"]
        assert told["review"]["false_alarm_rate"] == 0.01  # of the line
        assert flips["inspections"] == 4
        swallowed = told["review"]["swallowed"]
        assert [one["index"] for one in swallowed] == list(range(told["images"]))
        assert all("the version in use" in one["reason"] for one in swallowed)
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
        job = teach(client, "update", "gear", pictures("gear", 4, first=450))
        pretended.say({"review": REVIEW | {"base_version": "0001"}})
        waits_for(client, job, "review")
        shutil.copytree(saved, client.station.lessons.teaching.folder(job) / "draft")
        loaded.save()  # by the command line
        assert code_of(client.post(f"/api/v1/jobs/{job}/accept"), 409) == "conflict"
        assert client.get(f"/api/v1/jobs/{job}").json()["state"] == "review"
    assert LineStore(saved).versions("gear") == ["0001", "0002"]


def test_of_decisions_at_once_the_first_counts(saved, pictures, pretended, monkeypatch):
    with served(saved) as client, ThreadPoolExecutor(4) as threads:
        job = teach(client, "teach", "board", pictures("circuit_board", 2))
        pretended.say({"review": REVIEW})
        waits_for(client, job, "review")
        (client.station.lessons.teaching.folder(job) / "draft").mkdir()
        adopted, adopting, go_on = [], threading.Event(), threading.Event()

        def adopt(*given):
            adopted.append(given)
            adopting.set()
            assert go_on.wait(20)

        monkeypatch.setattr(client.station.changing, "adopt", adopt)

        def ask(what, **sent):
            return threads.submit(client.post, f"/api/v1/jobs/{job}/{what}", **sent)

        first = ask("accept")
        assert adopting.wait(20)
        others = [ask("cancel"), ask("accept"), ask("accept", json={"drop": [1]})]
        assert not wait(others, timeout=0.3).done
        go_on.set()
        assert first.result().json()["state"] == "live"
        assert [code_of(one.result(), 409) for one in others] == ["wrong_state"] * 3
        assert len(adopted) == 1


def test_nobody_waits_for_a_busy_line_for_long(saved, tmp_path, monkeypatch):
    draft, busy, held = shutil.copytree(saved, tmp_path / "draft"), [], LineStore.lock
    monkeypatch.setattr(changing, "LOCK_SECONDS", 0.01)

    def lock(store, timeout=600):
        busy.append(timeout)
        return held(store, min(timeout, 0.01))

    monkeypatch.setattr(LineStore, "lock", lock)
    with served(saved) as client:
        path = "/api/v1/products/gear/threshold"
        with held(LineStore(saved)):
            assert code_of(client.put(path, json={"threshold": 1.0}), 503) == "line_busy"
        assert client.put(path, json={"threshold": 1.0}).status_code == 200
        client.station.changing._store = LineStore(tmp_path / "new")
        client.station.changing._begin(LineStore(draft), "gear")
    assert busy == [0.01] * 3


def test_a_draft_holds_its_product_alone_and_no_other_is_read_for_it(saved, tmp_path, monkeypatch):
    line = Detector.load(saved, device="cpu")
    read, read_expert = [], LineStore.read_expert

    def noted(store, task):
        read.append(task.name)
        return read_expert(store, task)

    monkeypatch.setattr(LineStore, "read_expert", noted)
    line._save_only("wood", tmp_path / "draft")
    assert set(read) == {"wood"}
    assert line.tasks == ("gear", "wood", "bottle_cap")
    draft, own = LineStore(tmp_path / "draft").read(), LineStore(saved).read_task("wood")
    assert [(one.name, one.sha256) for one in draft.tasks] == [("wood", own.sha256)]


def test_what_does_not_belong_on_the_line_by_now_is_a_conflict(shared, tmp_path):
    weights = {"weight": torch.zeros(1)}
    draft, refused = LineStore(tmp_path / "draft"), (("board", "other_base"), ("GEAR", "taken"))
    tasks = [TaskRecord(name, None, weights, {}, {}) for name, _ in refused]
    draft.create({}, weights, fingerprint="of another base", tasks=tasks)
    for name, code in refused:
        with pytest.raises(Conflict) as found:
            shared.station.changing.adopt(Person("teach"), "teach", name, draft.path, None, 1)
        assert found.value.code == code
    assert shared.station.line.store.names() == ("gear", "wood", "bottle_cap")


def test_nothing_is_accepted_while_the_lines_folder_is_away(saved, tmp_path):
    draft = shutil.copytree(saved, tmp_path / "draft")
    with served(saved) as client:
        saved.rename(tmp_path / "away")
        for kind, version in (("teach", None), ("update", "0001")):
            with pytest.raises(Unready, match="expected the index of a line, found no folder"):
                client.station.changing.adopt(Person("teach"), kind, "gear", draft, version, 1)
        assert not saved.exists()  # no new line was begun there
        (tmp_path / "away").rename(saved)
        assert client.station.changing.adopt(Person("teach"), "update", "gear", draft, "0001", 1) == "0002"


def test_what_was_accepted_and_not_written_down_is_accepted_again(saved, pictures, monkeypatch):
    monkeypatch.setattr(teaching, "_start", Here)
    with served(saved) as client:
        job, lessons = teach(client, "teach", "board", pictures("circuit_board", 4)), client.station.lessons
        assert waits_for(client, job, "review")
        with monkeypatch.context() as full:
            full.setattr(type(lessons.jobs), "move", refuse)
            assert code_of(client.post(f"/api/v1/jobs/{job}/accept"), 503) == "disk_full"
        assert client.post(f"/api/v1/jobs/{job}/accept").json()["state"] == "live"
        assert LineStore(saved).versions("board") == ["0001"]


def refuse(*arguments, **options):
    raise Unready("the disk is full: nothing more can be recorded", "disk_full")


def test_a_line_that_cannot_be_loaded_at_once_is_changed_all_the_same(saved, monkeypatch):
    with served(saved) as client:
        with monkeypatch.context() as away:
            away.setattr(client.station.line, "reload", refuse)
            assert client.delete("/api/v1/products/wood").status_code < 300
        assert "wood" not in LineStore(saved).names()


def test_an_update_keeps_the_rate_of_false_alarms_that_was_set(saved, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(teaching, "_start", Here)
    with served(saved) as client:
        client.put("/api/v1/products/gear/threshold", json={"false_alarm_rate": 0.05})
        job = teach(client, "update", "gear", pictures("gear", 5, first=420))
        assert waits_for(client, job, "review")["review"]["false_alarm_rate"] == 0.05
        draft = shutil.copytree(client.station.lessons.teaching.draft(job), tmp_path / "draft")
        assert client.post(f"/api/v1/jobs/{job}/accept").json()["state"] == "live"
        told = client.get("/api/v1/products/gear").json()
        assert (told["version"], told["false_alarm_rate"]) == ("0002", 0.05)
        client.put("/api/v1/products/gear/threshold", json={"false_alarm_rate": 0.2})  # while one waits
        client.station.changing.adopt(Person("teach"), "update", "gear", draft, "0002", 1)
        assert client.get("/api/v1/products/gear").json()["false_alarm_rate"] == 0.2
        client.put("/api/v1/products/gear/threshold", json={"threshold": 7.0})
        client.station.changing.adopt(Person("teach"), "update", "gear", draft, "0003", 1)
        assert client.get("/api/v1/products/gear").json()["false_alarm_rate"] == 0.05


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
