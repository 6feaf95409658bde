"""Routes: the page, health, metrics, and who asks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ... import __version__
from ..problems import Missing, Unready
from . import schemas
from .parts import Inspector, Serving, can_fail

router = APIRouter()

PAGE = Path(__file__).parents[1] / "page"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
ANEW = {"Cache-Control": "no-cache"}  # asked for again, and answered shortly where nothing changed


@router.get("/", include_in_schema=False)
def index() -> FileResponse:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}", include_in_schema=False)
def file(name: str) -> FileResponse:
    """A file of the page."""
    return _file(name)


@router.get("/health/live", response_model=schemas.Health, responses=can_fail(), tags=["health"])
async def live() -> Any:
    """The process answers."""
    return {"status": "live"}


@router.get("/health/ready", response_model=schemas.Health, responses=can_fail(), tags=["health"])
def ready(service: Serving) -> Any:
    """Pictures are inspected and recorded."""
    reason = service.station.trouble
    if reason is not None:
        raise Unready(reason)
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=Response,
    responses=can_fail() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    tags=["health"],
)
def metrics(service: Serving, who: Inspector) -> Response:
    """For Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/v1/me", response_model=schemas.Me, responses=can_fail(), tags=["access"])
def me(service: Serving, who: Inspector) -> Any:
    """Who asks, and what he may do."""
    return {"role": who.role, "open": service.access.open, "version": __version__}


def _file(name: str) -> FileResponse:
    path = PAGE / name
    kind = TYPES.get(path.suffix)
    if not NAME.fullmatch(name) or kind is None or path.is_symlink() or not path.is_file():
        raise Missing("there is nothing at this address")
    return FileResponse(path, media_type=kind, headers=ANEW)
