"""Tasks side by side: in order, on one BLAS thread each, as many as memory has room for."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from vitexport.host.quantize import parallel
from vitexport.host.quantize.parallel import map_parallel, one_blas_thread


def _blas_threads() -> set[int]:
    return {entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"}


def test_blas_computes_on_one_thread_and_gets_its_others_back() -> None:
    np.zeros((4, 4)) @ np.zeros((4, 4))
    before = _blas_threads()
    with one_blas_thread():
        assert _blas_threads() == {1}
    assert _blas_threads() == before


def test_results_come_in_the_order_of_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "usable_cores", lambda: 4)
    waiting = [threading.Event() for _ in range(4)]

    def task(index: int) -> int:
        if index < 3:  # each ends after the next one
            assert waiting[index + 1].wait(10)
        waiting[index].set()
        return index

    assert map_parallel(task, range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("bytes_each", "at_once"), [(0, 6), (parallel._BYTES // 4, 4), (2 * parallel._BYTES, 2)])
def test_no_more_run_at_once_than_memory_has_room_for(
    bytes_each: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "usable_cores", lambda: 6)
    barrier, lock, running, most = threading.Barrier(at_once), threading.Lock(), [0], [0]

    def task(_: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        barrier.wait(10)
        with lock:
            running[0] -= 1

    map_parallel(task, range(at_once * 3), bytes_each=bytes_each)
    assert most[0] == at_once
