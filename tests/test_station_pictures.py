"""Pictures and maps of the station are kept by browsers only as long as they are the inspection's own."""

import shutil

import pytest

from station import inspect, served


@pytest.fixture(scope="module")
def folder(_saved_line, tmp_path_factory):
    return shutil.copytree(_saved_line, tmp_path_factory.mktemp("pictures") / "line")


@pytest.mark.parametrize("kind", ["image", "map"])
def test_a_number_that_means_another_inspection_is_answered_with_its_own_picture(
    folder, tmp_path, probe, kind
):
    """As a browser asks that met another station, or another database, at the same address."""
    with served(folder, data=tmp_path / "one") as client:
        (told,) = inspect(client, probe[:1])
        address = f"/api/v1/inspections/{told['id']}/{kind}?side=64"
        first = client.get(address)
    with served(folder, data=tmp_path / "other") as client:
        (other,) = inspect(client, probe[1:2])
        assert other["id"] == told["id"]
        second = client.get(address, headers={"If-None-Match": first.headers["ETag"]})
    assert first.headers["Cache-Control"] == "private, no-cache"  # so that it is asked for each time
    assert second.status_code == 200
    assert second.content != first.content


@pytest.mark.parametrize("kind", ["image", "map"])
def test_what_a_browser_holds_already_is_not_sent_again(folder, tmp_path, probe, kind):
    with served(folder, data=tmp_path / "data") as client:
        (told,) = inspect(client, probe[3:])
        address = f"/api/v1/inspections/{told['id']}/{kind}"
        shown = client.get(f"{address}?side=64")
        tag = shown.headers["ETag"]
        for held in (tag, f"W/{tag}", f'"another", {tag}', "*"):
            again = client.get(f"{address}?side=64", headers={"If-None-Match": held})
            assert (again.status_code, again.content) == (304, b""), held
            assert again.headers["ETag"] == tag
        assert (
            client.get(f"{address}?side=64", headers={"If-None-Match": '"another"'}).content == shown.content
        )
        assert client.get(f"{address}?side=32", headers={"If-None-Match": tag}).status_code == 200
        assert client.get("/api/v1/inspections/9/image", headers={"If-None-Match": "*"}).status_code == 404
