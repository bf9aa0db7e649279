"""Reading and writing models: where weights are."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.ir_graphs import graph, random
from vitexport.host.graph.constants import array_of
from vitexport.host.graph.file import forget_pages, read_onnx, unload_weights, write_onnx


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


def _mapped(folder: Path) -> ir.Model:
    """Return a model whose weight is mapped from a file."""
    text = "g (float[n, 256] x, float[256, 256] w0) => (float[n, 256] y) { y = MatMul(x, w0) }"
    model = graph(text, {"w0": random(256, 256)})
    unload_weights(model, folder)
    return model


def test_weights_that_are_forgotten_are_read_again(tmp_path: Path) -> None:
    model = _mapped(tmp_path)
    weight = array_of(model.graph.initializers["w0"])
    forget_pages(model)
    np.testing.assert_array_equal(weight, random(256, 256))
    np.testing.assert_array_equal(array_of(model.graph.initializers["w0"]), random(256, 256))


def test_a_weight_is_mapped_once_however_many_threads_read_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ir.ExternalTensor._load

    def slowly(tensor: ir.ExternalTensor) -> None:
        time.sleep(0.05)
        load(tensor)

    monkeypatch.setattr(ir.ExternalTensor, "_load", slowly)
    weight = _mapped(tmp_path).graph.initializers["w0"]
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(array_of, [weight] * 4))
    np.testing.assert_array_equal(arrays, [random(256, 256)] * 4)
