"""Under load: nothing lost, memory steady, and a stop that answers everything it accepted."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from benchmarks.suites.http_load import LoadResult, hammer, image_request
from tests.support.http_server import running
from tests.support.linear_model import save_image


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
