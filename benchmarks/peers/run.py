"""Four methods of an open library beside ours, on the same images, at the same size, in one run.

    python benchmarks/peers/run.py /path/to/products --size 256 --out peers
    python benchmarks/peers/run.py /path/to/products --methods moleflow patchcore --products tire tile

The first run makes an environment for the peers in the folder of `--env` (about 6 GB; the library is pinned
in requirements.txt). Every method and product is measured by a process of its own, ours in the present
environment, theirs in that one; a killed run goes on with the next of them when the same command is given
again, and what is done is not measured anew as long as OUT stands. Scores and maps are judged here, by our
metrics. OUT/table.md and OUT/results.json hold what was found.

Images are 8 bits deep. Nothing of them but paths, scores and maps is written; maps go once they are judged.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import environment
import numpy as np
import table
from exchange import Job, Record, read_outcome, write_arrays, write_job, write_json

from moleflow.data.layouts import Product, load_mask, read_dataset
from moleflow.data.sources import evenly
from moleflow.features.backbones import build_network, get_backbone, layer_channels
from moleflow.metrics import image_auroc, pixel_ap

HERE = Path(__file__).parent
BACKBONE = "efficientnet_lite0"  # comes with the package, weights included
BATCHES = (1, 16)
EPOCHS = 40  # of FastFlow: 120 steps on 80 images; in a trial at 128 pixels AUROC stood still after 80
STEPS = 10  # of EfficientAD, of which a step's time is the median
TRAIN = 80  # images: PatchCore's thinning grows with their square, and takes hours on all of some products
LOGGED = 2_000  # characters of a failed process's last words that are shown


def main() -> None:
    options = arguments()
    products = chosen(options)
    python = environment.prepare(options.env) if set(options.methods) - {table.OURS} else None
    folder = options.out / "work"
    weights = backbone_file(folder)
    results: table.Results = {method: {} for method in options.methods}
    failed = []
    for number, product in enumerate(products):
        for method in options.methods:
            job = job_of(options, method, products[: number + 1], weights)
            unit = folder / f"{method}-{product.name}"
            result = kept_result(unit, job)
            if result is None:
                result = measured(unit, job, product, products[0], python)
            if result is None:
                failed.append(f"{table.NAMES[method]} on {product.name}")
                continue
            results[method][product.name] = result
            write_results(options, products, results, failed)  # after each, so that a killed run shows them
    write_results(options, products, results, failed)
    print(f"\n{(options.out / 'table.md').read_text(encoding='utf-8')}\n{options.out / 'table.md'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see the logs in {folder}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of labelled products")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--out", type=Path, default=Path("peers"))
    parser.add_argument(
        "--env", type=Path, default=Path("peers-env"), help="folder of the peers' environment"
    )
    parser.add_argument("--methods", nargs="+", choices=list(table.NAMES), default=list(table.NAMES))
    parser.add_argument("--products", nargs="+", help="by name or the end of it, in this order; default all")
    parser.add_argument("--size", type=int, default=256, help="of the images; EfficientAD takes 256 and more")
    parser.add_argument("--eval-size", type=int, default=256, help="at which maps meet masks")
    parser.add_argument("--rounds", type=int, default=5, help="of timing, of which the median counts")
    parser.add_argument(
        "--epochs",
        type=int,
        default=EPOCHS,
        help="of FastFlow; the library has no fixed number",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="that EfficientAD's time is measured over")
    parser.add_argument(
        "--train", type=int, default=TRAIN, help="images that everybody learns from, evenly spaced; 0 for all"
    )
    parser.add_argument(
        "--test", type=int, default=0, help="images that are judged, evenly spaced; 0 for all"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Product]:
    """The products in the order in which they are learned, with the images that are used."""
    found = read_dataset(options.data, layout=options.layout).products
    names = list(found)
    if options.products:
        names = [named(wish, list(found)) for wish in options.products]
    return [found[name] for name in names]


def named(wish: str, names: list[str]) -> str:
    """The one product whose name is, or ends with, what was asked for."""
    fitting = [name for name in names if name == wish] or [name for name in names if name.endswith(wish)]
    if len(fitting) != 1:
        found = ", ".join(fitting) or "none"
        sys.exit(f"expected one product called {wish!r}, found {found} in {', '.join(names)}")
    return fitting[0]


def some(items: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """So many of them, evenly spaced; all for 0."""
    return tuple(evenly(items, count)) if 0 < count < len(items) else items


def job_of(options: argparse.Namespace, method: str, known: list[Product], weights: Path) -> Job:
    """What is measured of the last of these products."""
    product, spec, folder = known[-1], get_backbone(BACKBONE), options.out / "work"
    # Only our line and what goes on from an earlier product ask what is left of that.
    earlier = folder / f"{method}-{known[-2].name}" / "kept" if len(known) > 1 else None
    return Job(
        method=method,
        product=product.name,
        train=paths(some(product.train, options.train)),
        test=paths(some(product.test, options.test)),
        first=paths(some(known[0].test, options.test)) if len(known) == 2 else (),
        size=options.size,
        eval_size=options.eval_size,
        batches=BATCHES,
        rounds=options.rounds,
        epochs=options.epochs,
        steps=options.steps,
        threads=options.threads,
        seed=options.seed,
        backbone=spec.tag.partition(".")[0],
        weights=str(weights.resolve()),
        mean=spec.mean,
        std=spec.std,
        layers=spec.layers,
        start=None if earlier is None else str(earlier.resolve()),
        keep=str((folder / f"{method}-{product.name}" / "kept").resolve()),
    )


def paths(items: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(item.path.resolve()) for item in items)


def backbone_file(folder: Path) -> Path:
    """Our weights by timm's names, for the other environment."""
    path = folder / "backbone.npz"
    tensors = build_network(get_backbone(BACKBONE)).module.state_dict()
    write_arrays(path, {name: tensor.numpy() for name, tensor in tensors.items()})
    return path


def kept_result(unit: Path, job: Job) -> table.Result | None:
    """What an earlier run found for the very same job."""
    path = unit / "result.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return result if result["job"] == json.loads(json.dumps(asdict(job))) else None


def measured(
    unit: Path, job: Job, product: Product, first: Product, python: Path | None
) -> table.Result | None:
    """Measures and judges; None where the process failed, whose last words are shown."""
    print(f"{table.NAMES[job.method]} on {job.product} ...", end=" ", flush=True)
    started = time.monotonic()
    shutil.rmtree(unit, ignore_errors=True)
    write_job(unit / "job.json", job)
    script = "ours.py" if job.method == table.OURS else "measure.py"
    runs = [sys.executable if job.method == table.OURS else str(python), str(HERE / script)]
    with (unit / "log.txt").open("w", encoding="utf-8") as log:
        ended = subprocess.run(
            [*runs, str(unit / "job.json"), str(unit)],
            stdout=log,
            stderr=log,
            env=conditions(job),
            check=False,
        )
    if ended.returncode:
        print(f"failed\n{(unit / 'log.txt').read_text(encoding='utf-8')[-LOGGED:]}")
        return None
    record, arrays = read_outcome(unit)
    result = judged(job, record, arrays, product, first)
    write_json(unit / "result.json", result)
    (unit / "arrays.npz").unlink()
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    return result


def conditions(job: Job) -> dict[str, str]:
    """The environment variables of a measuring process, the same for all."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads))
    return os.environ | threads | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def judged(
    job: Job, record: Record, arrays: dict[str, np.ndarray], product: Product, first: Product
) -> table.Result:
    """The record with what our metrics make of the arrays."""
    figures, items = {}, items_of(product, job.test)
    if "scores" in arrays:
        figures["I"] = auroc(arrays["scores"], items)
    if "maps" in arrays and product.has_masks:
        side = (job.eval_size, job.eval_size)
        masks = [load_mask(item, shape=side) for item in items]
        figures["AP"] = 100 * pixel_ap(arrays["maps"], masks)
    if "first_scores" in arrays:
        figures["first I"] = auroc(arrays["first_scores"], items_of(first, job.first))
    return {
        **asdict(record),
        "figures": figures,
        "train": len(job.train),
        "masks": product.has_masks,
        "job": asdict(job),
    }


def items_of(product: Product, used: tuple[str, ...]) -> list[Any]:
    by_path = {str(item.path.resolve()): item for item in product.test}
    return [by_path[path] for path in used]


def auroc(scores: np.ndarray, items: list[Any]) -> float:
    return 100 * image_auroc(scores, np.array([item.label for item in items]))


def write_results(
    options: argparse.Namespace, products: list[Product], results: table.Results, failed: list[str]
) -> None:
    told = run_of(options, products, results, failed)
    plain = {
        method: {name: {k: v for k, v in one.items() if k != "job"} for name, one in found.items()}
        for method, found in results.items()
    }
    write_json(options.out / "results.json", {"run": told, "results": plain})
    (options.out / "table.md").write_text(table.markdown(results, told), encoding="utf-8")


def run_of(
    options: argparse.Namespace, products: list[Product], results: table.Results, failed: list[str]
) -> dict[str, Any]:
    """What holds for the run as a whole."""
    every = [one for found in results.values() for one in found.values()]
    versions = {name: number for one in every for name, number in one["versions"].items()}
    network = build_network(get_backbone(BACKBONE)).module
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": versions,
        "products": [product.name for product in products],
        "train": {p.name: [len(some(p.train, options.train)), len(p.train)] for p in products},
        "train_limit": options.train,
        "bank_channels": sum(layer_channels(network, get_backbone(BACKBONE).layers)),
        "batches": list(BATCHES),
        "loads": [one["load"] for one in every],
        "failed": failed,
        **{name: getattr(options, name) for name in ("size", "eval_size", "rounds", "epochs", "steps")},
        **{name: getattr(options, name) for name in ("threads", "seed")},
    }


def machine() -> str:
    """The processor by name where the system tells it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{model}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
