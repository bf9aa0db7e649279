"""What a server accepts, in numbers; everything a client sends is bounded by one of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitexport.errors import VitexportError

__all__ = ["BatchSettings", "Limits", "RequestError"]


class RequestError(VitexportError):
    """A request that is answered with a 4xx status; each protocol words it in its own form.

    Args:
        status: HTTP status.
        message: What was expected and what was found.
        hint: What to do about it.
        retry_after: Seconds after which trying again makes sense, or None.
        close: Close the connection after the response, because the rest of the request is not worth reading.
    """

    def __init__(
        self, status: int, message: str, hint: str = "", *, retry_after: int | None = None, close: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.retry_after = retry_after
        self.close = close


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
        body_bytes: Size of one request body.
        total_bytes: Size of all bodies in memory at one time.
        images: Images in one request.
        pixels: Width x height of an image, checked before it is decoded.
        queue: Images accepted and not yet answered; beyond that the server answers 429.
        connections: Open connections; beyond that it answers 503.
        head_seconds: For sending a complete request head.
        body_seconds: For sending a complete body.
        idle_seconds: A connection may idle between requests.
        linger_seconds: A refused body is read and dropped for so long, so that the client sees the response.
        drain_seconds: After SIGTERM, open connections may send their next request for so long.
        url_hosts: Hosts (``name`` or ``name:port``) that image URLs may name; empty refuses all URLs.
        private_urls: Allow those hosts to resolve to private, loopback and link-local addresses.
        url_seconds: For fetching one image URL.
    """

    body_bytes: int = 32 << 20
    total_bytes: int = 128 << 20
    images: int = 64
    pixels: int = 7680 * 4320
    queue: int = 128
    connections: int = 1024
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: int = 30
    linger_seconds: float = 30.0
    drain_seconds: float = 1.0
    url_hosts: frozenset[str] = field(default=frozenset())
    private_urls: bool = False
    url_seconds: float = 10.0


@dataclass(frozen=True)
class BatchSettings:
    """Dynamic batching.

    Attributes:
        max_batch: Images per run; a model of a fixed batch size has its own.
        max_delay: Seconds that the oldest image waits for others to join its run.
        workers: Runs at the same time, where the runtime allows it. On a CPU, several runs of few threads answer more
            images than one run of many, and suffer less from the threads that decode.
    """

    max_batch: int = 8
    max_delay: float = 0.002
    workers: int = 2
