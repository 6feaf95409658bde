"""The tables. Times are seconds since 1970, because not every database keeps time zones."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NEVER_AGAIN = {"sqlite_autoincrement": True}  # a number that was given away is not given to another


class Base(DeclarativeBase):
    """Of all tables."""


class Inspection(Base):
    """One inspected picture, and what a person says of it."""

    __tablename__ = "inspections"

    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float] = mapped_column(Float(53), index=True)
    source: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    task: Mapped[str] = mapped_column(String(80))
    version: Mapped[str | None] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    known: Mapped[bool]
    pred_score: Mapped[float] = mapped_column(Float(53))
    p_value: Mapped[float] = mapped_column(Float(53))
    threshold: Mapped[float] = mapped_column(Float(53))
    reason: Mapped[str] = mapped_column(Text)
    place_score: Mapped[float] = mapped_column(Float(53))
    whole_score: Mapped[float | None] = mapped_column(Float(53))
    map_threshold: Mapped[float] = mapped_column(Float(53))
    height: Mapped[int]
    width: Mapped[int]
    certainty: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    regions: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    latency_ms: Mapped[float] = mapped_column(Float(53))
    mark_kind: Mapped[str | None] = mapped_column(String(16), index=True)
    mark_task: Mapped[str | None] = mapped_column(String(80))
    mark_note: Mapped[str | None] = mapped_column(Text)
    mark_time: Mapped[float | None] = mapped_column(Float(53))
    key: Mapped[str | None] = mapped_column(String(80), index=True, unique=True)  # that its sender gave it

    __table_args__ = (
        Index("ix_inspections_task_id", "task", "id"),
        Index("ix_inspections_status_id", "status", "id"),
        NEVER_AGAIN,
    )


class Picture(Base):
    """An inspection's picture, reduced, and its map; retention takes it before the inspection."""

    __tablename__ = "pictures"

    inspection_id: Mapped[int] = mapped_column(
        ForeignKey("inspections.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    size: Mapped[int] = mapped_column(index=True)  # bytes of both
    map_height: Mapped[int]
    map_width: Mapped[int]
    map: Mapped[bytes] = mapped_column(LargeBinary)  # float16, little-endian
    jpeg: Mapped[bytes] = mapped_column(LargeBinary)


class Job(Base):
    """A lesson; its photographs lie in a folder of its own."""

    __tablename__ = "jobs"
    __table_args__ = NEVER_AGAIN

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(80))
    state: Mapped[str] = mapped_column(String(16), index=True)
    stage: Mapped[str] = mapped_column(String(40))
    progress: Mapped[float] = mapped_column(Float(53))
    sources: Mapped[list[str]] = mapped_column(JSON)  # names of the photographs, by index
    dropped: Mapped[list[int]] = mapped_column(JSON)
    unreadable: Mapped[list[int]] = mapped_column(JSON, default=list, server_default="[]")
    base_version: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Float(53))
    finished: Mapped[float | None] = mapped_column(Float(53))
    review: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class Change(Base):
    """A change of the line, written down before it is made; `outcome` says what became of it."""

    __tablename__ = "changes"
    __table_args__ = NEVER_AGAIN

    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float] = mapped_column(Float(53))
    role: Mapped[str] = mapped_column(String(16))
    fingerprint: Mapped[str] = mapped_column(String(32))
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    product: Mapped[str | None] = mapped_column(String(80))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    outcome: Mapped[str] = mapped_column(Text)


class SeenTime(Base):
    """Up to when time was seen to pass; one row."""

    __tablename__ = "seen_time"

    id: Mapped[int] = mapped_column(primary_key=True)
    until: Mapped[float] = mapped_column(Float(53))
