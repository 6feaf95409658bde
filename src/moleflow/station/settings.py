"""Everything about a station that can be set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MB, GB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """What one request may bring.

    Attributes:
        images: pictures of an inspection.
        bytes: of an inspection's request in all, and of each photograph of a lesson.
        pixels: width times height of a picture.
        lesson_images, lesson_bytes: the same of a lesson.
        waiting: pictures that may wait to be inspected; beyond, the station is busy.
        memory: bytes of decoded pictures that are held at a time.
    """

    images: int = 64
    bytes: int = 128 * MB
    pixels: int = 60_000_000
    lesson_images: int = 1000
    lesson_bytes: int = 4 * GB
    waiting: int = 512
    memory: int = 768 * MB


@dataclass(frozen=True)
class Settings:
    """Of one station.

    Attributes:
        line: folder of the line; it need not be there yet.
        data: folder for the database, photographs of lessons and drafts.
        database: URL of another database than the SQLite file in `data`.
        keep_days: age in days after which inspections are deleted; None keeps them.
        keep_bytes: of kept pictures; beyond, the oldest go, their records stay.
        least_free: bytes on the disk of `data` below which nothing is learned and no picture is kept.
        batch: pictures that are inspected together at most.
        wait: seconds a picture waits for others at most.
        threads: processor threads of inspection; as many as there are cores by default.
        device, runtime, weights: as for `Detector.load`.
        poll: seconds between two looks at the line's folder.
        limits: what one request may bring.
    """

    line: Path
    data: Path
    database: str | None = None
    keep_days: float | None = 365.0
    keep_bytes: int = 20 * GB
    least_free: int = GB
    batch: int = 8
    wait: float = 0.01
    threads: int | None = None
    device: str = "auto"
    runtime: str = "auto"
    weights: str | None = None
    poll: float = 2.0
    limits: Limits = field(default_factory=Limits)

    @property
    def url(self) -> str:
        """Of the database."""
        return self.database or f"sqlite:///{(self.data / DATABASE).absolute()}"


DATABASE = "station.db"
STILL = 1.0  # seconds without a change after which a watched file is tried


def data_folder(line: Path) -> Path:
    """Where a station keeps what is its own: beside the line's folder."""
    line = line.absolute()
    return line.with_name(f"{line.name}.station")
