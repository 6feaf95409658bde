"""What a belt shows is told to the line's own watch, from which `moleflow drift` speaks."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from ..errors import MoleFlowError
from ..results import Prediction

log = logging.getLogger("moleflow.station")

EVERY = 10.0  # seconds between two writes of the watch
MOST = 1000  # images that wait to be told; beyond, the oldest are left out
ENDING = 10.0  # seconds that the end waits for the last of them

Observe = Callable[[list[Prediction]], None]


class Monitoring:
    """In a thread of its own, because the line's lock may be held by others while it is changed.

    What cannot be told, as of a version that the line has no more, is logged and left out.
    """

    def __init__(self, *, every: float = EVERY) -> None:
        self._waiting: deque[tuple[Observe, Prediction]] = deque(maxlen=MOST)
        self._closing, self._every = threading.Event(), every
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="monitoring", daemon=True)
        self._thread.start()

    def add(self, observe: Observe, prediction: Prediction) -> None:
        """An image, and `Detector.observe` of the line in memory that inspected it."""
        self._waiting.append((observe, prediction))

    def close(self) -> None:
        """Tells what waits."""
        self._closing.set()
        self._thread.join(ENDING)

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        told: dict[tuple[Observe, str], list[Prediction]] = {}
        while self._waiting:
            observe, prediction = self._waiting.popleft()
            told.setdefault((observe, prediction.task), []).append(prediction)
        for (observe, _), predictions in told.items():  # a product that cannot be told keeps none from others
            try:
                observe(predictions)
            except (MoleFlowError, OSError) as error:
                if str(error) != self._said:
                    log.warning("moleflow drift is not told of %d images: %s", len(predictions), error)
                self._said = str(error)
