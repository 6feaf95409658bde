"""Kill a station under load, again and again, and look at what is left.

    python benchmarks/station_kills.py --kills 100

A station in a process of its own inspects for several clients while a lesson is learned and accepted;
SIGKILL ends it at a random moment. After every kill each inspection that was answered must be in the
database, the line must load, and no product may be gone. The next station goes on with what the killed one
left.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

from moleflow import Cells, Detector, Dia, FlowConfig, LineConfig, TrainingConfig
from moleflow.data.factory import make_sample

MARKED = {"X-Moleflow": "1"}
SIZE = 64
QUICK = LineConfig(
    flow=FlowConfig(cells=Cells(side=2, rank=8, mean_side=4), hidden=32, dia=Dia(hidden=32)),
    training=TrainingConfig(steps=2, base_steps=2, patches=128),
)
PRODUCTS = ("gear", "wood")
CLIENTS = 4
LONGEST = (2.0, 2.0, 15.0)  # seconds; in the longer ones a lesson is learned and accepted


def main() -> int:
    """Runs, prints, and returns 1 where something was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    dice = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        line = make_line(Path(folder) / "line")
        answered: dict[int, str] = {}
        failures: list[str] = []
        for kill in range(given.kills):
            longest = dice.choice(LONGEST)
            killed_under_load(line, dice.uniform(0.05, longest), answered, kill)
            failures += [f"kill {kill}: {one}" for one in amiss(line, answered)]
            print(
                f"kill {kill + 1}: {len(answered)} inspections answered, {len(failures)} failures", flush=True
            )
            if failures:
                break
    figures = {"kills": kill + 1, "answered": len(answered), "failures": failures}
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures))
    return 1 if failures else 0


def make_line(path: Path) -> Path:
    """A small line."""
    line = Detector(image_size=SIZE, device="cpu", config=QUICK)
    for product in PRODUCTS:
        line.add_task(
            product, [make_sample(product, seed, kind="good", size=SIZE).image for seed in range(6)]
        )
    line.save(path)
    return path


def pictures(product: str, count: int) -> list[tuple[str, tuple[str, bytes]]]:
    """As files of a form."""
    found = []
    for seed in range(100, 100 + count):
        out = BytesIO()
        Image.fromarray(make_sample(product, seed, kind="good", size=SIZE).image).save(out, "PNG")
        found.append(("images", (f"{product}-{seed}.png", out.getvalue())))
    return found


def killed_under_load(line: Path, seconds: float, answered: dict[int, str], kill: int) -> None:
    """One station from its first answer to its end; what it answered is written down."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moleflow", "serve", str(line), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--runtime", "torch", "--least-free-gb", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_ready(url, process)
        asking = [threading.Thread(target=inspect, args=(url, answered, i)) for i in range(CLIENTS)]
        asking.append(threading.Thread(target=change, args=(url, kill)))
        for thread in asking:
            thread.start()
        time.sleep(seconds)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for thread in asking:
        thread.join()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """RuntimeError where it ends by itself."""
    while process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("the station does not begin")


def inspect(url: str, answered: dict[int, str], which: int) -> None:
    """Until nobody answers."""
    shown = pictures(PRODUCTS[which % len(PRODUCTS)], 3)
    with suppress(httpx.HTTPError), httpx.Client(base_url=url, headers=MARKED, timeout=60) as client:
        while True:
            for one in shown:
                answer = client.post("/api/v1/inspections", files=[one])
                for told in answer.json()["results"]:
                    answered[told["id"]] = told["sha256"]


def change(url: str, kill: int) -> None:
    """Changes of the line, and a lesson, until nobody answers."""
    with (
        suppress(httpx.HTTPError, KeyError),
        httpx.Client(base_url=url, headers=MARKED, timeout=60) as client,
    ):
        form = {"kind": "update", "name": "gear"}
        job = client.post("/api/v1/jobs", files=pictures("gear", 3), data=form).json()["id"]
        for step in range(10_000):
            client.put("/api/v1/products/wood/threshold", json={"threshold": 3.0 + (step + kill) % 7})
            if client.get(f"/api/v1/jobs/{job}").json()["state"] == "review":
                client.post(f"/api/v1/jobs/{job}/accept")


def amiss(line: Path, answered: dict[int, str]) -> list[str]:
    """What should not be so."""
    found = []
    with closing(sqlite3.connect(line.with_name(line.name + ".station") / "station.db")) as database:
        known = dict(database.execute("select id, sha256 from inspections"))
        state = database.execute("pragma integrity_check").fetchone()[0]
    if state != "ok":
        found.append(f"the database is damaged: {state}")
    missing = [number for number, sha256 in answered.items() if known.get(number) != sha256]
    if missing:
        found.append(f"{len(missing)} answered inspections are not recorded, the first is {missing[0]}")
    tasks = Detector.load(line, device="cpu").tasks
    if tasks != PRODUCTS:
        found.append(f"expected the products {PRODUCTS}, found {tasks}")
    return found


if __name__ == "__main__":
    sys.exit(main())
