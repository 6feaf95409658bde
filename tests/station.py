"""What the tests of the station share: an application over a small line, pictures as files' bytes."""

import hashlib
import io
import os
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import create_engine, make_url, text

from moleflow.station import Limits, Settings
from moleflow.station.web import app as application
from moleflow.station.web import create_app
from moleflow.station.web.access import Access
from moleflow.station.web.parts import known_parameters
from moleflow.station.web.server import config_of

_told = []


def _told_once(app):
    """Parameters by address, for which every application would write the same document anew."""
    if not _told:
        _told.append(known_parameters(app))
    return _told[0]


application.known_parameters = _told_once

MARKED = {"X-Moleflow": "1"}
SERVER = os.environ.get("MOLEFLOW_POSTGRESQL")  # URL of one that may make databases; SQLite without


def settings_of(line, **changes):
    data = changes.get("data", line.with_name(line.name + ".station"))
    options = {
        "line": line,
        "data": data,
        "database": _database_for(data) if SERVER else None,
        "least_free": 0,
        "threads": 1,
        "device": "cpu",
        "runtime": "torch",
        "poll": 0.05,
        "wait": 0.002,
    }
    return Settings(**options | changes)


def _database_for(data):
    """One of a station's own on that server, as the file in its folder is."""
    name = "test_" + hashlib.sha256(str(data).encode()).hexdigest()[:16]
    server = create_engine(SERVER, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        there = text("select 1 from pg_database where datname = :name")
        if connection.scalar(there, {"name": name}) is None:
            connection.execute(text(f"create database {name}"))
    server.dispose()
    return make_url(SERVER).set(database=name).render_as_string(hide_password=False)


@contextmanager
def served(line, access=None, **changes):
    """A client of a station over this line; it is closed at the end."""
    app = create_app(settings_of(line, **changes), access or Access())
    with TestClient(
        app, base_url="http://localhost", headers=MARKED, raise_server_exceptions=False
    ) as client:
        client.station = app.state.service.station
        yield client


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(out, "PNG")
    return out.getvalue()


def files(pictures, field="images"):
    return [(field, (f"{i}.png", png(picture), "image/png")) for i, picture in enumerate(pictures)]


def inspect(client, pictures, **data):
    answer = client.post("/api/v1/inspections", files=files(pictures), data=data)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def teach(client, kind, name, pictures, **data):
    answer = client.post("/api/v1/jobs", files=files(pictures), data={"kind": kind, "name": name} | data)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def waits_for(client, job, *states, seconds=300):
    """The lesson once it is in one of these states; a state that it cannot leave by itself ends the wait."""
    until = time.monotonic() + seconds
    while True:
        told = client.get(f"/api/v1/jobs/{job}").json()
        if told["state"] in states:
            return told
        assert told["state"] in ("queued", "learning"), told
        assert time.monotonic() < until, told
        time.sleep(0.05)


def code_of(answer, status):
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    return body["error"]["code"]


SMALL = Limits(images=4, bytes=400_000, pixels=200_000, lesson_images=20, lesson_bytes=2_000_000)


def eventually(ask, seconds=20):
    """What `ask` says at last that is true; its last word where that takes too long."""
    until = time.monotonic() + seconds
    while not (said := ask()) and time.monotonic() < until:
        time.sleep(0.02)
    return said


@contextmanager
def listening(app):
    """The real server in a thread; its port."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    server = uvicorn.Server(config_of(app, "127.0.0.1", port))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port, server
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
