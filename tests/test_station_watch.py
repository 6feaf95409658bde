"""`moleflow watch`: files wait until they are whole, and no result is lost."""

import errno
import http.server
import io
import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from moleflow import Detector
from moleflow.cli import app as commands
from moleflow.cli.station import _outbox_name, _outbox_place
from moleflow.errors import ConfigError, LineError, MoleFlowError, TaskError
from moleflow.export import export_line
from moleflow.results import Failure
from moleflow.station.current import CurrentLine
from moleflow.station.monitoring import Monitoring
from moleflow.station.outbox import Courier, Outbox
from moleflow.station.outputs import Appended, Broker, Lines, Output, Webhook
from moleflow.station.watching import STILL, Watching
from station import eventually, png

PICTURE = png(np.full((64, 64, 3), 90, np.uint8))


@pytest.fixture
def belt(tmp_path):
    folder = tmp_path / "belt"
    folder.mkdir()
    return folder


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


def watching(line, belt, outbox, **options):
    return Watching(
        lambda paths: line.predict(paths, errors="yield"),
        belt,
        outbox,
        **{"still": 0.05, "given_up": 0.3} | options,
    )


def refusing(belt, outbox, **options):
    """Watching that says of every file at its first look that it is no image, which costs no time."""
    told = []

    def predict(paths):
        told.append([path.name for path in paths])
        return [Failure(path, f"{path}: no image") for path in paths]

    return Watching(predict, belt, outbox, **{"still": 0, "given_up": 0} | options), told


def settle(watched, seconds=0.5):
    """Looks until nothing is waited for, or for so long."""
    until = time.monotonic() + seconds
    done = watched.look()
    while time.monotonic() < until and (watched.waiting or not done):
        time.sleep(0.02)
        done += watched.look()
    return done


def waiting(outbox):
    """What is in the outbox, taken out."""
    found = []
    while (first := outbox.first()) is not None:
        found.append(json.loads(first[1]))
        outbox.taken(first[0])
    return found


# Files


def test_what_appears_is_inspected_once_it_is_whole(line, belt, outbox, pictures):
    watched = watching(line, belt, outbox, given_up=30)
    whole = png(pictures("gear", 1, first=300)[0])
    with open(belt / "a.png", "wb") as file:
        for start in range(0, len(whole), len(whole) // 3):
            assert watched.look() == 0  # it grows between looks
            file.write(whole[start : start + len(whole) // 3])
            file.flush()
            time.sleep(0.02)
    (belt / "b.png").write_bytes(whole[:-200])  # still, and not whole
    assert eventually(lambda: watched.look(), 5) == 1
    time.sleep(0.1)
    assert watched.look() == 0
    (belt / "b.png").write_bytes(whole)
    assert settle(watched, 5) == 1
    first, second = waiting(outbox)
    assert (first["source"], first["task"]) == (str(belt / "a.png"), "gear")
    assert second["source"] == str(belt / "b.png")
    assert second["pred_score"] == first["pred_score"]
    assert first["id"] != second["id"]


def test_what_stays_half_is_a_result_of_its_own(line, belt, outbox):
    watched = watching(line, belt, outbox)
    (belt / "half.png").write_bytes(PICTURE[:50])
    assert settle(watched, 5) == 1
    (told,) = waiting(outbox)
    assert "half.png" in told["error"]


def test_a_file_that_cannot_be_judged_ends_nothing_and_takes_no_other_with_it(belt, outbox):
    """Such as one nearest to a product that is quarantined; and while an export is replaced, for a moment."""
    replaced, asked = [True], []

    def predict(paths):
        asked.append(len(paths))
        for path in paths:
            if path.name == "never.png" or (path.name == "later.png" and replaced[0]):
                raise LineError("'gear' is damaged")
        return [Failure(path, f"{path}: no image") for path in paths]

    for name in ("never.png", "later.png", "other.png"):
        (belt / name).write_bytes(PICTURE)
    watched = Watching(predict, belt, outbox, still=0, given_up=0.6)
    assert watched.look() == 0
    assert asked == [3, 1, 1, 1]
    replaced[0] = False
    assert settle(watched, 5) == 3
    said = {Path(one["source"]).name: one["error"].partition(": ")[2] for one in waiting(outbox)}
    assert said == {"never.png": "'gear' is damaged", "later.png": "no image", "other.png": "no image"}


def test_a_product_that_is_none_ends_the_watching(line, belt, outbox):
    (belt / "a.png").write_bytes(PICTURE)
    predict = partial(line.predict, task="gaer", errors="yield")
    watched = Watching(predict, belt, outbox, still=0, given_up=0)
    with pytest.raises(TaskError, match="'gaer' is no product"):
        watched.look()


def encoded(kind, **options):
    """A picture without a black pixel as a file's bytes."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(40, 200, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True}), ("WEBP", {})],
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_was_made_at_full_length_waits_while_its_end_is_empty(
    line, belt, outbox, kind, options, share
):
    whole = encoded(kind, **options)
    place, part = belt / f"a.{kind.lower()}", int(share * len(whole))
    watched = watching(line, belt, outbox, still=0.05, given_up=30)
    place.write_bytes(whole[:part])
    os.truncate(place, len(whole))
    assert not isinstance(line.predict([place], errors="yield")[0], Failure)  # half of it is an image
    assert settle(watched, 0.3) == 0
    place.write_bytes(whole)
    assert settle(watched, 5) == 1
    (told,) = waiting(outbox)
    assert "earlier_id" not in told


def test_what_ends_with_nothing_is_inspected_after_a_while(belt, outbox, monkeypatch):
    Image.new("RGB", (64, 64)).save(belt / "black.bmp")
    Image.new("RGB", (64, 64)).save(belt / "black.png")  # says by itself whether it is whole
    watched, told = refusing(belt, outbox, still=1, given_up=1)
    now = time.monotonic()

    def look_after(seconds):
        monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
        return watched.look()

    assert [look_after(seconds) for seconds in (0, 0.9, 1.1, 5, 9, 10.1)] == [0, 0, 1, 0, 0, 1]
    assert told == [["black.png"], ["black.bmp"]]


def test_who_renames_waits_for_nothing(belt, outbox):
    Image.new("RGB", (64, 64)).save(belt / "black.bmp")
    watched, _ = refusing(belt, outbox, still=0)
    assert watched.look() == 1


def test_a_drive_that_tells_of_changes_late_is_asked_by_opening(belt, outbox, monkeypatch):
    """NFS and SMB keep attributes for seconds; who opens a file gets those it has now."""
    (belt / "a.png").write_bytes(PICTURE[:-20])
    watched, told = refusing(belt, outbox, given_up=30)
    old = watched._state(str(belt / "a.png"))
    monkeypatch.setattr(watched, "_state", lambda *_: old)
    (belt / "a.png").write_bytes(PICTURE[:-10])
    assert watched.look() == 0
    assert told == []
    assert watched.waiting == 1


def test_a_result_after_another_of_the_same_file_names_it(belt, outbox):
    watched, _ = refusing(belt, outbox)

    def write(content):
        (belt / "a.png").write_bytes(content)
        (belt / "b.png").write_bytes(PICTURE)
        os.utime(belt / "b.png", (1, 1))
        watched.look()
        return waiting(outbox)

    first, other = sorted(write(PICTURE), key=lambda one: one["source"])
    (second,) = write(PICTURE + b"0")
    (third,) = write(PICTURE + b"00")
    assert "earlier_id" not in first
    assert "earlier_id" not in other
    assert second["earlier_id"] == first["id"]
    assert third["earlier_id"] == second["id"]
    outbox.say_gone([str(belt / "a.png")], time.time())
    (fourth,) = write(PICTURE + b"000")  # another file that was given the name
    assert "earlier_id" not in fourth
    assert len({one["id"] for one in (first, other, second, third, fourth)}) == 5


def test_what_is_no_image_is_left_alone(line, belt, outbox):
    (belt / "notes.txt").write_text("notes")
    (belt / ".hidden.png").write_bytes(PICTURE)
    (belt / "below").mkdir()
    (belt / "below" / "a.png").write_bytes(PICTURE)
    os.mkfifo(belt / "pipe.png")
    assert settle(watching(line, belt, outbox)) == 0
    assert settle(watching(line, belt, outbox, recursive=True), 5) == 1


def test_no_file_is_inspected_twice_also_after_a_restart(line, belt, tmp_path):
    (belt / "a.png").write_bytes(PICTURE)
    box = Outbox(tmp_path / "outbox.db")
    assert settle(watching(line, belt, box), 5) == 1
    box.close()  # before anything was sent
    box = Outbox(tmp_path / "outbox.db")
    watched = watching(line, belt, box)
    (belt / "b.png").write_bytes(PICTURE)
    assert settle(watched, 5) == 1
    assert len(waiting(box)) == 2
    (belt / "b.png").write_bytes(PICTURE)  # the camera uses the name again
    os.utime(belt / "b.png", (1, 1))
    assert settle(watched, 5) == 1
    box.close()


def again(belt, tmp_path, **options):
    """How many files a new process inspects, with the same outbox."""
    box = Outbox(tmp_path / "again.db")
    watched, _ = refusing(belt, box, **options)
    done = watched.look()
    assert watched.waiting == 0
    box.close()
    return done


def test_a_folder_that_is_named_in_another_way_is_the_same(belt, tmp_path, monkeypatch):
    for i in range(3):
        (belt / f"{i}.png").write_bytes(PICTURE)
    (tmp_path / "link").symlink_to(belt)
    monkeypatch.chdir(tmp_path)
    ways = [Path("belt"), belt, Path("link"), Path("../") / tmp_path.name / "belt", Path("belt/.")]
    assert [again(way, tmp_path) for way in ways] == [3, 0, 0, 0, 0]
    monkeypatch.chdir(belt)
    assert again(Path("."), tmp_path) == 0


def test_results_name_files_as_the_folder_was_named(belt, outbox, tmp_path, monkeypatch):
    (belt / "below").mkdir()
    (belt / "below" / "a.png").write_bytes(PICTURE)
    monkeypatch.chdir(tmp_path)
    refusing(Path("belt"), outbox, recursive=True)[0].look()
    assert [one["source"] for one in waiting(outbox)] == ["belt/below/a.png"]


def test_an_outbox_from_before_paths_were_resolved_goes_on(belt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        (belt / name).write_bytes(PICTURE)
    status = (belt / "a.png").stat()
    with closing(sqlite3.connect(tmp_path / "again.db")) as database, database:
        database.execute("create table seen (path text primary key, state text not null)")
        state = f"{status.st_mtime_ns:020d}-{status.st_size}-{status.st_ino}"
        database.execute("insert into seen values (?, ?)", ("belt/a.png", state))
    assert again(Path("belt"), tmp_path) == 1
    assert again(Path("belt"), tmp_path) == 0


def test_the_same_bytes_under_another_inode_are_the_same_file(belt, tmp_path):
    for i in range(3):
        (belt / f"{i}.png").write_bytes(PICTURE)
    assert again(belt, tmp_path) == 3
    for i, content in enumerate((PICTURE, PICTURE, PICTURE[:-1] + b"?")):
        copy, times = tmp_path / "copy", (belt / f"{i}.png").stat()
        copy.write_bytes(content)
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        copy.replace(belt / f"{i}.png")
    assert again(belt, tmp_path) == 1  # the one that was changed
    assert again(belt, tmp_path) == 0


def test_what_was_left_alone_stays_so_under_another_inode(belt, outbox):
    (belt / "a.png").write_bytes(PICTURE)
    watched, _ = refusing(belt, outbox, old=False)
    times = (belt / "a.png").stat()
    (belt / "copy").write_bytes(PICTURE)
    os.utime(belt / "copy", ns=(times.st_atime_ns, times.st_mtime_ns))
    (belt / "copy").replace(belt / "a.png")
    assert watched.look() == watched.waiting == 0


def test_a_share_that_was_an_empty_folder_for_hours_is_not_inspected_again(belt, tmp_path):
    for camera in ("left", "right"):
        (belt / camera).mkdir()
        for i in range(3):
            (belt / camera / f"{i}.png").write_bytes(PICTURE)
    assert again(belt, tmp_path, recursive=True) == 6
    (belt / "right").rename(tmp_path / "away")
    (belt / "right").mkdir()  # what is mounted there is away
    assert again(belt, tmp_path, recursive=True) == 0
    (belt / "right").rmdir()
    (tmp_path / "away").rename(belt / "right")
    assert again(belt, tmp_path, recursive=True) == 0


def test_what_is_gone_for_days_is_forgotten(belt, outbox, monkeypatch):
    (belt / "a.png").write_bytes(PICTURE)
    (belt / "b.png").write_bytes(PICTURE)
    watched, _ = refusing(belt, outbox)
    assert watched.look() == 2
    (belt / "a.png").rename(belt / "a.away")
    now, wall = time.monotonic(), time.time()

    def look_after(seconds):
        monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
        monkeypatch.setattr(time, "time", lambda: wall + seconds)
        return watched.look()

    day = 86_400
    assert [look_after(day * days) for days in (1, 7.9)] == [0, 0]
    assert set(outbox.seen()) == {str(belt / "a.png"), str(belt / "b.png")}
    (belt / "a.away").rename(belt / "a.png")
    assert look_after(8 * day) == 0  # it came back
    (belt / "a.png").rename(belt / "a.away")
    assert [look_after(day * days) for days in (9, 16.1)] == [0, 0]
    assert set(outbox.seen()) == {str(belt / "b.png")}
    (belt / "a.away").rename(belt / "a.png")
    assert look_after(17 * day) == 1


def test_of_what_is_gone_the_longest_gone_are_forgotten_beyond_a_number(outbox):
    for name in "abcd":
        outbox.add(f"{name}.png", "state", {})
    for when, name in enumerate("cab", 1):
        outbox.say_gone([f"{name}.png"], when)
    assert outbox.forget(0, 2) == {"c.png"}
    assert outbox.gone() == {"a.png", "b.png"}
    assert set(outbox.seen()) == {"a.png", "b.png", "d.png"}


def test_a_folder_that_is_away_for_a_moment_is_not_gone(line, belt, outbox, monkeypatch):
    (belt / "below").mkdir()
    (belt / "below" / "a.png").write_bytes(PICTURE)
    (belt / "b.png").write_bytes(PICTURE)
    watched, scandir = watching(line, belt, outbox, recursive=True), os.scandir
    assert settle(watched, 5) == 2

    def refuse(folder):
        if Path(folder).name == "below":
            raise OSError(5, "Input/output error")
        return scandir(folder)

    with monkeypatch.context() as away:
        away.setattr(os, "scandir", refuse)
        watched.look()
    assert settle(watched) == 0
    assert len(outbox.seen()) == 2


def test_a_name_that_is_no_text_is_inspected_once(line, belt, tmp_path):
    for name, content in (
        (b"a\xff.png", PICTURE),
        (b"half\xff.png", PICTURE[:50]),
        (b"\xc3\xbc.png", PICTURE),
    ):
        try:
            (belt / os.fsdecode(name)).write_bytes(content)
        except OSError:
            pytest.skip("this file system takes no such name")
    box = Outbox(tmp_path / "outbox.db")
    assert settle(watching(line, belt, box), 5) == 3
    assert sorted(one["source"] for one in waiting(box)) == [
        str(belt / f"{n}.png") for n in ("a?", "half?", "ü")
    ]
    box.close()
    box = Outbox(tmp_path / "outbox.db")
    watched = watching(line, belt, box)
    assert settle(watched) == 0
    (belt / os.fsdecode(b"a\xff.png")).unlink()
    box.close()
    box = Outbox(tmp_path / "outbox.db")
    watching(line, belt, box).look()
    assert box.gone() == {str(belt / os.fsdecode(b"a\xff.png"))}
    assert box.forget(time.time() + 1, 100) == {str(belt / os.fsdecode(b"a\xff.png"))}
    assert len(box.seen()) == 2
    box.close()


def test_what_cannot_be_noted_is_inspected_again(line, belt, outbox, pictures, monkeypatch, caplog):
    """A full disk, say: watching goes on, and says so once."""
    said, add = [sqlite3.OperationalError("database or disk is full")] * 2, outbox.add
    monkeypatch.setattr(
        outbox, "add", lambda *told, **more: add(*told, **more) if not said else refuse(said.pop())
    )
    (belt / "a.png").write_bytes(png(pictures("gear", 1, first=300)[0]))
    watched = watching(line, belt, outbox)
    assert settle(watched, 5) == 1
    assert not said
    assert [one["source"] for one in waiting(outbox)] == [str(belt / "a.png")]
    assert caplog.text.count("results cannot be kept") == 1


def test_what_is_there_at_the_beginning_may_be_left_alone(line, belt, outbox):
    (belt / "a.png").write_bytes(PICTURE)
    watched = watching(line, belt, outbox, old=False)
    (belt / "b.png").write_bytes(PICTURE)
    assert settle(watched, 5) == 1
    with pytest.raises(MoleFlowError, match="expected a folder to watch"):
        watching(line, belt / "a.png", outbox)


def test_a_look_inspects_one_batch(belt, outbox):
    for i in range(20):
        (belt / f"{i:02d}.png").write_bytes(PICTURE)
    watched, _ = refusing(belt, outbox)
    assert [(watched.look(), watched.behind, watched.waiting) for _ in range(4)] == [
        (8, True, 12),
        (8, True, 4),
        (4, False, 0),
        (0, False, 0),
    ]


def test_what_appears_goes_before_what_was_there_at_the_beginning(belt, outbox):
    for i in range(20):
        (belt / f"{i:02d}.png").write_bytes(PICTURE)
        os.utime(belt / f"{i:02d}.png", (i, i))
    watched, told = refusing(belt, outbox)
    watched.look()
    (belt / "a.png").write_bytes(PICTURE)
    while watched.look():
        pass
    assert [name for batch in told for name in batch] == [
        *(f"{i:02d}.png" for i in range(8)),
        "a.png",
        *(f"{i:02d}.png" for i in range(8, 20)),
    ]


def test_what_cannot_be_decoded_yet_holds_nobody_up(belt, outbox):
    for i in range(10):
        (belt / f"{i}.png").write_bytes(PICTURE[:50])
    watched, told = refusing(belt, outbox, given_up=30)
    watched.look()
    (belt / "new.png").write_bytes(PICTURE)
    watched.look()
    assert told == [[f"{i}.png" for i in range(8)], ["new.png", "8.png", "9.png"]]
    assert not watched.behind
    watched.look()
    assert len(told) == 2  # no second attempt at once


def test_a_large_folder_is_asked_in_turn(belt, outbox, monkeypatch):
    """A look that asks 20,000 settled files whether they changed takes half a second of a processor."""
    monkeypatch.setattr("moleflow.station.watching.ASKED", 5)
    monkeypatch.setattr("moleflow.station.watching.BATCH", 50)
    for i in range(50):
        (belt / f"{i}.png").write_bytes(PICTURE)
    watched, told = refusing(belt, outbox)
    assert watched.look() == 50
    asked, state = [], watched._state
    monkeypatch.setattr(watched, "_state", lambda path, *rest: asked.append(path) or state(path, *rest))
    for _ in range(11):
        assert watched.look() == 0
    assert len(asked) == len(set(asked)) == 50
    (belt / "7.png").write_bytes(PICTURE + b"0")  # in place, as by a camera that uses a name again
    assert sum(watched.look() for _ in range(11)) == 1
    assert told[-1] == ["7.png"]
    (belt / "8.new").write_bytes(PICTURE)
    (belt / "8.new").replace(belt / "8.png")
    assert watched.look() == 1  # another file is seen at once


# Results


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that says no as often as it is told to."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        no = self.server.refusals.pop(0) if self.server.refusals else None
        if no is None:
            self.server.got.append(json.loads(body))
        self.send_response(no or 204)
        if no == 302:
            self.send_header("Location", "http://evil.example/")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hook():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.got, server.refusals = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url_of(server):
    return f"http://127.0.0.1:{server.server_port}/results"


def test_a_webhook_is_tried_until_it_takes_every_result_in_order(outbox, hook):
    hook.refusals = [500, 302, 429]
    for i in range(5):
        outbox.add(f"{i}.png", "state", {"source": i})
    courier = Courier(outbox, Webhook(url_of(hook)), pause=0.01)
    assert eventually(lambda: len(hook.got) == 5)
    assert [one["source"] for one in hook.got] == list(range(5))
    courier.close()
    assert outbox.first() is None


def test_what_was_not_taken_waits_across_restarts(tmp_path, hook):
    address = url_of(hook)
    hook.shutdown()
    hook.server_close()
    box = Outbox(tmp_path / "outbox.db")
    courier = Courier(box, Webhook(address), pause=0.01)
    box.add("a.png", "state", {"source": "a"})
    courier.wake()
    time.sleep(0.1)
    courier.close()
    box.close()
    box = Outbox(tmp_path / "outbox.db")
    got = []
    courier = Courier(box, Lines(got.append))
    assert eventually(lambda: got)
    courier.close()
    assert json.loads(got[0])["source"] == "a"
    box.close()


def test_what_is_no_http_is_tried_again(outbox):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            for said in (b"SSH-2.0-babble\r\n", b"", b"HTTP/1.1 204 No Content\r\n\r\n"):
                with server.accept()[0] as one:
                    asked.append(one.recv(65536))
                    one.sendall(said)

        threading.Thread(target=answer, daemon=True).start()
        outbox.add("a.png", "state", {"source": "a"})
        courier = Courier(outbox, Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/"), pause=0.01)
        assert eventually(lambda: outbox.first() is None, 5)
        courier.close()
    assert len(asked) == 3


def test_a_database_that_says_no_is_asked_again(outbox, monkeypatch):
    """A full disk, say: the result is sent again, for nobody noted that it was taken."""
    said, taken = [sqlite3.OperationalError("database or disk is full")] * 2, outbox.taken
    monkeypatch.setattr(outbox, "taken", lambda number: taken(number) if not said else refuse(said.pop()))
    got = []
    outbox.add("a.png", "state", {"source": "a"})
    courier = Courier(outbox, Lines(got.append), pause=0.01)
    assert eventually(lambda: outbox.first() is None, 5)
    assert len(got) == 3
    courier.close()


def refuse(error):
    raise error


class Held(Output):
    """Takes a result once `free` is set, and not before."""

    def __init__(self):
        self.free, self.asked, self.closed = threading.Event(), [], False

    def send(self, body):
        self.asked.append(body)
        self.free.wait()

    def close(self):
        self.closed = True


def test_closing_does_not_wait_for_who_takes_nothing(outbox, monkeypatch):
    monkeypatch.setattr("moleflow.station.outbox.PATIENCE", 0.1)
    for at_most in (math.inf, 0.05):
        outbox.add("a.png", "state", {"source": "a"})
        outbox.add("b.png", "state", {"source": "b"})
        output = Held()
        courier = Courier(outbox, output)
        assert eventually(lambda output=output: output.asked)
        started = time.monotonic()
        courier.close(at_most)
        assert time.monotonic() - started < 5
        assert (outbox.count(), output.closed) == (2, False)
        output.free.set()
        courier._thread.join(5)
        assert len(output.asked) == 1  # and goes on with nothing
        assert [one["source"] for one in waiting(outbox)] == ["b"]


def test_closing_waits_as_long_as_results_are_taken(outbox, monkeypatch):
    monkeypatch.setattr("moleflow.station.outbox.PATIENCE", 0.2)
    for i in range(10):
        outbox.add(f"{i}.png", "state", {"source": i})
    got = []
    courier = Courier(outbox, Lines(lambda line: got.append(line) or time.sleep(0.05)))
    courier.close()
    assert len(got) == 10


@contextmanager
def dripping(seconds):
    """A server that answers every attempt with a byte now and then, for so long; how many it was asked."""
    asked, stop = [], threading.Event()

    def drip(connection):
        with connection, suppress(OSError):
            connection.recv(65536)
            until = time.monotonic() + seconds
            connection.sendall(b"HTTP/1.1 204 No Content\r\nX-Slow: ")
            while time.monotonic() < until and not stop.wait(0.02):
                connection.sendall(b".")
            connection.sendall(b"\r\n\r\n")

    def serve():
        with suppress(OSError):
            while True:
                asked.append(server.accept()[0])
                threading.Thread(target=drip, args=(asked[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/"), asked
        stop.set()
        server.shutdown(socket.SHUT_RDWR)


def test_an_attempt_ends_also_where_the_answer_drips(monkeypatch):
    monkeypatch.setattr("moleflow.station.outputs.SECONDS", 0.1)
    with dripping(60) as (webhook, asked):
        for _ in range(4):
            with pytest.raises(OSError, match=r"the webhook did not answer within 0\.1 s"):
                webhook.send("{}")
        with pytest.raises(OSError, match="the webhook holds 4 attempts and answers none of them"):
            webhook.send("{}")
        assert len(asked) == 4


def test_an_attempt_that_was_given_up_counts_where_it_is_answered(monkeypatch):
    monkeypatch.setattr("moleflow.station.outputs.SECONDS", 0.1)
    with dripping(0.3) as (webhook, asked):
        with pytest.raises(OSError, match="did not answer"):
            webhook.send('{"id": 1}')
        assert eventually(lambda: not webhook._left[0].is_alive(), 5)
        webhook.send('{"id": 1}')
        assert len(asked) == 1
        with pytest.raises(OSError, match="did not answer"):
            webhook.send('{"id": 2}')
        assert len(asked) == 2


class Reason(str):
    """What a broker says, as its client hands it on."""

    __slots__ = ()

    @property
    def is_failure(self):
        return self != "Success"


class Client:
    """Of paho, with a broker that says what `answers` holds; what was asked of it is in `said`."""

    def __init__(self, version):
        self.said, self.answers = [], [ConnectionRefusedError("not there yet"), "Success"]

    def username_pw_set(self, name, password):
        self.said.append((name, password))

    def connect(self, host, port):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.said.append((host, port))
        self.answer = answer

    def loop_start(self):
        self.on_connect(self, None, None, Reason(self.answer), None)

    def loop_stop(self): ...
    def disconnect(self):
        self.said.append("bye")

    def publish(self, topic, body, qos):
        self.said.append((topic, json.loads(body)["source"], qos))
        return type("Told", (), {"wait_for_publish": lambda *_: None, "is_published": lambda _: True})()


@pytest.fixture
def broker(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("paho.mqtt.client"), "Client", Client)
    return Broker("mqtt://press:p%40ss@belt:1884/line/3")


def test_a_broker_is_published_to(outbox, broker):
    outbox.add("a.png", "state", {"source": "a"})
    courier, said = Courier(outbox, broker, pause=0.01), broker._client.said
    assert eventually(lambda: ("line/3", "a", 1) in said)
    courier.close()
    assert said == [("press", "p@ss"), ("belt", 1884), ("line/3", "a", 1), "bye"]


def test_nothing_is_published_while_the_broker_is_away(broker):
    """The client would keep every attempt, and send all of them later."""
    client = broker._client
    client.answers = ["Success"]
    broker.send('{"source": "a"}')
    client.on_disconnect(client, None, None, Reason("Keep alive timeout"), None)
    with pytest.raises(OSError, match="the broker is away: Keep alive timeout"):
        broker.send('{"source": "b"}')
    client.on_connect(client, None, None, Reason("Success"), None)
    broker.send('{"source": "b"}')
    assert client.said[2:] == [("line/3", "a", 1), ("line/3", "b", 1)]


def test_a_refusing_broker_is_told(broker):
    client = broker._client
    client.answers = [UnicodeError("label too long"), "Not authorized"]
    with pytest.raises(OSError, match="label too long"):
        broker.send("{}")
    for _ in range(2):
        with pytest.raises(OSError, match="Not authorized"):
            broker.send("{}")
        client.on_disconnect(client, None, None, Reason("Unspecified error"), None)
    assert client.said == [("press", "p@ss"), ("belt", 1884)]


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x/y", "file:///etc/passwd", "http://", "mqtt://host", "mqtt:///topic"),
        *("http://x:99999/", "http://x:plc/", "http://x:0/", "http://[::1/", "http://a:b@x/", "http://x/ü"),
        *(
            "mqtt://x:99999/t",
            "mqtt://x:plc/t",
            "mqtt://[::1/t",
            "mqtt://x/line/+",
            "mqtt://x/%23",
            "mqtt://x/a/#",
        ),
    ],
)
def test_another_address_is_refused(url):
    with pytest.raises(ConfigError, match="expected a"):
        (Broker if url.startswith("mqtt") else Webhook)(url)


def test_an_outbox_has_one_courier(tmp_path, outbox):
    with pytest.raises(MoleFlowError, match="cannot be used as an outbox: database is locked"):
        Outbox(tmp_path / "outbox.db")


def test_a_damaged_outbox_is_named(tmp_path):
    (tmp_path / "outbox.db").write_bytes(b"no database" * 500)
    with pytest.raises(MoleFlowError, match=r"outbox\.db: cannot be used"):
        Outbox(tmp_path / "outbox.db")


# The command


def test_results_go_to_a_new_file_where_the_old_one_was_moved_or_deleted(tmp_path):
    place, away = tmp_path / "results.jsonl", tmp_path / "results.1"
    with closing(Appended(place)) as output:
        output.send("one")
        place.rename(away)
        output.send("two")
        assert (away.read_text(), place.read_text()) == ("one\n", "two\n")
        place.unlink()
        output.send("three")
        output.send("four")
        assert place.read_text() == "three\nfour\n"
        shutil.rmtree(tmp_path)
        with pytest.raises(FileNotFoundError):  # and the result stays in the outbox
            output.send("five")


def test_a_line_is_not_glued_to_half_a_line(tmp_path):
    """As a full disk leaves it."""
    place = tmp_path / "results.jsonl"
    place.write_text('{"source": "a", "pred')
    with closing(Appended(place)) as output:
        output.send('{"source": "a"}')
        output.send('{"source": "b"}')
    assert place.read_text().splitlines() == ['{"source": "a", "pred', '{"source": "a"}', '{"source": "b"}']


def test_what_a_full_disk_refused_is_not_written_later_as_well(tmp_path):
    with closing(Appended(Path("/dev/full"))) as output:
        with pytest.raises(OSError, match="No space left"):
            output.send("one")
        place = output._path = tmp_path / "results.jsonl"
        output.send("two")
    assert place.read_text() == "two\n"


def test_a_pipe_gets_every_result_once(outbox, tmp_path):
    place = tmp_path / "pipe"
    os.mkfifo(place)
    for i in range(3):
        outbox.add(f"{i}.png", "state", {"source": i})
    got = []
    reader = threading.Thread(target=lambda: got.extend(place.read_text().splitlines()), daemon=True)
    courier = Courier(outbox, Appended(place), pause=0.01)  # nobody reads yet
    reader.start()
    assert eventually(lambda: outbox.first() is None, 5)
    courier.close()
    reader.join(5)
    assert [json.loads(line)["source"] for line in got] == [0, 1, 2]


@pytest.mark.parametrize(("number", "counts"), [(errno.ENOTSUP, False), (errno.EIO, True)])
def test_only_what_can_be_synced_must_be(tmp_path, monkeypatch, number, counts):
    monkeypatch.setattr(os, "fsync", lambda _: refuse(OSError(number, os.strerror(number))))
    expected = pytest.raises(OSError, match="Input/output") if counts else nullcontext()
    with closing(Appended(tmp_path / "results.jsonl")) as output, expected:
        output.send("one")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(MoleFlowError, match=r"none/results\.jsonl: cannot be written: No such file"):
        Appended(tmp_path / "none" / "results.jsonl")


def test_a_link_that_leads_nowhere_does_not_stop_the_others(line, belt, outbox, pictures):
    (belt / "loop.png").symlink_to("loop.png")
    (belt / "a.png").write_bytes(png(pictures("gear", 1, first=300)[0]))
    assert settle(watching(line, belt, outbox), 5) == 1
    (told,) = waiting(outbox)
    assert told["source"] == str(belt / "a.png")


def test_watch_writes_a_line_per_image(saved, belt, tmp_path, pictures):
    for i, picture in enumerate(pictures("gear", 3, first=300)):
        Image.fromarray(picture).save(belt / f"{i}.png")
    out = tmp_path / "out.jsonl"
    base = [
        "watch",
        str(saved),
        str(belt),
        "--device",
        "cpu",
        "--runtime",
        "torch",
        "--once",
        "--interval",
        "0.05",
    ]
    for count in (3, 0):  # the second time there is nothing new
        result = CliRunner().invoke(commands, [*base, "--json", str(out)])
        assert result.exit_code == 0, result.output
        told = [json.loads(line) for line in out.read_text().splitlines()]
        bad = sum(one["status"] == "defective" for one in told) if count else 0
        said = f"{count} inspected, {bad} defective, 0 unreadable, all handed on to {out}\n"
        assert result.stderr.endswith(said)
        assert sorted(one["source"] for one in told) == [str(belt / f"{i}.png") for i in range(3)]
        assert {one["task"] for one in told} == {"gear"}
    assert len(list((tmp_path / "line.station").glob("outbox-*.db"))) == 1
    assert CliRunner().invoke(commands, base).exit_code == 2
    both = [*base, "--json", "-", "--webhook", "http://x/"]
    assert CliRunner().invoke(commands, both).exit_code == 2


def test_an_export_with_a_damaged_product_is_watched(saved, belt, tmp_path, probe, monkeypatch):
    export_line(saved, tmp_path / "out", images=probe[:1])
    (tmp_path / "out" / "products" / "gear.safetensors").write_bytes(b"")
    for name, picture in zip(("gear", "wood", "cap"), probe, strict=False):
        Image.fromarray(picture).save(belt / f"{name}.png")
    monkeypatch.setitem(Watching.__init__.__kwdefaults__, "given_up", 0.3)
    lines = tmp_path / "out.jsonl"
    command = ["watch", str(tmp_path / "out"), str(belt), "--json", str(lines), "--once", "--still", "0"]
    result = CliRunner().invoke(commands, [*command, "--interval", "0.05"])
    assert result.exit_code == 0, result.output
    assert "gear is left out, its images are judged by none: " in result.stderr
    told = {Path(one["source"]).stem: one for one in map(json.loads, lines.read_text().splitlines())}
    assert [told["wood"]["task"], told["cap"]["task"]] == ["wood", "bottle_cap"]
    assert told["gear"]["error"].startswith(f"{belt / 'gear.png'}: 'gear' is damaged")
    given = CliRunner().invoke(commands, [*command, "--task", "gear"])
    assert given.exit_code == 1
    assert "'gear' is damaged and cannot be inspected" in given.stderr


def test_a_line_whose_product_is_damaged_says_where_its_images_go(saved, belt, tmp_path):
    (saved / "tasks" / "gear" / "0001" / "expert.safetensors").write_bytes(b"")
    command = ["watch", str(saved), str(belt), "--json", str(tmp_path / "out.jsonl"), "--once"]
    result = CliRunner().invoke(commands, [*command, "--device", "cpu", "--runtime", "torch"])
    assert result.exit_code == 0, result.output
    assert "gear is left out, its images are taken for others: " in result.stderr


def test_one_outbox_whichever_way_folder_and_file_are_named(belt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(belt)
    hook = "http://127.0.0.1/"

    def place(folder, file=None, hook=None):
        return _outbox_place(tmp_path, Path(folder), file, hook, None)

    one = place(belt, str(tmp_path / "out.jsonl"))
    assert place("belt", "out.jsonl") == place("link", "./out.jsonl") == one
    assert len({one, place(belt, "-"), place(belt, "other.jsonl"), place(belt, hook=hook)}) == 4
    begun = tmp_path / _outbox_name(str(belt), "out.jsonl", None, None)
    begun.touch()  # under the names as they were typed
    assert place("belt", "out.jsonl") == begun


def test_the_command_says_how_long_a_file_must_be_still(saved, belt, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(Watching, "__init__", lambda *_, **options: given.append(options["still"]) or 1 / 0)
    command = ["watch", str(saved), str(belt), "--json", str(tmp_path / "out.jsonl"), "--device", "cpu"]
    for more in ([], ["--still", "0"], ["--still", "2.5"]):
        CliRunner().invoke(commands, [*command, "--runtime", "torch", *more])
    assert given == [STILL, 0, 2.5]


def test_what_a_belt_shows_is_told_to_moleflow_drift_where_that_is_asked_for(saved, belt, tmp_path, pictures):
    for i, picture in enumerate(pictures("gear", 3, first=300)):
        Image.fromarray(picture).save(belt / f"{i}.png")
    options = ["--device", "cpu", "--runtime", "torch", "--interval", "0.05", "--once", "--still", "0"]
    watch = ["watch", str(saved), str(belt), "--json", str(tmp_path / "out.jsonl"), *options]

    def total():
        told = CliRunner().invoke(commands, ["drift", str(saved), "gear", "--json", "-"])
        return json.loads(told.stdout)["total"]

    assert CliRunner().invoke(commands, watch).exit_code == 0
    assert total() == 0
    again = [*watch, "--monitor", "--outbox", str(tmp_path / "again.db")]
    assert CliRunner().invoke(commands, again).exit_code == 0
    assert total() == 3
    assert CliRunner().invoke(commands, again).exit_code == 0  # nothing new
    assert total() == 3


def test_only_results_are_counted(line, belt, outbox):
    counted = []
    (belt / "a.png").write_bytes(PICTURE)
    (belt / "half.png").write_bytes(PICTURE[:50])
    assert settle(watching(line, belt, outbox, counted=counted.append), 5) == 2
    assert [one.source for one in counted] == [belt / "a.png"]


def test_a_watch_that_cannot_be_told_holds_nobody_up(caplog):
    """Of a product that was removed, say; and while another process holds the line."""
    seen, free = [], threading.Event()

    def observe(predictions):
        free.wait()
        if predictions[0].task == "gone":
            raise LineError("expected 'gone' in version 0001")
        seen.append([one.source for one in predictions])

    monitoring = Monitoring(every=0.01)
    for source, task in enumerate(("gone", "a", "b", "gone")):
        monitoring.add(observe, SimpleNamespace(source=source, task=task))
    free.set()
    assert eventually(lambda: sorted(seen) == [[1], [2]], 5)
    monitoring.add(observe, SimpleNamespace(source=4, task="gone"))
    monitoring.add(observe, SimpleNamespace(source=5, task="a"))
    monitoring.close()
    assert seen[-1] == [5]
    assert caplog.text.count("moleflow drift is not told of") == 1


def test_what_is_taught_meanwhile_is_inspected_from_then_on(saved, belt, tmp_path, pictures, monkeypatch):
    ending, out = threading.Event(), tmp_path / "out.jsonl"
    monkeypatch.setattr("moleflow.cli.station._told_to_end", lambda: ending)
    options = ["--json", str(out), "--device", "cpu", "--runtime", "torch", "--interval", "0.05"]

    def told():
        return [json.loads(line)["task"] for line in out.read_text().splitlines()] if out.exists() else []

    def lay(product, number):
        Image.fromarray(pictures(product, 1, first=300)[0]).save(belt / f"{number}.png")
        assert eventually(lambda: len(told()) == number)
        return told()[-1]

    watch = threading.Thread(
        target=CliRunner().invoke, args=(commands, ["watch", str(saved), str(belt), *options])
    )
    watch.start()
    try:
        assert lay("circuit_board", 1) != "board"
        line = Detector.load(saved, device="cpu")
        line.add_task("board", pictures("circuit_board", 6))
        line.save()
        assert lay("circuit_board", 2) == "board"
    finally:
        ending.set()
        watch.join()


def test_a_backlog_holds_up_neither_the_end_nor_a_changed_line(saved, belt, tmp_path, monkeypatch):
    for i in range(6):
        (belt / f"{i}.png").write_bytes(PICTURE)
    done, lines = [], []
    look, look_at_line = Watching.look, CurrentLine.look

    class Ending:
        def wait(self, seconds):
            return any(done)

        def is_set(self):
            return any(done)

    monkeypatch.setattr("moleflow.cli.station._told_to_end", Ending)
    monkeypatch.setattr("moleflow.station.watching.BATCH", 2)
    monkeypatch.setattr(Watching, "look", lambda self: done.append(look(self)) or done[-1])
    monkeypatch.setattr(CurrentLine, "look", lambda self: lines.append(1) or look_at_line(self))
    options = ["--json", str(tmp_path / "out.jsonl"), "--device", "cpu", "--runtime", "torch"]
    result = CliRunner().invoke(commands, ["watch", str(saved), str(belt), *options])
    assert result.exit_code == 0, result.output
    assert sum(done) == 2
    assert len(lines) == len(done)


def test_watching_once_says_what_was_not_taken(saved, belt, pictures, monkeypatch):
    Image.fromarray(pictures("gear", 1, first=300)[0]).save(belt / "0.png")
    nobody = "http://127.0.0.1:9/"  # the port of "discard", which no system listens at any more
    options = ["--device", "cpu", "--runtime", "torch", "--interval", "0.05", "--once"]
    (belt / "broken.png").write_text("no picture")
    monkeypatch.setitem(Watching.__init__.__kwdefaults__, "given_up", 0.3)
    for counts in ("1 inspected, {} defective, 1 unreadable\n", "0 inspected, 0 defective, 0 unreadable\n"):
        result = CliRunner().invoke(commands, ["watch", str(saved), str(belt), "--webhook", nobody, *options])
        assert result.exit_code == 3, result.output
        assert "results not taken yet: 2; the same command sends them" in result.output
        assert any(counts.format(defective) in result.stderr for defective in (0, 1))


@pytest.mark.slow
def test_a_killed_watch_loses_nothing(saved, belt, tmp_path, pictures):
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "moleflow", "watch", str(saved), str(belt), "--json", str(out)]
    shown = pictures("gear", 4, first=300)
    for attempt in range(4):
        process = subprocess.Popen([*command, "--device", "cpu", "--runtime", "torch", "--interval", "0.05"])
        for i in range(6):
            Image.fromarray(shown[i % 4]).save(belt / f"{attempt}-{i}.png")
        time.sleep(4 + attempt)
        process.kill()
        process.wait()
    subprocess.run([*command, "--device", "cpu", "--runtime", "torch", "--once"], check=True)
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert {one["source"] for one in told} == {str(belt / f"{a}-{i}.png") for a in range(4) for i in range(6)}
    assert len({one["id"] for one in told}) == 24  # what arrived twice says that it is the same
