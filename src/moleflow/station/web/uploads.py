"""Forms with files, taken in as they come: what is too much or too slow is refused before it is all there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from ..pictures import clean_name
from ..problems import Malformed, TooLarge, Unready
from .errors import Denied

GRACE, SILENCE = 30.0, 20.0  # seconds before a body's rate counts; without a single byte
LEAST_RATE = 16 * 1024  # bytes a second
GATHERED = 256 * 1024  # bytes, at least, that go to a disk at once: each time costs a change of threads
WRITING = CapacityLimiter(
    8
)  # threads that write what comes in; whoever waits for them holds up no inspection
FIELD_BYTES, FIELDS, HEADER_BYTES = 16 * 1024, 16, 8 * 1024


@dataclass(frozen=True)
class Bounds:
    """Of one form: files, bytes of its body and of each of its files."""

    files: int
    bytes: int
    each: int


@dataclass(eq=False)
class Form:
    """What came: fields by name, and files in their order, each called as it was and written to a sink."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, IO[bytes]]] = field(default_factory=list)


class Held:
    """Bytes of all bodies that are held in memory at a time."""

    def __init__(self, most: int) -> None:
        self._most, self._now = most, 0
        self._guard = threading.Lock()

    @contextmanager
    def counting(self) -> Any:
        """A function that counts bytes until the end; it raises Unready where there are too many."""
        mine = 0

        def count(size: int) -> None:
            nonlocal mine
            with self._guard:
                if self._now + size > self._most:
                    raise Unready("too much is being sent at the moment; try again", "busy")
                self._now += size
                mine += size

        try:
            yield count
        finally:
            with self._guard:
                self._now -= mine


def length_of(request: Request) -> int:
    """What the sender says of a body; 0 where it says nothing, Malformed where that is no number."""
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise Malformed("expected a number as Content-Length")
    return int(length)


async def body_of(request: Request, most: int) -> AsyncIterator[bytes]:
    """Pieces of a body.

    Raises:
        TooLarge: it is or becomes larger than `most` bytes.
        Denied: it comes too slowly.
        Malformed: the sender left, or its length is no number.
    """
    if length_of(request) > most:
        raise _too_large(most)
    began, got = time.monotonic(), 0
    pieces = request.stream().__aiter__()
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces), SILENCE)
        except StopAsyncIteration:
            return
        except ClientDisconnect as error:
            raise Malformed("the sender left before all was sent") from error
        except asyncio.TimeoutError as error:
            raise _too_slow() from error
        got += len(piece)
        if got > most:
            raise _too_large(most)
        late = time.monotonic() - began - GRACE
        if late > 0 and got < late * LEAST_RATE:
            raise _too_slow()
        if piece:
            yield piece


async def read_form(
    request: Request,
    bounds: Bounds,
    *,
    file_field: str,
    sink: Callable[[int], IO[bytes]],
    count: Callable[[int], None] = lambda size: None,
    to_disk: bool = False,
) -> Form:
    """A multipart form.

    Args:
        request: whose body is read.
        bounds: what it may hold.
        file_field: name of the field that files stand under.
        sink: where a file is written to, by its index.
        count: told every piece's size.
        to_disk: whether `sink`, its files and `count` may wait for a disk; a thread waits then, and not the
            loop that answers all others.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Malformed("expected multipart/form-data with a boundary")
    reading = _Reading(bounds, file_field, sink)
    try:
        parser = MultipartParser(boundary, reading.callbacks())  # type: ignore[arg-type]

        def take(piece: bytes) -> None:
            count(len(piece))
            parser.write(piece)

        pieces = body_of(request, bounds.bytes)
        async for piece in _gathered(pieces) if to_disk else pieces:
            if to_disk:
                await to_thread.run_sync(take, piece, limiter=WRITING)
            else:
                take(piece)
        parser.finalize()
    except MultipartParseError as error:
        raise Malformed("the form is damaged") from error
    if not reading.ended:
        raise Malformed("the form ends before its last boundary")
    return reading.form


async def _gathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held = bytearray()
    async for piece in pieces:
        held += piece
        if len(held) >= GATHERED:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


class _Reading:
    """Takes what the parser finds."""

    def __init__(self, bounds: Bounds, file_field: str, sink: Callable[[int], IO[bytes]]) -> None:
        self.form, self.ended = Form(), False
        self._bounds, self._file_field, self._sink = bounds, file_field, sink
        self._header = [b"", b""]
        self._disposition = b""
        self._name, self._value = "", bytearray()
        self._file: IO[bytes] | None = None
        self._got = 0  # bytes of that file

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": lambda data, start, end: self._header_part(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._header_part(1, data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self._part_ends,
            "on_end": self._all_ends,
        }

    def _part_begins(self) -> None:
        self._disposition, self._header = b"", [b"", b""]

    def _header_part(self, which: int, data: bytes) -> None:
        self._header[which] += data
        if len(self._header[which]) > HEADER_BYTES:
            raise Malformed("a header of the form is too long")

    def _header_ends(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise Malformed("a part of the form has no name")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._value, self._file = bytearray(), None
        if b"filename" in options:
            self._file_begins(options[b"filename"].decode("utf-8", "replace"))
        elif len(self.form.fields) >= FIELDS:
            raise Malformed(f"more than {FIELDS} fields")

    def _file_begins(self, called: str) -> None:
        if self._name != self._file_field:
            raise Malformed(f"expected files under {self._file_field!r}, got one under {self._name[:40]!r}")
        index = len(self.form.files)
        if index >= self._bounds.files:
            raise TooLarge(f"more files than the limit of {self._bounds.files}", "too_many_images")
        self._file, self._got = self._sink(index), 0
        self.form.files.append((clean_name(called, f"image-{index + 1}"), self._file))

    def _data(self, data: bytes) -> None:
        if self._file is not None:
            self._got += len(data)
            if self._got > self._bounds.each:
                raise _too_large(self._bounds.each, self.form.files[-1][0])
            self._file.write(data)
            return
        self._value += data
        if len(self._value) > FIELD_BYTES:
            raise TooLarge(f"the field {self._name[:40]!r} is larger than {FIELD_BYTES} bytes")

    def _part_ends(self) -> None:
        if self._file is None:
            if self._name in self.form.fields:
                raise Malformed(f"the field {self._name[:40]!r} came twice")
            try:
                self.form.fields[self._name] = self._value.decode()
            except UnicodeDecodeError as error:
                raise Malformed(f"the field {self._name[:40]!r} is no UTF-8") from error

    def _all_ends(self) -> None:
        self.ended = True


def _too_large(most: int, what: str = "the request") -> TooLarge:
    return TooLarge(f"{what} is larger than the limit of {most:,} bytes")


def _too_slow() -> Denied:
    return Denied(408, "too_slow", "the request came too slowly")
