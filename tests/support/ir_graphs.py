"""Small graphs as text, and running them before and after a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes import common

Arrays = Mapping[str, NDArray[np.generic]]


def graph(text: str, weights: Arrays | None = None, *, opset: int = 20) -> ir.Model:
    """Parse ``name (inputs) => (outputs) { nodes }`` with shapes inferred and ``weights`` as initializers.

    A weight without its array given is random, of the shape the text declares for it as an input.
    """
    source = f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}'
    model = ir.from_onnx_text(source)
    for name, array in (weights or {}).items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return common.ShapeInferencePass()(model).model


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return standard normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def run(model: ir.Model, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
    """Run a graph as written, without ONNX Runtime's optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def applied(step: ir.passes.InPlacePass, model: ir.Model, feeds: Arrays, *, changes: bool = True) -> Counter[str]:
    """Apply a pass and check that it says truly whether it changed something and leaves the outputs as they were.

    Returns:
        How many nodes of each type are left, dead ones removed.
    """
    before = run(model, feeds)
    assert step(model).modified is changes
    after = run(model, feeds)
    assert before.keys() == after.keys()
    for name, wanted in before.items():
        np.testing.assert_allclose(after[name], wanted, rtol=1e-4, atol=1e-5, err_msg=name)
    common.RemoveUnusedNodesPass()(model)
    if changes:
        assert not step(model).modified, "a second application found something to change"
    return Counter(node.op_type for node in model.graph)
