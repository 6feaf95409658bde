"""Measures our line on one product, in the present environment; what it is told and says are files.

    python ours.py JOB.json OUT

The line grows: the second product is taught to the line of the first. Nobody says what an image shows.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from exchange import Job, Record, load_average, peak_bytes, read_job, timings, write_outcome

from moleflow import Detector, Prediction
from moleflow.export import export_line
from moleflow.features.runtime import probe
from moleflow.runtime import Inspector

EXPORTED: Literal["openvino"] = "openvino"
PACKAGES = ("torch", "timm", "numpy", "pillow", "onnxruntime", "openvino")


def main() -> None:
    job, out = read_job(Path(sys.argv[1])), Path(sys.argv[2])
    torch.set_num_threads(job.threads)
    before = load_average()
    line = opened(job)
    first = line.tasks[0] if job.first else ""
    known = line.predict(list(job.first), task=first) if job.first else []
    started = time.perf_counter()
    info = line.add_task(job.product, list(job.train))
    line.save(job.keep)
    seconds = time.perf_counter() - started
    record = Record(
        learn_seconds=seconds,
        ms=timings(lambda paths: line.predict(list(paths), batch_size=len(paths)), job),
        bytes=info.bytes,
        shared_bytes=shared(line),
        backbone=f"{job.backbone}, our weights, on {line.extractor.runtime}",
        versions=versions(),
        load=(before, load_average()),
        peak_bytes=peak_bytes(),
        more=afterwards(line, first, known, job) | {"stage " + k: v for k, v in info.seconds.items()},
    )
    said = line.predict(list(job.test))
    arrays = {
        "scores": scores(said),
        "maps": np.stack([one.map_at((job.eval_size, job.eval_size)) for one in said]),
    }
    if job.first:
        arrays["first_scores"] = scores(line.predict(list(job.first)))
    record.more.update(exported(job))
    record.more["routed right"] = float(np.mean([one.task == job.product for one in said]))
    write_outcome(out, record, arrays)


def opened(job: Job) -> Detector:
    """The line as the earlier product left it, its backbone running: that is made once a machine."""
    if job.start is None:
        line = Detector(image_size=job.size, fit="squeeze", device="cpu", seed=job.seed)
    else:
        line = Detector.load(job.start, device="cpu")
    line.extractor.see(probe((job.size, job.size)))
    return line


def afterwards(line: Detector, first: str, before: list[Prediction], job: Job) -> dict[str, float]:
    """The first product's images after another was taught: the same to the bit, and routed right."""
    if not before:
        return {}
    told = line.predict(list(job.first), task=first)
    found = line.predict(list(job.first))
    same = [
        a.pred_score == b.pred_score and np.array_equal(a.patch_map, b.patch_map)
        for a, b in zip(before, told, strict=True)
    ]
    return {
        "first to the bit": float(np.mean(same)),
        "first routed right": float(np.mean([one.task == first for one in found])),
    }


def exported(job: Job) -> dict[str, float]:
    """Milliseconds an image of the same line, exported."""
    out = Path(job.keep).with_name("exported")
    shutil.rmtree(out, ignore_errors=True)
    export_line(job.keep, out, format=EXPORTED, images=list(job.test[:4]))
    inspector = Inspector(out, threads=job.threads)
    took = timings(lambda paths: inspector.predict(list(paths), batch_size=len(paths)), job)
    return {f"exported, batch {batch}": statistics.median(rounds) for batch, rounds in took.items()}


def shared(line: Detector) -> int:
    """Bytes of the saved line that belong to no product, and of the backbone's weights."""
    files = [path for path in Path(line.path or "").rglob("*") if path.is_file()]
    whole = sum(path.stat().st_size for path in files)
    products = sum(line.info(name).bytes for name in line.tasks)
    weights = sum(tensor.nbytes for tensor in line.extractor.module.state_dict().values())
    return whole - products + weights


def scores(said: list[Prediction]) -> np.ndarray:
    return np.array([one.pred_score for one in said], dtype=np.float32)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
