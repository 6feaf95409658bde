"""The station inspects and remembers; nothing that was answered is lost."""

import csv
import io
import re
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from moleflow.errors import LineError
from moleflow.station.problems import Unready
from moleflow.station.service import ANSWER_SECONDS
from station import SMALL, code_of, files, inspect, served


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


def test_a_whole_image_of_another_depth_is_told_from_none(shared, probe):
    png = io.BytesIO()
    Image.fromarray(probe[0][:, :, 0].astype(np.uint16) * 257).save(png, "PNG")
    deep = ("images", ("deep.png", png.getvalue(), "image/png"))
    answer = shared.post("/api/v1/inspections", files=[deep])
    assert code_of(answer, 415) == "wrong_depth"
    assert "expected 8-bit values" in answer.json()["error"]["message"]
    told = shared.post("/api/v1/inspections", files=[*files(probe[:1]), deep]).json()["results"]
    assert told[1]["error"]["code"] == "wrong_depth"


@pytest.fixture
def unreadable(shared, monkeypatch):
    """Of the next batches each that holds a certain picture meets a damaged file on the disk."""
    pixels, inspector = [], shared.station.line.now.inspector
    predict = inspector.predict

    def reading(images, **options):
        if any(np.array_equal(image, one) for image in images for one in pixels):
            raise LineError("tasks/gear/0001/expert.safetensors: damaged")
        return predict(images, **options)

    monkeypatch.setattr(inspector, "predict", reading)
    return pixels


def test_damage_on_the_station_is_not_the_images_fault(shared, probe, unreadable):
    unreadable.append(probe[0])
    answer = shared.post("/api/v1/inspections", files=files(probe[:1]))
    assert code_of(answer, 503) == "line"
    assert answer.json()["error"]["message"].endswith("expert.safetensors: damaged")
    told = shared.post("/api/v1/inspections", files=files(probe)).json()["results"]
    assert told[0]["error"]["code"] == "line"
    for one in told[1:]:  # what was said of them is recorded, and told
        assert shared.get(f"/api/v1/inspections/{one['id']}").json() == one
    lie = ("images", ("lie.png", b"no image", "image/png"))
    assert code_of(shared.post("/api/v1/inspections", files=[lie, *files(probe[:1])]), 503) == "line"


def test_no_room_for_the_last_takes_no_answer_from_the_first(shared, probe, monkeypatch):
    parts, room = shared.station._parts, shared.station._room
    monkeypatch.setattr(
        shared.station, "_parts", lambda uploads: [[one] for part in parts(uploads) for one in part]
    )
    taken, sizes = room.taken, []

    @contextmanager
    def full(size):
        sizes.append(size)
        if len(sizes) == 2:
            raise Unready("no memory", "busy")
        with taken(size):
            yield

    monkeypatch.setattr(room, "taken", full)
    told = shared.post("/api/v1/inspections", files=files(probe[:3])).json()["results"]
    assert told[0]["recorded"]
    assert [one["error"]["code"] for one in told[1:]] == ["busy", "busy"]


def test_who_waits_too_long_takes_no_answer_from_the_others(shared, probe, monkeypatch):
    submit, sent = shared.station.inspecting.submit, []

    class Late(Future):
        def result(self, timeout=None):
            assert timeout == ANSWER_SECONDS
            return super().result(0)

    def second_waits(*shot, **options):
        sent.append(submit(*shot, **options))
        return Late() if len(sent) == 2 else sent[-1]

    monkeypatch.setattr(shared.station.inspecting, "submit", second_waits)
    told = shared.post("/api/v1/inspections", files=files(probe[:3]), data={"key": "late"}).json()["results"]
    assert told[1]["error"]["code"] == "busy"
    assert "same key" in told[1]["error"]["message"]
    assert [one["recorded"] for one in (told[0], told[2])] == [True, True]
    recorded = sent[1].result(60)["id"]
    monkeypatch.undo()
    again = inspect(shared, probe[:3], key="late")
    assert [one["id"] for one in again] == [told[0]["id"], recorded, told[2]["id"]]
    monkeypatch.setattr(shared.station.inspecting, "submit", lambda *shot, **options: Late())
    assert code_of(shared.post("/api/v1/inspections", files=files(probe[:1])), 503) == "busy"


def test_damage_found_by_another_route_is_the_stations_too(shared, monkeypatch):
    def damaged(name):
        raise LineError("tasks/gear/0001/expert.safetensors: damaged")

    monkeypatch.setattr(shared.station.line.now.inspector, "info", damaged)
    assert code_of(shared.get("/api/v1/products/gear"), 503) == "line"


def test_the_product_may_be_given(shared, line, probe):
    (told,) = inspect(shared, probe[:1], task="wood")
    assert told["task"] == "wood"
    assert told["certainty"] is None
    assert code_of(shared.post("/api/v1/inspections", files=files(probe[:1]), data={"task": "cable"}), 404)
    answer = shared.post("/api/v1/inspections", files=files(probe[:1]), data={"task": "../gear"})
    assert code_of(answer, 404) == "unknown_product"


# What is sent again


def count(client):
    return len(client.get("/api/v1/inspections?limit=500").json()["items"])


def test_what_is_sent_again_under_its_key_is_recorded_once(shared, probe):
    before = count(shared)
    told = inspect(shared, probe[:2], key="monday-7")
    assert all(one["recorded"] for one in told)
    marked = shared.put(f"/api/v1/inspections/{told[0]['id']}/mark", json={"kind": "missed"}).json()
    assert inspect(shared, probe[:2], key="monday-7") == [marked, told[1]]
    assert inspect(shared, probe[:2], key="monday-7", task="no product by now") == [marked, told[1]]
    assert count(shared) == before + 2
    more = inspect(shared, probe[:3], key="monday-7")  # of which the last is new
    assert more[:2] == [marked, told[1]]
    assert [one["id"] for one in inspect(shared, probe[:3], key="monday-7")] == [one["id"] for one in more]
    assert count(shared) == before + 3
    other = inspect(shared, probe[:1], key="monday-8")
    assert other[0]["id"] not in {one["id"] for one in more}
    assert inspect(shared, probe[:1])[0]["id"] > other[0]["id"]  # without a key every one is recorded


def test_a_key_is_for_one_image(shared, probe):
    (first,) = inspect(shared, probe[:1], key="tuesday")
    before = count(shared)
    answer = shared.post("/api/v1/inspections", files=files(probe[1:2]), data={"key": "tuesday"})
    assert code_of(answer, 409) == "key_taken"
    assert first["sha256"] in answer.json()["error"]["message"]
    answer = shared.post("/api/v1/inspections", files=files(probe[1:3]), data={"key": "tuesday"})
    found = answer.json()["results"]
    assert found[0]["error"]["code"] == "key_taken"
    assert found[1]["recorded"]
    assert count(shared) == before + 1


@pytest.mark.parametrize("key", ["", "x" * 65, "a\nb", "\0"])
def test_a_key_that_cannot_be_one_is_named(shared, probe, key):
    answer = shared.post("/api/v1/inspections", files=files(probe[:1]), data={"key": key})
    assert code_of(answer, 422) == "unusable"
    assert "1 to 64 printable characters" in answer.json()["error"]["message"]


@pytest.fixture
def together(shared, monkeypatch):
    """So many requests know nothing of each other: each has asked for its key before any is inspected."""

    def wait_for(count):
        arrived, keyed = threading.Barrier(count), shared.station.inspections.keyed

        def asked(keys):
            found = keyed(keys)
            if threading.current_thread().name != "recording":
                arrived.wait(20)
            return found

        monkeypatch.setattr(shared.station.inspections, "keyed", asked)
        return ThreadPoolExecutor(count)

    return wait_for


def counted(client):
    found = re.findall(r"^moleflow_inspections_total.* (\d+)", client.get("/metrics").text, re.MULTILINE)
    return sum(map(int, found))


def test_of_some_at_once_under_one_key_one_is_recorded(shared, probe, together):
    before = count(shared), counted(shared)
    with together(6) as threads:
        told = list(threads.map(lambda image: inspect(shared, [image], key="once"), [probe[0]] * 6))
    assert all(one == told[0] for one in told)
    assert (count(shared), counted(shared)) == (before[0] + 1, before[1] + 1)


def test_of_two_images_at_once_under_one_key_one_is_refused(shared, probe, together):
    def send(image):
        return shared.post("/api/v1/inspections", files=files([image]), data={"key": "both"})

    before = count(shared)
    with together(2) as threads:
        answers = sorted(threads.map(send, probe[:2]), key=lambda answer: answer.status_code)
    assert answers[0].json()["results"][0]["recorded"]
    assert code_of(answers[1], 409) == "key_taken"
    assert count(shared) == before + 1


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
    from moleflow.maps.scale import Scale, layer

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
