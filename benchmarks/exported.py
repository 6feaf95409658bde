"""An exported line beside the line: how they differ, what they weigh, how fast they start and inspect.

    python benchmarks/exported.py [ROOT] [--train 60] [--every 8]

ROOT is a folder of labelled products; without it three drawn ones are taken. Each is taught with its first
training photographs, the line is exported to ONNX and to OpenVINO, and both are shown every so many-th test
image. An environment without torch is made with `pip install .[runtime]`, to be weighed and timed; "start" is
`moleflow predict` of one image by a new process. Milliseconds an image are medians over rounds in which all
take turns, decoding included: compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from moleflow import Detector
from moleflow.data.factory import PRODUCTS, write_product
from moleflow.data.layouts import read_dataset
from moleflow.export import export_line
from moleflow.runtime import Inspector

PACKAGE = Path(__file__).parents[1]
FORMATS: tuple[Literal["onnx", "openvino"], ...] = ("onnx", "openvino")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        root = options.root or drawn(here / "drawn")
        line, shown = taught(root, options)
        line.save(here / "line")
        inspectors: dict[str, Detector | Inspector] = {line.extractor.runtime: line}
        for format in FORMATS:
            started = time.perf_counter()
            found = export_line(here / "line", here / format, format=format, images=shown)
            took = time.perf_counter() - started
            files = [path for path in (here / format).rglob("*") if path.is_file()]
            owned = [path.stat().st_size for path in files if path.parent.name == "products"]
            print(
                f"{format}: {found.pictures} pictures, {found.verdicts} verdicts differ, scores by at most "
                f"{found.score:.1e}, maps {found.map:.1e}, distances {found.distance:.1e}; "
                f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB, of it "
                f"{sum(owned) / len(line.tasks) / 1e3:.0f} kB a product; {took:.0f} s with the comparison"
            )
            inspectors[f"exported, {format}"] = Inspector(here / format, threads=options.threads)
        speed(inspectors, shown, options.rounds)
        starting(here, shown[0], options.rounds)


def drawn(root: Path) -> Path:
    for name in PRODUCTS[:3]:
        write_product(name, root, seed=0, train=60, test_good=20, test_defective=20, size=384)
    return root


def taught(root: Path, options: argparse.Namespace) -> tuple[Detector, list[Path]]:
    line, shown = Detector(device="cpu"), []
    for name, product in read_dataset(root).products.items():
        line.add_task(name, [item.path for item in product.train[: options.train]], pose="off")
        shown += [item.path for item in product.test[:: options.every]]
    return line, shown


def speed(inspectors: dict[str, Detector | Inspector], shown: Sequence[Path], rounds: int) -> None:
    print("\n| | ms an image, batch 1 | batch 16 |\n|---|---:|---:|")
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        for name, inspector in inspectors.items():
            for batch in (1, 16):
                paths = list(shown[:batch])
                took = timed(lambda i=inspector, p=paths, b=batch: i.predict(p, batch_size=b))  # type: ignore[misc]
                taken[name, batch].append(1e3 * took / len(paths))
    for name in inspectors:
        one, many = (statistics.median(taken[name, batch][1:]) for batch in (1, 16))
        print(f"| {name} | {one:.1f} | {many:.1f} |")


def starting(here: Path, image: Path, rounds: int) -> None:
    """Bytes of what is installed, and seconds of `moleflow predict` for one image."""
    venv.create(here / "venv", with_pip=True)
    python = here / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{PACKAGE}[runtime]"], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip"], check=True)
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    full = Path(spec.origin).parents[1]
    own = next((here / "venv" / "lib").glob("*/site-packages"))
    print("\n| | installed | start |\n|---|---:|---:|")
    for name, executable, folder, line in (
        ("with torch", sys.executable, full, here / "line"),
        ("without", str(python), own, here / "onnx"),
    ):
        command = [executable, "-m", "moleflow", "predict", str(line), str(image), "--json", "-"]
        took = [timed(lambda c=command: said(c)) for _ in range(rounds)]  # type: ignore[misc]
        print(f"| {name} | {weight(folder) / 1e6:.0f} MB | {statistics.median(took):.2f} s |")


def said(command: list[str]) -> object:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?", help="folder of labelled products")
    parser.add_argument("--train", type=int, default=60, help="photographs a product is taught with")
    parser.add_argument("--every", type=int, default=8, help="which test images are shown")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
