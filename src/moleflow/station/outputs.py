"""Where results go: a stream of lines, a file, a webhook or a broker."""

from __future__ import annotations

import http.client
import os
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import ConfigError, MoleFlowError, reason_of
from ..store.files import UNSYNCED

SECONDS = 20.0  # that an attempt takes at most; with MQTT twice, once to connect and once to publish
MOST_LEFT = 4  # attempts that were given up and go on


class Output(Protocol):
    """Takes results."""

    def send(self, body: str) -> None:
        """Takes one for good, or raises OSError."""

    def close(self) -> None:
        """Lets go."""


class Lines:
    """What takes JSON lines, such as stdout."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def send(self, body: str) -> None:
        """Hands a line on."""
        self._write(body + "\n")

    def close(self) -> None:
        """Nothing is held."""


class Appended:
    """JSON lines at the end of a file, synced one by one; also a pipe, or what else has a path.

    The file is a new one where the old one was moved or deleted meanwhile, as logs are.

    Raises:
        MoleFlowError: it cannot be opened to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        try:
            if not path.is_fifo():  # that waits for who reads, and is opened when there is something to say
                self._file = self._opened()
        except OSError as error:
            raise MoleFlowError(f"{path}: cannot be written: {reason_of(error)}") from error

    def _opened(self) -> FileIO:
        return self._path.open("ab", buffering=0)  # a buffer would keep what could not be written

    def send(self, body: str) -> None:
        """Appends a line; after half a line, of a full disk say, on one of its own."""
        if self._file is not None and not self._is_in_place(self._file):
            self.close()
        if self._file is None:
            self._file = self._opened()
        begin = "\n" if self._ends_within_a_line(self._file) else ""
        write_all(self._file, begin + body + "\n")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in UNSYNCED:
                raise

    def _is_in_place(self, file: FileIO) -> bool:
        return self._path.exists() and os.path.samestat(self._path.stat(), os.fstat(file.fileno()))

    def _ends_within_a_line(self, file: FileIO) -> bool:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return False
        try:
            with self._path.open("rb") as read:
                read.seek(-1, os.SEEK_END)
                return read.read(1) != b"\n"
        except OSError:  # it may be written and not read
            return False

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def write_all(file: FileIO, text: str) -> None:
    """Writes to a file without a buffer, in as many pieces as it takes."""
    left = memoryview(text.encode())
    while left:
        left = left[file.write(left) or 0 :]


class Webhook:
    """Posts each result as JSON; any answer of 2xx means that it was taken.

    Raises:
        ConfigError: no URL of HTTP, or one with a name and password, which are not sent.
    """

    def __init__(self, url: str) -> None:
        parts = _parts(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("expected a webhook that begins with http:// or https://")
        if parts.username is not None:
            raise ConfigError("expected a webhook without name and password")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ConfigError("expected a webhook of ASCII characters, others as %20 or xn--")
        self._url = url
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._left: list[_Attempt] = []

    def send(self, body: str) -> None:
        """One attempt, of `SECONDS` at most, whatever the other side does.

        An attempt that was given up goes on by itself; where it turns out that it was taken, that counts.
        """
        ended = [one for one in self._left if not one.is_alive()]
        self._left = [one for one in self._left if one.is_alive()]
        if any(one.body == body and one.error is None for one in ended):
            return
        if len(self._left) >= MOST_LEFT:
            raise OSError(f"the webhook holds {MOST_LEFT} attempts and answers none of them")
        attempt = _Attempt(self._post, body)
        attempt.join(SECONDS)
        if attempt.is_alive():
            self._left.append(attempt)
            raise OSError(f"the webhook did not answer within {SECONDS:g} s")
        if attempt.error is not None:
            raise attempt.error

    def _post(self, body: str) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "moleflow"}
        asked = urllib.request.Request(self._url, body.encode(), headers, method="POST")
        try:
            with self._opener.open(asked, timeout=SECONDS):
                pass
        except urllib.error.HTTPError as error:
            with error:
                raise OSError(f"the webhook answered {error.code}") from None
        except urllib.error.URLError as error:
            raise OSError(f"the webhook cannot be reached: {error.reason}") from None
        except (http.client.HTTPException, ValueError) as error:  # ValueError: a host that is no name
            raise OSError(f"the webhook cannot be used: {type(error).__name__}: {error}") from None

    def close(self) -> None:
        """Nothing is held."""


class _Attempt(threading.Thread):
    """One that can be given up: a socket's timeout is of each read, and of finding a host there is none."""

    def __init__(self, post: Callable[[str], None], body: str) -> None:
        super().__init__(name="webhook", daemon=True)
        self._post, self.body = post, body
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Posts; what came of it is in `error`."""
        try:
            self._post(self.body)
        except Exception as error:
            self.error = error


def _parts(url: str) -> SplitResult:
    """Of a URL whose port can be one."""
    try:
        parts = urlsplit(url)
        possible = parts.port != 0
    except ValueError:
        possible = False
    if not possible:
        raise ConfigError("expected a URL with a host, and a port from 1 to 65535 if any")
    return parts


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Results go where they were meant to go, and nowhere else."""

    def redirect_request(self, *given: Any) -> None:
        return None


class Broker:
    """Publishes each result by MQTT with quality 1: mqtt[s]://[user:password@]host[:port]/topic.

    Raises:
        ConfigError: another URL, or paho-mqtt is not installed.
    """

    def __init__(self, url: str) -> None:
        parts = _parts(url)
        topic = unquote(parts.path.lstrip("/"))
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not topic:
            raise ConfigError("expected a broker such as mqtt://localhost:1883/line/results")
        if set(topic) & set("+#\0") or set(url) & set("?#"):
            raise ConfigError("expected a topic to publish to, without + and #, and ? as %3F")
        try:
            from paho.mqtt import client as mqtt
        except ModuleNotFoundError as error:
            raise ConfigError("MQTT needs paho-mqtt: pip install 'moleflow[mqtt]'") from error
        self._client, self._topic = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2), topic
        if parts.scheme == "mqtts":
            self._client.tls_set()
        if parts.username:
            password = None if parts.password is None else unquote(parts.password)
            self._client.username_pw_set(unquote(parts.username), password)
        self._address = parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        self._begun, self._state = False, "it did not answer in time"
        self._connected, self._answered = threading.Event(), threading.Event()
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect

    def send(self, body: str) -> None:
        """One attempt; the broker's confirmation is waited for.

        The client itself would keep what is published while the broker is away, and send every attempt of it
        later: so nothing is published then.
        """
        if not self._begun:
            try:
                self._client.connect(*self._address)
            except ValueError as error:  # a host that is no name
                raise OSError(f"the broker cannot be reached: {error}") from None
            self._client.loop_start()
            self._begun = True
            self._answered.wait(SECONDS)
        if not self._connected.is_set():  # the client's own thread connects again
            raise OSError(f"the broker is away: {self._state}")
        try:
            told = self._client.publish(self._topic, body, qos=1)
            told.wait_for_publish(SECONDS)
            if not told.is_published():
                raise OSError("the broker did not confirm in time")
        except (ValueError, RuntimeError) as error:
            raise OSError(f"the broker did not take it: {error}") from None

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._state = str(reason)
        if not reason.is_failure:
            self._connected.set()
        self._answered.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self._connected.is_set():  # else it says less than the refusal before it
            self._state = str(reason)
        self._connected.clear()

    def close(self) -> None:
        """Says goodbye."""
        if self._begun:
            self._client.disconnect()
            self._client.loop_stop()
