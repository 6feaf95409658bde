"""Who may ask a station for what, and what every answer carries."""

import contextlib
import re
import socket
import sys
import threading
import time

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from moleflow.cli import app as commands
from moleflow.errors import ConfigError
from moleflow.station.web import Access, create_app, new_token, read_tokens
from moleflow.station.web.access import TRIES, Brake, Denied, is_loopback
from station import MARKED, code_of, eventually, files, listening, served, settings_of

TOKENS = {role: new_token(role) for role in ("inspect", "teach", "admin")}


def bearer(role):
    return {"Authorization": f"Bearer {TOKENS[role].partition(':')[2]}"}


@pytest.fixture(scope="module")
def place(_saved_line, tmp_path_factory):
    import shutil

    return shutil.copytree(_saved_line, tmp_path_factory.mktemp("access") / "line")


@pytest.fixture(scope="module")
def shared(place):
    with served(place) as client:
        yield client


@pytest.fixture
def closed(place, monkeypatch):
    """A station that needs tokens, and answers bad ones at once."""
    monkeypatch.setattr("moleflow.station.web.parts.SLOWED", 0.0)
    settings = settings_of(place, data=place.with_name("closed"))
    app = create_app(settings, Access(read_tokens(TOKENS.values())))
    with TestClient(app, base_url="http://belt.example") as client:
        yield client


# Open to its own machine


def test_an_open_station_answers_to_names_of_its_machine_alone(shared):
    for host in ("localhost", "127.0.0.1:8601", "[::1]:8601", "LOCALHOST:1"):
        assert shared.get("/api/v1/me", headers={"Host": host}).json()["open"]
    for host in ("belt.example", "127.0.0.1.evil.example", "evil.example:8601", "", "localhost.evil.example"):
        assert code_of(shared.get("/api/v1/me", headers={"Host": host}), 403) == "foreign_host"


def test_what_changes_anything_needs_the_header(shared, probe):
    for value in (None, "0", "yes"):
        headers = {"X-Moleflow": value or "none"}
        answer = shared.post("/api/v1/inspections", files=files(probe[:1]), headers=headers)
        assert code_of(answer, 403) == "missing_header"
        assert code_of(shared.delete("/api/v1/products/gear", headers=headers), 403) == "missing_header"
    foreign = {"Origin": "http://evil.example"}
    assert code_of(shared.delete("/api/v1/products/gear", headers=foreign), 403) == "foreign_origin"
    own = {"Origin": "http://localhost"}
    assert shared.post("/api/v1/inspections", files=files(probe[:1]), headers=own).status_code == 200
    assert "access-control-allow-origin" not in shared.get("/api/v1/me", headers=foreign).headers


# With tokens


def test_a_token_opens_what_its_role_may(closed, probe):
    assert code_of(closed.get("/api/v1/line"), 401) == "no_token"
    assert closed.get("/api/v1/line").headers["WWW-Authenticate"] == "Bearer"
    for role, value in TOKENS.items():
        assert closed.get("/api/v1/me", headers=bearer(role)).json() | {"version": ""} == {
            "role": role,
            "open": False,
            "version": "",
        }
        assert value not in closed.get("/api/v1/me", headers=bearer(role)).text
    assert (
        closed.post("/api/v1/inspections", files=files(probe[:1]), headers=bearer("inspect")).status_code
        == 200
    )
    threshold = {"threshold": 5.0}
    path = "/api/v1/products/gear/threshold"
    assert code_of(closed.put(path, json=threshold, headers=bearer("inspect")), 403) == "forbidden"
    assert closed.put(path, json=threshold, headers=bearer("teach")).status_code == 200
    assert code_of(closed.delete("/api/v1/products/wood", headers=bearer("teach")), 403) == "forbidden"
    assert code_of(closed.get("/api/v1/audit", headers=bearer("teach")), 403) == "forbidden"
    told = closed.get("/api/v1/audit", headers=bearer("admin")).json()["items"][0]
    assert (told["role"], told["action"]) == ("teach", "threshold")
    assert re.fullmatch("[0-9a-f]{8}", told["fingerprint"])
    assert told["fingerprint"] not in TOKENS["teach"]


PUBLIC = {"/health/live", "/health/ready"}


def test_every_route_needs_a_token(closed):
    document = closed.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            address = re.sub(r"\{[a-z]+\}", "1", path)
            answer = closed.request(method, address)
            assert (answer.status_code == 401) == (path not in PUBLIC), (method, path)


def test_many_bad_tokens_are_braked_also_before_a_good_one(closed):
    for i in range(TRIES):
        wrong = {"Authorization": f"Bearer guess-{i}"}
        assert code_of(closed.get("/api/v1/line", headers=wrong), 401) == "bad_token"
    answer = closed.get("/api/v1/line", headers=bearer("admin"))
    assert code_of(answer, 429) == "too_many_tries"
    assert answer.headers["Retry-After"]
    assert closed.get("/health/live").status_code == 200


def test_the_brake_loosens_and_forgets(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("moleflow.station.web.access.time.monotonic", lambda: now[0])
    monkeypatch.setattr("moleflow.station.web.access.ADDRESSES", 3)
    brake = Brake()
    for _ in range(TRIES):
        brake.check("a")
        brake.failed("a")
    with pytest.raises(Denied):
        brake.check("a")
    brake.check("b")
    now[0] += 61
    brake.check("a")
    for address in "bcdef":
        brake.failed(address)
    assert len(brake._failures) == 3


def test_what_is_no_token_is_no_token(closed):
    for value in ("", "Bearer", "Bearer ", "Basic YTpi", "Bearer \udcff", "bearer x y"):
        headers = {"Authorization": value.encode("utf-8", "surrogateescape")}
        assert closed.get("/api/v1/line", headers=headers).status_code == 401


def test_tokens_are_read_and_never_said():
    lines = ["# people", "", TOKENS["teach"], f"  {TOKENS['admin']}  "]
    assert [token.role for token in read_tokens(lines)] == ["teach", "admin"]
    for wrong in ("boss:" + "x" * 40, "x" * 40, "admin:" + "s" * 19):
        with pytest.raises(ConfigError, match="line 1 of the tokens") as error:
            read_tokens([wrong])
        assert "xxx" not in str(error.value)
        assert "sss" not in str(error.value)
    assert "digest" not in TOKENS["admin"]
    with pytest.raises(ConfigError, match="inspect, teach, admin"):
        new_token("boss")
    assert new_token("teach") != new_token("teach")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("belt.example", False),
        ("", False),
    ],
)
def test_only_loopback_is_open(host, loopback, tmp_path, monkeypatch):
    assert is_loopback(host) is loopback
    if not loopback:
        monkeypatch.delenv("MOLEFLOW_TOKENS", raising=False)
        result = CliRunner().invoke(commands, ["serve", str(tmp_path / "line"), "--host", host])
        assert result.exit_code == 1
        assert "expected tokens" in result.stderr
        assert not list(tmp_path.iterdir())


def test_a_taken_port_is_refused_before_anything_is_made(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        result = CliRunner().invoke(commands, ["serve", str(tmp_path / "line"), "--port", port])
    assert result.exit_code == 1
    assert f"port {port} of 127.0.0.1 is taken" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_new_token_is_printed_alone():
    result = CliRunner().invoke(commands, ["serve", "--new-token", "teach"])
    assert [token.role for token in read_tokens(result.stdout.splitlines())] == ["teach"]
    assert CliRunner().invoke(commands, ["serve", "--new-token", "boss"]).exit_code == 1
    assert CliRunner().invoke(commands, ["serve"]).exit_code == 2


# Every answer


def test_every_answer_carries_what_keeps_a_browser_careful(shared):
    for path in ("/", "/page/nothing.js", "/api/v1/me", "/nowhere", "/metrics"):
        headers = shared.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "set-cookie" not in headers
    assert "connect-src 'self'" in shared.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in shared.get("/api/v1/me").headers["Content-Security-Policy"]


def test_errors_have_one_body(shared, monkeypatch):
    assert code_of(shared.get("/nowhere"), 404) == "not_found"
    assert code_of(shared.put("/api/v1/me"), 405) == "method_not_allowed"
    assert code_of(shared.get("/docs"), 404) == "not_found"
    assert code_of(shared.get("/api/v1/inspections/x"), 422) == "unusable"

    def broken():
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(shared.station.products, "briefs", broken)
    answer = shared.get("/api/v1/line")
    assert code_of(answer, 500) == "internal"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "name", ["..%2f..%2fapi.py", "%2e%2e", ".hidden.js", "app.js%00.html", "__init__.py"]
)
def test_the_page_serves_its_own_files_alone(shared, name):
    assert code_of(shared.get(f"/page/{name}"), 404) == "not_found"


def test_nothing_of_http_is_below_the_web():
    from pathlib import Path

    import moleflow

    root = Path(moleflow.__file__).parent
    web = root / "station" / "web"
    known = ("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart", "httpx")
    for file in root.rglob("*.py"):
        if not file.is_relative_to(web):
            found = re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE)
            assert not set(found) & set(known), file
    for file in (root / "station").rglob("*.py"):
        if not file.is_relative_to(web):
            assert not re.search(r"^\s*from \.+web", file.read_text(), re.MULTILINE), file


# The server itself


def test_who_sends_slowly_is_sent_away(place, monkeypatch):
    monkeypatch.setattr("moleflow.station.web.server.HEADER_SECONDS", 0.3)
    monkeypatch.setattr("moleflow.station.web.uploads.SILENCE", 0.3)
    app = create_app(settings_of(place, data=place.with_name("slow")), Access())
    with listening(app) as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            began = time.monotonic()
            with contextlib.suppress(OSError):
                for byte in b"GET / HTTP/1.1\r\n" * 4:  # a byte now and then moves no deadline
                    slow.sendall(bytes([byte]))
                    time.sleep(0.02)
            with contextlib.suppress(OSError):
                assert slow.recv(100) == b""
            assert time.monotonic() - began < 5
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            head = (
                "POST /api/v1/inspections HTTP/1.1\r\nHost: localhost\r\nX-Moleflow: 1\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 999\r\n\r\n--x"
            )
            slow.sendall(head.encode())
            assert b"408" in slow.recv(100)


def crowd(held, port, count, *, sends=b"", calls_from="127.0.0.1"):
    """So many connections from an address, each of which sent this and no more."""
    made = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), 10, source_address=(calls_from, 0))
        made.append(held.enter_context(one))
        with contextlib.suppress(OSError):  # it had to go already
            one.sendall(sends)
    return made


HALF = b"PUT / HTTP/1.1\r\nHost: localhost\r\nX-Moleflow: 1\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the machine has one address of its own")
@pytest.mark.parametrize("sends", [b"", b"GET / HT", HALF])
def test_who_only_calls_shuts_nobody_out(place, monkeypatch, sends):
    import httpx

    monkeypatch.setattr("moleflow.station.web.server.CONNECTIONS", 60)
    monkeypatch.setattr("moleflow.station.web.server.CROWD", 16)
    app = create_app(settings_of(place, data=place.with_name("crowd")), Access())
    with (
        listening(app) as (port, server),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
        contextlib.ExitStack() as held,
    ):
        assert client.get("/api/v1/me").status_code == 200
        made = []
        for _ in range(4):
            made += crowd(held, port, 20, sends=sends, calls_from="127.0.0.2")
            # Who calls now comes behind all of them; the client has a connection from before.
            assert httpx.get(f"http://127.0.0.1:{port}/api/v1/me").status_code == 200
            assert client.get("/api/v1/me").status_code == 200
            assert eventually(lambda: len(connections_of(server)) <= 16, seconds=8)
        with contextlib.suppress(ConnectionResetError):
            assert made[0].recv(100) == b""  # it had to go


def connections_of(server):
    return list(server.server_state.connections)


def asks(path, count=1):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * count


def test_who_takes_no_answer_is_sent_away(place, monkeypatch):
    monkeypatch.setattr("moleflow.station.web.server.TAKING_SECONDS", 0.3)
    app = create_app(settings_of(place, data=place.with_name("untaken")), Access())
    with listening(app) as (port, server), socket.create_connection(("127.0.0.1", port), timeout=10) as deaf:
        deaf.sendall(asks("/page/app.css", 500))  # 15 MB of answers
        assert eventually(lambda: any(one.flow.write_paused for one in connections_of(server)))
        assert eventually(lambda: not connections_of(server))


@pytest.mark.long
def test_who_leaves_the_rest_of_an_answer_is_sent_away(place, monkeypatch):
    """Also where it is too little for writing to pause; closing the connection would wait for it."""
    monkeypatch.setattr("moleflow.station.web.server.TAKING_SECONDS", 0.3)
    app = create_app(settings_of(place, data=place.with_name("rest")), Access())
    with listening(app) as (port, server), socket.create_connection(("127.0.0.1", port), timeout=10) as deaf:
        deaf.sendall(asks("/health/live"))
        assert deaf.recv(100)
        (one,) = connections_of(server)
        while not one.transport.get_write_buffer_size():
            done = server.server_state.total_requests
            deaf.sendall(asks("/page/app.css"))
            assert eventually(lambda: server.server_state.total_requests > done)  # noqa: B023
        assert not one.flow.write_paused
        assert eventually(lambda: not connections_of(server))


@pytest.mark.long
def test_who_takes_an_answer_slowly_gets_all_of_it(place, monkeypatch):
    monkeypatch.setattr("moleflow.station.web.server.TAKING_SECONDS", 0.3)
    app = create_app(settings_of(place, data=place.with_name("slowly")), Access())
    with listening(app) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
        count, got = 400, 0
        slow.sendall(asks("/page/app.css", count))
        began = time.monotonic()
        while got < count * 30_000:
            piece = slow.recv(1 << 18)
            assert piece, got
            got += len(piece)
            time.sleep(0.04)
        assert time.monotonic() - began > 3 * 0.3


def test_the_server_finishes_what_is_in_flight(place, probe):
    import httpx

    app = create_app(settings_of(place, data=place.with_name("ending"), wait=0.5), Access())
    with listening(app) as (port, server):
        answers = []

        def ask():
            url = f"http://127.0.0.1:{port}/api/v1/inspections"
            answers.append(httpx.post(url, files=files(probe[:1]), headers=MARKED, timeout=30))

        asking = threading.Thread(target=ask)
        asking.start()
        station = app.state.service.station
        while not station.inspecting.waiting and not answers and asking.is_alive():
            time.sleep(0.001)
            if station.inspecting._waiting.unfinished_tasks:
                break
        server.should_exit = True
        asking.join(30)
    assert [answer.status_code for answer in answers] == [200]
    assert answers[0].json()["results"][0]["recorded"]


def test_a_misspelled_filter_finds_nothing_at_all(shared):
    answer = shared.get("/api/v1/inspections.csv?prodcut=gear")
    assert code_of(answer, 422) == "unknown_parameter"
    assert "product" in answer.json()["error"]["message"]
    assert code_of(shared.get("/api/v1/line?x=1"), 422) == "unknown_parameter"
    assert shared.get("/?lang=ko").status_code == shared.get("/").status_code


def test_the_page_is_served_as_what_it_is(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("moleflow.station.web.plain.PAGE", tmp_path)
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / "secret.py").write_text("1")
    (tmp_path / "link.js").symlink_to(tmp_path / "secret.py")
    assert shared.get("/").headers["content-type"] == "text/html; charset=utf-8"
    script = shared.get("/page/app.js")
    assert (script.text, script.headers["content-type"]) == ("1", "text/javascript; charset=utf-8")
    assert script.headers["Cache-Control"] == "no-cache"
    assert shared.get("/page/app.js", headers={"If-None-Match": script.headers["ETag"]}).status_code in (
        200,
        304,
    )
    for name in ("secret.py", "link.js", "nothing.js"):
        assert code_of(shared.get(f"/page/{name}"), 404) == "not_found"


def test_no_token_is_in_the_log(closed, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    secret = TOKENS["admin"].partition(":")[2]

    def broken():
        raise RuntimeError("broken")

    monkeypatch.setattr(closed.app.state.service.station.products, "briefs", broken)
    with contextlib.suppress(RuntimeError):
        closed.get("/api/v1/line", headers=bearer("admin"))
    closed.get("/api/v1/line", headers={"Authorization": "Bearer " + "guess" * 9})
    assert "broken" in caplog.text
    assert secret not in caplog.text
    assert "guess" not in caplog.text
