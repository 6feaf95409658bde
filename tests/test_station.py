"""The station inspects, remembers and teaches; nothing that was answered is lost."""

import io
import shutil

import pytest
from PIL import Image

from moleflow import Detector
from moleflow.store import LineStore
from station import SMALL, code_of, files, inspect, served, teach, waits_for


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
    assert code_of(answer, 422) == "unusable_name"


def test_a_new_product_is_taught_reviewed_and_live(saved, pictures):
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
