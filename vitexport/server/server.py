"""The HTTP server: uvicorn, with a deadline for request heads and a shutdown that loses no accepted request."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitexport.errors import VitexportError
from vitexport.server.limits import Limits
from vitexport.server.service import Service

__all__ = ["bind", "run_server"]


def bind(host: str, port: int) -> socket.socket:
    """Bind the listening socket, so that an occupied port is known before a model is loaded.

    Raises:
        VitexportError: The address cannot be bound.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise VitexportError(f"Cannot listen on {host}:{port}: {error}", "Choose another --host or --port.") from error


def run_server(app: Starlette, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted and return.

    Args:
        app: From :func:`~vitexport.server.app.create_app`.
        listener: From :func:`bind`.
    """
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        http=_protocol(service.limits),
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=service.limits.connections,
        timeout_keep_alive=service.limits.idle_seconds,
    )
    # After a graceful stop uvicorn raises the signal again for whoever handled it before: a server that was told to
    # stop and did has succeeded.
    previous = {name: signal.signal(name, _nothing) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        _Server(config, service).run(sockets=[listener])
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def _nothing(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""


class _Server(uvicorn.Server):
    """Stops in two steps: first the listener, so that clients of open connections are told to go; then the rest."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.draining = True
        # Two turns of the event loop accept what the kernel has already connected.
        for _ in range(2):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._service.limits.drain_seconds
        while self.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def _protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a deadline for request heads; it has one only for idle connections."""

    class Protocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self._head_timer is None:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(limits.head_seconds, self._give_up)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            waiting: Any = self.cycle is None or self.cycle.response_complete
            if waiting and not self.transport.is_closing():
                self.transport.close()

    return Protocol
