from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

from vitexport.errors import InferenceError
from vitexport.server.batching import Batcher
from vitexport.server.limits import BatchSettings
from vitexport.tensors import Array


class Recorder:
    """A model that doubles its input, and remembers the batches it saw."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.seconds = seconds
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, rows: Array) -> Mapping[str, Array]:
        with self._lock:
            self.batches.append(rows.shape)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1
        if (rows < 0).any():
            raise InferenceError("negative")
        return {"y": rows * 2}


def rows(*values: float, width: int = 1) -> Array:
    return np.repeat(np.array(values, dtype=np.float32)[:, None], width, axis=1)


def run(recorder: Recorder, settings: BatchSettings, *feeds: Array) -> list[Mapping[str, Array] | BaseException]:
    async def main() -> list[Mapping[str, Array] | BaseException]:
        batcher = Batcher(recorder, settings, lambda size: None)
        batcher.start()
        outputs = await asyncio.gather(*(batcher.submit(feed) for feed in feeds), return_exceptions=True)
        await batcher.stop()
        return outputs

    return asyncio.run(main())


def test_everyone_gets_their_own_rows_back() -> None:
    recorder = Recorder()
    feeds = [rows(*range(start, start + 1 + start % 3)) for start in range(20)]
    outputs = run(recorder, BatchSettings(max_batch=8, max_delay=0.05, workers=2), *feeds)
    for feed, output in zip(feeds, outputs, strict=True):
        assert not isinstance(output, BaseException)
        np.testing.assert_array_equal(output["y"], feed * 2)
    assert max(shape[0] for shape in recorder.batches) <= 8
    assert len(recorder.batches) < len(feeds)


def test_a_full_batch_does_not_wait_for_the_deadline_and_a_lone_row_waits_no_longer() -> None:
    day = 24 * 3600.0  # whoever waited for it would be ended by the test's own timeout
    run(Recorder(), BatchSettings(max_batch=2, max_delay=day, workers=1), rows(1), rows(2))
    recorder = Recorder()
    run(recorder, BatchSettings(max_batch=2, max_delay=0.2, workers=1), rows(1))
    assert recorder.batches == [(1, 1)]


def test_rows_of_another_shape_and_oversized_items_run_alone() -> None:
    recorder = Recorder()
    run(recorder, BatchSettings(max_batch=4, max_delay=0.05, workers=1), rows(1), rows(2, width=3), rows(*range(9)))
    assert sorted(recorder.batches) == [(1, 1), (1, 3), (9, 1)]


def test_failure_reaches_everyone_in_the_batch_and_nobody_else() -> None:
    settings = BatchSettings(max_batch=2, max_delay=0.05, workers=1)
    outputs = run(Recorder(), settings, rows(-1), rows(2), rows(3), rows(4))
    assert [isinstance(output, InferenceError) for output in outputs] == [True, True, False, False]


@pytest.mark.parametrize("workers", [1, 3])
def test_at_most_so_many_runs_as_workers(workers: int) -> None:
    recorder = Recorder(seconds=0.05)
    run(recorder, BatchSettings(max_batch=1, max_delay=0, workers=workers), *(rows(value) for value in range(9)))
    assert recorder.most_at_once == workers


def test_stop_answers_what_was_submitted() -> None:
    async def main() -> list[Mapping[str, Array]]:
        batcher = Batcher(
            Recorder(seconds=0.02), BatchSettings(max_batch=1, max_delay=10, workers=1), lambda size: None
        )
        batcher.start()
        waiting = [asyncio.create_task(batcher.submit(rows(value))) for value in range(5)]
        await asyncio.sleep(0)
        await batcher.stop()
        return [task.result() for task in waiting]

    assert [float(output["y"][0, 0]) for output in asyncio.run(main())] == [0, 2, 4, 6, 8]


def test_a_client_that_left_does_not_disturb_the_others() -> None:
    async def main() -> Mapping[str, Array]:
        batcher = Batcher(Recorder(), BatchSettings(max_batch=2, max_delay=0.1, workers=1), lambda size: None)
        batcher.start()
        gone = asyncio.create_task(batcher.submit(rows(1)))
        await asyncio.sleep(0.01)
        gone.cancel()
        second = await batcher.submit(rows(2))
        await batcher.stop()
        return second

    assert float(asyncio.run(main())["y"][0, 0]) == 4
