"""Runs every method over every stream and seed, in units that are kept: a killed run goes on where it was.

A unit is one step of one method on one stream with one seed: take up the state the step before left,
learn one task, inspect the test images of everything learned so far, write what came out. A unit depends
on the files of the unit before it and on nothing else, so units run in any process, in any interleaving,
before and after a kill, with the same result.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from ..errors import BenchError, MoleFlowError
from ..features.cache import FeatureCache
from ..features.extractor import Extractor
from .files import read_json, write_json
from .pictures import Shelf, Told, mark
from .plan import Unit, Work
from .unit import figures_path, run_unit

MOST_JOBS = 61  # what Windows can wait for at once
Done = Callable[[Unit], None]


def run(
    work: Work, *, jobs: int = 1, device: str = "cpu", told: Told | None = None, done: Done | None = None
) -> dict[Unit, str]:
    """Runs what is missing of a plan; returns the errors of units that failed, and of none else.

    A failed unit ends its chain (method, stream, seed); the others go on.

    Args:
        work: plan, data and folders.
        jobs: processes side by side; 1 runs in this one.
        device: where the backbone computes features, and where methods learn and score. A folder belongs to
            one, for sums round differently on another.
        told: hears of features being computed.
        done: hears of every unit that is finished, also of those found finished.

    Raises:
        BackboneError: the backbone cannot be had; the folder is then left as it was.
        BenchError: the folder holds another benchmark, or the system ended a process.
        ImageError: an image cannot be read.
    """
    shelf = _shelf(work, device)
    _claim(work, shelf)
    for product in work.products.values():
        shelf.pictures(product, "train", told=told)
        shelf.pictures(product, "test", told=told)
    chains: dict[tuple[str, int, int], list[Unit]] = {}
    for unit in work.plan.units():
        if figures_path(work, unit).exists():
            if done:
                done(unit)
        else:
            chains.setdefault((unit.entry, unit.stream, unit.seed), []).append(unit)
    if jobs == 1 or len(chains) < 2:
        return _run_here(work, shelf, list(chains.values()), done)
    with ended_processes_named():
        jobs = min(jobs, len(chains), MOST_JOBS)
        return _run_in_processes(work, list(chains.values()), jobs, device, done=done)


def _run_here(work: Work, shelf: Shelf, chains: list[list[Unit]], done: Done | None) -> dict[Unit, str]:
    failed: dict[Unit, str] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(work.plan.threads)
    try:
        for chain in chains:
            for unit in chain:
                error = _attempt(work, shelf, unit)
                if error is not None:
                    failed[unit] = error
                    break
                if done:
                    done(unit)
    finally:
        torch.set_num_threads(before)
    return failed


def _run_in_processes(
    work: Work, chains: list[list[Unit]], jobs: int, device: str, *, done: Done | None
) -> dict[Unit, str]:
    failed: dict[Unit, str] = {}
    waiting = [list(chain) for chain in chains]
    running: dict[Future[str | None], list[Unit]] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (work, device)) as pool:
        while waiting or running:
            while waiting and len(running) < jobs:
                chain = waiting.pop(0)
                running[pool.submit(_in_process, chain[0])] = chain
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                chain = running.pop(future)
                error = future.result()
                if error is not None:
                    failed[chain[0]] = error
                    continue
                if done:
                    done(chain[0])
                if chain[1:]:
                    waiting.insert(0, chain[1:])
    return failed


@contextmanager
def ended_processes_named() -> Iterator[None]:
    """A process that the system ended is a BenchError that says what to do."""
    try:
        yield
    except BrokenProcessPool as error:
        raise BenchError(
            "the system ended a process, perhaps for want of memory; the same command goes on where it "
            "stopped, with fewer --jobs if it happens again"
        ) from error


def end_with_parent() -> None:
    """Ends this worker process as soon as its parent is gone, however that ended.

    A worker that outlives a killed run would go on writing into a folder that another run has taken up.
    """
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_here: tuple[Work, Shelf] | None = None  # of a worker process


def _begin(work: Work, device: str) -> None:
    global _here
    end_with_parent()
    torch.set_num_threads(work.plan.threads)
    _here = work, _shelf(work, device)


def _in_process(unit: Unit) -> str | None:
    assert _here is not None
    return _attempt(*_here, unit)


def _attempt(work: Work, shelf: Shelf, unit: Unit) -> str | None:
    try:
        run_unit(work, shelf, unit)
    except MoleFlowError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other chains have nothing to do with it
        return f"{type(error).__name__}: {error}"
    return None


def _claim(work: Work, shelf: Shelf) -> None:
    """Makes the folder this plan's own, or refuses another plan's."""
    work.out.mkdir(parents=True, exist_ok=True)
    path, plan = work.out / "plan.json", work.plan.to_dict()
    plan["images"] = mark(work.products)
    plan["weights_hash"] = shelf.cache.extractor.weights_hash
    plan["device"] = shelf.cache.extractor.device.type
    if not path.exists():
        write_json(path, plan)
        return
    found = read_json(path)
    differing = sorted(key for key in found.keys() | plan.keys() if found.get(key) != plan.get(key))
    if differing:
        raise BenchError(
            f"{work.out}: expected this benchmark's own folder, found one with other {', '.join(differing)}; "
            "choose another --out or remove it"
        )


def _shelf(work: Work, device: str) -> Shelf:
    plan = work.plan
    extractor = Extractor(plan.backbone, weights=plan.weights, image_size=plan.image_size, device=device)
    return Shelf(FeatureCache(work.cache, extractor))
