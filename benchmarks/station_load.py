"""Load on a station: clients on this machine inspect without a pause, while one product is being taught.

    python benchmarks/station_load.py --line moleflow-demo/line --images belt --teach photos/good --minutes 15

A station of its own serves a copy of the line. Its throughput is compared with what the library itself does
with the same images in batches, in the same process count and with the same threads, while nothing is
taught. Clients and station share the machine. Every answer is looked up in the database afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import httpx
import psutil

MARKED = {"X-Moleflow": "1"}
EDGE = "edge-of-a-part"
FORM = {"Content-Type": f"multipart/form-data; boundary={EDGE}"}
WARM_UP = 0.2  # share of the time, before memory is first looked at


def main() -> int:
    """Runs, prints, and returns 1 where something was lost or went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--line", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of images to inspect")
    parser.add_argument("--teach", type=Path, help="folder of good images of a product to teach meanwhile")
    parser.add_argument("--lessons", type=int, default=1, help="one after another; 0: until the end")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    images = [path.read_bytes() for path in sorted(given.images.iterdir()) if path.is_file()]
    with tempfile.TemporaryDirectory() as folder:
        line = Path(shutil.copytree(given.line, Path(folder) / "line"))
        own = library_throughput(line, sorted(given.images.iterdir()), given.threads)
        print(f"the library alone: {own:.2f} images a second")
        with served(line, given.threads) as (url, process):
            figures = load(url, process, images, given)
    figures |= {"library_per_second": own, "ratio": figures["per_second"] / own, "clients": given.clients}
    for name, value in figures.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))
    return 1 if figures["errors"] or figures["lost"] else 0


def library_throughput(line: Path, paths: list[Path], threads: int, seconds: float = 20.0) -> float:
    """Images a second of `Detector.predict` in batches, in a process of its own."""
    code = (
        "import sys, time, torch\nfrom moleflow import Detector\n"
        f"torch.set_num_threads({threads})\n"
        "line, paths = Detector.load(sys.argv[1], device='cpu'), sys.argv[2:]\n"
        "line.predict(paths[:8])\n"
        f"began, done = time.perf_counter(), 0\nwhile time.perf_counter() - began < {seconds}:\n"
        "    done += len(line.predict(paths))\nprint(done / (time.perf_counter() - began))\n"
    )
    command = [sys.executable, "-c", code, str(line), *map(str, paths)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class served:
    """A station in a process of its own; its address and process."""

    def __init__(self, line: Path, threads: int) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self._port = held.getsockname()[1]
        command = [sys.executable, "-m", "moleflow", "serve", str(line), "--port", str(self._port)]
        options = ["--device", "cpu", "--threads", str(threads), "--least-free-gb", "0"]
        self._process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)

    def __enter__(self) -> tuple[str, subprocess.Popen[bytes]]:
        url = f"http://127.0.0.1:{self._port}"
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    return url, self._process
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError("the station did not begin")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(120)


def load(url: str, process: subprocess.Popen[bytes], images: list[bytes], given: argparse.Namespace) -> dict:
    """All clients until the time is over; what came of it."""
    until = time.monotonic() + 60 * given.minutes
    numbers: list[int] = []
    errors: list[str] = []
    waited: list[float] = []
    taught: list[str] = []

    bodies = [form_of(image) for image in images]  # clients that cost little: they share the processor

    def client(which: int) -> None:
        at, connection = which, HTTPConnection(url.removeprefix("http://"), timeout=300)
        while time.monotonic() < until:
            at += 1
            asked = time.monotonic()
            try:
                connection.request("POST", "/api/v1/inspections", bodies[at % len(bodies)], FORM | MARKED)
                answer = connection.getresponse()
                said = json.loads(answer.read())
                numbers.append(said["results"][0]["id"])
                waited.append(time.monotonic() - asked)
            except (OSError, HTTPException, KeyError, ValueError) as error:
                errors.append(repr(error))
                connection.close()

    threads = [threading.Thread(target=client, args=(which,)) for which in range(given.clients)]
    if given.teach:
        threads.append(
            threading.Thread(target=teach, args=(url, given.teach, until, taught, errors, given.lessons))
        )
    began = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP * 60 * given.minutes)
    program = psutil.Process(process.pid)
    before = program.memory_info().rss
    for thread in threads[: given.clients]:
        thread.join()
    seconds, after = time.monotonic() - began, program.memory_info().rss
    for thread in threads[given.clients :]:
        thread.join()
    waited.sort()
    return {
        "inspections": len(numbers),
        "per_second": len(numbers) / seconds,
        "seconds": seconds,
        "median_seconds": waited[len(waited) // 2] if waited else 0.0,
        "p99_seconds": waited[int(len(waited) * 0.99)] if waited else 0.0,
        "errors": len(errors),
        "first_errors": errors[:3],
        "lost": lost(url, numbers),
        "lessons": len(taught),
        "rss_mb": after / 1e6,
        "rss_growth": after / before - 1,
    }


def form_of(image: bytes) -> bytes:
    """A form with one file."""
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="images"; filename="belt.png"\r\n\r\n'
    return head.encode() + image + f"\r\n--{EDGE}--\r\n".encode()


def teach(url: str, folder: Path, until: float, taught: list[str], errors: list[str], lessons: int) -> None:
    """Teaches a product and takes it off again, so many times."""
    photos = [
        ("images", (path.name, path.read_bytes())) for path in sorted(folder.iterdir()) if path.is_file()
    ]
    with httpx.Client(base_url=url, headers=MARKED, timeout=300) as session:
        while time.monotonic() < until and (not lessons or len(taught) < lessons):
            form = {"kind": "teach", "name": "taught meanwhile"}
            job = session.post("/api/v1/jobs", files=photos, data=form).json()["id"]
            state = "queued"
            while state in ("queued", "learning"):
                time.sleep(0.5)
                state = session.get(f"/api/v1/jobs/{job}").json()["state"]
                if time.monotonic() > until:
                    session.post(f"/api/v1/jobs/{job}/cancel")
                    return
            if state != "review":
                errors.append(f"lesson {job}: {state}")
                return
            session.post(f"/api/v1/jobs/{job}/accept").raise_for_status()
            session.delete("/api/v1/products/taught%20meanwhile").raise_for_status()
            taught.append(state)


def lost(url: str, numbers: list[int]) -> int:
    """Answered inspections that the station does not know."""
    known: set[int] = set()
    before: dict[str, int] = {}
    while True:
        page = httpx.get(f"{url}/api/v1/inspections", params={"limit": 500, **before}, timeout=60).json()
        known |= {one["id"] for one in page["items"]}
        if page["next"] is None:
            return len(set(numbers) - known) + len(numbers) - len(set(numbers))
        before = {"before": page["next"]}


if __name__ == "__main__":
    sys.exit(main())
