"""One body for every error: `{"error": {"code": ..., "message": ...}}`, and never a trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...errors import LineError, MoleFlowError
from ..history.database import is_full
from ..problems import Conflict, Malformed, Missing, NotAnImage, Problem, TooLarge, Unready, Unusable

log = logging.getLogger("moleflow.station")

STATUSES: dict[type[Problem], int] = {
    Malformed: 400,
    Missing: 404,
    Conflict: 409,
    TooLarge: 413,
    NotAnImage: 415,
    Unusable: 422,
    Unready: 503,
}
RETRY_SECONDS = {503: "5", 429: "60"}


class Denied(Problem):
    """Whoever asks may not: a status of HTTP's own goes with it."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text, code)
        self.status = status


def status_of(problem: MoleFlowError) -> int:
    """The status that goes with a problem."""
    if isinstance(problem, Denied):
        return problem.status
    return next((status for kind, status in STATUSES.items() if isinstance(problem, kind)), 422)


def told(problem: MoleFlowError) -> dict[str, str]:
    """Code and sentence."""
    return {"code": getattr(problem, "code", "unusable"), "message": str(problem)}


def answer(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The error as a response."""
    more = dict(headers or {})
    if status in RETRY_SECONDS:
        more.setdefault("Retry-After", RETRY_SECONDS[status])
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": code, "message": message}}, status, more)


def of(problem: MoleFlowError) -> JSONResponse:
    """A problem as a response."""
    said = told(problem)
    return answer(status_of(problem), said["code"], said["message"])


def handle_errors(app: FastAPI) -> None:
    """All that can go wrong is answered in the same way."""
    app.add_exception_handler(MoleFlowError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(Exception, _unexpected)


async def _problem(request: Request, error: Any) -> JSONResponse:
    return of(Unready(str(error), "line") if isinstance(error, LineError) else error)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] in ("json_invalid", "json_type"):
        return answer(400, "malformed", "expected JSON in the body")
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return answer(422, "unusable", f"{where}: {first['msg']}")


async def _framework(request: Request, error: Any) -> JSONResponse:
    codes = {400: "malformed", 404: "not_found", 405: "method_not_allowed"}
    phrase = HTTPStatus(error.status_code).phrase
    code = codes.get(error.status_code, phrase.lower().replace(" ", "_"))
    said = {404: "there is nothing at this address", 405: "this address does not take that method"}
    return answer(error.status_code, code, said.get(error.status_code, phrase), error.headers)


async def _system(request: Request, error: Any) -> JSONResponse:
    if is_full(error):
        return answer(503, "disk_full", "the disk is full")
    return await _unexpected(request, error)


async def _unexpected(request: Request, error: Any) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(500, "internal", "something went wrong inside the station; its log says what")
