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

__all__ = ["bind", "run_server", "stop_listening"]


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
        waiting = [
            connection
            for server, listener in zip(self.servers, sockets or [], strict=True)
            for connection in await stop_listening(server, listener)
        ]
        # Only now: an answer that tells its client to go sends the client to the listener again.
        self._service.draining = True
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._new_protocol, connection)
        deadline = loop.time() + self._service.limits.drain_seconds
        while self.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def _new_protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


async def stop_listening(server: asyncio.Server, listener: socket.socket) -> list[socket.socket]:
    """Close a server's only listener and return the connections that nobody had accepted yet.

    Closing a listener resets what the kernel has connected and the server not accepted. The kernel offers nothing that
    ends the one and keeps the other, so a client that connects in the microseconds between the last ``accept`` and
    ``close`` is still reset.

    Args:
        server: The server; it accepts nothing more.
        listener: Its listening socket.
    """
    with listener.dup() as queue:
        queue.setblocking(False)
        asyncio.get_running_loop().remove_reader(listener)
        # A connection accepted in this turn of the event loop meets its server in the next, and fails at a closed one.
        await asyncio.sleep(0)
        server.close()
        waiting: list[socket.socket] = []
        while True:
            try:
                connection, _ = queue.accept()
            except ConnectionAbortedError:
                continue
            except OSError:  # none left, or no more files can be opened
                return waiting
            connection.setblocking(False)
            waiting.append(connection)


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
