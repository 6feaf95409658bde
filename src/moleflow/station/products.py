"""What is told of products: their costs, curves, past verdicts, and whether their images drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import CalibrationError, LineError, TaskError
from ..store import check_task_name
from ..verdict.calibration import Calibration
from ..verdict.drift import CHANNELS, Facts
from ..verdict.promise import promise
from ..verdict.watch import KEPT, Seen, judge
from .current import CurrentLine, Loaded
from .history.inspections import Inspections, moment
from .history.models import Inspection
from .problems import Conflict, Missing, Unusable

CURVE = np.geomspace(1e-4, 0.5, 60)  # false-alarm rates
RECENT_POINTS = KEPT


class Products:
    """Of the line as it is now."""

    def __init__(self, line: CurrentLine, inspections: Inspections) -> None:
        self._line, self._inspections = line, inspections

    def check(self, name: str) -> str:
        """The name as the line writes it; Missing where it has no such product, not even in quarantine."""
        try:
            name = check_task_name(name)
        except TaskError as error:
            raise Missing(str(error), "unknown_product") from error
        now = self._line.now
        if name not in now.tasks and name not in now.damaged:
            known = ", ".join(map(repr, now.tasks)) or "none"
            raise Missing(f"{name!r} is no product of this line; known: {known}", "unknown_product")
        return name

    def briefs(self) -> list[dict[str, Any]]:
        """All products, those that are quarantined last."""
        now = self._line.now
        whole = [self._brief(now, name) for name in now.tasks]
        return whole + [self._quarantined(name, reason) for name, reason in now.damaged.items()]

    def brief(self, name: str) -> dict[str, Any]:
        """One product in a few numbers."""
        now, name = self._line.now, self.check(name)
        return self._quarantined(name, now.damaged[name]) if name in now.damaged else self._brief(now, name)

    def detail(self, name: str) -> dict[str, Any]:
        """One product in full; of a quarantined or exported one as much as is known."""
        now, name = self._line.now, self.check(name)
        told = self.brief(name) | {
            "calibration": None,
            "calibration_images": None,
            "parts": {},
            "seconds": {},
            "versions": self._versions(name, now.version(name)),
            "promise": "",
            "suspects": 0,
            "curve": [],
            "recent": self._inspections.counts(name),
        }
        calibration, record = now.calibration(name), now.records.get(name)
        if calibration is None or record is None:
            return told
        info = now.inspector.info(name)  # type: ignore[union-attr]
        return told | {
            "calibration": info.calibration,
            "calibration_images": info.calibration_images,
            "parts": {part: size.bytes for part, size in info.parts.items()},
            "seconds": info.seconds,
            "promise": "; ".join(info.promise.sentences()),
            "suspects": len({suspect.source for suspect in info.suspects}),
            "curve": [
                {"false_alarm_rate": rate, "threshold": calibration.threshold(rate)}
                for rate in CURVE.tolist()
            ],
        }

    def preview(self, name: str, rate: float) -> dict[str, Any]:
        """The threshold that a false-alarm rate means, and how past verdicts would be with it."""
        now, name = self._line.now, self.check(name)
        calibration = self.calibration(name)
        try:
            threshold = calibration.threshold(rate)
        except CalibrationError as error:
            raise Unusable(str(error)) from error
        past = self._inspections.under_threshold(name, now.version(name), threshold)
        said = promise(calibration, rate, threshold).sentences()
        return {"threshold": threshold, "promise": "; ".join(said), "past": past}

    def calibration(self, name: str) -> Calibration:
        """Of a product that is whole; Conflict for others."""
        found = self._line.now.calibration(name)
        if found is None:
            raise Conflict(
                f"{name!r} is quarantined, or its line was exported: there is nothing to set", "fixed"
            )
        return found

    def drift(self, name: str) -> dict[str, Any]:
        """Whether the product's good images move away from those taught, by the last inspections of it."""
        now, name = self._line.now, self.check(name)
        reference = now.reference(name)
        rows = self._inspections.last(name, RECENT_POINTS, version=now.version(name))[::-1]
        rows = [row for row in rows if row.facts is not None]
        report = judge([_seen(row) for row in rows], reference)
        series = []
        for channel, norm in (reference.norms if reference else {}).items():
            points = [
                {"time": moment(row.time), "value": row.facts[channel]}
                for row in rows
                if row.facts and row.facts.get(channel) is not None
            ]
            series.append(
                {
                    "channel": channel,
                    "what": CHANNELS[channel].what,
                    "points": points,
                    "low": norm.low[0],
                    "high": norm.high[-1],
                }
            )
        return {"state": report.state, "sentences": [report.sentence], "series": series}

    def _brief(self, now: Loaded, name: str) -> dict[str, Any]:
        told: dict[str, Any] = self._quarantined(name, None) | {"version": now.version(name)}
        if name not in now.records:
            return told
        info = now.inspector.info(name)  # type: ignore[union-attr]
        return told | {
            "images": info.images,
            "threshold": info.threshold,
            "false_alarm_rate": info.false_alarm_rate,
            "bytes": info.bytes,
            "seconds": sum(info.seconds.values()),
        }

    @staticmethod
    def _quarantined(name: str, reason: str | None) -> dict[str, Any]:
        numbers = dict.fromkeys(("version", "images", "threshold", "false_alarm_rate", "bytes", "seconds"))
        return {"name": name, **numbers, "quarantined": reason is not None, "reason": reason}

    def _versions(self, name: str, current: str | None) -> list[dict[str, Any]]:
        found = _or_none(lambda: self._line.store.versions(name)) or []
        return [{"version": version, "current": version == current} for version in found]


def _or_none(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (LineError, TaskError):
        return None


def _seen(row: Inspection) -> Seen:
    facts = {key: row.facts.get(key) for key in Facts.__dataclass_fields__} if row.facts else {}
    return Seen(row.time, row.status, row.pred_score, Facts(**facts))  # type: ignore[arg-type]
