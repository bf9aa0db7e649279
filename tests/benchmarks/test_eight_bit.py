"""What is 8-bit in a file, and how many multiply-accumulates that is: hand-made graphs of every form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.suites.eight_bit import EightBit, count_eight_bit
from vitexport.host.graph.hadamard import hadamard

_ZERO = {"z": np.int8(0), "z16": np.int16(0), "u": np.uint8(0)}


def _count(
    tmp_path: Path,
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    **constants: NDArray[np.generic],
) -> EightBit:
    """Count a graph of input ``x``, output ``y``, the given constants, a scale ``s`` and zero points of each type."""
    values = {**constants, "s": np.float32(0.1), **_ZERO}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    # A tool's own note of a shape, with a symbolic batch, must not hide the batch that is counted.
    graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", None, None]))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "g.onnx")
    return count_eight_bit(tmp_path / "g.onnx")


def _dequantized(name: str, out: str, zero: str = "z") -> list[onnx.NodeProto]:
    """Return Q/DQ of an activation."""
    return [
        helper.make_node("QuantizeLinear", [name, "s", zero], [f"{out}_q"]),
        helper.make_node("DequantizeLinear", [f"{out}_q", "s", zero], [out]),
    ]


def _ones(*shape: int, dtype: type = np.int8) -> NDArray[np.generic]:
    return np.ones(shape, dtype=dtype)


def test_operations_are_counted_by_what_they_read(tmp_path: Path) -> None:
    """One weighted product and one residual add behind Q/DQ; a second product with only one 8-bit operand."""
    nodes = [
        *_dequantized("x", "xd"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "wt"], ["a"]),
        helper.make_node("MatMul", ["xd", "p"], ["b"]),
        helper.make_node("Transpose", ["xd"], ["xt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["xd", "xt"], ["c"]),
        helper.make_node("Add", ["xd", "a"], ["d"]),
        helper.make_node("Sum", ["b", "c", "d"], ["y"]),
    ]
    found = _count(tmp_path, nodes, ["n", 4, 4], w=_ones(4, 4), p=_ones(4, 4, dtype=np.float32))
    assert found == EightBit(weighted=1, products=1, others=1, work=0.5)


def test_work_is_that_of_every_weighted_product_at_batch_one(tmp_path: Path) -> None:
    """A patch embedding in float and two linear layers, one of them with 8-bit weights only."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["patches"], strides=[2, 2]),  # 6 x 4 x 4 outputs of 3 x 2 x 2
        helper.make_node("Reshape", ["patches", "flat"], ["tokens_first"]),
        helper.make_node("Transpose", ["tokens_first"], ["a"], perm=[0, 2, 1]),
        *_dequantized("a", "ad"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["ad", "wd"], ["b"]),  # 16 x 6 x 10
        helper.make_node("DequantizeLinear", ["v", "s", "z"], ["vd"]),
        helper.make_node("MatMul", ["b", "vd"], ["y"]),  # 16 x 10 x 2
    ]
    found = _count(
        tmp_path,
        nodes,
        ["n", 3, 8, 8],
        kernel=_ones(6, 3, 2, 2, dtype=np.float32),
        flat=np.array([0, 6, 16]),
        w=_ones(6, 10),
        v=_ones(10, 2),
    )
    assert found.weighted == 1
    assert found.work == pytest.approx(960 / (6 * 16 * 12 + 960 + 320))


def test_integer_operators_are_8_bit(tmp_path: Path) -> None:
    """What ONNX Runtime's dynamic and operator-oriented quantizers write, beside a float head."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("ConvInteger", ["xq", "k", "xz"], ["ci"]),  # 5 x 2 x 2 outputs of 3
        helper.make_node("Cast", ["ci"], ["cf"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["cf", "s", "z"], ["cq"]),
        helper.make_node("QLinearConv", ["cq", "s", "z", "k2", "s", "z", "s", "z"], ["c2"]),  # 4 x 2 x 2 outputs of 5
        helper.make_node("QLinearMatMul", ["c2", "s", "z", "w", "s", "z", "s", "z"], ["m"]),  # 4 x 2 x 2 x 7
        helper.make_node("QLinearMatMul", ["m", "s", "z", "m2", "s", "z", "s", "z"], ["aa"]),  # no weights
        helper.make_node("Transpose", ["m"], ["m2"], perm=[0, 1, 3, 2]),
        helper.make_node("DequantizeLinear", ["aa", "s", "z"], ["f"]),
        helper.make_node("DynamicQuantizeLinear", ["f"], ["fq", "fs", "fz"]),
        helper.make_node("MatMulInteger", ["fq", "v", "fz"], ["mi"]),  # 4 x 2 x 2 x 3
        helper.make_node("Cast", ["mi"], ["mf"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["mf", "p"], ["y"]),  # 4 x 2 x 3 x 11
    ]
    nodes[6], nodes[7] = nodes[7], nodes[6]
    found = _count(
        tmp_path,
        nodes,
        ["n", 3, 2, 2],
        k=_ones(5, 3, 1, 1),
        k2=_ones(4, 5, 1, 1),
        w=_ones(2, 7),
        v=_ones(2, 3),
        p=_ones(3, 11, dtype=np.float32),
    )
    assert (found.weighted, found.products) == (4, 1)
    integer = 5 * 4 * 3 + 4 * 4 * 5 + 4 * 2 * 2 * 7 + 4 * 2 * 2 * 3
    assert found.work == pytest.approx(integer / (integer + 4 * 2 * 3 * 11))


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_either_layout(tmp_path: Path, transposed: int) -> None:
    nodes = [
        *_dequantized("x", "xd"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Gemm", ["xd", "wd"], ["b"], transA=transposed, transB=transposed),  # 3 x 5 x 7
        helper.make_node("MatMul", ["b", "p"], ["y"]),  # 3 x 7 x 2
    ]
    shape, weight = ([5, 3], _ones(7, 5)) if transposed else ([3, 5], _ones(5, 7))
    found = _count(tmp_path, nodes, shape, w=weight, p=_ones(7, 2, dtype=np.float32))
    assert found.work == pytest.approx(105 / 147)


def test_other_widths_behind_q_dq_are_not_8_bit(tmp_path: Path) -> None:
    nodes = [
        *_dequantized("x", "xd", "z16"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    assert _count(tmp_path, nodes, ["n", 4, 4], w=_ones(4, 4)) == EightBit(0, 0, 0, 0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_rotation_is_no_product_with_weights(tmp_path: Path, dtype: type) -> None:
    """A weight of the same size is one."""
    nodes = [
        helper.make_node("MatMul", ["x", "h"], ["a"]),
        *_dequantized("a", "ad"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["ad", "wd"], ["b"]),
        helper.make_node("MatMul", ["b", "p"], ["y"]),
    ]
    float_weight = np.eye(16, dtype=np.float32)
    found = _count(tmp_path, nodes, ["n", 16], h=hadamard(16).astype(dtype), w=_ones(16, 16), p=float_weight)
    assert found == EightBit(weighted=1, products=0, others=0, work=0.5)


def test_a_file_without_weights_or_without_shapes_has_no_fraction(tmp_path: Path) -> None:
    assert _count(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [4]).work is None
    unknown = [
        helper.make_node("Anything", ["x"], ["a"], domain="elsewhere"),
        helper.make_node("MatMul", ["a", "p"], ["y"]),
    ]
    assert _count(tmp_path, unknown, [4], p=_ones(4, 4, dtype=np.float32)).work is None
