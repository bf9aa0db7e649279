"""Reading and writing models: where weights are."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.support.ir_graphs import graph, random
from vitexport.host.graph.file import read_onnx, unload_weights, write_onnx


def test_weights_that_are_in_another_file_come_along(tmp_path: Path) -> None:
    text = """g (float[n, 128] x, float[128, 192] w, float[192] b) => (float[n, 192] y) {
        m = MatMul(x, w)
        y = Add(m, b)
    }"""
    weights = {"w": random(128, 192), "b": random(192)}
    write_onnx(graph(text, weights), tmp_path / "memory.onnx")
    (tmp_path / "float").mkdir()
    moved = read_onnx(tmp_path / "memory.onnx")
    unload_weights(moved, tmp_path / "float")
    tensors = [moved.graph.initializers[name].const_value for name in ("w", "b")]
    assert [type(tensor) for tensor in tensors] == [ir.ExternalTensor, ir.Tensor]
    write_onnx(moved, tmp_path / "disk.onnx")
    shutil.rmtree(tmp_path / "float")
    assert (tmp_path / "disk.onnx").read_bytes() == (tmp_path / "memory.onnx").read_bytes()
    found = read_onnx(tmp_path / "disk.onnx").graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), weights["w"])
