"""What a lesson costs an inspection in another process, and another lesson; threads waiting awake or asleep.

    python benchmarks/beside.py [--rounds 3] [--images 6] [--size 512] [--json beside.json]

Photographs are drawn. A line of one product inspects one photograph after the other while another line is
taught, each with as many threads as there are processors, which is what they take by themselves. Threads wait
for each other as GNU's OpenMP has them (300,000 turns, then asleep) or as `moleflow` has them
(`moleflow.waiting`), in both processes; then two lessons at once. Milliseconds are means over the whole
lesson, all figures medians over rounds; the machine should be quiet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from moleflow.data.factory import make_sample
from moleflow.waiting import TURNS

AWAKE = "300000"  # libgomp's own
WAITING = {"awake": AWAKE, "asleep": TURNS}
INSPECTING = """
import json, sys, threading, time
from moleflow import Detector
line, photograph = sys.argv[1:]
detector = Detector.load(line)
detector.predict([photograph])
print("ready", flush=True)
took = []
until = threading.Thread(target=sys.stdin.read)
until.start()
while until.is_alive():
    started = time.perf_counter()
    detector.predict([photograph])
    took.append(time.perf_counter() - started)
print(json.dumps(took))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=6, help="good ones of a lesson")
    parser.add_argument("--size", type=int, default=512, help="of the line's images, in pixels")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a lesson is given up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options)
    print("| waiting | an image, ms | beside a lesson | a lesson, s | beside inspection | two at once |")
    print("|---|---:|---:|---:|---:|---:|")
    for waiting in WAITING:
        own = found[waiting]
        lesson, beside, lessons = (
            f"{own[key]:.1f}" if own[key] < math.inf else f"over {options.limit:.0f}"
            for key in ("lesson", "lesson beside", "lessons")
        )
        print(
            f"| {waiting} | {own['inspection']:.0f} | {own['inspection beside']:.0f} | {lesson} | {beside} | "
            f"{lessons} |"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(folder: Path, options: argparse.Namespace) -> dict:
    photographs = [drawn(folder, "gear", i) for i in range(options.images)]
    line = folder / "line"
    ended([lesson(line, photographs, options, TURNS)], options.limit)
    rounds: dict[str, list[dict[str, float]]] = {waiting: [] for waiting in WAITING}
    for _ in range(options.rounds):
        for waiting, turns in WAITING.items():
            found = {
                "inspection": inspections(line, photographs[0], turns)(after=10),
                "lesson": taught(folder, photographs, options, turns, 1),
            }
            end = inspections(line, photographs[0], turns)
            found["lesson beside"] = taught(folder, photographs, options, turns, 1)
            found["inspection beside"] = end()
            found["lessons"] = taught(folder, photographs, options, turns, 2)
            rounds[waiting].append(found)
    return {
        waiting: {key: statistics.median(one[key] for one in own) for key in own[0]}
        for waiting, own in rounds.items()
    }


def drawn(folder: Path, product: str, number: int) -> Path:
    path = folder / f"{product}-{number:03}.png"
    Image.fromarray(make_sample(product, number, kind="good", size=512).image).save(path)
    return path


def inspections(line: Path, photograph: Path, turns: str) -> Callable[..., float]:
    """Begins to inspect; what is returned ends it and says the mean in milliseconds."""
    command = [sys.executable, "-c", INSPECTING, str(line), str(photograph)]
    environment = os.environ | {"GOMP_SPINCOUNT": turns}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # it has opened the line

    def end(*, after: float = 0) -> float:
        time.sleep(after)
        told, _ = process.communicate()
        return 1e3 * statistics.mean(json.loads(told))

    return end


def taught(
    folder: Path, photographs: list[Path], options: argparse.Namespace, turns: str, count: int
) -> float:
    """Seconds until so many lessons, begun together, are learned; the line of each is its own."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        lessons = [lesson(Path(place) / f"{i}", photographs, options, turns) for i in range(count)]
        return time.perf_counter() - started if ended(lessons, options.limit) else math.inf


def lesson(line: Path, photographs: list[Path], options: argparse.Namespace, turns: str) -> subprocess.Popen:
    own = ["--image-size", str(options.size)]
    command = [sys.executable, "-m", "moleflow", "add", str(line), "gear", *map(str, photographs), *own]
    environment = os.environ | {"GOMP_SPINCOUNT": turns}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended(lessons: list[subprocess.Popen], limit: float) -> bool:
    """Waits for lessons; whether all came to their end in so many seconds."""
    until = time.monotonic() + limit
    try:
        codes = [one.wait(max(0.0, until - time.monotonic())) for one in lessons]
    except subprocess.TimeoutExpired:
        for one in lessons:
            one.kill()
        return False
    if any(codes):
        sys.exit(f"a lesson ended with code {max(codes)}")
    return True


if __name__ == "__main__":
    main()
