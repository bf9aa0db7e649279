"""Clients that take their time, and URLs that want the server to fetch something."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.http_server import Answer, Running, b64, message, running


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_slow_head_is_cut_off(short_deadlines: Running, start: bytes) -> None:
    with short_deadlines.raw() as sock:
        sock.sendall(start)
        began = time.monotonic()
        assert sock.recv(1000) == b""
        assert time.monotonic() - began < 4


def test_slow_body_is_answered_408_and_cut_off(short_deadlines: Running) -> None:
    with short_deadlines.raw() as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):  # the server closes first
                while not stop.wait(0.2):
                    sock.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        response = b""
        with contextlib.suppress(ConnectionResetError):  # it closes while bytes are still on their way to it
            while piece := sock.recv(1000):
                response += piece
        stop.set()
        thread.join()
    assert response.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 1 seconds" in response


@pytest.fixture(scope="module")
def short_deadlines(bundle_dir: Path) -> Iterator[Running]:
    with running(bundle_dir, "--head-timeout", "1", "--body-timeout", "1") as started:
        yield started


@pytest.fixture(scope="module")
def image_host(photo: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/a.png")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(photo if self.path == "/a.png" else bytes(8 << 20))

        def log_message(self, format: str, *args: object) -> None:
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=host.serve_forever)
    thread.start()
    yield f"localhost:{host.server_port}"
    host.shutdown()
    thread.join()
    host.server_close()


def test_urls_are_fetched_from_allowed_hosts_only(bundle_dir: Path, photo: bytes, image_host: str) -> None:
    with running(bundle_dir, "--url-host", image_host, "--url-private-network", "--max-body-mb", "4") as server:

        def score(url: str) -> Answer:
            return server.ask("POST", "/score", {"input_data": [url]})

        direct = server.ask("POST", "/score", {"input_data": [b64(photo)]})
        assert score(f"http://{image_host}/a.png").json() == direct.json()
        refused = {
            f"http://{image_host}/moved": "redirects are not followed",
            f"http://{image_host}/large": "larger than 4,194,304 bytes",
            "http://localhost:1/a.png": "found host 'localhost:1'",
            f"http://user@{image_host}/a.png": "Expected an http(s) URL",
            f"http://{image_host}@evil.example/a.png": "Expected an http(s) URL",
            f"ftp://{image_host}/a.png": "Expected an http(s) URL",
            f"http://{image_host}/a\r\nX: y": "plain ASCII",
            "http://[::1": "cannot be parsed",
        }
        for url, says in refused.items():
            response = score(url)
            assert response.status == 400, url
            assert says in message(response)


def test_allowed_host_inside_the_private_network_is_refused(bundle_dir: Path, image_host: str) -> None:
    with running(bundle_dir, "--url-host", image_host) as server:
        response = server.ask("POST", "/score", {"input_data": [f"http://{image_host}/a.png"]})
    assert response.status == 400
    assert "not public" in message(response)
