"""Threads of ONNX Runtime give the cores back when a run has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from vitexport.runtimes import RuntimeOptions, open_runtime


def test_threads_do_not_wait_busily_for_long_and_are_as_many_as_asked(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with open_runtime(path, options=RuntimeOptions(threads=2)) as runtime:
        session: Any = vars(runtime)["_session"]
        options = session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "1000"
        assert options.intra_op_num_threads == 2
        assert runtime.run({"x": -np.ones((1, 2), dtype=np.float32)})["y"].tolist() == [[0.0, 0.0]]
