"""Changes of the line: written down first, made under the line's lock, and in use between two pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CalibrationError, LineBusyError, LineError, TaskError
from ..runtime import is_exported
from ..store import LineStore
from ..store.names import folded_name
from .current import CurrentLine
from .history.audit import Audit, Person
from .problems import Conflict, Missing, Problem, Unready, Unusable

log = logging.getLogger("moleflow.station")

LOCK_SECONDS = 30.0


class Changing:
    """Of one line."""

    def __init__(self, line: CurrentLine, audit: Audit) -> None:
        self._line, self._audit, self._store = line, audit, line.store

    def set_threshold(
        self,
        who: Person,
        name: str,
        *,
        false_alarm_rate: float | None,
        threshold: float | None,
        version: str | None = None,
    ) -> None:
        """By the rate of false alarms, or by hand.

        Args:
            who: asks for it.
            name: of the product.
            false_alarm_rate: means the same of every version.
            threshold: in the units of the scores, which are those of one version.
            version: that is meant; of a threshold by hand the one that the station inspects with by default.

        Raises:
            Unusable: not exactly one of the two, or one that cannot be.
            Conflict: another version is in use by now, or there is nothing to set.
        """
        if (false_alarm_rate is None) == (threshold is None):
            raise Unusable("expected false_alarm_rate or threshold, exactly one of them")
        now = self._line.now
        calibration = now.calibration(name)
        if calibration is None:
            raise Conflict(f"{name!r} cannot be changed here", "fixed")
        try:
            if false_alarm_rate is not None:
                calibration.threshold(false_alarm_rate)
            elif not math.isfinite(threshold or 0.0):
                raise CalibrationError(f"a threshold is a finite number, got {threshold}")
        except CalibrationError as error:
            raise Unusable(str(error)) from error
        if version is None and threshold is not None:
            version = now.version(name)
        values = {"false_alarm_rate": false_alarm_rate, "threshold": threshold}
        try:
            with (
                self._change(who, "threshold", name, **values),
                self._store.transaction(LOCK_SECONDS) as change,
            ):
                self._check_meant(name, version)
                change.override(name, values)
        except Conflict:
            self._line.look()  # what is told next is of the version that is in use
            raise

    def roll_back(self, who: Person, name: str, version: str) -> None:
        """Uses another version that is on disk, also of a product that is quarantined."""
        with self._change(who, "rollback", name, version=version) as more:
            more["before"] = self._line.now.version(name)
            available = self._store.versions(name)
            if version not in available:
                found = f"{name!r} has no version {version!r}; expected one of {', '.join(available)}"
                raise Missing(found, "unknown_version")
            with self._store.transaction(LOCK_SECONDS) as change:
                change.point(name, version)

    def remove(self, who: Person, name: str) -> None:
        """Takes a product and all its versions off the line."""
        version = self._line.now.version(name)
        with (
            self._change(who, "remove", name, version=version),
            self._store.transaction(LOCK_SECONDS) as change,
        ):
            change.remove(name)

    def adopt(
        self, who: Person, kind: str, name: str, draft: Path, base_version: str | None, job: int
    ) -> str:
        """Puts what a lesson learned on the line, as a new version; its number."""
        with self._change(who, kind, name, job=job) as more:
            version = self._adopted(kind, name, LineStore(draft), base_version)
            more["version"] = version
        return version

    def _adopted(self, kind: str, name: str, draft: LineStore, base_version: str | None) -> str:
        if kind == "teach" and not self._line.now.names and not self._store.exists():
            return self._begin(draft, name)  # a line that is only away is never begun anew
        record = draft.read_task(name)
        with self._store.transaction(LOCK_SECONDS) as change:
            now = self._store.read_task(name) if name in self._store.names() else None
            if now is not None and now.sha256 == record.sha256 and now.version != base_version:
                return str(now.version)  # accepted before, which could not be written down then
            overrides = dict(record.overrides)
            if kind == "teach":
                self._check_new(name)
            else:
                overrides |= self._kept(name, base_version)
            self._check_base(name, draft)
            version = change.adopt(draft.path / "tasks" / name / str(record.version), name)
            if overrides:
                change.override(name, overrides)
            return version

    def _check_new(self, name: str) -> None:
        twin = {folded_name(known): known for known in self._store.names()}.get(folded_name(name))
        if twin is not None:
            raise Conflict(
                f"{twin!r} is on the line by now; cancel this lesson or update the product", "taken"
            )

    def _check_base(self, name: str, draft: LineStore) -> None:
        """Of two lessons on a line that knew nothing the first settles base and options for the other."""
        line = self._store.read(tensors=False, damaged="quarantine")
        if draft.read(tensors=False).fingerprint != line.fingerprint:
            found = f"{name!r} was learned on another base or with other options than this line's by now"
            raise Conflict(f"{found}: cancel the lesson and resume it, to learn it on these", "other_base")

    def _check_meant(self, name: str, version: str | None) -> None:
        """Under the line's lock: of another version scores have another scale."""
        used = self._store.in_use().get(name)
        if None not in (version, used) and version != used:
            found = f"{name!r} changed meanwhile: version {used} is in use, and this was meant for {version}"
            raise Conflict(f"{found}; look at the curve of {used} and set it again", "other_version")

    def _kept(self, name: str, base_version: str | None) -> dict[str, Any]:
        """What an update keeps of what was set by now; Conflict where the product is another one."""
        now = self._store.read_task(name) if name in self._store.names() else None
        if now is None or now.version != base_version:
            found = "no such product" if now is None else f"version {now.version}"
            raise Conflict(f"{name!r} changed meanwhile: expected version {base_version}, found {found}")
        # A threshold set by hand is not kept: scores have a new scale.
        return {key: value for key, value in now.overrides.items() if key == "false_alarm_rate"}

    def _begin(self, draft: LineStore, name: str) -> str:
        """The first product of a line makes it."""
        record = draft.read()
        self._store.create(
            record.settings,
            record.base,
            fingerprint=record.fingerprint,
            tasks=record.tasks,
            timeout=LOCK_SECONDS,
        )
        return str(self._store.read_task(name).version)

    @contextmanager
    def _change(self, who: Person, action: str, name: str, **detail: Any) -> Iterator[dict[str, Any]]:
        """Around a change of the folder; afterwards the station inspects with what the folder holds."""
        if is_exported(self._store.path):
            raise Conflict("an exported line cannot be changed: change the line it came from", "exported")
        with self._audit.change(who, action, name, **detail) as more, translated():
            yield more
        try:
            with translated():
                self._line.reload()
        except Problem as problem:  # the change is made; the station looks at the folder again and again
            log.warning("%s of %r is made, but the line cannot be loaded yet: %s", action, name, problem)


@contextmanager
def translated() -> Iterator[None]:
    """What the library says of a line, as the station says it."""
    try:
        yield
    except Problem:
        raise
    except TaskError as error:
        raise Missing(str(error), "unknown_product") from error
    except LineBusyError as error:
        raise Unready(str(error), "line_busy") from error
    except LineError as error:
        raise Unready(str(error), "line") from error
