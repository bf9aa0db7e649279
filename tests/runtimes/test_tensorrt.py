"""The TensorRT runtime on the recording fake: order, shapes, dtypes, lifetimes, and cleanup on every error path."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.conftest import Pretend
from tests.engine.graphs import floating, save
from vitexport.engine.build import build_engine
from vitexport.engine_settings import EngineSettings
from vitexport.errors import FeedMismatchError, InferenceError, RuntimeBackendError, VitexportError
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.runtimes.cuda import open_memory
from vitexport.runtimes.cuda.probe import GpuInfo, probe_cuda
from vitexport.runtimes.sidecar import EngineSidecar, mismatches, read_sidecar, sidecar_path

L4 = GpuInfo(0, "L4", "8.9", 24 << 30, False)


@pytest.fixture
def engine(pretend: Pretend, tmp_path: Path) -> Path:
    """An engine of two profiles (1, and 2 to 8), built on the fake Orin."""
    pretend()
    settings = EngineSettings.model_validate({"batch": "1,8", "timing_cache": tmp_path / "t"})
    build_engine(save(floating(), tmp_path / "model.onnx"), settings, tmp_path / "model.engine")
    return tmp_path / "model.engine"


def _batch(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((size, 4)).astype(np.float32)}


def _expected(feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([feeds["x"].sum(1), feeds["x"].max(1)], axis=1)


def test_results_are_right_for_every_batch_size_in_any_order(pretend: Pretend, engine: Path) -> None:
    pretend()
    with open_runtime(engine) as runtime:
        assert runtime.name == "tensorrt"
        assert [spec.describe() for spec in runtime.inputs] == ["x: float32[batch, 4]"]
        for size in (1, 8, 3, 1, 5, 8):
            feeds = _batch(size, seed=size)
            np.testing.assert_allclose(runtime.run(feeds)["y"], _expected(feeds), rtol=1e-6)


def test_results_are_the_callers_own(pretend: Pretend, engine: Path) -> None:
    pretend()
    with open_runtime(engine) as runtime:
        first = runtime.run(_batch(2, seed=1))["y"]
        kept = first.copy()
        runtime.run(_batch(2, seed=2))
        np.testing.assert_array_equal(first, kept)


def test_calls_come_in_order(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        runtime.run(_batch(4))
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
            runtime.run(_batch(8))
        held = machine.live_bytes
        for _ in range(200):
            runtime.run(_batch(2))
        assert machine.live_bytes == held
    assert machine.count("create context") == 1
    assert machine.count("cudaMalloc") == 2
    assert machine.count("cudaHostAlloc") == 2
    assert machine.live_bytes == 0


def test_shapes_are_set_only_when_they_change(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        for size in (4, 4, 4, 2, 2, 4):
            runtime.run(_batch(size))
    assert machine.count("shape x") == 3


def test_each_profile_gets_its_context_and_fitting_batches(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    with open_runtime(engine) as runtime:
        runtime.run(_batch(1))
        runtime.run(_batch(8))
        runtime.run(_batch(1))
    assert machine.count("create context") == 2
    assert [event for event in machine.events if event.startswith("use profile")] == ["use profile 1 on 42"]


def test_a_batch_no_profile_takes_is_refused_with_the_ranges(pretend: Pretend, engine: Path) -> None:
    pretend()
    with open_runtime(engine) as runtime, pytest.raises(FeedMismatchError, match=r"\[2, 4\] to \[8, 4\]"):
        runtime.run(_batch(9))


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
                feeds = _batch(size, seed)
                np.testing.assert_allclose(runtime.run(feeds)["y"], _expected(feeds), rtol=1e-6)
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
            runtime.run(_batch(size))
        assert machine.count("create context") - machine.count("delete context") == 16
    assert machine.live_bytes == 0


def test_a_failed_recording_ends_the_capture(pretend: Pretend, engine: Path) -> None:
    machine = pretend(fail_in_capture=True)
    with (
        open_runtime(engine, options=RuntimeOptions(cuda_graph=True)) as runtime,
        pytest.raises(InferenceError, match="failed to execute"),
    ):
        runtime.run(_batch(1))
    assert machine.capturing is None
    assert machine.live_bytes == 0


def test_weight_streaming_gets_its_budget_before_any_context(pretend: Pretend, engine: Path) -> None:
    machine = pretend(streamable=1 << 30)
    with open_runtime(engine) as runtime:
        runtime.run(_batch(1))
    assert "budget 77" in machine.events


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
        runtime.run(_batch(4))
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
        runtime.run(_batch(2))
        machine.failing.add("cudaMalloc")
        with pytest.raises(InferenceError):
            runtime.run(_batch(8))
        machine.failing.clear()
        feeds = _batch(8)
        np.testing.assert_allclose(runtime.run(feeds)["y"], _expected(feeds), rtol=1e-6)
    assert machine.live_bytes == 0


def test_a_larger_batch_after_a_failed_run_waits_for_what_is_still_queued(pretend: Pretend, engine: Path) -> None:
    machine = pretend(execute=False)
    with open_runtime(engine) as runtime:
        with pytest.raises(InferenceError, match="failed to execute"):
            runtime.run(_batch(2))
        machine.script["execute"] = True
        feeds = _batch(8)
        np.testing.assert_allclose(runtime.run(feeds)["y"], _expected(feeds), rtol=1e-6)


@pytest.mark.parametrize("failing", ["cudaStreamSynchronize", "cudaFree", "cudaFreeHost", "cudaGraphExecDestroy"])
def test_closing_goes_on_after_a_failure(failing: str, pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    runtime = open_runtime(engine, options=RuntimeOptions(cuda_graph=True))
    for size in (1, 4):
        runtime.run(_batch(size))
    machine.failing.add(failing)
    machine.events.clear()
    with pytest.raises(InferenceError, match=f"{failing} failed"):
        runtime.close()
    gc.collect()
    # Everything but what CUDA refuses to give back is gone: two lanes with a graph and two buffers on either side.
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

        monkeypatch.setattr("vitexport.runtimes.tensorrt.open_memory", break_later)
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


def test_closing_twice_is_fine_and_running_after_it_is_refused(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    runtime = open_runtime(engine)
    runtime.run(_batch(1))
    runtime.close()
    runtime.close()
    assert machine.count("cudaStreamDestroy") == 1
    with pytest.raises(InferenceError, match="closed"):
        runtime.run(_batch(1))


def test_threads_share_one_engine_without_mixing_results(pretend: Pretend, engine: Path) -> None:
    pretend()
    wrong: list[int] = []
    with open_runtime(engine) as runtime:

        def work(seed: int) -> None:
            for step in range(100):
                feeds = _batch(1 + (seed + step) % 8, seed * 1000 + step)
                if not np.allclose(runtime.run(feeds)["y"], _expected(feeds), rtol=1e-6):
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


def test_a_plan_without_a_sidecar_opens_with_its_own_shapes(pretend: Pretend, engine: Path) -> None:
    pretend()
    sidecar_path(engine).unlink()
    with open_runtime(engine) as runtime:
        assert [spec.describe() for spec in runtime.inputs] == ["x: float32[batch, 4]"]
        assert runtime.metadata == {}


def _rewrite(engine: Path, **changes: Any) -> EngineSidecar:
    data = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps({**data, **changes}))
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    return sidecar


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.13.0"}, "an engine of version 10.13.0, and this is version 10.3.0"),
        ({"version": "9.0.0", "version_compatible": False}, "version 9.0.0"),
        ({"compute_capabilities": ["8.9"], "gpu": "L4"}, r"compute capability 8.9 \(L4\), and Orin has 8.7"),
        ({"platform": "win32-amd64"}, "built on win32-amd64"),
        ({"needs_refit": True}, "weights were left out"),
    ],
)
def test_engines_made_for_something_else_are_refused_before_tensorrt_sees_them(
    changes: dict[str, Any], message: str, pretend: Pretend, engine: Path
) -> None:
    machine = pretend()
    _rewrite(engine, **changes)
    with pytest.raises(RuntimeBackendError, match=message):
        open_runtime(engine)
    assert machine.count("create engine") == 0


def test_an_engine_of_the_other_product_is_refused_by_name(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    _rewrite(engine, provider="tensorrt-rtx")
    with pytest.raises(RuntimeBackendError, match="was built for tensorrt-rtx, and this is tensorrt"):
        open_runtime(engine, "tensorrt")
    assert machine.events == []


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "fine"),
    [
        ({"version_compatible": True}, "11.4.0", None, True),
        ({"version_compatible": True, "version": "11.4.0"}, "10.3.0", None, False),
        ({"hardware_compatibility": "ampere_plus", "compute_capabilities": ["8.6"]}, "10.3.0", L4, True),
        ({"hardware_compatibility": "none", "compute_capabilities": ["8.6"]}, "10.3.0", L4, False),
        ({"compute_capabilities": ["8.6", "8.9"]}, "10.3.0", L4, True),
    ],
)
def test_compatibility_follows_the_vendors_rules(
    changes: dict[str, Any], version: str, gpu: GpuInfo | None, fine: bool, engine: Path
) -> None:
    sidecar = _rewrite(engine, **changes)
    assert (mismatches(sidecar, provider="tensorrt", version=version, gpu=gpu) == []) is fine


def test_rtx_engines_stay_with_their_release_and_default_to_ampere_and_later(engine: Path) -> None:
    sidecar = _rewrite(engine, provider="tensorrt-rtx", compute_capabilities=[], version_compatible=True, version="1.7")
    turing = GpuInfo(0, "RTX 2080", "7.5", 8 << 30, False)
    assert mismatches(sidecar, provider="tensorrt-rtx", version="1.8", gpu=None)
    assert mismatches(sidecar, provider="tensorrt-rtx", version="1.7", gpu=L4) == []
    assert mismatches(sidecar, provider="tensorrt-rtx", version="1.7", gpu=turing)


@pytest.mark.parametrize("damage", ["other plan", "shorter plan", "broken json"])
def test_a_sidecar_that_does_not_fit_is_refused(damage: str, pretend: Pretend, engine: Path) -> None:
    pretend()
    if damage == "broken json":
        sidecar_path(engine).write_text("{")
    else:
        engine.write_bytes(b"plan bytez" if damage == "other plan" else b"plan")
    with pytest.raises(RuntimeBackendError, match="sidecar"):
        open_runtime(engine)


def test_a_suffix_opens_the_product_the_sidecar_names(pretend: Pretend, engine: Path) -> None:
    pretend(gpu=None)
    _rewrite(engine, provider="tensorrt-rtx")
    with pytest.raises(RuntimeBackendError, match="with tensorrt-rtx needs an NVIDIA GPU"):
        open_runtime(engine)


def test_another_gpu_than_the_machine_has_is_named(pretend: Pretend, engine: Path) -> None:
    pretend()
    with pytest.raises(RuntimeBackendError, match=r"asked for cuda:3; this machine has cuda:0 \(Orin\)"):
        open_runtime(engine, options=RuntimeOptions(device="cuda:3"))
    with pytest.raises(RuntimeBackendError, match="a device such as 'cuda:0', found 'cuda:first'"):
        open_runtime(engine, options=RuntimeOptions(device="cuda:first"))


def test_an_unknown_memory_provider_is_refused(pretend: Pretend, engine: Path) -> None:
    pretend()
    with pytest.raises(RuntimeBackendError, match="cuda-python, pycuda, found 'cupy'"):
        open_runtime(engine, options=RuntimeOptions(provider="cupy"))


def test_opening_without_a_gpu_is_refused_fast_and_without_a_crash(engine: Path) -> None:
    """In a process of its own, which a segfault would end, and against the real driver library (or its absence)."""
    if not probe_cuda().problem:
        pytest.skip("this machine has a GPU")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from vitexport.runtimes import open_runtime\n"
        "from vitexport.errors import RuntimeBackendError\n"
        "start = time.perf_counter()\n"
        "try: open_runtime(Path(sys.argv[1]))\n"
        "except RuntimeBackendError as error: print(error); print(time.perf_counter() - start); sys.exit(7)\n"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(engine)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "needs an NVIDIA GPU" in done.stdout
    assert "vitexport doctor" in done.stdout
    assert float(done.stdout.splitlines()[-1]) < 2.0
    assert time.perf_counter() - started < 20
    assert issubclass(RuntimeBackendError, VitexportError)
