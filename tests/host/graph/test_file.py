"""Reading and writing models: where weights are."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.host.graph.graphs import graph, random
from vitexport.host.graph.file import read_onnx, weights_on_disk, write_onnx


def test_weights_that_are_in_another_file_come_along(tmp_path: Path) -> None:
    text = """g (float[n, 64] x, float[64, 96] w, float[96] b) => (float[n, 96] y) {
        m = MatMul(x, w)
        y = Add(m, b)
    }"""
    weights = {"w": random(64, 96), "b": random(96)}
    write_onnx(graph(text, weights), tmp_path / "memory.onnx")
    moved = weights_on_disk(graph(text, weights), tmp_path / "float")
    assert isinstance(moved.graph.initializers["w"].const_value, ir.ExternalTensor)
    write_onnx(moved, tmp_path / "disk.onnx")
    shutil.rmtree(tmp_path / "float")
    assert (tmp_path / "disk.onnx").read_bytes() == (tmp_path / "memory.onnx").read_bytes()
    found = read_onnx(tmp_path / "disk.onnx").graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), weights["w"])
