"""What several rooms of routes share: who asks, and which errors a route can answer with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ..history.audit import Person
from ..problems import Unusable
from ..service import Station
from .access import Access, Role, require
from .errors import Denied
from .metrics import Metrics
from .schemas import ErrorBody
from .uploads import Held

SLOWED = 0.2  # seconds that a bad token waits for its answer

MEANINGS = {
    400: "malformed",
    401: "no token, or one that is not known",
    403: "the role, the host or the header does not allow it",
    404: "there is nothing under this name or number",
    405: "another method",
    408: "the request came too slowly",
    409: "something else stands in the way",
    413: "larger than the limits",
    415: "not an image of a kind that is read",
    422: "well formed, but a value cannot be used",
    429: "too many bad tokens came from this address",
    500: "something went wrong inside",
    503: "not possible at the moment",
}
ALWAYS = (401, 403, 422, 429, 500, 503)
WITH_BODY = (400, 408, 413)

bearer = HTTPBearer(auto_error=False, description="Not needed where the station is open to its own machine.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]


@dataclass(frozen=True, eq=False)
class Service:
    """What routes reach by the application's state."""

    station: Station
    access: Access
    metrics: Metrics
    held: Held


def service_of(request: Request) -> Service:
    """Of the application."""
    found: Service = request.app.state.service
    return found


def known_parameters(app: FastAPI) -> dict[tuple[str, str], frozenset[str]]:
    """Names of the parameters behind the question mark, by method and route, as the document tells them."""
    found = {}
    for path, methods in app.openapi()["paths"].items():
        for method, told in methods.items():
            names = (one["name"] for one in told.get("parameters", ()) if one["in"] == "query")
            found[method.upper(), path] = frozenset(names)
    return found


def refuse_unknown(request: Request) -> None:
    """A filter that is misspelled must not find everything."""
    route = getattr(request.scope.get("route"), "path", "")
    known = request.app.state.parameters.get((request.method, route))
    unknown = set() if known is None else set(request.query_params) - known
    if unknown:
        names = ", ".join(sorted(known)) if known else "none"
        raise Unusable(
            f"{min(unknown)[:40]!r} is no parameter of this address; known: {names}", "unknown_parameter"
        )


def asking(role: Role) -> Callable[..., Awaitable[Person]]:
    """A dependency: whoever asks, if he may."""

    async def who(request: Request, credentials: Bearer) -> Person:
        address = request.client.host if request.client else ""
        try:
            person = service_of(request).access.who(request.headers.get("authorization"), address)
        except Denied:
            await asyncio.sleep(SLOWED)
            raise
        return require(person, role)

    return who


Serving = Annotated[Service, Depends(service_of)]
Inspector = Annotated[Person, Depends(asking("inspect"))]
Teacher = Annotated[Person, Depends(asking("teach"))]
Admin = Annotated[Person, Depends(asking("admin"))]


def can_fail(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route beside those that every one has."""
    return {
        status: {
            "model": ErrorBody,
            "description": MEANINGS[status],
            "content": {
                "application/json": {
                    "example": {"error": {"code": "example", "message": f"{MEANINGS[status]}"}}
                }
            },
        }
        for status in sorted({*statuses, *ALWAYS})
    }
