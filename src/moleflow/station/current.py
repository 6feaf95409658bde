"""The line as it is now: loaded beside the one in use, and put in its place in one step."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LEARNING, LineError, MoleFlowError
from ..monitor import reference_of
from ..results import Prediction
from ..runtime import Inspector, is_exported
from ..store import LineStore, TaskRecord
from ..verdict.calibration import Calibration, calibration_from_dict
from ..verdict.drift import Reference
from .settings import Settings

if TYPE_CHECKING:
    from ..detector import Detector

log = logging.getLogger("moleflow.station")

State = tuple[int, int, int] | None


@dataclass(frozen=True, eq=False)
class Loaded:
    """A line in memory, and what its folder said when it was read.

    Attributes:
        inspector: a `Detector`, or an `Inspector` of an exported line; None where nothing is taught yet.
        state: of the folder, another after every change.
        records: by product, without tensors; none of an exported line.
        damaged: products that were left out, with the reason.
    """

    inspector: Detector | Inspector | None
    state: State = None
    records: dict[str, TaskRecord] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Products that can be inspected."""
        return () if self.inspector is None else self.inspector.tasks

    @property
    def names(self) -> tuple[str, ...]:
        """All products, also those that were left out."""
        return (*self.tasks, *self.damaged)

    def version(self, name: str) -> str | None:
        """Of a product, as it was loaded."""
        record = self.records.get(name)
        return None if record is None else record.version

    def calibration(self, name: str) -> Calibration | None:
        """What its good images scored; None where the folder does not say."""
        record = self.records.get(name)
        return None if record is None else calibration_from_dict(record.info["calibration"])

    def reference(self, name: str) -> Reference | None:
        """The conditions its good images were taken under; None where nobody noted them."""
        record = self.records.get(name)
        return None if record is None else reference_of(record.info)


class CurrentLine:
    """Holds the line that inspects; whoever asks for it keeps what he got until he is done."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loading = threading.Lock()
        self.store = LineStore(settings.line)
        self.problem: str | None = None
        self.now = Loaded(None)
        self.now = self._load()

    @property
    def inspector(self) -> Detector | Inspector:
        """What inspects now; LineError where nothing is taught."""
        if self.now.inspector is None:
            raise LineError(f"{self.store.path}: expected a line that knows a product, found none")
        return self.now.inspector

    @property
    def can_learn(self) -> bool:
        """Whether this machine has what learning needs, and the line is one that learns."""
        return not is_exported(self._settings.line) and _has_learning()

    def reload(self) -> Loaded:
        """Loads what the folder holds now, and swaps it in; on an error the line stays as it is.

        Raises:
            LineError: the folder cannot be read.
        """
        with self._loading:
            loaded = self._load()
            self.now, self.problem = loaded, None
        return loaded

    def look(self) -> bool:
        """Reloads the line if another process changed its folder; whether it did."""
        if self._state() == self.now.state and self.problem is None:
            return False
        try:
            self.reload()
        except MoleFlowError as error:
            if self.problem is None:
                log.error("the line changed and cannot be read; the one in memory goes on: %s", error)
            self.problem = str(error)
            return False
        return True

    def _state(self) -> State:
        return _stat(self._settings.line / "exported.json") or self.store.state()

    def _load(self) -> Loaded:
        for _ in range(5):  # a writer may come between
            before = self._state()
            loaded = self._read(before)
            if self._state() == before:
                return loaded
        return loaded

    def _read(self, state: State) -> Loaded:
        settings = self._settings
        if is_exported(settings.line):
            inspector = Inspector(settings.line, threads=settings.threads, damaged="quarantine")
            _warm(inspector)
            return Loaded(inspector, state, damaged=inspector.damaged)
        if not self.store.exists():
            refuse_other(settings.line)
            if self.now.names:  # a drive that is away, or a folder that is just replaced
                raise LineError(f"{settings.line}: expected the folder of the line, found none")
            return Loaded(None, state)
        from ..detector import Detector  # torch: an exported line does without

        detector = Detector.load(
            settings.line,
            weights=settings.weights,
            device=settings.device,
            runtime=settings.runtime,  # type: ignore[arg-type]
            damaged="quarantine",
        )
        _warm(detector)
        read = self.store.read(tensors=False, damaged="quarantine")
        records = {record.name: record for record in read.tasks if record.name in detector.tasks}
        return Loaded(detector if detector.tasks else None, state, records, read.damaged | detector.damaged)


def _warm(inspector: Detector | Inspector) -> None:
    """What would be opened with the first image is opened before the line is swapped in."""
    exported = isinstance(inspector, Inspector)
    if inspector.tasks:
        task = inspector.tasks[0] if exported else None  # the nearest of an export may be damaged
        blank = np.zeros((*inspector.intake.size, 3))
        for kind in (np.uint8, np.uint16, np.float32):  # those that are not of the line's kind are refused
            (said,) = inspector.predict([blank.astype(kind)], task=task, errors="yield")
            if isinstance(said, Prediction):
                break
    if isinstance(inspector, Inspector):
        inspector.hold()  # as a detector does: its folder may be away later


def refuse_other(line: Path) -> None:
    """A folder that holds something else must not become a line by the first product."""
    if is_exported(line) or LineStore(line).exists():
        return
    if line.exists() and (not line.is_dir() or any(not path.name.startswith(".") for path in line.iterdir())):
        raise LineError(f"{line}: expected the folder of a line, or none; found something else")


def _stat(path: Path) -> State:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _has_learning() -> bool:
    from importlib.util import find_spec

    found: list[Any] = [find_spec(name) for name in LEARNING]
    return all(found)
