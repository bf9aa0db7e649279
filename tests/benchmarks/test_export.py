"""The export comparison: which tools take part, and that graphs are compared on the same input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.export import compare_graphs, tools_for
from benchmarks.peers.install import peer_python


def _scaled(path: Path, factor: float, *, pixels: bool = False) -> Path:
    """Write a graph that returns the mean plane values times a factor; from float planes or from uint8 pixels."""
    shape: list[str | int | None] = ["n", 8, 8, 3] if pixels else ["n", 3, 8, 8]
    kind = TensorProto.UINT8 if pixels else TensorProto.FLOAT
    nodes = [helper.make_node("Mul", ["planes", "factor"], ["scaled"])]
    if pixels:
        nodes = [
            helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "half"], ["unit"]),
            helper.make_node("Sub", ["unit", "one"], ["centred"]),
            helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
            *nodes,
        ]
    nodes.append(helper.make_node("ReduceMean", ["scaled", "axes"], ["y"], keepdims=0))
    constants = {
        "factor": np.float32(factor),
        "half": np.float32(127.5),
        "one": np.float32(1),
        "axes": np.array([2, 3]),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x" if pixels else "planes", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_graphs_are_compared_on_the_same_image_whatever_their_input_type(tmp_path: Path) -> None:
    files = {
        "ours": _scaled(tmp_path / "a.onnx", 2.0),
        "pixels": _scaled(tmp_path / "b.onnx", 2.0, pixels=True),
        "wrong": _scaled(tmp_path / "c.onnx", 3.0),
    }
    latency, difference = compare_graphs(files, seconds=0.01)
    assert set(latency) == {*files, "again"}
    assert latency["ours"] == 1.0
    assert difference["pixels"] < 1e-5
    assert difference["wrong"] == pytest.approx(0.5, rel=1e-4)


def test_optimum_takes_part_for_hugging_face_checkpoints_and_is_absent_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [tool.name for tool in tools_for("huggingface")][-1] == "optimum-onnx"
    assert all(tool.peer is None for tool in tools_for("timm"))
    monkeypatch.setenv("VITEXPORT_PEERS", str(tmp_path))
    assert peer_python("optimum") is None
