"""Reading request bodies into memory, with a limit on each, on all together, and on the time one may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from vitexport.server.limits import RequestError
from vitexport.server.service import Service

__all__ = ["linger", "multipart_files", "read_body"]

_MAX_PARTS = 256


@asynccontextmanager
async def read_body(request: Request, service: Service) -> AsyncIterator[bytes]:
    """Yield a request's body; while it is held, it counts towards the bytes of all requests.

    Raises:
        RequestError: 413 too large, 408 too slow, 415 compressed, 429 when all bodies together are too large.
    """
    limit = service.limits.body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "Expected a body without compression.", "Leave Content-Encoding out.", close=True)
    held = _Held(service)
    try:
        await asyncio.wait_for(_collect(request, held, limit), service.limits.body_seconds)
        yield held.take()
    except asyncio.TimeoutError as error:
        raise RequestError(
            408, f"The body did not arrive within {service.limits.body_seconds:g} seconds.", close=True
        ) from error
    except ClientDisconnect as error:
        raise RequestError(400, "The client left before its request was complete.", close=True) from error
    finally:
        held.release()


async def _collect(request: Request, held: _Held, limit: int) -> None:
    async for chunk in request.stream():
        if held.size + len(chunk) > limit:
            raise _too_large(limit)
        held.add(chunk)


class _Held:
    """The chunks of one body, counted in the service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._chunks: list[bytes] = []
        self.size = 0

    def add(self, chunk: bytes) -> None:
        self._service.hold_bytes(len(chunk))
        self.size += len(chunk)
        self._chunks.append(chunk)

    def take(self) -> bytes:
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body

    def release(self) -> None:
        self._chunks.clear()
        self._service.hold_bytes(-self.size)
        self.size = 0


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413, f"Expected a body of at most {limit:,} bytes.", "Send fewer or smaller images.", close=True
    )


async def linger(receive: Callable[[], Any], seconds: float) -> None:
    """Read and drop the rest of a refused body for a while: closing at once would reset the connection, and the client
    would see that instead of the response."""

    async def drop() -> None:
        while True:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    try:
        await asyncio.wait_for(drop(), seconds)
    except asyncio.TimeoutError:
        return


def multipart_files(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Return the files of a ``multipart/form-data`` body as (name, bytes); fields without a file name are left out.

    Raises:
        RequestError: The body is not what its header says, or has more than 256 parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(400, "Expected a boundary in the Content-Type of a multipart body, found none.")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise RequestError(400, f"The multipart body cannot be parsed: {error}") from error
    if not parts.complete:
        raise RequestError(400, "The multipart body ends before its closing boundary.")
    return parts.files


class _Parts:
    """Receives what the parser finds. A file name is only ever shown, never opened."""

    def __init__(self) -> None:
        self.files: list[tuple[str, bytes]] = []
        self.complete = False
        self._count = 0
        self._field = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._data = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise RequestError(413, f"Expected at most {_MAX_PARTS} parts, found more.", "Send several requests.")
        self._headers = {}
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"filename" in options:
            name = options[b"filename"].decode("utf-8", "replace")[:100]
            self.files.append((name, bytes(self._data)))

    def _finish(self) -> None:
        self.complete = True
