"""Kill processes that change a saved line, at random moments, and look at what is left.

    python benchmarks/kills.py --kills 200

A child process teaches, re-teaches or removes a product and saves; SIGKILL ends it somewhere between its
first step and its last. After every kill the line must load, must hold the products of before or of after
the change, and must predict to the bit what each of them predicted when nobody was killed. The next child
works on the same folder, on top of what the killed one left behind.
"""

import argparse
import collections
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moleflow import (
    Cells,
    Detector,
    Dia,
    FlowConfig,
    LineConfig,
    MoleFlowError,
    TrainingConfig,
)
from moleflow.data.factory import make_sample

torch.set_num_threads(1)  # before anything is computed: a pool of threads does not survive a fork
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nor does a GPU that was opened

SIZE = 64
QUICK = LineConfig(
    flow=FlowConfig(cells=Cells(side=2, rank=8, mean_side=4), hidden=32, dia=Dia(hidden=32)),
    training=TrainingConfig(steps=2, base_steps=2, patches=128),
)
UNTOUCHED, CHANGED = ("gear", "wood"), "bottle_cap"
PHASES = ("before any file", "writing files", "moving them into place", "behind the new line.json")
LEARNING, WRITING, MOVING, BEHIND = range(4)
MOST_FAILURES = 5  # then nothing more is to be learned
Content = dict[str, int]  # product -> 0: never touched, 1: as added, 2: as updated after that


class Stage:
    """The step a child is at, in memory that outlives it; steps only go up."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def __call__(self, step: int) -> None:
        self._memory[0] = max(self._memory[0], step)

    def reset(self) -> None:
        self._memory[0] = LEARNING

    @property
    def step(self) -> int:
        return self._memory[0]


def watch_files(stage: Stage) -> None:
    """Make this process tell how far its writing has come. Only children call it."""

    def told(name: str, before: int, after: int | None = None) -> None:
        plain = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            stage(before)
            result = plain(*args, **options)
            if after is not None:
                stage(after)
            return result

        setattr(os, name, call)

    told("fsync", WRITING)
    told("rename", MOVING)
    told("replace", MOVING, BEHIND)


def images(product: str, variant: int) -> list:
    return [make_sample(product, 100 * variant + i, size=SIZE).image for i in range(4)]


def change(detector: Detector, operation: str, variant: int) -> None:
    if operation == "remove":
        detector.remove_task(CHANGED)
    else:
        learn = detector.add_task if operation == "add" else detector.update_task
        learn(CHANGED, images(CHANGED, variant))


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child that has everything loaded already; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def finish(child: int) -> int:
    """The child's exit status, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def says(detector: Detector, product: str) -> tuple:
    """All a product says about images of its own and of another, comparable to the bit."""
    pictures = [make_sample(name, 900 + i, size=SIZE).image for name in (product, "gear") for i in range(2)]
    return tuple(
        (p.pred_score, p.p_value, p.threshold, p.pred_label, p.patch_map.tobytes())
        for p in detector.predict(pictures, task=product)
    )


class Trial:
    """One line, one reference for everything it may say, and children that come and go."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.path, self.random, self.stage = folder / "line", random.Random(seed), Stage()
        self._prepare(folder)
        self.content: Content = dict.fromkeys(UNTOUCHED, 0)
        self.detector = Detector.load(self.path, device="cpu")
        self.failures: list[str] = []
        self.hits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.finished = 0
        self.pace = dict.fromkeys(self.seconds, 1.0)  # the machine may be faster now than it was at first

    def _prepare(self, folder: Path) -> None:
        """The line, and what every product says when nobody is killed; the parent itself never learns."""

        def teach() -> None:
            detector = Detector(image_size=SIZE, device="cpu", config=QUICK)
            for product in UNTOUCHED:
                detector.add_task(product, images(product, 0))
            detector.save(self.path)

        if finish(fork(teach)):
            raise SystemExit("the line could not be prepared")
        detector = Detector.load(self.path, device="cpu")
        self.reference = {(product, 0): says(detector, product) for product in UNTOUCHED}
        self.seconds: dict[str, tuple[float, float]] = {}  # operation -> (whole, writing)
        for operation, variant in (("add", 1), ("update", 2), ("remove", 0)):
            self.seconds[operation] = self._timed(operation, variant, folder / "copy")
            if operation != "remove":
                detector = Detector.load(folder / "copy", device="cpu")
                self.reference[CHANGED, variant] = says(detector, CHANGED)
        if self.reference[CHANGED, 1] == self.reference[CHANGED, 2]:
            raise SystemExit("the two versions of a product say the same: nothing would be compared")

    def _timed(self, operation: str, variant: int, copy: Path) -> tuple[float, float]:
        if not copy.exists():
            shutil.copytree(self.path, copy)
        detector = Detector.load(copy, device="cpu")
        self.stage.reset()
        started = time.perf_counter()
        child = fork(lambda: self._work(detector, operation, variant))
        while self.stage.step < WRITING and _alive(child):
            time.sleep(0.0005)
        writing = time.perf_counter()
        if finish(child):
            raise SystemExit(f"{operation} failed although nobody was killed")
        return time.perf_counter() - started, time.perf_counter() - writing

    def _work(self, detector: Detector, operation: str, variant: int) -> None:
        watch_files(self.stage)
        change(detector, operation, variant)
        detector.save()

    def kill_once(self) -> None:
        """One child, killed if it is still there when its time has come, and a look at the line."""
        operation, variant, after = self._next()
        self.stage.reset()
        child = fork(lambda: self._work(self.detector, operation, variant))
        self._kill_somewhere(child, operation)
        status = finish(child)
        if status == -signal.SIGKILL:
            self.hits[operation, PHASES[self.stage.step]] += 1
        elif status == 0:
            self.finished += 1
        else:
            self.failures.append(f"{operation}: the child ended by itself with status {status}")
        # About one child in four is to finish first: then kills reach up to the very end.
        self.pace[operation] *= 0.85 if status == 0 else 1.05
        self._look(operation, after, finished=status == 0)

    def _next(self) -> tuple[str, int, Content]:
        """Absent, added, updated, and round again; what was added may also go at once."""
        present = self.content.get(CHANGED, 0)
        operation = ("add", "update", "remove")[present]
        if operation == "update" and self.random.random() < 0.3:
            operation = "remove"
        rest = {name: at for name, at in self.content.items() if name != CHANGED}
        return operation, present + 1, rest if operation == "remove" else rest | {CHANGED: present + 1}

    def _kill_somewhere(self, child: int, operation: str) -> None:
        """Half of the kills fall anywhere in the change, half in its short end, the writing."""
        whole, writing = (self.pace[operation] * seconds for seconds in self.seconds[operation])
        if self.random.random() < 0.5:
            time.sleep(self.random.uniform(0, whole))
        else:
            while self.stage.step < WRITING and _alive(child):
                time.sleep(0.0002)
            time.sleep(self.random.uniform(0, writing))
        os.kill(
            child, signal.SIGKILL
        )  # a child that has finished waits for `finish`: its id is still its own

    def _look(self, operation: str, after: Content, *, finished: bool) -> None:
        try:
            self.detector = Detector.load(self.path, device="cpu")
            known = set(self.detector.tasks)
            found = {
                (name, at)
                for name, at in self.reference
                if name in known and says(self.detector, name) == self.reference[name, at]
            }
        except MoleFlowError as error:
            raise SystemExit(f"after killing {operation}: {type(error).__name__}: {error}") from error
        content = dict(found)
        if set(content) != known or (content != after and (finished or content != self.content)):
            self.failures.append(
                f"{operation}: expected {self.content} or {after}, found {content} of {known}"
            )
        if not finished:
            self.outcomes["after" if content == after else "before"] += 1
        self.content = content

    def tidy(self) -> None:
        """An undisturbed change must succeed on top of everything the killed ones left, and remove it."""
        operation, variant, after = self._next()
        if finish(fork(lambda: self._work(self.detector, operation, variant))):
            self.failures.append("the last, undisturbed change failed")
        left = sorted(str(p.relative_to(self.path)) for p in self.path.rglob(".tmp-*"))
        if left:
            self.failures.append(f"debris outlived the last change: {left}")
        self._look(operation, after, finished=True)


def _alive(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def summary(trial: Trial, seconds: float) -> dict:
    by_operation = {
        operation: {phase: trial.hits[operation, phase] for phase in PHASES}
        for operation in ("add", "update", "remove")
    }
    return {
        "kills": sum(trial.hits.values()),
        "by_operation": by_operation,
        "line_as_before": trial.outcomes["before"],
        "line_as_after": trial.outcomes["after"],
        "children_that_finished_first": trial.finished,
        "failures": trial.failures,
        "seconds": round(seconds, 1),
    }


def show(result: dict) -> None:
    width = max(map(len, PHASES))
    print(f"{'':{width}}" + "".join(f"{operation:>8}" for operation in result["by_operation"]))
    for phase in PHASES:
        counts = [hits[phase] for hits in result["by_operation"].values()]
        print(f"{phase:{width}}" + "".join(f"{count:8}" for count in counts))
    print(
        f"{result['kills']} kills in {result['seconds']:.0f} s; the line was as before "
        f"{result['line_as_before']} times and as after {result['line_as_after']} times; "
        f"{result['children_that_finished_first']} children were faster than their kill"
    )
    print(f"failures: {len(result['failures'])}", *result["failures"], sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments; the machine adds its own chance")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not hasattr(os, "fork"):
        raise SystemExit("this system has no fork")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), options.seed)
        while sum(trial.hits.values()) < options.kills and len(trial.failures) < MOST_FAILURES:
            trial.kill_once()
        trial.tidy()
    result = summary(trial, time.perf_counter() - started)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    raise SystemExit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
