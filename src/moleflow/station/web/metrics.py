"""What a Prometheus server asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..history.models import Inspection

if TYPE_CHECKING:
    from ..service import Station

BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
LATENCY = "seconds from a picture's arrival to its verdict"


class Metrics:
    """Of one station; a registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "moleflow_requests_total", "requests answered", ["method", "route", "status"], **own
        )
        self._inspections = Counter(
            "moleflow_inspections_total", "pictures inspected", ["product", "status"], **own
        )
        self._unrecorded = Counter(
            "moleflow_unrecorded_total", "pictures answered that could not be recorded", **own
        )
        self._latency = Histogram("moleflow_inspection_seconds", LATENCY, buckets=BUCKETS, **own)
        ProcessCollector(registry=self.registry)

    def watch(self, station: Station) -> None:
        """Gauges of what is so at the moment, asked when they are read."""
        gauges = {
            "queue": ("pictures that wait", lambda: station.inspecting.waiting),
            "learning": ("1 while a lesson is learned", lambda: station.lessons.teaching.learning),
            "products": ("products that are inspected", lambda: len(station.line.now.tasks)),
            "quarantined": ("products that are damaged", lambda: len(station.line.now.damaged)),
            "line_stale": ("1 while the line's folder cannot be read", lambda: bool(station.line.problem)),
            "disk_free_bytes": ("free on the station's disk", station.disk_free),
        }
        for name, (meaning, ask) in gauges.items():
            Gauge(f"moleflow_{name}", meaning, registry=self.registry).set_function(ask)

    def inspected(self, found: Sequence[Inspection], recorded: bool) -> None:
        """A batch that was answered."""
        for one in found:
            self._inspections.labels(one.task, one.status).inc()
            self._latency.observe(one.latency_ms / 1000)
        if not recorded:
            self._unrecorded.inc(len(found))

    def answered(self, method: str, route: str, status: int) -> None:
        """One request."""
        self._requests.labels(_known(method, METHODS), route, str(status)).inc()

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self.registry)


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


def _known(word: str, words: Iterable[str]) -> str:
    """Anybody may send any word: those that are not known share a label."""
    return word if word in words else "other"
