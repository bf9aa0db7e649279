"""A server in a process of its own, started through the command, and plain ways to talk to it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START = "from vitexport.cli.serve import serve; serve()"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    port: int

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 30
    ) -> Answer:
        connection = self.connect(timeout)
        try:
            if isinstance(body, dict | list):
                body = json.dumps(body).encode()
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextmanager
def running(model: Path, *options: str) -> Iterator[Running]:
    """Start ``vitexport serve`` on a free port; killed at the end if a test has not stopped it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(model), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"on http://127\.0\.0\.1:(\d+);", line)
            if found:
                server = Running(process, int(found[1]))
                wait_until_ready(server)
                yield server
                return
        raise AssertionError("the server did not start:\n" + "".join(lines))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_until_ready(server: Running) -> None:
    """The socket listens before the application runs, so the first request simply waits."""
    assert server.ask("GET", "/v2/health/ready", timeout=60).status == 200


def message(answer: Answer) -> str:
    """Check that an error has the form of its protocol and return what it says."""
    error = answer.json()["error"]
    if isinstance(error, str):
        return error
    assert set(error) == {"code", "message"}
    return str(error["message"])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
