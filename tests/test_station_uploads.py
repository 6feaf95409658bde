"""What is sent to a station: limits, lies, damage; a bad upload is answered with a name and costs little."""

import contextlib
import functools
import gc
import io
import random
import re
import shutil
import struct
import tempfile
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from moleflow.data.factory import make_sample
from moleflow.station.inspecting import Room
from moleflow.station.pictures import clean_name, reduced, size_in_memory
from moleflow.station.problems import Malformed, Problem, Unready
from moleflow.station.web import create_app, jobs
from moleflow.station.web.access import Access
from moleflow.station.web.uploads import read_form
from station import MARKED, SMALL, code_of, eventually, files, listening, png, served, settings_of

NAMED = {400, 408, 413, 415, 422}


@pytest.fixture(scope="module")
def client(_saved_line, tmp_path_factory):
    line = shutil.copytree(_saved_line, tmp_path_factory.mktemp("uploads") / "line")
    with served(line, limits=SMALL) as client:
        yield client


def send(client, *contents, name="a.png", kind="image/png"):
    return client.post("/api/v1/inspections", files=[("images", (name, one, kind)) for one in contents])


GOOD = png(np.full((20, 20, 3), 90, np.uint8))


@functools.cache
def encoded(kind, **options):
    out = io.BytesIO()
    Image.fromarray(make_sample("gear", 1, kind="good", size=64).image).save(out, kind, **options)
    return out.getvalue()


def claiming(width, height):
    """A PNG that says to be so large, and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


# Limits


def test_more_than_the_limits_is_refused(client):
    assert code_of(send(client, *[GOOD] * (SMALL.images + 1)), 413) == "too_many_images"
    assert code_of(send(client, b"\0" * (SMALL.bytes + 1)), 413) == "too_large"
    assert code_of(send(client, claiming(600, 600)), 413) == "too_many_pixels"
    assert code_of(send(client, claiming(60_000, 60_000)), 415) == "not_an_image"  # beyond the library's own
    assert send(client, GOOD).status_code == 200


def test_a_jpeg_of_thousands_of_scans_is_no_image(client):
    data = encoded("JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    answer = send(client, data[:-2] + data[last:-2] * 1000 + data[-2:])
    assert code_of(answer, 415) == "not_an_image"
    assert "more than the limit of 100 scans" in answer.json()["error"]["message"]


def test_a_large_body_is_refused_before_it_is_all_there(client):
    """Also where no length was said before, so that only counting tells."""
    sent = []

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(100):
            sent.append(1)
            yield b"\0" * 50_000
        yield b"\r\n--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert code_of(client.post("/api/v1/inspections", content=body(), headers=kind), 413) == "too_large"
    lying = kind | {"Content-Length": str(SMALL.bytes + 1)}
    assert code_of(client.post("/api/v1/inspections", content=b"--x", headers=lying), 413) == "too_large"
    wrong = kind | {"Content-Length": "-5"}
    assert code_of(client.post("/api/v1/inspections", content=b"--x", headers=wrong), 400) == "malformed"


def test_a_large_body_of_any_other_route_is_refused(client):
    json = {"Content-Type": "application/json"}
    answer = client.put("/api/v1/inspections/1/mark", content=b" " * 70_000, headers=json)
    assert code_of(answer, 413) == "too_large"
    deep = client.put("/api/v1/inspections/1/mark", content=b"[" * 30_000, headers=json)
    assert deep.status_code in (400, 422)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--y\r\n",
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nhalf',
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nhalf\r\n--x',
        b"--x\r\nContent-Type: image/png\r\n\r\nunnamed\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nz\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="wish"\r\n\r\nz\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="task"\r\n\r\n\xff\r\n--x--\r\n',
        b"--x\r\nX-Long: " + b"y" * 9000 + b"\r\n\r\nz\r\n--x--\r\n",
        (b'--x\r\nContent-Disposition: form-data; name="task"\r\n\r\nz\r\n' * 2) + b"--x--\r\n",
        b"--x--\r\n",
    ],
)
def test_a_damaged_form_is_malformed(client, body):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/api/v1/inspections", content=body, headers=kind)
    assert code_of(answer, 400) in ("malformed", "no_images")


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "", "multipart/form-data; boundary="]
)
def test_another_kind_of_body_is_malformed(client, kind):
    answer = client.post("/api/v1/inspections", content=b"{}", headers={"Content-Type": kind})
    assert code_of(answer, 400) == "malformed"


# Room for decoded pictures


def holding(room, size, held, *, waits=False):
    """A thread that takes so much of a room, notes it, and holds it until what is returned is called."""
    leave = threading.Event()

    def hold():
        try:
            with room.taken(size):
                held.append(size)
                leave.wait()
        except Problem as problem:
            held.append(problem)

    thread = threading.Thread(target=hold, daemon=True)
    line = room._queue if waits else held
    before = len(line)
    thread.start()
    assert eventually(lambda: len(line) > before)
    return lambda: (leave.set(), thread.join(20))


def test_room_is_given_first_come_first_served():
    room, held = Room(10, "memory"), []
    first, second = holding(room, 4, held), holding(room, 4, held)
    large = holding(room, 99, held, waits=True)  # more than there is: all of it
    small = holding(room, 1, held, waits=True)  # fits beside the first two, and came later
    assert (held, room._taken) == ([4, 4], 8)
    first()
    assert (held, room._taken) == ([4, 4], 4)
    second()
    assert eventually(lambda: held == [4, 4, 99])
    assert room._taken == 10  # counted as all there is
    large()
    assert eventually(lambda: held == [4, 4, 99, 1])
    small()
    assert room._taken == 0


def test_who_waits_for_room_too_long_is_sent_away_and_stands_in_nobodys_way(monkeypatch):
    monkeypatch.setattr("moleflow.station.inspecting.LONGEST_WAIT", 0.3)
    room, held = Room(10, "memory"), []
    first = holding(room, 4, held)
    holding(room, 10, held, waits=True)
    time.sleep(0.15)
    last = holding(room, 6, held, waits=True)
    assert eventually(lambda: len(held) == 3)
    assert (held[0], held[1].code, held[2]) == (4, "busy", 6)
    first()
    last()


def test_where_all_processors_decode_for_long_the_station_is_busy(client, monkeypatch, tmp_path):
    monkeypatch.setattr("moleflow.station.inspecting.LONGEST_WAIT", 0.1)
    (tmp_path / "a.png").write_bytes(GOOD)
    with client.station._decoding.taken(1000):
        answer = send(client, GOOD)
        assert code_of(answer, 503) == "busy"
        assert answer.headers["Retry-After"]
        with pytest.raises(Unready, match="no processor"):
            client.station.reduced(tmp_path / "a.png", 16)
    assert send(client, GOOD).status_code == 200
    assert client.station._room._taken == 0


@pytest.mark.parametrize(
    ("kind", "mode", "options", "each"),
    [
        ("PNG", "RGB", {}, 10),
        ("JPEG", "L", {}, 10),
        ("JPEG", "RGB", {"progressive": True}, 17),
        ("PNG", "RGBA", {}, 17),
        ("PNG", "P", {}, 17),
        ("JPEG", "CMYK", {}, 17),
        ("PNG", "I;16", {}, 20),
    ],
)
def test_a_pictures_room_follows_from_its_header(kind, mode, options, each):
    out = io.BytesIO()
    Image.new(mode, (30, 20)).save(out, kind, **options)
    assert size_in_memory(out.getvalue(), "a", most_pixels=600) == 600 * each


# Lies


def test_the_content_decides_and_not_what_is_said_of_it(client):
    jpeg = encoded("JPEG")
    assert send(client, jpeg, name="a.png", kind="text/html").status_code == 200
    for lie in (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"PK\x03\x04zip",
        b"\0" * 64,
        b"GIF89a",
    ):
        assert code_of(send(client, lie, kind="image/jpeg"), 415) == "not_an_image"
    (told,) = send(client, jpeg + b"<script>alert(1)</script>").json()["results"]
    kept = client.get(f"/api/v1/inspections/{told['id']}/image").content
    assert b"script" not in kept  # what is shown is written anew
    assert client.get(f"/api/v1/inspections/{told['id']}/image").headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\belt\\a.png", "a.png"),
        ("..", "fallback"),
        ("", "fallback"),
        (None, "fallback"),
        ("a\x00b\r\nc.png", "a?b??c.png"),
        ("\u202egnp.a", "?gnp.a"),
        ("사진.png", "사진.png"),
        ("x" * 500, "x" * 200),
    ],
)
def test_a_name_is_shown_and_never_a_path(said, shown):
    assert clean_name(said, "fallback") == shown


def test_a_name_without_end_is_malformed():
    with pytest.raises(Malformed):
        clean_name("x" * 10_000, "fallback")


# Damage


def harmed(seed):
    """One malformed upload of many kinds, the same for the same seed."""
    dice = random.Random(seed)
    kinds = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
    whole = encoded(dice.choice(kinds))
    kind = dice.choice(("truncated", "flipped", "noise", "header", "polyglot", "empty", "huge", "repeated"))
    if kind == "truncated":
        return whole[: dice.randrange(1, len(whole))]
    if kind == "flipped":
        held = bytearray(whole)
        for _ in range(dice.choice((1, 5, 50))):
            held[dice.randrange(min(len(held), dice.choice((64, len(held)))))] ^= 1 << dice.randrange(8)
        return bytes(held)
    if kind == "noise":
        return dice.randbytes(dice.randrange(1, 3000))
    if kind == "header":
        return whole[: dice.randrange(4, 40)] + dice.randbytes(dice.randrange(0, 2000))
    if kind == "polyglot":
        return encoded(dice.choice(kinds))[: dice.randrange(2, 60)] + whole
    if kind == "huge":
        return claiming(dice.choice((0, 1, 70_000, 2**31 - 1, 500)), dice.choice((0, 1, 70_000, 2**31 - 1)))
    return b"" if kind == "empty" else whole[: len(whole) // 2] * 2


def flood(client, seeds):
    """Sends malformed uploads; each is answered as an image after all, or with a name."""
    for start in range(0, len(seeds), 2):
        contents = [harmed(seed) for seed in seeds[start : start + 2]]
        answer = send(client, *contents)
        if answer.status_code == 200:
            for one in answer.json()["results"]:
                assert ("error" in one and one["error"]["code"] not in ("internal", "not_ready")) or one[
                    "recorded"
                ]
        else:
            assert answer.status_code in NAMED, (start, answer.text)
            assert re.fullmatch("[a-z_]+", answer.json()["error"]["code"])


def test_damaged_uploads_are_named_and_the_station_goes_on(client, probe):
    flood(client, range(300))
    assert client.post("/api/v1/inspections", files=files(probe[:1])).status_code == 200
    assert client.station._room._taken == 0
    assert client.station.inspecting.alive


@pytest.mark.slow
def test_ten_thousand_damaged_uploads_cost_no_memory(client):
    flood(client, range(1000, 2000))
    gc.collect()
    before = psutil.Process().memory_info().rss
    flood(client, range(2000, 11_000))
    gc.collect()
    assert psutil.Process().memory_info().rss < before * 1.05 + (20 << 20)


def test_a_photograph_is_not_held_as_a_whole(client, tmp_path):
    """By its header it is bearable; behind that is a hole of 256 MB."""
    file = tmp_path / "00007"
    file.write_bytes(GOOD)
    with open(file, "ab") as sparse:
        sparse.truncate(256 << 20)
    tracemalloc.start()
    client.station.lessons._check_photo("a.png", file)
    client.station.reduced(file, 16)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_the_path_of_a_photograph_is_told_to_nobody(tmp_path):
    for content in (b"no", b"", GOOD[:20], GOOD[:50]):
        (tmp_path / "00007").write_bytes(content)
        for look in (
            lambda file: size_in_memory(file, "a.png", most_pixels=99),
            lambda file: reduced(file, "a.png", 9),
        ):
            with pytest.raises(Problem) as said:
                look(tmp_path / "00007")
            assert str(tmp_path) not in str(said.value)


def test_of_a_lessons_photographs_one_is_open_at_a_time(client, monkeypatch):
    opened, most = [], []

    async def reading(*given, sink, **named):
        def counted(index):
            opened.append(sink(index))
            most.append(sum(not file.closed for file in opened))
            return opened[-1]

        return await read_form(*given, sink=counted, **named)

    monkeypatch.setattr(jobs, "read_form", reading)
    sent = [("images", (f"{i}.png", GOOD, "image/png")) for i in range(SMALL.lesson_images)]
    answer = client.post("/api/v1/jobs", files=sent, data={"kind": "update", "name": "cable"})
    assert code_of(answer, 404) == "unknown_product"  # once all of it was read
    assert (len(opened), max(most)) == (SMALL.lesson_images, 1)
    assert all(file.closed for file in opened)


def test_who_sends_photographs_keeps_nobody_waiting_for_the_disk(client, monkeypatch):
    """All that a slow disk may hold up is done beside the loop that answers everybody."""
    loop, beside = set(), {}

    def noted(what, act):
        def done(*given, **named):
            beside.setdefault(what, set()).add(threading.get_ident())
            return act(*given, **named)

        return done

    class Written(io.FileIO):
        write = noted("write", io.FileIO.write)
        close = noted("close", io.FileIO.close)

    async def reading(*given, **named):
        loop.add(threading.get_ident())
        return await read_form(*given, **named)

    monkeypatch.setattr(jobs, "read_form", reading)
    monkeypatch.setattr(jobs, "open", noted("open", Written), raising=False)
    monkeypatch.setattr("moleflow.station.lessons.CHECKED", 1)
    monkeypatch.setattr(client.station, "disk_free", noted("look", lambda **_: 1 << 40))
    monkeypatch.setattr(tempfile, "mkdtemp", noted("make", tempfile.mkdtemp))
    monkeypatch.setattr(shutil, "rmtree", noted("delete", shutil.rmtree))
    sent = [("images", (f"{i}.png", GOOD + b"\0" * 200_000, "image/png")) for i in range(4)]
    answer = client.post("/api/v1/jobs", files=sent, data={"kind": "update", "name": "cable"})
    assert code_of(answer, 404) == "unknown_product"  # once all of it was read
    assert sorted(beside) == ["close", "delete", "look", "make", "open", "write"]
    assert len(loop) == 1
    assert not [what for what, threads in beside.items() if threads & loop]


def test_photographs_stop_where_they_would_take_the_room_that_is_to_stay_free(client, monkeypatch):
    """Two at once, of which nobody said how large they are."""
    import httpx

    monkeypatch.setattr("moleflow.station.lessons.CHECKED", 20_000)
    line = client.station.settings.line
    settings = settings_of(line, data=line.with_name("room"), least_free=1000)
    most, said = [0], []

    def usage(folder):
        taken = sum(file.stat().st_size for file in (settings.data / "arriving").glob("*/*"))
        most[0] = max(most[0], taken)
        return SimpleNamespace(free=1000 + 500_000 - taken)

    def body():
        for name in "ab":
            yield (
                b'--x\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n\r\n' % name.encode()
            )
            yield from [b"\0" * 20_000] * 100
            yield b"\r\n"
        yield b"--x--\r\n"

    monkeypatch.setattr("moleflow.station.service.shutil.disk_usage", usage)
    headers = MARKED | {"Content-Type": "multipart/form-data; boundary=x"}
    app = create_app(settings, Access())
    with listening(app) as (port, _), ThreadPoolExecutor(2) as threads:

        def send(_):
            with contextlib.suppress(httpx.TransportError):  # cut off while it sends
                answer = httpx.post(f"http://127.0.0.1:{port}/api/v1/jobs", content=body(), headers=headers)
                said.append(code_of(answer, 503))

        list(threads.map(send, range(2)))
        assert set(said) <= {"disk_full"}
        assert 300_000 < most[0] < 1_500_000  # of eight million; some is under way in the sockets
        assert eventually(lambda: not list((settings.data / "arriving").iterdir()))


def test_damaged_photographs_of_a_lesson_are_named(client):
    sent = [
        ("images", ("a.png", b"no", "image/png")),
        ("images", ("b.png", b"no", "image/png")),
    ]
    answer = client.post("/api/v1/jobs", files=sent, data={"kind": "teach", "name": "x"})
    assert code_of(answer, 415) == "not_an_image"
    sent[:1] = [
        ("images", ("a.png", GOOD, "image/png")),
        ("images", ("c.png", claiming(9000, 9000), "image/png")),
    ]
    answer = client.post("/api/v1/jobs", files=sent, data={"kind": "teach", "name": "x"})
    assert code_of(answer, 413) == "too_many_pixels"
    assert answer.json()["error"]["message"].startswith("c.png: 9000 x 9000 pixels")
    many = [("images", ("a.png", GOOD, "image/png"))] * (SMALL.lesson_images + 1)
    answer = client.post("/api/v1/jobs", files=many, data={"kind": "teach", "name": "x"})
    assert code_of(answer, 413) == "too_many_images"
    large = [("images", ("a.png", b"\0" * SMALL.lesson_bytes, "image/png"))]
    answer = client.post("/api/v1/jobs", files=large, data={"kind": "teach", "name": "x"})
    assert code_of(answer, 413) == "too_large"
    large = [*many[:1], ("images", ("b.png", b"\0" * (SMALL.bytes + 1), "image/png"))]
    answer = client.post("/api/v1/jobs", files=large, data={"kind": "teach", "name": "x"})
    assert code_of(answer, 413) == "too_large"
    assert answer.json()["error"]["message"] == "b.png is larger than the limit of 400,000 bytes"
    folder = client.station.settings.data / "arriving"
    assert eventually(lambda: not list(folder.iterdir()))
    assert client.get("/api/v1/jobs").json() == []
