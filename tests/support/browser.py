"""Headless Chromium, driven over its DevTools protocol through a pipe: nothing is needed but the browser itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page:
    """One tab."""

    def __init__(self, send_to: int, read_from: int) -> None:
        self._write = send_to
        self._read = os.fdopen(read_from, "rb", buffering=0)
        self._number = 0
        self._buffer = b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> Any:
        """Call a DevTools method and return its result; events in between are dropped."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> bytes:
        while b"\0" not in self._buffer:
            piece = self._read.read(65536)
            assert piece, "the browser has gone"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return message

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> Any:
        """Wait until an expression is truthy and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}; the page says {self.evaluate('document.body.innerText')!r}")

    def drop(self, path: Path, selector: str) -> None:
        """Drop a file on an element as a person would, with drag events of the browser itself."""
        box = f"(() => {{ const b = document.querySelector('{selector}').getBoundingClientRect();"
        x, y = json.loads(self.evaluate(f"{box} return JSON.stringify([b.x + b.width / 2, b.y + b.height / 2]); }})()"))
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start the browser with an empty profile; it ends with the block."""
    assert CHROMIUM is not None
    child_in, to_child = os.pipe()
    from_child, child_out = os.pipe()
    options = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
    # The protocol wants file descriptors 3 and 4.
    script = f'exec "$0" {options} --user-data-dir="$1" about:blank 3<&{child_in} 4>&{child_out}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", script, CHROMIUM, str(profile)],
        pass_fds=(child_in, child_out),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(child_in)
    os.close(child_out)
    try:
        page = Page(to_child, from_child)
        yield page
        page._read.close()
    finally:
        os.close(to_child)
        process.terminate()
        process.wait(timeout=20)
