"""The GPU checks themselves, on the fake: they pass where everything is right and notice what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.support import gpu_checks
from tests.support.audits import engine_information
from tests.support.fake_gpu import Pretend
from tests.support.onnx_graphs import Graph, save


def _sum_and_max() -> onnx.ModelProto:
    """What the fake computes, as ONNX, over a matrix product with the identity that the audit can follow."""
    graph = Graph()
    axes = graph.weight(np.asarray([1]), "axes")
    same = graph.node("MatMul", ["x", graph.weight(np.eye(4, dtype=np.float32), "w")], "fc")
    parts = [graph.node(name, [same, axes], name.lower(), keepdims=1) for name in ("ReduceSum", "ReduceMax")]
    return graph.model(graph.node("Concat", parts, "concat", axis=1), shape=("batch", 4))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(_sum_and_max(), tmp_path / "model.onnx")


def _run(check: str, model: Path, tmp_path: Path) -> dict[str, Any]:
    return gpu_checks.CHECKS[check]("tensorrt", model, tmp_path)


@pytest.mark.parametrize("check", ["parity", "refit"])
def test_agreement_is_measured(check: str, pretend: Pretend, model: Path, tmp_path: Path) -> None:
    pretend()
    found = _run(check, model, tmp_path)
    assert found["relative"] < 1e-5
    assert found["cosine"] > 0.99999


def test_disagreement_is_noticed(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    pretend()
    other = onnx.load(str(model))
    other.graph.node[1].op_type = "ReduceMean"
    wrong = save(other, tmp_path / "wrong.onnx")
    engine = gpu_checks.build("tensorrt", model, tmp_path)
    assert gpu_checks.compare(wrong, engine)["relative"] > 0.1


def test_graph_threads_and_interface_pass(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    pretend()
    assert _run("graph", model, tmp_path) == {"same": True}
    assert _run("threads", model, tmp_path) == {"wrong": 0}
    found = _run("deserialize", model, tmp_path)
    assert found["inputs"] == found["sidecar"]


def test_many_runs_hold_no_more_device_memory(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    machine = pretend()
    found = gpu_checks.growth("tensorrt", model, tmp_path, runs=300)
    assert found["device_mib"] == 0
    assert machine.count("execute") == 330


def test_latency_and_audit_report(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    pretend(inspector=engine_information("xmma_gemm_f32f32_"))
    assert set(_run("latency", model, tmp_path)) == {"p50_ms_batch_1", "p50_ms_batch_8"}
    assert _run("audit", model, tmp_path)["passed"] is True
