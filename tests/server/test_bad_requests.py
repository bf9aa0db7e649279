"""What everybody else gets: a 4xx in the protocol's own form, bounded memory, and a server that is still up."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.http_server import Running, b64, message, running

INFER = "/v2/models/linear/infer"


@pytest.fixture(scope="module")
def shared(bundle_dir: Path) -> Iterator[Running]:
    with running(bundle_dir, "--max-body-mb", "4") as started:
        yield started


@pytest.fixture
def server(shared: Running, photo: bytes) -> Iterator[Running]:
    """After every test the server must still be up and answer."""
    yield shared
    assert shared.process.poll() is None
    assert shared.ask("POST", "/predict", photo).status == 200


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda photo: b"", "Expected an image in 'body', found 0 bytes"),
        (lambda photo: b"hello, this is text", "found 19 bytes of something else"),
        (lambda photo: photo[: len(photo) // 2], "damaged or truncated"),
        (lambda photo: bomb(7_000, 7_000), "7000 x 7000 pixels; at most 33,177,600"),
        (lambda photo: bomb(10_000, 10_000), "too large to decode safely"),
        (lambda photo: bomb(60_000, 60_000), "60000 x 60000 pixels|too large"),
        (lambda photo: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "something else"),
    ],
    ids=["empty", "text", "truncated", "49 megapixels", "100 megapixels", "3.6 gigapixels", "svg"],
)
def test_body_that_is_no_usable_image(server: Running, photo: bytes, make: Any, says: str) -> None:
    import re

    direct = server.ask("POST", "/predict", make(photo))
    assert direct.status == 400
    assert re.search(says, message(direct))
    scored = server.ask("POST", "/score", {"input_data": [b64(photo), b64(make(photo))]})
    assert scored.status == 400
    assert re.search(says.replace("'body'", r"'input_data\[1\]'"), message(scored))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "Expected a JSON body"),
        (b"\xff\xfe", "Expected a JSON body"),
        (b"[" * 100_000, "Expected a JSON body"),
        (b"[]", '"input_data"'),
        (b'{"input": []}', '"input_data"'),
        (b'{"input_data": "abc"}', "Expected input_data to be a list, found str"),
        (b'{"input_data": []}', "at least one image"),
        (b'{"input_data": [3]}', "input_data[0] to be a string, found int"),
        (b'{"input_data": ["?!"]}', "Expected base64 in input_data[0]"),
        (b'{"input_data": ["abc"]}', "Expected base64 in input_data[0]"),
        ('{"input_data": ["ÄÖÜ="]}'.encode(), "Expected base64 in input_data[0]"),
        (b'{"input_data": {"columns": ["text"], "data": ["x"]}}', '"columns": ["image"]'),
        (b'{"input_data": ["http://127.0.0.1/a.png"]}', "URLs are not accepted"),
        (b'{"input_data": ["file:///etc/passwd"]}', "URLs are not accepted"),
    ],
)
def test_score_says_what_is_wrong_with_its_body(server: Running, body: bytes, says: str) -> None:
    response = server.ask("POST", "/score", body)
    assert response.status == 400
    assert says in message(response)


def test_ten_thousand_items_are_too_many(server: Running) -> None:
    response = server.ask("POST", "/score", {"input_data": ["AAAA"] * 10_000})
    assert response.status == 413
    assert "at most 64 images per request, found 10000" in message(response)
    rows = {"name": "pixel_values", "shape": [100, 3, 16, 16], "datatype": "FP32", "data": [0.5] * 76800}
    assert server.ask("POST", INFER, {"inputs": [rows]}).status == 413


@pytest.mark.parametrize("top", ["0", "-1", "x", "1e3", "", "٣"])
def test_top_is_a_positive_number(server: Running, photo: bytes, top: str) -> None:
    from urllib.parse import quote

    response = server.ask("POST", f"/predict?top={quote(top)}", photo)
    assert response.status == 400
    assert "?top=N" in message(response)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_gigabyte_body_is_refused_and_memory_stays(server: Running, declared: bool) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    piece = bytes(1 << 20)
    peak = before

    def pieces() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(1024):
            peak = max(peak, process.memory_info().rss)
            yield piece

    headers = {"Content-Length": str(1 << 30)} if declared else {"Transfer-Encoding": "chunked"}
    connection = server.connect()
    try:
        connection.request("POST", "/predict", pieces(), headers, encode_chunked=not declared)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 413
        assert "at most 4,194,304 bytes" in json.loads(body)["error"]["message"]
    finally:
        connection.close()
    assert peak - before < 64 << 20


def test_many_large_bodies_at_once_are_refused_before_memory_is_used(bundle_dir: Path) -> None:
    with running(bundle_dir, "--max-body-mb", "32") as server:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        sockets = [server.raw() for _ in range(8)]
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 33554432\r\n\r\n"
        responses = []

        def send(index: int) -> None:
            try:
                sockets[index].sendall(head + bytes(31 << 20))  # never complete, so all are held at one time
            except OSError:
                return
            finally:
                sockets[index].settimeout(3)
                try:
                    responses.append(sockets[index].recv(100))
                except OSError:
                    responses.append(b"")

        threads = [threading.Thread(target=send, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = process.memory_info().rss - before
        for sock in sockets:
            sock.close()
        assert any(response.startswith(b"HTTP/1.1 429") for response in responses)
        assert held < 220 << 20  # the 128 MiB that are accepted, and what Python's allocator adds
        assert server.ask("GET", "/v2/health/live").status == 200


def test_full_queue_answers_429_and_recovers(bundle_dir: Path, photo: bytes) -> None:
    options = ("--max-queue", "8", "--max-images", "8", "--max-batch", "64", "--max-delay-ms", "1500")
    with running(bundle_dir, *options) as server:
        statuses: list[tuple[int, str | None]] = []
        lock = threading.Lock()

        def ask() -> None:
            response = server.ask("POST", "/score", {"input_data": [b64(photo)] * 4})
            with lock:
                statuses.append((response.status, response.headers.get("retry-after")))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses, key=str) == [(200, None)] * 2 + [(429, "1")] * 4
        assert server.ask("POST", "/predict", photo).status == 200


def test_compressed_body_is_refused(server: Running) -> None:
    response = server.ask("POST", "/score", zlib.compress(b"{}"), {"Content-Encoding": "deflate"})
    assert response.status == 415
    assert "without compression" in message(response)


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("multipart/form-data", b"x", "boundary"),
        ("multipart/form-data; boundary=cut", b"no boundary here", "multipart"),
        ("multipart/form-data; boundary=cut", b"--cut\r\nContent-Disposition: form-data\r\n\r\nx", "closing boundary"),
        ("multipart/form-data; boundary=cut", b"--cut--\r\n", "at least one image|multipart"),
    ],
)
def test_broken_form_is_refused(server: Running, content_type: str, body: bytes, says: str) -> None:
    import re

    response = server.ask("POST", "/predict", body, {"Content-Type": content_type})
    assert response.status == 400
    assert re.search(says, message(response))


GOOD: dict[str, Any] = {"name": "pixel_values", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": [0.0] * 768}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "images"}, "Expected the inputs [pixel_values], found [images]"),
        ({"shape": [1, 3, 16, 15]}, "values in input 'pixel_values'"),
        ({"shape": [1, 3, 8, 32]}, "pixel_values: float32[batch, 3, 16, 16]"),
        ({"shape": [3, 16, 16]}, "pixel_values: float32[batch, 3, 16, 16]"),
        ({"shape": [-1, 3, 16, 16]}, "list of sizes"),
        ({"shape": "all"}, "list of sizes"),
        ({"shape": [0, 3, 16, 16], "data": []}, "pixel_values: float32[batch, 3, 16, 16]"),
        ({"shape": [10**30, 10**30], "data": [1]}, "values in input"),
        ({"datatype": "FP64"}, "pixel_values: float32[batch, 3, 16, 16], found float64"),
        ({"datatype": "INT32", "data": [0] * 768}, "found int32"),
        ({"datatype": "UINT8", "data": [300] * 768}, "do not fit uint8"),
        ({"datatype": "BYTES"}, "one of BOOL"),
        ({"data": ["a"] * 768}, "values in input"),
        ({"data": [[1], [2, 3]]}, "values in input"),
        ({"data": None}, '"data" or binary data'),
        ({"parameters": 3}, '"parameters" to be an object'),
        ({"parameters": {"binary_data_size": 10**12}}, "Expected 3072 bytes"),
        ({"parameters": {"binary_data_size": 3072}}, "Expected 3072 bytes"),
    ],
)
def test_kserve_says_what_is_wrong_with_a_tensor(server: Running, change: dict[str, Any], says: str) -> None:
    response = server.ask("POST", INFER, {"inputs": [{**GOOD, **change}]})
    assert response.status == 400
    assert isinstance(response.json()["error"], str)
    assert says in message(response)


@pytest.mark.parametrize(
    "body", [{}, [], {"inputs": {}}, {"inputs": []}, {"inputs": [GOOD, {**GOOD, "name": "b"}]}, {"inputs": [3]}]
)
def test_kserve_refuses_other_inputs(server: Running, body: Any) -> None:
    assert server.ask("POST", INFER, body).status == 400


def test_kserve_refuses_unknown_outputs_models_and_lengths(server: Running) -> None:
    wrong_output = server.ask("POST", INFER, {"inputs": [GOOD], "outputs": [{"name": "probabilities"}]})
    assert (wrong_output.status, "Expected outputs of logits" in message(wrong_output)) == (400, True)
    for path in (
        "/v2/models/other",
        "/v2/models/linear/versions/9",
        "/v2/models/other/ready",
        "/v2/models/linear/config",
    ):
        response = server.ask("GET", path)
        assert response.status == 404
        assert message(response)
    assert server.ask("POST", "/v2/models/other/infer", {"inputs": [GOOD]}).status == 404
    length = server.ask("POST", INFER, {"inputs": [GOOD]}, {"Inference-Header-Content-Length": "999999"})
    assert length.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/../../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/static/page.html", 404),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/score", 405),
        ("POST", "/", 405),
        ("DELETE", "/v2/models/linear", 405),
    ],
)
def test_no_path_reaches_the_file_system(server: Running, method: str, path: str, status: int) -> None:
    response = server.ask(method, path)
    assert response.status == status
    assert message(response)
    assert b"root:" not in response.body
