"""The profile of ONNX Runtime is of the session it explains: the same options, the same execution provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from tests.runtimes.conftest import Opened
from tests.support.onnx_graphs import Graph, linear, normal, rotated, save
from vitexport.errors import RuntimeBackendError
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.runtimes.onnxruntime_profile import executed_layers, fraction_of_work

FEEDS = {"x": normal(2, 8, 64)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """``x @ w + b`` with Q/DQ around the GEMM, in the form ONNX Runtime has an integer kernel for."""
    return save(linear(), tmp_path / "model.onnx")


def _asked(opened: Opened) -> dict[str, Any]:
    options = opened.options
    return {
        "providers": opened.providers,
        "threads": options.intra_op_num_threads,
        "order": options.execution_order,
        "level": options.graph_optimization_level,
        "spin": options.get_session_config_entry("session.intra_op.spin_duration_us"),
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threads": 2}, {"threads": 2, "providers": [("CPUExecutionProvider", {})]}),
        ({"optimize": False}, {"level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL}),
        ({"in_order": True}, {"order": ort.ExecutionOrder.PRIORITY_BASED}),
        ({"device": "cuda:1"}, {"providers": [("CUDAExecutionProvider", {"device_id": "1"})]}),
        ({"execution_provider": "cuda"}, {"providers": [("CUDAExecutionProvider", {"device_id": "0"})]}),
    ],
)
def test_the_profiled_session_is_opened_like_the_one_it_explains(
    options: dict[str, Any], expected: dict[str, Any], gpu_build: list[Opened], model: Path
) -> None:
    with open_runtime(model, options=RuntimeOptions(**options)) as runtime:
        assert runtime.executed(FEEDS)
    measured, profiled = gpu_build
    assert (measured.options.enable_profiling, profiled.options.enable_profiling) == (False, True)
    assert _asked(profiled) == _asked(measured)
    assert {name: _asked(profiled)[name] for name in expected} == expected


def test_a_cuda_graph_is_not_profiled_for_it_hides_its_kernels(gpu_build: list[Opened], model: Path) -> None:
    with open_runtime(model, options=RuntimeOptions(device="cuda", cuda_graph=True)) as runtime:
        assert runtime.executed(FEEDS)
    assert [opened.providers for opened in gpu_build] == [
        [("CUDAExecutionProvider", {"device_id": "0", "enable_cuda_graph": "1"})],
        [("CUDAExecutionProvider", {"device_id": "0"})],
    ]


def test_subgraphs_of_the_tensorrt_execution_provider_are_not_guessed_at(gpu_build: list[Opened], model: Path) -> None:
    with open_runtime(model, options=RuntimeOptions(execution_provider="tensorrt")) as runtime:
        assert runtime.executed(FEEDS) is None
    assert len(gpu_build) == 1


@pytest.mark.parametrize(("optimize", "executed"), [(True, {"int8": 1.0}), (False, {"float32": 1.0})])
def test_what_runs_depends_on_the_options_of_the_session(
    optimize: bool, executed: dict[str, float], model: Path
) -> None:
    """Only the optimiser turns Q/DQ and a GEMM into an integer one; as written, it is computed in float32."""
    with open_runtime(model, options=RuntimeOptions(optimize=optimize)) as runtime:
        assert runtime.executed(FEEDS) == executed


def test_fractions_are_of_the_work_and_the_gemms_of_two_activations_are_left_out(tmp_path: Path) -> None:
    graph = Graph()
    wide = graph.node("MatMul", [graph.quantize("x"), graph.quantized_weight(normal(64, 96))], "wide")
    narrow = graph.node("MatMul", [wide, graph.weight(normal(96, 64), "n")], "narrow")
    keys = graph.node("Transpose", ["x"], "transpose", perm=[0, 2, 1])
    path = save(graph.model(graph.node("MatMul", [narrow, keys], "scores")), tmp_path / "model.onnx")
    layers = executed_layers(path, FEEDS)
    assert {layer.name: (layer.precision, layer.work) for layer in layers} == {
        "wide": ("int8", 2 * 8 * 64 * 96),
        "narrow": ("float32", 2 * 8 * 96 * 64),
    }
    assert fraction_of_work(layers, "int8") == fraction_of_work(layers, "float32") == 0.5


def test_a_rotation_before_a_quantized_layer_is_no_work_with_weights(tmp_path: Path) -> None:
    path = save(rotated(), tmp_path / "model.onnx")
    for optimize, precision in ((True, "int8"), (False, "float32")):
        layers = executed_layers(path, FEEDS, RuntimeOptions(optimize=optimize))
        assert [(layer.name, layer.precision) for layer in layers] == [("fc", precision)]


def test_a_model_without_weights_has_no_fraction_of_anything(tmp_path: Path) -> None:
    graph = Graph()
    path = save(graph.model(graph.node("Relu", ["x"], "relu")), tmp_path / "model.onnx")
    with open_runtime(path) as runtime:
        assert runtime.executed(FEEDS) is None
    with pytest.raises(RuntimeBackendError, match="GEMMs with weights"):
        fraction_of_work(executed_layers(path, FEEDS), "int8")
