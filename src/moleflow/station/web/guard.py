"""What every request passes on its way in, and every answer on its way out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request

from ...errors import MoleFlowError
from . import errors
from .access import HEADER, SAFE, Access
from .metrics import Metrics
from .uploads import body_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SMALL = 64 * 1024  # bytes of a body that is no form with files
UPLOADS = ("/api/v1/inspections", "/api/v1/jobs")  # these read their own bodies
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
    "object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """Around the application."""

    def __init__(self, app: Any, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses what must not pass; the rest gets its headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = self._counted(scope, send)
        try:
            self._check(scope)
            receive = await _whole(scope, receive)
        except MoleFlowError as problem:
            await errors.of(problem)(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        self._access.check_host(host)
        marked = headers.get(HEADER) == "1"
        self._access.check_origin(scope["method"], marked=marked, origin=headers.get("origin"), host=host)

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                page = scope["path"] == "/" or scope["path"].startswith("/page/")
                for name, value in HEADERS.items():
                    headers[name] = value
                headers["Content-Security-Policy"] = PAGE_POLICY if page else DATA_POLICY
                headers.setdefault("Cache-Control", "no-store")
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.answered(scope["method"], route, message["status"])
            await send(message)

        return counted


async def _whole(scope: Scope, receive: Receive) -> Receive:
    """Small bodies are taken in here, so that their limits hold whatever a route does with them."""
    if scope["method"] in SAFE or (scope["method"] == "POST" and scope["path"] in UPLOADS):
        return receive
    request = Request(scope, receive)
    body = b"".join([piece async for piece in body_of(request, SMALL)])
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
