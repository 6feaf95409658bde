"""Measures one peer on one product, in the environment of the peers; what it is told and says are files.

    python measure.py JOB.json OUT

`run.py` writes the job and reads what comes out. Nothing of this project's package is imported here.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from exchange import (
    Job,
    Record,
    load_average,
    peak_bytes,
    read_arrays,
    read_job,
    timings,
    write_arrays,
    write_outcome,
)
from networks import PEERS, Peer, batches

PACKAGES = ("anomalib", "torch", "torchvision", "timm", "FrEIA", "numpy", "pillow")
JUDGED_AT_ONCE = 16


def main() -> None:
    job, out = read_job(Path(sys.argv[1])), Path(sys.argv[2])
    torch.set_num_threads(job.threads)
    before = load_average()
    peer = prepared(job)
    seconds = peer.learn(job.train)
    kept = peer.kept()
    record = Record(
        learn_seconds=seconds,
        learn_estimated=peer.estimated,
        ms=timings(peer.inspect, job),
        bytes=sum(tensor.nbytes for tensor in kept.values()),
        shared_bytes=peer.shared_bytes(),
        backbone=peer.backbone,
        versions={name: version(name) for name in PACKAGES},
        load=(before, load_average()),
        peak_bytes=peak_bytes(),
    )
    arrays: dict[str, np.ndarray] = {}
    if peer.judged:
        arrays["scores"], arrays["maps"] = judged(peer, job.test, job.eval_size)
        if job.first:
            arrays["first_scores"] = first_afterwards(peer, job)
    if peer.goes_on:
        write_arrays(Path(job.keep), {name: tensor.numpy() for name, tensor in kept.items()})
    write_outcome(out, record, arrays)


def prepared(job: Job) -> Peer:
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)
    return PEERS[job.method](job)


def judged(peer: Peer, paths: tuple[str, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) and maps (N, size, size), float32."""
    scores, maps = [], []
    for batch in batches(paths, JUDGED_AT_ONCE):
        score, found = peer.inspect(batch)
        if found.shape[-2:] != (size, size):
            found = F.interpolate(found[:, None], size=(size, size), mode="bilinear", align_corners=False)[
                :, 0
            ]
        scores.append(score.numpy())
        maps.append(found.numpy())
    return np.concatenate(scores).astype(np.float32), np.concatenate(maps).astype(np.float32)


def first_afterwards(peer: Peer, job: Job) -> np.ndarray:
    """What the first product's images score when one and the same model was taught this product after it.

    Where learning replaces what was there, that is this product's model. A flow goes on from the first's.
    """
    if peer.goes_on and job.start is not None:
        peer = prepared(job)
        kept = {name: torch.from_numpy(array) for name, array in read_arrays(Path(job.start)).items()}
        peer.model.load_state_dict(kept, strict=False)
        peer.learn(job.train)
    return judged(peer, job.first, job.eval_size)[0]


if __name__ == "__main__":
    main()
