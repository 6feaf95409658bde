"""One lesson in a process of its own: `python -m moleflow.station.lesson FOLDER`.

It reads `lesson.json` in the folder and writes the product, alone on a line of its own, to `draft` there. How
far it is goes to stdout as JSON lines. It has less right to the processor than inspection, and ends with the
process that began it: that holds the other end of its stdin.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

NICE = 10
FILE, DRAFT = "lesson.json", "draft"
SHARES = {  # of the time of a lesson, roughly, in the order of its stages
    "reading": 0.06,
    "backbone": 0.34,
    "pose": 0.08,
    "base": 0.02,
    "learning": 0.25,
    "calibration": 0.17,
    "flips": 0.06,
    "saving": 0.02,
}
NOT_GOOD = {  # by status
    "defective": "the version in use finds it defective",
    "unknown": "the version in use does not know what it shows",
    "drifting": "the version in use cannot judge it: it was taken under other conditions",
}


@dataclass(frozen=True)
class Wish:
    """What is to be learned.

    Attributes:
        line: folder of the line; without one a new line begins.
        kind: "teach" or "update".
        name: of the product.
        photos: files of good photographs, by index.
        names: what each is called.
        past: kept pictures of earlier inspections, by their number.
        threads, device, runtime, weights: as for `Detector.load`.
    """

    line: str
    kind: str
    name: str
    photos: dict[int, str]
    names: dict[int, str]
    past: dict[int, str]
    threads: int
    device: str
    runtime: str
    weights: str | None

    def write(self, folder: Path) -> None:
        """Into the folder of the lesson."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Wish:
        """The inverse of `write`."""
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        for key in ("photos", "names", "past"):  # JSON has no numbers as keys
            values[key] = {int(number): value for number, value in values[key].items()}
        return cls(**{field.name: values[field.name] for field in fields(cls)})


Tell = Callable[[str, float], None]


def learn(wish: Wish, draft: Path, tell: Tell) -> dict[str, Any]:
    """Learns, writes the draft, and returns what a person should look at before it goes live."""
    import torch

    from ..detector import Detector
    from ..store import LineStore

    torch.set_num_threads(wish.threads)
    tell("reading", 0.0)
    options: dict[str, Any] = {"weights": wish.weights, "device": wish.device, "runtime": wish.runtime}
    if LineStore(wish.line).exists():
        detector = Detector.load(wish.line, damaged="quarantine", **options)
    else:
        detector = Detector(**options)
    version = detector.info(wish.name).version if wish.kind == "update" else None
    before = _statuses(detector, wish, lambda share: tell("reading", share))
    photos = [wish.photos[index] for index in sorted(wish.photos)]
    learning = detector.update_task if wish.kind == "update" else detector.add_task
    info = learning(wish.name, photos, progress=tell)
    after = _statuses(detector, wish, lambda share: tell("flips", share))
    tell("saving", 0.0)
    detector._save_only(wish.name, draft)
    swallowed = () if info.changes is None else info.changes.swallowed
    return {
        "base_version": version,
        "suspects": _told([(one.source, _renamed(one.reason, wish)) for one in info.suspects], wish),
        "swallowed": _told([(one.source, _not_good(one.before)) for one in swallowed], wish),
        "unreadable": [_renamed(reason, wish) for reason in info.unreadable],
        "promise": "; ".join(info.promise.sentences()),
        "threshold": info.threshold,
        "false_alarm_rate": info.false_alarm_rate,
        "bytes": info.bytes,
        "flips": _flips(before, after),
    }


def _told(found: Sequence[tuple[str, str]], wish: Wish) -> list[dict[str, Any]]:
    """Photographs to look at, by file and reason, as a review names them."""
    indices = {str(Path(file)): index for index, file in wish.photos.items()}
    return [
        {"index": indices[file], "source": wish.names[indices[file]], "reason": reason}
        for file, reason in found
    ]


def _not_good(before: str) -> str:
    """What the version in use says of a photograph that is learned as a good one."""
    return NOT_GOOD.get(before, f"the version in use takes it for {before.removeprefix('taken for ')}")


def _statuses(detector: Any, wish: Wish, told: Callable[[float], None]) -> dict[int, bool]:
    """Which of the past pictures are good ones of the product; those that cannot be judged are left out."""
    found = {}
    numbers = sorted(wish.past)
    for done, number in enumerate(numbers, 1):
        (said,) = detector.predict([wish.past[number]], errors="yield")
        if hasattr(said, "status"):
            found[number] = said.status == "good" and said.task == wish.name
        told(done / len(numbers))
    return found


def _unreadable(wish: Wish) -> list[int]:
    """Indices of the photographs that cannot be read, so that a person can leave all of them out at once."""
    from ..data.images import as_raw
    from ..errors import ImageError

    found = []
    for index, file in sorted(wish.photos.items()):
        try:
            as_raw(file)
        except ImageError:
            found.append(index)
    return found


def _flips(before: dict[int, bool], after: dict[int, bool]) -> dict[str, Any]:
    both = sorted(before.keys() & after.keys())
    return {
        "inspections": len(both),
        "to_good": [number for number in both if after[number] and not before[number]],
        "to_defective": [number for number in both if before[number] and not after[number]],
    }


def _renamed(text: str, wish: Wish) -> str:
    """Files are called as they were uploaded."""
    for index, file in wish.photos.items():
        text = text.replace(file, wish.names[index])
    return text


class _Progress:
    """Says at which stage a lesson is, and which share of all of it is done; that never falls."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write, self._share, self._said = write, 0.0, ("", -1.0)
        self._begins = dict(zip(SHARES, _cumulated(list(SHARES.values())), strict=True))

    def __call__(self, stage: str, share: float) -> None:
        if stage in SHARES:
            self._share = max(self._share, self._begins[stage] + SHARES[stage] * min(share, 1.0))
        said = (stage, round(self._share, 3))
        if said != self._said:
            self._said = said
            self._write({"stage": stage, "progress": said[1]})


def _cumulated(shares: Sequence[float]) -> list[float]:
    return [sum(shares[:i]) for i in range(len(shares))]


def _end_with_parent() -> None:
    """The other end of stdin closes when the process that holds it ends, however it does."""
    while os.read(0, 1):  # a buffer would be locked meanwhile, and Python aborts where one is at its end
        pass
    os._exit(3)


def main(folder: Path) -> int:
    """One lesson; 0 where it was learned, 1 where an error was said."""
    from ..errors import ImageError, MoleFlowError

    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(NICE)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no progress

    def write(said: dict[str, Any]) -> None:
        out.write(json.dumps(said) + "\n")
        out.flush()

    wish = Wish.read(folder)
    try:
        write({"review": learn(wish, folder / DRAFT, _Progress(write))})
    except ImageError as error:
        write({"error": _renamed(str(error), wish), "unreadable": _unreadable(wish)})
        return 1
    except (MoleFlowError, OSError) as error:
        write({"error": _renamed(str(error), wish)})
        return 1
    except Exception as error:
        traceback.print_exc()  # for the station's log
        write({"error": _renamed(f"{type(error).__name__}: {error}", wish)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
