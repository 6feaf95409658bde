"""What a station does when something is amiss: a full disk, a read-only line, an old database, a backup."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from safetensors.torch import load_file, save_file
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable
from typer.testing import CliRunner

from moleflow import Detector
from moleflow.cli import app as commands
from moleflow.errors import ConfigError, LineError, MoleFlowError
from moleflow.station import Limits, Station, backup, lesson, teaching
from moleflow.station.history import Database, Filters, models
from moleflow.station.history import clock as clocks
from moleflow.station.history import database as databases
from moleflow.station.history import inspections as histories
from moleflow.station.history.clock import DAY, Clock, Moment
from moleflow.station.history.inspections import Inspections
from moleflow.station.history.jobs import Jobs
from moleflow.station.history.retention import Retention
from moleflow.station.history.table import guarded
from moleflow.station.problems import Unready
from moleflow.store import LineStore
from moleflow.store import files as stored
from saying import write_index
from station import SERVER, code_of, eventually, files, inspect, served, settings_of, teach, waits_for

DEPLOY = Path(__file__).parents[1] / "deploy"
of_sqlite = pytest.mark.skipif(SERVER is not None, reason="it is about the file of SQLite")


# The database


def test_the_migrations_make_the_tables_of_the_models(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/a b/station.db")
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, models.Base.metadata) == []
        pragmas = {
            name: connection.exec_driver_sql(f"pragma {name}").scalar()
            for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
    database.close()
    Database(f"sqlite:///{tmp_path}/a b/station.db").close()  # a second time there is nothing to do


def test_another_database_is_asked_in_its_own_words():
    """No server is here: that the tables and the questions can be said to PostgreSQL is what is shown."""
    dialect = postgresql.dialect()
    for table in models.Base.metadata.sorted_tables:
        assert "AUTOINCREMENT" not in str(CreateTable(table).compile(dialect=dialect))
    for clause in Filters("a", "good", "any", 1.0, 2.0, "0" * 64, "te%xt", "0001").clauses():
        assert str(clause.compile(dialect=dialect))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in a file"),
        ("sqlite:///:memory:", "in a file"),
        ("nonsense", "expected a database URL"),
        ("oracle+nothing://x", "expected a database URL"),
        ("postgresql+psycopg://x/y", "psycopg, which is not installed"),
    ],
)
def test_a_database_that_cannot_be_is_named(url, message):
    if "psycopg" in url and find_spec("psycopg"):
        pytest.skip("its driver is installed")
    with pytest.raises(ConfigError, match=message):
        Database(url)


def test_a_damaged_database_is_named(tmp_path):
    (tmp_path / "station.db").write_bytes(b"not a database at all, but long enough to look at" * 99)
    with pytest.raises(Unready, match="the database cannot be opened"):
        Database(f"sqlite:///{tmp_path}/station.db")


def row(moment, **values):
    told = {
        "time": moment,
        "source": "a.png",
        "sha256": "0" * 64,
        "task": "gear",
        "version": "0001",
        "status": "good",
        "known": True,
        "reason": "",
        "height": 1,
        "width": 1,
        "certainty": None,
        "regions": [],
        "facts": None,
    }
    numbers = (
        "pred_score",
        "p_value",
        "threshold",
        "place_score",
        "whole_score",
        "map_threshold",
        "latency_ms",
    )
    return told | dict.fromkeys(numbers, 0.0) | values


def picture(size=1000):
    return {"size": size, "map_height": 1, "map_width": 1, "map": b"\0\0", "jpeg": b"x" * size}


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/station.db")
    yield database
    database.close()


def at(now):
    """A moment at which the clock is right."""
    return Moment(now, now + DAY)


def test_retention_takes_the_old_and_then_the_large(database):
    inspections, now = Inspections(database), time.time()
    old = inspections.add([row(now - 10 * 86400)] * 3, [picture()] * 3)
    new = inspections.add([row(now)] * 250, [picture()] * 250)
    inspections.mark(new[0], "missed")
    assert Retention(database, keep_days=5, keep_bytes=10_000).run(at(now)) == (3, 240)
    assert not set(old) & {one.id for one in inspections.all(Filters())}
    assert inspections.picture(new[0])  # a marked one goes last
    assert inspections.picture(new[-1])
    with pytest.raises(MoleFlowError, match="not kept"):
        inspections.picture(new[1])
    assert inspections.get(new[1])  # what was said of it stays
    assert Retention(database, keep_days=None, keep_bytes=10_000).run(at(now)) == (0, 0)
    assert Retention(database, keep_days=None, keep_bytes=0).run(at(now)) == (0, 10)


class Times:
    """A system's clock, which may be wrong, and time that passes."""

    def __init__(self, patch, now=1.8e9):
        self.now, self.passed = now, 0.0
        told = SimpleNamespace(time=lambda: self.now, monotonic=lambda: self.passed)
        patch.setattr(clocks, "time", told)

    def run(self, days, clock, retention):
        """So long, with a look every six hours; how many inspections went."""
        gone = 0
        for _ in range(round(4 * days)):
            self.now, self.passed = self.now + DAY / 4, self.passed + DAY / 4
            gone += retention.run(clock.now())[0]
        return gone


@pytest.fixture
def times(monkeypatch):
    return Times(monkeypatch)


def yearly(database, times, count=300):
    """A history of nearly a year, its first inspection marked, with its clock and retention."""
    inspections = Inspections(database)
    moments = [times.now - 360 * DAY * (1 - i / count) for i in range(count)]
    numbers = inspections.add([row(moment) for moment in moments], [picture(10)] * count)
    inspections.mark(numbers[0], "missed")
    return inspections, Clock(database), Retention(database, keep_days=365, keep_bytes=10**9)


def test_a_clock_that_was_years_behind_for_a_shift_costs_nothing(database, times):
    inspections, clock, retention = yearly(database, times)
    right, times.now = times.now, times.now - 5 * 365 * DAY
    shift = inspections.add([row(times.now + i) for i in range(100)], [picture(10)] * 100)
    inspections.mark(shift[7], "missed")
    assert times.run(0.5, clock, retention) == 0
    times.now = right + 0.5 * DAY
    assert times.run(4, Clock(database), retention) == 0
    assert inspections.get(shift[7]).mark_kind == "missed"
    assert times.run(3, clock, retention) == 3  # whose year is over
    times.now += 360 * DAY
    inspections.add([row(times.now)], [None])
    assert times.run(16, clock, retention) == 397  # behind those that are old, that shift is


def test_a_clock_that_is_years_ahead_for_a_shift_takes_a_few_days(database, times, caplog):
    inspections, clock, retention = yearly(database, times)
    times.now += 2 * 365 * DAY
    shift = inspections.add([row(times.now + i) for i in range(50)], [None] * 50)
    assert times.run(0.5, clock, retention) == 5  # of the year 5 days are left, and 11 more passed
    assert "the clock is 725 days ahead of the time" in caplog.text
    assert len(caplog.records) == 1
    times.now -= 2 * 365 * DAY
    (later,) = inspections.add([row(times.now)], [None])
    assert times.run(1, Clock(database), retention) == 0  # also after a restart
    assert inspections.get(shift[0])
    times.now += 366 * DAY
    (last,) = inspections.add([row(times.now)], [None])
    assert times.run(16, Clock(database), retention) == 295 + 50 + 1  # that shift stands in nobody's way
    assert inspections.get(last)
    with pytest.raises(MoleFlowError, match=f"no inspection {later}"):
        inspections.get(later)


def test_a_station_that_was_off_for_a_season_deletes_some_days_later(database, times):
    _, clock, retention = yearly(database, times)
    times.run(1, clock, retention)
    times.now += 90 * DAY
    clock = Clock(database)
    assert times.run(1, clock, retention) < 25
    assert times.run(3, clock, retention) > 45


def test_what_is_inspected_after_a_holiday_is_young_while_the_clock_is_followed(database, times):
    inspections, clock, _ = yearly(database, times, 10)
    retention = Retention(database, keep_days=5, keep_bytes=10**9)
    clock.now()
    times.now += 90 * DAY
    (first,) = inspections.add([row(times.now + DAY / 2)], [None])  # while retention looks
    assert times.run(4.5, clock, retention) == 10
    times.now -= 3000 * DAY
    assert times.run(1, Clock(database), retention) == 0
    assert inspections.get(first)


def test_a_history_whose_time_was_never_noted_is_as_old_as_what_is_in_it(database, times, monkeypatch):
    inspections = Inspections(database)
    inspections.add([row(times.now - 100 * DAY)], [None])
    clock = Clock(database)
    with monkeypatch.context() as patch:
        patch.setattr(database, "session", no_session)
        times.passed += DAY
        assert clock.now() == Moment(times.now - 76 * DAY, times.now + DAY)
        full = Clock(database)
        assert full.now().sure == -math.inf
    assert full.now().sure == times.now - 100 * DAY


def no_session():
    raise Unready("no room", "disk_full")


def test_lessons_are_as_old_as_those_before_them(database):
    jobs = Jobs(database)

    def job(created, finished):
        number = jobs.add("teach", "x", sources=["a"], base_version=None, place=lambda _: None).id
        return jobs.move(number, "cancelled", among=("queued",), created=created, finished=finished).id

    first, behind, ahead, last = job(100, 110), job(5, 6), job(900, 910), job(120, 130)
    assert jobs.settled_before(100, latest=500) == []
    assert jobs.settled_before(105, latest=500) == [behind, ahead]
    assert jobs.settled_before(111, latest=500) == [first, behind, ahead]
    assert jobs.settled_before(131, latest=500) == [first, behind, ahead, last]
    assert jobs.settled_before(115, latest=1000) == [first, behind]


def test_room_of_what_went_is_given_back(database, monkeypatch):
    inspections, file = Inspections(database), Path(database.engine.url.database)
    inspections.add([row(time.time())] * 30, [picture(1_000_000)] * 30)
    retention = Retention(database, keep_days=None, keep_bytes=1_000_000)
    monkeypatch.setattr(databases, "SHRINKING", (500, 4))

    def free():
        with database.engine.connect() as connection:
            return connection.exec_driver_sql("pragma freelist_count").scalar()

    assert retention.run(at(time.time())) == (0, 29)
    assert 4900 < free() < 5400  # of some 7200
    assert retention.run(at(time.time())) == (0, 0)
    assert free() < 3400  # also where nothing more went
    monkeypatch.setattr(databases, "SHRINKING", (500, 64))
    retention.run(at(time.time()))
    assert 0 < free() <= 500
    assert file.stat().st_size < 6_000_000
    assert inspections.picture(30)


def test_a_database_that_never_could_be_shrunk_stays_as_it_is(tmp_path):
    with closing(sqlite3.connect(tmp_path / "station.db")) as old:
        old.execute("create table begun (x)")
    with closing(Database(f"sqlite:///{tmp_path}/station.db")) as database:
        inspections = Inspections(database)
        inspections.add([row(time.time())] * 12, [picture(1_000_000)] * 12)
        Retention(database, keep_days=None, keep_bytes=0).run(at(time.time()))
        assert inspections.get(12)


def test_a_number_is_never_given_twice(database):
    inspections = Inspections(database)
    (first,) = inspections.add([row(0.0)], [None])
    assert Retention(database, keep_days=1, keep_bytes=0).run(at(time.time())) == (1, 0)
    assert inspections.add([row(time.time())] * 2, [None] * 2) == [first + 1, first + 2]


def test_a_text_is_looked_for_piece_by_piece(database, monkeypatch):
    monkeypatch.setattr(histories, "SEARCHED", 10)
    inspections, found = Inspections(database), Filters(text="bolt")
    assert inspections.page(found, before=None, limit=5) == ([], None)
    sources = ["bolt" if i in (0, 17, 18, 30) else "nut" for i in range(40)]
    numbers = inspections.add([row(0.0, source=source) for source in sources], [None] * 40)
    pages, before = [], None
    while True:
        rows, before = inspections.page(found, before=before, limit=1)
        pages.append([one.id - numbers[0] for one in rows])
        if before is None:
            break
    assert pages == [[30], [], [18], [17], [0]]
    assert [one.id - numbers[0] for one in inspections.all(found)] == [30, 18, 17, 0]
    assert inspections.page(found, before=10**6, limit=1)[0][0].source == "bolt"
    assert len(inspections.page(Filters(), before=None, limit=40)[0]) == 40


def test_what_is_told_of_a_version_is_looked_for_among_the_products_last(database, monkeypatch):
    monkeypatch.setattr(histories, "LOOKED_AT", 10)
    inspections = Inspections(database)
    versions = ["0002"] * 3 + ["0001"] * 6 + ["0002"] * 2
    rows = [row(0.0, version=version, pred_score=2.0) for version in versions]
    numbers = inspections.add([*rows, *[row(0.0, task="nut")] * 20], [picture()] + [None] * 30)
    assert [one.id for one in inspections.last("gear", 5, version="0002")] == [
        numbers[i] for i in (10, 9, 2, 1)
    ]
    assert inspections.last("gear", 5, kept=True) == []  # the one before
    assert inspections.under_threshold("gear", "0002", 3.0) == {
        "inspections": 4,
        "to_good": 4,
        "to_defective": 0,
    }
    assert inspections.counts("gear")["good"] == 10


@pytest.mark.parametrize("value", ["=1", "+1", "-1", "@x", "\tx", "\rx", "\nx"])
def test_no_cell_is_a_formula(value):
    assert guarded(value) == f"'{value}"
    assert guarded(-1.5) == -1.5
    assert guarded("a=1") == "a=1"


# A full disk, a line that cannot be written


def test_a_full_disk_stops_learning_and_inspection_goes_on(saved, pictures):
    with served(saved) as client:
        station = client.station
        station.disk_free = lambda **_: station.settings.least_free - 1
        (told,) = inspect(client, pictures("gear", 1))
        assert told["recorded"]  # without its picture
        assert code_of(client.get(f"/api/v1/inspections/{told['id']}/image"), 404) == "not_found"
        answer = client.post(
            "/api/v1/jobs", files=files(pictures("wood", 1)), data={"kind": "teach", "name": "x"}
        )
        assert code_of(answer, 503) == "disk_full"
        assert "inspection goes on" in answer.json()["error"]["message"]
        station.disk_free = lambda **_: station.settings.least_free + 100  # less than what is sent
        answer = client.post(
            "/api/v1/jobs", files=files(pictures("wood", 1)), data={"kind": "teach", "name": "x"}
        )
        assert code_of(answer, 503) == "disk_full"
        assert answer.headers["Retry-After"]


@of_sqlite
def test_what_a_full_disk_does_not_record_says_so(saved, pictures):
    with served(saved) as client:
        inspect(client, pictures("gear", 1))
        engine = client.station.database.engine

        def full(connection, record):
            pages = connection.execute("pragma page_count").fetchone()[0]
            connection.execute(f"pragma max_page_count={pages}")

        event.listen(engine, "connect", full)
        engine.dispose()
        told, last = [], {"recorded": True}
        while last["recorded"] and len(told) < 200:
            last = inspect(client, pictures("gear", 1))[0]
            told.append(last)
        assert (last["recorded"], last["id"]) == (False, None)
        assert last["status"] in ("good", "defective", "unknown", "drifting")
        assert re.search(r"moleflow_unrecorded_total [1-9]", client.get("/metrics").text)
        event.remove(engine, "connect", full)
        engine.dispose()
        assert inspect(client, pictures("gear", 1))[0]["recorded"]
        known = {one["id"] for one in client.get("/api/v1/inspections?limit=500").json()["items"]}
        assert {one["id"] for one in told if one["recorded"]} <= known


def no_room(code):
    """What SQLite says of it; in another version of Python without the code."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "free", "full"),
    [(13, 9, True), (4874, 9, True), (778, 0, True), (778, 9, False), (266, 0, False)],
)
def test_a_full_disk_is_told_from_a_damaged_one(tmp_path, monkeypatch, code, free, full):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert databases.is_full(no_room(code), tmp_path) is full
    assert databases.is_full(sqlite3.OperationalError("database or disk is full"))  # of Python 3.10
    assert not databases.is_full(sqlite3.OperationalError("database is locked"))


@pytest.fixture
def full(monkeypatch):
    """What is added to it is said to whoever connects to the database; nothing as it is."""
    codes, prepare = [], databases._prepare

    def prepared(connection, record):
        for code in codes:
            raise no_room(code)
        prepare(connection, record)

    monkeypatch.setattr(databases, "_prepare", prepared)
    return codes


@of_sqlite
def test_a_station_begins_on_a_full_disk_and_records_once_there_is_room(saved, pictures, full):
    with served(saved) as client:
        (told,) = inspect(client, pictures("gear", 1))
    with closing(Database(settings_of(saved).url)) as database:  # killed while it learned
        jobs = Jobs(database)
        job = jobs.add("teach", "x", sources=["a"], base_version=None, place=lambda _: None).id
        jobs.move(job, "learning", among=("queued",))
    full.append(databases.IOERR_SHMSIZE)
    with served(saved) as client:
        (last,) = inspect(client, pictures("gear", 1))
        assert (last["recorded"], last["id"], last["status"]) == (False, None, told["status"])
        assert client.get("/health/ready").status_code == 200  # pictures are taken
        assert code_of(client.get("/api/v1/inspections"), 503) == "disk_full"
        answer = client.put("/api/v1/products/gear/threshold", json={"threshold": 1.0})
        assert code_of(answer, 503) == "disk_full"  # nothing is changed that cannot be written down
        said = run("backup", saved, saved.with_name("monday"), code=1).stderr
        assert "the disk is full: the database cannot be opened" in said
        full.clear()
        assert inspect(client, pictures("gear", 1))[0]["id"] == told["id"] + 1
        assert eventually(lambda: client.get(f"/api/v1/jobs/{job}").json()["state"] == "interrupted")


@of_sqlite
def test_a_station_begins_and_ends_on_a_disk_that_is_full_throughout(saved, pictures, full):
    full.append(databases.IOERR_SHMSIZE)
    with served(saved) as client:
        assert not inspect(client, pictures("gear", 1))[0]["recorded"]
        assert client.station.lessons.jobs.next() is None
    Station(settings_of(saved)).close()  # everything was let go of


@of_sqlite
@pytest.mark.parametrize("pages", [2, 8, 14])
def test_a_database_that_began_on_a_full_disk_is_made_once_there_is_room(tmp_path, monkeypatch, pages):
    prepare = databases._prepare

    def small(connection, record):
        prepare(connection, record)
        connection.execute(f"pragma max_page_count={pages}")

    with monkeypatch.context() as patch:
        patch.setattr(databases, "_prepare", small)
        database = Database(f"sqlite:///{tmp_path}/station.db")
        with pytest.raises(Unready, match="the disk is full") as found:
            Inspections(database).add([row(0.0)], [None])
        assert found.value.code == "disk_full"
        database.close()
    database = Database(f"sqlite:///{tmp_path}/station.db")
    assert Inspections(database).add([row(0.0)], [None]) == [1]
    database.close()


def test_a_database_that_is_away_answers_nothing_as_recorded(saved, pictures, monkeypatch):
    with served(saved) as client:

        def away(*_):
            raise Unready("the database cannot be used", "database")

        with monkeypatch.context() as patch:
            patch.setattr(client.station.inspections, "add", away)
            answer = client.post("/api/v1/inspections", files=files(pictures("gear", 2)))
            assert code_of(answer, 503) == "database"
        assert inspect(client, pictures("gear", 1))[0]["id"] == 1


def test_a_line_that_cannot_be_written_is_inspected(saved, pictures, monkeypatch):
    with served(saved) as client:

        def read_only(*_):
            raise LineError(f"{saved}: cannot write to it: Read-only file system")

        monkeypatch.setattr(LineStore, "transaction", read_only)
        answer = client.put("/api/v1/products/gear/threshold", json={"threshold": 1.0})
        assert code_of(answer, 503) == "line"
        assert "Read-only" in answer.json()["error"]["message"]
        assert client.get("/api/v1/audit").json()["items"][0]["outcome"].startswith("failed: ")
        assert inspect(client, pictures("gear", 1))[0]["recorded"]


# Many at once


def test_answers_go_to_whom_they_belong_while_the_line_is_swapped(saved, pictures, line):
    shown = pictures("gear", 4, first=300) + pictures("wood", 4, first=300)
    expected = [(said.task, said.pred_score) for said in line.predict(shown)]
    with served(saved) as client, ThreadPoolExecutor(8) as threads:
        swaps = threads.submit(lambda: [client.station.line.reload() for _ in range(5)])
        asked = [threads.submit(inspect, client, [shown[i % 8]]) for i in range(48)]
        for i, one in enumerate(asked):
            (told,) = one.result()
            task, score = expected[i % 8]
            assert told["task"] == task
            assert told["pred_score"] == pytest.approx(score, rel=1e-3)
        swaps.result()
        numbers = {one.result()[0]["id"] for one in asked}
        assert len(numbers) == 48


def test_a_full_queue_says_so(saved, pictures):
    with served(saved, limits=Limits(waiting=1), batch=1) as client:
        answer = client.post("/api/v1/inspections", files=files(pictures("gear", 3)))
        assert code_of(answer, 503) == "busy"
        assert inspect(client, pictures("gear", 1))


# Backup and restore


def run(*arguments, code=0, **more):
    result = CliRunner().invoke(commands, [str(one) for one in arguments], **more)
    assert result.exit_code == code, result.output
    return result


@of_sqlite
def test_a_backup_is_restored_while_the_station_runs(saved, pictures, tmp_path, probe):
    with served(saved) as client:
        told = inspect(client, probe)
        client.put("/api/v1/products/gear/threshold", json={"threshold": 3.25})
        run("backup", saved, tmp_path / "monday")
        inspect(client, probe)
        client.put("/api/v1/products/gear/threshold", json={"threshold": 9.0})
        client.delete("/api/v1/products/wood")
        line = Detector.load(saved, device="cpu")
        line.add_task("board", pictures("circuit_board", 4))
        line.save()
        run("restore", tmp_path / "monday", saved, "--yes")
        assert eventually(lambda: "wood" in client.station.line.now.tasks)
        names = [one["name"] for one in client.get("/api/v1/line").json()["products"]]
        assert sorted(names) == ["bottle_cap", "gear", "wood"]
        assert client.get("/api/v1/products/gear").json()["threshold"] == 3.25
        items = client.get("/api/v1/inspections").json()["items"]
        assert [one["id"] for one in items] == [one["id"] for one in told[::-1]]
        again = inspect(client, probe[1:2])[0]
        assert again["pred_score"] == pytest.approx(told[1]["pred_score"], rel=1e-6)


@of_sqlite
def test_a_backup_is_restored_to_a_new_place(saved, tmp_path, probe, line):
    with served(saved) as client:
        inspect(client, probe)
    run("backup", saved, tmp_path / "monday")
    run("restore", tmp_path / "monday", tmp_path / "new")
    again = Detector.load(tmp_path / "new", device="cpu")
    assert [one.pred_score for one in again.predict(probe)] == [one.pred_score for one in line.predict(probe)]
    with served(tmp_path / "new") as client:
        assert len(client.get("/api/v1/inspections").json()["items"]) == len(probe)


def test_what_is_damaged_is_restored(saved, tmp_path, probe, line):
    LineStore(saved).override("gear", {"threshold": 3.25})
    run("backup", saved, tmp_path / "monday")
    for file in ("base.safetensors", "tasks/gear/0001/expert.safetensors"):
        held = bytearray((saved / file).read_bytes())
        held[-1] ^= 1
        (saved / file).write_bytes(held)
    (saved / "tasks" / "wood" / "0001" / "task.json").unlink()
    run("restore", tmp_path / "monday", saved)
    again = Detector.load(saved, device="cpu")  # which refuses any damage
    assert [one.pred_score for one in again.predict(probe)] == [one.pred_score for one in line.predict(probe)]
    assert again.info("gear").threshold == 3.25
    assert {name: again.info(name).version for name in again.tasks} == {
        "gear": "0002",
        "wood": "0002",
        "bottle_cap": "0001",  # whole, and left alone
    }
    assert not list(saved.glob(".tmp-*"))


@pytest.fixture
def another(saved, tmp_path):
    """A backup of one line, and another line on the same base: gear as there and updated, gasket, no wood."""
    run("backup", saved, tmp_path / "monday")
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    store = LineStore(other)
    store.put(store.read_task("bottle_cap"))
    store.adopt(other / "tasks" / "wood" / "0001", "gasket")
    store.remove("wood")
    return other


@pytest.mark.parametrize("answer", ["n\n", "y\n", None])
def test_what_restoring_takes_off_another_line_is_asked_for(another, tmp_path, monkeypatch, answer):
    monkeypatch.setattr("moleflow.cli.station._somebody_there", lambda: answer is not None)
    before = (another / "line.json").read_bytes()
    agreed = answer == "y\n"
    told = run("restore", tmp_path / "monday", another, code=0 if agreed else 1, input=answer or "")
    assert "has none of: gasket\n" in told.stderr
    assert "from then on: bottle_cap (before it was 0002)\n" in told.stderr
    assert ("--yes" in told.stderr) == (answer is None)
    if agreed:
        assert sorted(LineStore(another).names()) == ["bottle_cap", "gear", "wood"]
    else:
        assert "nothing on disk was changed" in told.stderr
        assert (another / "line.json").read_bytes() == before


def test_what_restoring_did_is_said(another, tmp_path):
    told = run("restore", tmp_path / "monday", another, "--yes")
    assert told.stdout.splitlines()[1:] == [
        "  taken off: gasket",
        "  put back: wood",
        "  in the version of the backup: bottle_cap (before it was 0002)",
    ]
    assert told.stderr == ""
    run("restore", tmp_path / "monday", another)  # what it says is the same, by another number


def test_restoring_asks_for_nothing_where_nothing_goes(saved, tmp_path):
    store = LineStore(saved)
    store.put(store.read_task("gear"))
    run("backup", saved, tmp_path / "monday")
    store.point("gear", "0001")  # which is in the backup as well
    store.remove("wood")
    told = run("restore", tmp_path / "monday", saved)
    assert told.stdout.splitlines()[1:] == [
        "  put back: wood",
        "  in the version of the backup: gear (before it was 0001)",
    ]


def test_a_base_that_is_to_be_found_nowhere_is_named(saved, tmp_path):
    run("backup", saved, tmp_path / "monday")
    kept, index = (
        tmp_path / "monday" / "line" / "base.safetensors",
        tmp_path / "monday" / "line" / "line.json",
    )
    before = hashlib.sha256(kept.read_bytes()).hexdigest()
    save_file(load_file(kept), kept, metadata={"of": "another writer"})  # the same tensors in other bytes
    document = json.loads(index.read_text())
    assert document["base"]["sha256"] == before
    document["base"]["sha256"] = hashlib.sha256(kept.read_bytes()).hexdigest()
    write_index(index, document)
    run("restore", tmp_path / "monday", saved)  # nothing is amiss with the one that is there
    (saved / "base.safetensors").write_bytes(b"")
    told = run("restore", tmp_path / "monday", saved, code=1).stderr
    assert "base.safetensors: damaged" in told
    assert "is another file" in told


def test_a_backup_is_made_while_lessons_go_on(saved, tmp_path, monkeypatch):
    """What goes is left out, what is half as well, and the draft that waits in review is kept."""
    settings, copy = settings_of(saved), shutil.copy2
    jobs = settings.data / "jobs"
    for name in (
        "1/photos/00000",
        "1/photos/gone",
        "1/past/7.jpg",
        "1/draft/line.json",
        "1/.tmp-2",
        "2/draft/line.json",
    ):
        (jobs / name).parent.mkdir(parents=True, exist_ok=True)
        (jobs / name).write_bytes(b"x")

    def meanwhile(source, target, **options):
        if jobs in Path(source).parents:
            shutil.rmtree(jobs / "1" / "draft", ignore_errors=True)
            (jobs / "1" / "photos" / "gone").unlink(missing_ok=True)
        return copy(source, target, **options)

    monkeypatch.setattr(shutil, "copy2", meanwhile)
    run("backup", saved, tmp_path / "monday")
    kept = tmp_path / "monday" / "jobs"
    files = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert files == {"1/photos/00000", "2/draft/line.json"}


class Here:
    """A lesson in this process."""

    def __init__(self, home):
        review = lesson.learn(lesson.Wish.read(home), home / "draft", lambda *_: None)
        self.stdout, self.stdin = [json.dumps({"review": review})], None

    def wait(self):
        return 0


def once(act, *, before=None, after=None):
    """`act`, and at its first time something else as well."""
    times = iter([(before, after)])

    def acting(*given):
        first, last = next(times, (None, None))
        if first is not None:
            first()
        act(*given)
        if last is not None:
            last()

    return acting


@pytest.mark.long
@of_sqlite
@pytest.mark.parametrize(
    ("copying", "moment", "state"),
    [
        ((Database, "copy_to"), "before", "live"),
        ((Database, "copy_to"), "after", "live"),
        ((backup, "_copy_line"), "before", "review"),
        ((backup, "_copy_line"), "after", "review"),
    ],
)
def test_what_is_accepted_meanwhile_is_kept(saved, tmp_path, pictures, monkeypatch, copying, moment, state):
    monkeypatch.setattr(teaching, "_start", Here)
    with served(saved) as client:
        job = teach(client, "teach", "board", pictures("circuit_board", 4))
        waits_for(client, job, "review")
        accept = {moment: lambda: client.post(f"/api/v1/jobs/{job}/accept")}
        with monkeypatch.context() as patch:
            patch.setattr(*copying, once(getattr(*copying), **accept))
            run("backup", saved, tmp_path / "monday")
        assert client.get(f"/api/v1/jobs/{job}").json()["state"] == "live"
    run("restore", tmp_path / "monday", tmp_path / "new")
    with served(tmp_path / "new") as client:
        assert client.get(f"/api/v1/jobs/{job}").json()["state"] == state
        kept = client.station.lessons.teaching.folder(job)
        assert kept.exists() == (state == "review")  # photographs go once a lesson is live
        if state == "review":
            assert client.post(f"/api/v1/jobs/{job}/accept").json()["state"] == "live"
            assert not kept.exists()
        assert inspect(client, pictures("circuit_board", 1, first=300))[0]["task"] == "board"
    assert LineStore(tmp_path / "new").versions("board") == ["0001"]


@of_sqlite
def test_what_came_to_review_during_a_backup_is_in_it_with_its_draft(saved, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(teaching, "_start", Here)
    with served(saved) as client:
        made = []

        def taught():
            made.append(teach(client, "teach", "board", pictures("circuit_board", 4)))
            waits_for(client, made[0], "review")

        with monkeypatch.context() as patch:
            patch.setattr(Database, "copy_to", once(Database.copy_to, before=taught))
            run("backup", saved, tmp_path / "monday")
    run("restore", tmp_path / "monday", tmp_path / "new")
    with served(tmp_path / "new") as client:
        assert client.post(f"/api/v1/jobs/{made[0]}/accept").json()["state"] == "live"
    assert LineStore(tmp_path / "new").versions("board") == ["0001"]


@of_sqlite
def test_lessons_that_change_all_the_time_are_no_backup(saved, tmp_path, monkeypatch):
    Station(settings_of(saved)).close()
    with closing(Database(settings_of(saved).url)) as database:
        jobs, copy_to = Jobs(database), Database.copy_to

        def another(*given):
            jobs.add("teach", "x", sources=["a"], base_version=None, place=lambda _: None)
            copy_to(*given)

        monkeypatch.setattr(Database, "copy_to", another)
        assert "lessons change all the time" in run("backup", saved, tmp_path / "monday", code=1).stderr
    assert not (tmp_path / "monday").exists()


def test_what_cannot_be_copied_is_named(saved, tmp_path):
    jobs = settings_of(saved).data / "jobs"
    (jobs / "1").mkdir(parents=True)
    (jobs / "1" / "photo").write_bytes(b"x")
    run("backup", saved, tmp_path / "monday")
    shutil.rmtree(jobs / "1")
    (jobs / "1").write_bytes(b"in the way")
    told = run("restore", tmp_path / "monday", saved, code=1).stderr
    assert f"{tmp_path / 'monday' / 'jobs' / '1'}: cannot be copied: " in told
    assert "[(" not in told


def test_a_backup_says_that_another_database_is_not_in_it(saved, tmp_path):
    told = run("backup", saved, tmp_path / "monday", "--database", "postgresql+psycopg://station@db/station")
    assert "the database is not in it" in told.stderr
    assert not (tmp_path / "monday" / "station.db").exists()
    told = run("restore", tmp_path / "monday", saved, "--database", "postgresql+psycopg://station@db/station")
    assert "the database is left as it is" in told.stderr


def test_an_earlier_version_that_is_damaged_goes_along_and_is_named(saved, tmp_path):
    damaged = shutil.copytree(saved / "tasks" / "gear" / "0001", saved / "tasks" / "gear" / "0002")
    expert = damaged / "expert.safetensors"
    expert.write_bytes(expert.read_bytes()[:-1] + b"?")
    told = run("backup", saved, tmp_path / "monday")
    assert "gear: version 0002 is damaged" in told.stderr
    assert "expert.safetensors" in told.stderr
    copy = tmp_path / "monday" / "line" / "tasks" / "gear" / "0002" / "expert.safetensors"
    assert copy.read_bytes() == expert.read_bytes()


def test_a_version_that_cannot_be_read_is_never_missing_from_a_backup(saved, tmp_path, monkeypatch):
    shutil.copytree(saved / "tasks" / "gear" / "0001", saved / "tasks" / "gear" / "0002")
    copyfile = shutil.copyfile

    def refuse(source, target, **options):
        if Path(source).parent.name == "0002":
            raise PermissionError(13, "Permission denied", source)
        return copyfile(source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", refuse)
    told = run("backup", saved, tmp_path / "monday", code=1).stderr
    assert "0002" in told
    assert "Permission denied" in told
    assert not (tmp_path / "monday").exists()


def test_a_version_that_never_was_does_not_become_one_in_a_backup(saved, tmp_path):
    shutil.copytree(saved / "tasks" / "gear" / "0001", saved / "tasks" / "gear" / "0002")
    (saved / "tasks" / "gear" / "0002" / ".tmp-unlisted").write_bytes(b"")
    run("backup", saved, tmp_path / "monday")
    assert LineStore(tmp_path / "monday" / "line").versions("gear") == ["0001"]


@of_sqlite
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 999), "cannot be copied: file is not a"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "database"),
        (lambda path: change(path, "update alembic_version set version_num = 'next'"), "later moleflow"),
    ],
)
def test_a_backup_with_a_database_that_cannot_be_used_changes_nothing(saved, tmp_path, probe, harm, message):
    with served(saved) as client:
        inspect(client, probe[:1])
    run("backup", saved, tmp_path / "monday")
    LineStore(saved).remove("wood")
    before = (saved / "line.json").read_bytes()
    harm(tmp_path / "monday" / "station.db")
    told = run("restore", tmp_path / "monday", saved, code=1).stderr
    assert message in told
    assert "Traceback" not in told
    assert (saved / "line.json").read_bytes() == before


def change(database, statement):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


@of_sqlite
def test_numbers_given_away_since_a_backup_are_not_given_to_others(saved, tmp_path, probe):
    with served(saved) as client:
        inspect(client, probe[:1])
        run("backup", saved, tmp_path / "monday")
        last = inspect(client, probe[:2])[-1]["id"]
        run("restore", tmp_path / "monday", saved)
        assert inspect(client, probe[:1])[0]["id"] == last + 1


@pytest.fixture
def synced(monkeypatch):
    """The inodes of what was synced so far."""
    sync, inodes = os.fsync, set()

    def noted(descriptor):
        inodes.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return inodes


def unsynced(folder, synced):
    return [str(path) for path in (folder, *folder.rglob("*")) if path.stat().st_ino not in synced]


def placed(jobs, number):
    """A folder of a lesson, as it waits in review."""
    for name in ("photos/00000", "draft/line.json"):
        (jobs / str(number) / name).parent.mkdir(parents=True)
        (jobs / str(number) / name).write_bytes(b"x")


@pytest.fixture
def taught(saved):
    """A function that adds a lesson to the station's database beside the saved line."""
    settings = settings_of(saved)
    database = Database(settings.url)
    lessons, jobs = Jobs(database), settings.data / "jobs"
    yield lambda: lessons.add(
        "teach", "x", sources=["a"], base_version=None, place=lambda number: placed(jobs, number)
    )
    database.close()


@of_sqlite
@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_a_backup_is_on_the_disk_before_it_is_one(saved, tmp_path, taught, synced, monkeypatch):
    taught()
    replace, missing = os.replace, {}

    def noted(source, target):
        missing[Path(target).name] = unsynced(Path(source), synced)
        replace(source, target)

    monkeypatch.setattr(backup.os, "replace", noted)
    out, new = tmp_path / "backups" / "monday", tmp_path / "new"
    run("backup", saved, out)
    assert missing["monday"] == []
    assert {path.stat().st_ino for path in (out.parent, tmp_path)} <= synced
    os.utime(out / "line", (0, 0))
    synced.clear()
    take, unrestored, young = Database.copy_from, [], []

    def taken(self, source):
        unrestored.extend(unsynced(new.with_name("new.station") / "jobs", synced))
        take(self, source)

    def said(folder):
        young.append(time.time() - folder.stat().st_mtime < 3600)
        stored.sync_tree(folder)

    monkeypatch.setattr(Database, "copy_from", taken)
    monkeypatch.setattr(backup, "sync_tree", said)
    run("restore", out, new)
    assert (missing["new"], unrestored) == ([], [])
    assert (new.with_name("new.station") / "jobs" / "1" / "draft" / "line.json").is_file()
    assert young == [True]  # or another process would take it for what a killed one left
    assert tmp_path.stat().st_ino in synced


@pytest.mark.parametrize(("number", "counts"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_backup_goes_to_a_drive_that_syncs_nothing(saved, tmp_path, monkeypatch, number, counts):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(stored.os, "fsync", refuse)
    assert ("Input/output" in run("backup", saved, tmp_path / "monday", code=int(counts)).output) == counts
    assert (tmp_path / "monday").exists() != counts
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@of_sqlite
def test_of_lessons_that_came_since_a_backup_nothing_is_left(saved, tmp_path, taught):
    jobs = settings_of(saved).data / "jobs"
    taught()
    run("backup", saved, tmp_path / "monday")
    taught()
    placed(jobs, 3)  # as of a lesson that is being added, and has no row that others see
    (jobs / "notes").mkdir()
    (jobs / "1" / "draft" / "line.json").unlink()
    run("restore", tmp_path / "monday", saved)
    assert sorted(path.name for path in jobs.iterdir()) == ["1", "3", "notes"]
    assert (jobs / "1" / "draft" / "line.json").is_file()


def test_what_killed_backups_left_is_cleared_away(saved, tmp_path):
    old, young, mine = (
        tmp_path / name
        for name in (".monday.0123abcd.unfinished", ".monday.4567abcd.unfinished", ".monday.0123abcd")
    )
    for command, target in (("backup", tmp_path / "tuesday"), ("restore", tmp_path / "new")):
        for folder in (old, young, mine):
            (folder / "line").mkdir(parents=True, exist_ok=True)
            if folder != young:  # which another process is writing
                os.utime(folder, (0, 0))
        run(command, *([saved, target] if command == "backup" else [tmp_path / "tuesday", target]))
        assert [folder.exists() for folder in (old, young, mine)] == [False, True, True]
        assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 2


def test_a_backup_is_apart_from_its_line(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved, target_is_directory=True)
    before = sorted(saved.rglob("*"))
    for line, out in (
        (saved, saved / "b"),
        (saved, tmp_path / "link" / "tasks" / "b"),
        ("link", saved / "b"),
    ):
        told = run("backup", tmp_path / line, out, code=1).stderr
        assert "expected a folder apart from that of the line" in told
    assert sorted(saved.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_photographs_are_on_the_disk_before_their_lesson_is(tmp_path, database, synced, monkeypatch):
    files, lessons, seen = [], Jobs(database), []
    for name in "ab":
        (tmp_path / name).write_bytes(b"photograph")
        files.append((name, tmp_path / name))
    add = lessons.add

    def noted(*given, place, **options):
        def both(number):
            before = [path.stat().st_ino in synced for _, path in files]  # nobody else writes from here on
            place(number)
            seen.append((before, unsynced(tmp_path / "jobs", synced)))

        return add(*given, place=both, **options)

    monkeypatch.setattr(lessons, "add", noted)

    def prepare(job, home):
        raise MoleFlowError("nothing is learned here")

    lesson = teaching.Teaching(lessons, tmp_path / "jobs", prepare)
    try:
        lesson.add("teach", "x", files, None)
    finally:
        lesson.close()
    assert seen == [([True, True], [])]


def test_what_is_no_backup_is_refused_and_changes_nothing(saved, tmp_path, new_line, pictures):
    assert "expected a folder that moleflow backup wrote" in run("restore", tmp_path, saved, code=1).stderr
    run("backup", saved, tmp_path / "monday")
    assert "not there yet" in run("backup", saved, tmp_path / "monday", code=1).stderr
    assert (
        "nothing: expected the folder" in run("backup", tmp_path / "nothing", tmp_path / "out", code=1).stderr
    )
    assert not (tmp_path / "out").exists()
    other = new_line(seed=1)
    other.add_task("gear", pictures("gear", 4))
    other.save(tmp_path / "other")
    before = (tmp_path / "other" / "line.json").read_bytes()
    assert "another base" in run("restore", tmp_path / "monday", tmp_path / "other", code=1).stderr
    expert = tmp_path / "monday" / "line" / "tasks" / "gear" / "0001" / "expert.safetensors"
    expert.write_bytes(b"")
    assert "damaged" in run("restore", tmp_path / "monday", saved, code=1).stderr
    assert (tmp_path / "other" / "line.json").read_bytes() == before
    assert Detector.load(saved, device="cpu")
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith(".")) == []


def test_station_files_are_for_their_owner(saved):
    if os.name == "nt":
        pytest.skip("Windows has other rights")
    station = Station(settings_of(saved))
    station.close()
    assert station.settings.data.stat().st_mode & 0o077 == 0


def test_a_station_is_alone_in_its_folder(saved):
    with served(saved), pytest.raises(MoleFlowError, match="another station uses this folder"):
        Station(settings_of(saved))
    Station(settings_of(saved)).close()


def test_nothing_is_made_beside_what_is_no_line(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    assert "expected the folder of a line" in run("serve", tmp_path / "photos", "--port", 0, code=1).stderr
    run("watch", tmp_path / "none", tmp_path / "photos", "--json", "-", "--once", code=1)
    assert [one.name for one in tmp_path.iterdir()] == ["photos"]


def test_what_came_to_nothing_is_forgotten(saved, pictures, monkeypatch):
    with served(saved) as client:
        station = client.station
        answer = client.post(
            "/api/v1/jobs", files=files(pictures("wood", 1)), data={"kind": "teach", "name": "x"}
        )
        job = answer.json()["id"]
        client.post(f"/api/v1/jobs/{job}/cancel")
        station.care()
        assert client.get(f"/api/v1/jobs/{job}/images/0").status_code == 200
        monkeypatch.setattr("moleflow.station.lessons.FORGOTTEN", -1.0)
        station.care()
        assert code_of(client.get(f"/api/v1/jobs/{job}/images/0"), 404) == "not_found"
        assert code_of(client.post(f"/api/v1/jobs/{job}/resume"), 409) == "gone"


# Files for other machines


def test_the_container_has_no_rights_and_a_health_check():
    docker = (DEPLOY / "Dockerfile").read_text()
    last = docker.rpartition("\nFROM ")[2]
    assert re.search(r"^USER moleflow$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    assert "/health/ready" in last
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["ports"] == ["127.0.0.1:8601:8601"]
    unit = (DEPLOY / "moleflow.service").read_text()
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "User=moleflow", "CapabilityBoundingSet="):
        assert f"\n{line}\n" in unit
