"""What ONNX Runtime cannot execute here is told from what is no sound model, and FP8 is executed."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from tests.support.onnx_graphs import attention, floating, linear, normal, save
from vitexport.errors import NoKernelError, RuntimeBackendError
from vitexport.runtimes import open_runtime


def test_a_missing_kernel_is_told_from_a_broken_file(tmp_path: Path) -> None:
    model = save(floating("bf16"), tmp_path / "model.onnx")
    onnx.checker.check_model(str(model), full_check=True)
    with pytest.raises(NoKernelError) as caught:
        open_runtime(model)
    assert "lacks a kernel that 'model.onnx' needs" in caught.value.message
    assert "implementation for MatMul(13)" in caught.value.message
    assert str(tmp_path) not in caught.value.message  # it goes into bundles
    assert "The file itself is sound" in caught.value.hint


@pytest.mark.parametrize("broken", ["type", "operator", "bytes"])
def test_a_broken_file_is_no_missing_kernel(tmp_path: Path, broken: str) -> None:
    model = floating("fp32")
    if broken == "type":
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(normal(64, 32).astype(np.float16), "w"))
    elif broken == "operator":
        model.graph.node.append(helper.make_node("Nothing", ["y"], ["z"]))
    path = save(model, tmp_path / "model.onnx")
    if broken == "bytes":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RuntimeBackendError, match="cannot open") as caught:
        open_runtime(path)
    assert not isinstance(caught.value, NoKernelError)


def test_fp8_is_executed_although_fusing_it_would_break_the_graph(tmp_path: Path) -> None:
    model = save(linear(activation="fp8", kind="fp8", scale=0.01), tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="This is an invalid model.*float8e4m3fn.*MatMulIntegerToFloat"):
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    x = normal(2, 8, 64)
    with open_runtime(model) as runtime:
        found = runtime.run({"x": x})["y"]
        assert runtime.executed({"x": x}) == {"float32": 1.0}
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(model)).graph.initializer}
    rounded = (x / np.float32(0.01)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * 0.01
    expected = rounded @ (weights["w"].astype(np.float32) * weights["w_scale"]) + weights["b"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_int8_is_still_fused(tmp_path: Path) -> None:
    model = save(linear(), tmp_path / "model.onnx")
    with open_runtime(model) as runtime:
        assert runtime.executed({"x": normal(2, 8, 64)}) == {"int8": 1.0}


def test_attention_of_every_type_opens_or_says_why(tmp_path: Path) -> None:
    for base in ("fp32", "fp16"):
        with open_runtime(save(attention(base=base), tmp_path / f"{base}.onnx")) as runtime:
            assert runtime.outputs
    with pytest.raises(NoKernelError):
        open_runtime(save(attention(base="bf16"), tmp_path / "bf16.onnx"))
