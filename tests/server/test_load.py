"""Under load: nothing lost, memory steady, and a stop that answers everything it accepted."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import psutil
import pytest

from benchmarks.suites.http_load import HOST, LoadResult, hammer, image_request
from tests.support.http_server import running
from tests.support.linear_model import save_image
from vitexport.server.server import bind, stop_listening


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("load")
    return [image_request(save_image(folder / f"{seed}.jpg", seed).read_bytes()) for seed in range(8)]


def test_no_request_is_lost_and_memory_stays(bundle_dir: Path, requests: list[bytes]) -> None:
    with running(bundle_dir) as server:
        process = psutil.Process(server.process.pid)
        asyncio.run(hammer(server.port, requests, clients=32, seconds=3))
        before = process.memory_info().rss
        load = asyncio.run(hammer(server.port, requests, clients=32, seconds=5))
        after = process.memory_info().rss
    assert load.lost == load.refused == 0
    assert set(load.statuses) == {200}
    assert load.statuses[200] > 100
    assert after < 1.1 * before


@pytest.mark.parametrize("attempt", range(3))
def test_sigterm_under_load_answers_every_accepted_request(
    bundle_dir: Path, requests: list[bytes], attempt: int
) -> None:
    with running(bundle_dir) as server:

        async def stop() -> LoadResult:
            task = asyncio.create_task(hammer(server.port, requests, clients=32, seconds=20))
            await asyncio.sleep(1 + 0.1 * attempt)
            server.process.send_signal(signal.SIGTERM)
            return await task

        load = asyncio.run(stop())
        assert server.process.wait(timeout=20) == 0
    assert load.lost == 0
    assert set(load.statuses) == {200}
    assert load.refused == 32  # every client ended because nobody listened any more


@pytest.mark.parametrize("turns", range(4))
def test_connections_around_the_end_of_a_listener_are_answered(turns: int) -> None:
    """Clients that connect ``turns`` turns of the event loop before it, and one while the listener closes."""

    async def stop() -> list[bytes]:
        listener = bind(HOST, 0)
        port = listener.getsockname()[1]
        answered = asyncio.Queue[None]()

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"answer")
            writer.close()
            answered.put_nowait(None)

        server = await asyncio.start_server(answer, sock=listener)
        clients = [socket.create_connection((HOST, port)) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        close = server.close

        def connect_and_close() -> None:
            clients.append(socket.create_connection((HOST, port)))
            close()

        server.close = connect_and_close  # type: ignore[method-assign]
        waiting = await stop_listening(server, listener)
        for connection in waiting:
            connection.send(b"answer")
            connection.close()
        for _ in range(len(clients) - len(waiting)):
            await asyncio.wait_for(answered.get(), 10)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        received = []
        for client in clients:
            with client:
                received.append(await asyncio.to_thread(client.recv, 16))
        return received

    assert asyncio.run(stop()) == [b"answer"] * 4


def test_a_stop_answers_what_waits_in_the_queue_of_the_listener(bundle_dir: Path, requests: list[bytes]) -> None:
    with running(bundle_dir) as server:
        server.process.send_signal(signal.SIGSTOP)
        clients = [socket.create_connection((HOST, server.port), timeout=20) for _ in range(20)]
        for client in clients:
            client.sendall(requests[0])
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        heads = []
        for client in clients:
            with client, client.makefile("rb") as stream:
                heads.append(stream.readline())
        assert server.process.wait(timeout=20) == 0
    assert heads == [b"HTTP/1.1 200 OK\r\n"] * 20
