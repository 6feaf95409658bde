"""The server process: listens, is patient with nobody, and finishes what is in flight when it ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0  # for a request's headers to be there
IDLE_SECONDS = 30  # that a connection is kept for another request
LAST_SECONDS = 60  # for what is in flight when the station ends
CONNECTIONS = 512
WAITING_CONNECTIONS = 256


class Impatient(H11Protocol):
    """Closes connections whose request does not begin, or whose headers trickle in."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Someone called."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Some bytes came; a byte now and then moves no deadline."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self.cycle is not None:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """The next request has as much time, from its first byte on."""
        super().on_response_complete()
        idle = self.cycle is None or self.cycle.response_complete  # none that came right behind
        if idle and not self.transport.is_closing():
            self._wait_for_headers(IDLE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Someone left."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self, idle: float = 0.0) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(idle + HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def serve(app: FastAPI, host: str, port: int) -> None:
    """Until the process is told to end; SIGTERM and Ctrl-C let it finish."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    uvicorn.Server(config_of(app, host, port)).run()


def config_of(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """How the server behaves."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Impatient,
        loop="asyncio",
        ws="none",
        lifespan="on",
        proxy_headers=False,  # anybody could say to be anybody
        server_header=False,
        access_log=False,
        log_config=None,
        backlog=WAITING_CONNECTIONS,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
