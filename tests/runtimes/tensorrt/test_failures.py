"""Every failure of TensorRT and CUDA is our error, and releases everything."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_engine import batch_of, expected
from tests.support.fake_gpu import Pretend
from vitexport.errors import InferenceError, RuntimeBackendError, VitexportError
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.runtimes.cuda import open_memory

ERRORS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no context": ({"context": False}, None, "no execution context"),
    "profile refused": ({"refuse_profile": True}, None, "refuses optimisation profile"),
    "shape refused": ({"refuse_shape": True}, None, "refuses shape"),
    "address refused": ({"refuse_address": True}, None, "refuses the buffer"),
    "execution fails": ({"execute": False}, None, "failed to execute"),
    "output shape unknown": ({"output_shape": (-1, 2)}, None, "depends on the values"),
    "no device memory": ({}, "cudaMalloc", "cudaMalloc failed"),
    "no host memory": ({}, "cudaHostAlloc", "cudaHostAlloc failed"),
    "copy fails": ({}, "cudaMemcpyAsync", "cudaMemcpyAsync failed"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_every_failure_is_ours_and_releases_everything(case: str, pretend: Pretend, engine: Path) -> None:
    script, failing, message = ERRORS[case]
    machine = pretend(**script)
    runtime = open_runtime(engine)
    if failing:
        machine.failing.add(failing)
    with pytest.raises(InferenceError, match=message):
        runtime.run(batch_of(4))
    machine.failing.clear()
    runtime.close()
    gc.collect()
    assert machine.live_bytes == 0
    for kind in ("context", "engine"):
        assert machine.count(f"create {kind}") == machine.count(f"delete {kind}")
    assert machine.count("cudaStreamDestroy") == 1


def test_the_runtime_works_again_after_a_failure(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        runtime.run(batch_of(2))
        machine.failing.add("cudaMalloc")
        with pytest.raises(InferenceError):
            runtime.run(batch_of(8))
        machine.failing.clear()
        feeds = batch_of(8)
        np.testing.assert_allclose(runtime.run(feeds)["y"], expected(feeds), rtol=1e-6)
    assert machine.live_bytes == 0


def test_a_larger_batch_after_a_failed_run_waits_for_what_is_still_queued(pretend: Pretend, engine: Path) -> None:
    machine = pretend(execute=False)
    with open_runtime(engine) as runtime:
        with pytest.raises(InferenceError, match="failed to execute"):
            runtime.run(batch_of(2))
        machine.script["execute"] = True
        feeds = batch_of(8)
        np.testing.assert_allclose(runtime.run(feeds)["y"], expected(feeds), rtol=1e-6)


@pytest.mark.parametrize("failing", ["cudaStreamSynchronize", "cudaFree", "cudaFreeHost", "cudaGraphExecDestroy"])
def test_closing_goes_on_after_a_failure(failing: str, pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    runtime = open_runtime(engine, options=RuntimeOptions(cuda_graph=True))
    for size in (1, 4):
        runtime.run(batch_of(size))
    machine.failing.add(failing)
    machine.events.clear()
    with pytest.raises(InferenceError, match=f"{failing} failed"):
        runtime.close()
    gc.collect()
    # Everything but what CUDA refuses to give back is gone: two execution contexts with a graph and two buffers on
    # either side.
    freed = {"cudaFree": 4, "cudaFreeHost": 4, "cudaGraphExecDestroy": 2, "cudaStreamDestroy": 1}
    gone = {"delete context": 2, "delete engine": 1}
    found = {name: machine.events.count(name) for name in {**freed, **gone}}
    assert found == {**freed, **gone} | ({failing: 0} if failing in freed else {})
    runtime.close()


@pytest.mark.parametrize(
    ("script", "failing", "error"),
    [
        ({"engine": False}, None, RuntimeBackendError),
        ({"io_dtype": "BF16"}, None, RuntimeBackendError),
        ({}, "cudaSetDevice", InferenceError),
    ],
)
def test_an_engine_that_cannot_be_opened_leaves_nothing(
    script: dict[str, Any],
    failing: str | None,
    error: type[VitexportError],
    pretend: Pretend,
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = pretend(**script)
    if failing:
        opened = open_memory

        def break_later(*arguments: Any) -> Any:
            memory = opened(*arguments)
            machine.failing.add(failing)
            return memory

        monkeypatch.setattr("vitexport.runtimes.tensorrt.runtime.open_memory", break_later)
    with pytest.raises(error):
        open_runtime(engine)
    gc.collect()
    assert machine.count("cudaStreamDestroy") == 1
    assert machine.count("create engine") == machine.count("delete engine")
    assert machine.live_bytes == 0


def test_a_plan_tensorrt_refuses_gives_its_reason_and_closes_the_stream(pretend: Pretend, engine: Path) -> None:
    machine = pretend(engine=False)
    with pytest.raises(RuntimeBackendError, match="the plan was made for another GPU"):
        open_runtime(engine)
    assert machine.count("cudaStreamDestroy") == 1
