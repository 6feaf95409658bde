"""The server process: listens, is patient with nobody, and finishes what is in flight when it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...errors import ConfigError

HEADER_SECONDS = 15.0  # for a request's headers to be there
IDLE_SECONDS = 30  # that a connection is kept for another request
TAKING_SECONDS = 30.0  # between two looks at whether an answer is being taken
LAST_SECONDS = 60  # for what is in flight when the station ends
CROWD = 384  # connections from which on a new one takes the place of one whose sender keeps it waiting
WAITING_CONNECTIONS = 256
CONNECTIONS = CROWD + 2 * WAITING_CONNECTIONS  # many may come at once, and those that went end a little later
STREAM = socket.SOCK_STREAM
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # the machine has no such address


class Impatient(H11Protocol):
    """Closes connections whose request does not begin, whose headers trickle in or whose answer stays."""

    _deadline: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None
    _left = 0  # bytes that were written and not taken at the last look
    _since = 0.0  # when the connection was made, or its last answer was complete

    def connection_made(self, transport: Any) -> None:
        """Someone called."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._wait_for_headers()
        self._look_later()
        _make_room(self.connections, self)

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
        self._since = self.loop.time()
        if idle and not self.transport.is_closing():
            self._wait_for_headers(IDLE_SECONDS)

    @property
    def waits(self) -> tuple[bool, float] | None:
        """None while the station has something to do for it; of others the smallest is the first to go.

        Connections without a request come before those whose request is not all there, each the oldest first.
        """
        if self.cycle is None or self.cycle.response_complete:
            return False, self._since
        return (True, self._since) if self.cycle.more_body else None

    def connection_lost(self, exc: Exception | None) -> None:
        """Someone left."""
        self._stop_waiting()
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """Most of what was written was taken; what the next look finds is new."""
        super().resume_writing()
        self._left = 0

    def _look_later(self) -> None:
        self._looking = self.loop.call_later(TAKING_SECONDS, self._look)

    def _look(self) -> None:
        """Also at a connection that is closing: it stays until all of its answer is taken."""
        left = self.transport.get_write_buffer_size()
        if left and left == self._left:
            self.transport.abort()
            return
        self._left = left
        self._look_later()

    def _wait_for_headers(self, idle: float = 0.0) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(idle + HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _make_room(connections: Iterable[Any], newest: Any) -> None:
    """In a crowd one goes of the address that has the most: whoever calls too often shuts out himself."""
    there = [one for one in connections if not one.transport.is_closing()]
    if len(there) < CROWD:
        return
    of = Counter(_address(one) for one in there)
    most = max(of.values())
    waiting = [one for one in there if of[_address(one)] == most and one.waits and one is not newest]
    if waiting:
        min(waiting, key=lambda one: one.waits).transport.abort()


def _address(connection: Any) -> str:
    return connection.client[0] if connection.client else ""


def claimed(host: str, port: int) -> list[socket.socket]:
    """Sockets at a host's addresses that nobody else has; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken or may not be had, or the host is none of this machine.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    with ExitStack() as undone:
        try:
            flags = socket.AI_PASSIVE
            for family, *_, where in socket.getaddrinfo(host.strip("[]"), port, type=STREAM, flags=flags):
                chosen = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(undone.enter_context(_bound(family, (where[0], chosen, *where[2:]))))
                except OSError as error:  # "localhost" may have two addresses on a machine without IPv6
                    if error.errno not in ABSENT:
                        raise
                    absent = error
            if not sockets and absent is not None:
                raise absent
        except OSError as error:
            raise ConfigError(_refused(host, port, error)) from error
        undone.pop_all()
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    held = socket.socket(family, STREAM)
    try:
        if os.name == "posix":  # elsewhere it would share the port
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.bind(address)
    except OSError:
        held.close()
        raise
    return held


def _refused(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken, perhaps by another station: choose a free one with --port"
    if isinstance(error, socket.gaierror) or error.errno in ABSENT:
        return f"expected an address of this machine to listen at, got {host}"
    return f"cannot listen at port {port} of {host}: {error.strerror or error}"


def serve(app: FastAPI, sockets: list[socket.socket]) -> None:
    """Until the process is told to end; SIGTERM and Ctrl-C let it finish."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    host, port = sockets[0].getsockname()[:2]
    uvicorn.Server(config_of(app, host, port)).run(sockets)


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
