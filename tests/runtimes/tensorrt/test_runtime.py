"""Running engines on the fake machine: order, reuse, profiles, graphs, threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_engine import batch_of, expected
from tests.support.fake_gpu import Pretend
from vitexport.errors import FeedMismatchError, InferenceError, RuntimeBackendError
from vitexport.runtimes import RuntimeOptions, open_runtime


def test_results_are_right_for_every_batch_size_in_any_order(pretend: Pretend, engine: Path) -> None:
    pretend()
    with open_runtime(engine) as runtime:
        assert runtime.name == "tensorrt"
        assert [spec.describe() for spec in runtime.inputs] == ["x: float32[batch, 4]"]
        for size in (1, 8, 3, 1, 5, 8):
            feeds = batch_of(size, seed=size)
            np.testing.assert_allclose(runtime.run(feeds)["y"], expected(feeds), rtol=1e-6)


def test_results_are_the_callers_own(pretend: Pretend, engine: Path) -> None:
    pretend()
    with open_runtime(engine) as runtime:
        first = runtime.run(batch_of(2, seed=1))["y"]
        kept = first.copy()
        runtime.run(batch_of(2, seed=2))
        np.testing.assert_array_equal(first, kept)


def test_calls_come_in_order(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        runtime.run(batch_of(4))
    steps = machine.order(
        "create runtime", "create engine", "create context", "use profile 1", "shape x (4, 4)", "address x",
        "cudaMemcpyAsync", "execute",
    )  # fmt: skip
    assert steps == sorted(steps)
    assert "address y" in machine.events
    end = machine.order("execute", "delete context", "delete engine", "cudaStreamDestroy")
    assert end == sorted(end)


def test_buffers_and_context_are_reused(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        for _ in range(200):
            runtime.run(batch_of(8))
        held = machine.live_bytes
        for _ in range(200):
            runtime.run(batch_of(2))
        assert machine.live_bytes == held
    assert machine.count("create context") == 1
    assert machine.count("cudaMalloc") == 2
    assert machine.count("cudaHostAlloc") == 2
    assert machine.live_bytes == 0


def test_shapes_are_set_only_when_they_change(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        for size in (4, 4, 4, 2, 2, 4):
            runtime.run(batch_of(size))
    assert machine.count("shape x") == 3


def test_each_profile_gets_its_context_and_fitting_batches(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        runtime.run(batch_of(1))
        runtime.run(batch_of(8))
        runtime.run(batch_of(1))
    assert machine.count("create context") == 2
    assert [event for event in machine.events if event.startswith("use profile")] == ["use profile 1 on 42"]


def test_a_batch_no_profile_takes_is_refused_with_the_ranges(pretend: Pretend, engine: Path) -> None:
    pretend()
    with open_runtime(engine) as runtime, pytest.raises(FeedMismatchError, match=r"\[2, 4\] to \[8, 4\]"):
        runtime.run(batch_of(9))


@pytest.mark.parametrize(
    ("profiles", "described"),
    [
        ([((1, 4), (1, 4), (1, 4))], "1, "),
        ([((8, 4), (8, 4), (8, 4)), ((8, 4), (8, 4), (8, 4))], "8, "),
        ([((1, 4), (1, 4), (1, 4)), ((8, 4), (8, 4), (8, 4))], "batch, "),
        ([((1, 4), (4, 4), (8, 4))], "batch, "),
    ],
)
def test_an_engine_of_one_batch_size_says_so(
    profiles: list[Any], described: str, pretend: Pretend, engine: Path
) -> None:
    pretend(profiles=profiles)
    with open_runtime(engine) as runtime:
        assert [spec.describe() for spec in runtime.inputs] == [f"x: float32[{described}4]"]
        assert [spec.describe() for spec in runtime.outputs] == [f"y: float32[{described}2]"]


def test_feeds_of_another_dtype_are_refused_before_the_device(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime, pytest.raises(FeedMismatchError, match="float64"):
        runtime.run({"x": np.zeros((1, 4))})
    assert machine.count("execute") == 0


def test_a_cuda_graph_is_recorded_once_per_shape_and_replayed(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine, options=RuntimeOptions(cuda_graph=True)) as runtime:
        for seed in range(5):
            for size in (1, 4):
                feeds = batch_of(size, seed)
                np.testing.assert_allclose(runtime.run(feeds)["y"], expected(feeds), rtol=1e-6)
    assert machine.count("cudaStreamBeginCapture") == 2
    assert machine.count("cudaGraphLaunch") == 8
    # One run to warm up and one to record, for each of the two shapes.
    assert machine.count("execute") == 4
    assert machine.count("cudaGraphExecDestroy") == 2
    assert machine.live_bytes == 0


def test_the_number_of_recorded_graphs_is_bounded(pretend: Pretend, engine: Path) -> None:
    machine = pretend(profiles=[((1, 4), (8, 4), (64, 4))])
    with open_runtime(engine, options=RuntimeOptions(cuda_graph=True)) as runtime:
        for size in range(1, 41):
            runtime.run(batch_of(size))
        assert machine.count("create context") - machine.count("delete context") == 16
    assert machine.live_bytes == 0


def test_a_failed_recording_ends_the_capture(pretend: Pretend, engine: Path) -> None:
    machine = pretend(fail_in_capture=True)
    with (
        open_runtime(engine, options=RuntimeOptions(cuda_graph=True)) as runtime,
        pytest.raises(InferenceError, match="failed to execute"),
    ):
        runtime.run(batch_of(1))
    assert machine.capturing is None
    assert machine.live_bytes == 0


def test_weight_streaming_gets_its_budget_before_any_context(pretend: Pretend, engine: Path) -> None:
    machine = pretend(streamable=1 << 30)
    with open_runtime(engine) as runtime:
        runtime.run(batch_of(1))
    assert "budget 77" in machine.events


def test_closing_twice_is_fine_and_running_after_it_is_refused(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    runtime = open_runtime(engine)
    runtime.run(batch_of(1))
    runtime.close()
    runtime.close()
    assert machine.count("cudaStreamDestroy") == 1
    with pytest.raises(InferenceError, match="closed"):
        runtime.run(batch_of(1))


def test_threads_share_one_engine_without_mixing_results(pretend: Pretend, engine: Path) -> None:
    pretend()
    wrong: list[int] = []
    with open_runtime(engine) as runtime:

        def work(seed: int) -> None:
            for step in range(100):
                feeds = batch_of(1 + (seed + step) % 8, seed * 1000 + step)
                if not np.allclose(runtime.run(feeds)["y"], expected(feeds), rtol=1e-6):
                    wrong.append(step)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_tensors_of_types_numpy_lacks_are_refused(pretend: Pretend, engine: Path) -> None:
    pretend(io_dtype="BF16")
    with pytest.raises(RuntimeBackendError, match="type BF16"):
        open_runtime(engine)
