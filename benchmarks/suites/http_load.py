"""A closed-loop HTTP load client that costs little: plain sockets, requests built once, one thread.

It talks to 127.0.0.1 only, and stops by itself: after its time, or when the server stops listening.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["HOST", "LoadResult", "hammer", "image_request"]

HOST = "127.0.0.1"


@dataclass
class LoadResult:
    """What the clients saw.

    Attributes:
        seconds: Latency of each answered request, in seconds.
        statuses: Answers by status.
        lost: Requests that were sent completely on an accepted connection and never answered.
        refused: Connections that were refused because nobody listened any more.
        wall: Time from the first request to the last answer, in seconds.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    refused: int = 0
    wall: float = 0.0

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latency in milliseconds (nearest rank)."""
        ranked = sorted(self.seconds)
        return 1e3 * ranked[min(len(ranked) - 1, int(percent / 100 * len(ranked)))]


def image_request(image: bytes, path: str = "/predict?top=1") -> bytes:
    """Return a complete request that sends an image."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    return head.encode() + image


async def hammer(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> LoadResult:
    """Send requests from ``clients`` connections, each the next once it has its answer, for at most ``seconds``."""
    result = LoadResult()
    start = time.perf_counter()
    end = start + seconds
    await asyncio.gather(*(_client(port, requests, index, end, result) for index in range(clients)))
    result.wall = time.perf_counter() - start
    return result


async def _client(port: int, requests: Sequence[bytes], index: int, end: float, result: LoadResult) -> None:
    turn = index
    while time.perf_counter() < end:
        try:
            reader, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            result.refused += 1
            return
        try:
            while time.perf_counter() < end:
                began = time.perf_counter()
                writer.write(requests[turn % len(requests)])
                turn += 1
                await writer.drain()
                status, last = await _answer(reader)
                result.seconds.append(time.perf_counter() - began)
                result.statuses[status] += 1
                if last:
                    break
        except (OSError, asyncio.IncompleteReadError):
            result.lost += 1
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read one answer; returns its status and whether the server closes the connection after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), b"connection: close" in head
