"""What depends on constants alone is computed once, by ONNX Runtime, except weight transposes, which stay lazy."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitexport.host.graph.constants import SMALL, add_initializer, add_lazy_initializer, is_constant, sizes_of
from vitexport.host.graph.randomness import RANDOM
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.tensors import Array

__all__ = ["FoldConstants"]

_NEVER = RANDOM | {"Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan"}


class FoldConstants(ir.passes.InPlacePass):
    """Replace every node whose inputs are all constants by its results.

    Requires no Constant nodes left inside subgraphs; ensures that no foldable node has only constant inputs. Q/DQ
    nodes are kept: folding them would undo a quantization.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold transposed weights lazily, then everything else in one run of ONNX Runtime."""
        graph = model.graph
        changed = _lift_constant_nodes(graph)
        for node in tuple(graph):
            changed |= _fold_static_shape(graph, node) or _fold_transpose(graph, node)
        changed |= _fold_rest(model)
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing foldable is left."""
        left = [node.name for node in model.graph if _foldable(node, set())]
        if left:
            raise ir.passes.PostconditionError(f"Expected constants to be folded, found {left[:3]}.")


def _foldable(node: ir.Node, folded: set[ir.Value]) -> bool:
    if node.domain != "" or node.op_type in _NEVER or any(o.is_graph_output() for o in node.outputs):
        return False
    if node.op_type in ("ConstantOfShape", "Range") or node.inputs:
        return all(v is None or v in folded or is_constant(v) for v in node.inputs)
    return False


def _lift_constant_nodes(graph: ir.Graph) -> bool:
    changed = False
    for node in tuple(graph):
        if node.op_type == "Constant" and not node.outputs[0].is_graph_output() and "value" in node.attributes:
            _replace(
                graph,
                node,
                add_initializer(graph, str(node.outputs[0].name), node.attributes["value"].as_tensor().numpy()),
            )
            changed = True
    return changed


def _fold_static_shape(graph: ir.Graph, node: ir.Node) -> bool:
    """Fold a Shape whose requested axes are all static."""
    if node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].shape is None:
        return False
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    axes = list(node.inputs[0].shape)[start:end]
    if not axes or not all(isinstance(axis, int) for axis in axes) or node.outputs[0].is_graph_output():
        return False
    _replace(graph, node, add_initializer(graph, str(node.outputs[0].name), np.array(axes, dtype=np.int64)))
    return True


def _fold_transpose(graph: ir.Graph, node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "Transpose" or source is None or not is_constant(source) or node.outputs[0].is_graph_output():
        return False
    tensor = source.const_value
    assert tensor is not None
    rank = len(tensor.shape)
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else tuple(reversed(range(rank)))
    shape = tuple(sizes_of(tensor)[axis] for axis in order)
    value = add_lazy_initializer(
        graph,
        f"{source.name}.T",
        lambda: np.ascontiguousarray(tensor.numpy().transpose(order)),
        tensor.dtype,
        shape,
    )
    _replace(graph, node, value)
    return True


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)


def _fold_rest(model: ir.Model) -> bool:
    """Run the constant part of the graph once and put its results in its place."""
    folded: set[ir.Value] = set()
    nodes: list[ir.Node] = []
    for node in model.graph:
        if _foldable(node, folded):
            nodes.append(node)
            folded.update(node.outputs)
    if not nodes:
        return False
    inside = set(nodes)
    wanted = [o for node in nodes for o in node.outputs if any(use.node not in inside for use in o.uses())]
    for value, array in zip(wanted, _evaluate(model, nodes, wanted), strict=True):
        value.replace_all_uses_with(add_initializer(model.graph, str(value.name), array))
    model.graph.remove(list(reversed(nodes)), safe=True)
    return True


def _evaluate(model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> list[Array]:
    inputs = {v for node in nodes for v in node.inputs if v is not None and is_constant(v)}
    large = [v for v in inputs if v.const_value is not None and v.const_value.nbytes > SMALL]
    view = ir.GraphView([], wanted, nodes=nodes, initializers=sorted(inputs, key=lambda v: str(v.name)))
    part = ir.Model(view.clone(), ir_version=model.ir_version)  # a clone: the graph itself stays as it is
    part.graph.opset_imports.update(model.opset_imports)
    feeds = {}
    for value in large:
        name = str(value.name)
        moved = part.graph.initializers.pop(name)
        assert moved.const_value is not None
        feeds[name] = moved.const_value.numpy()
        moved.const_value = None
        part.graph.inputs.append(moved)
    with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
        path = Path(folder) / "constants.onnx"
        ir.save(part, path)
        with open_runtime(path, "onnxruntime", RuntimeOptions(optimize=False)) as runtime:
            results = runtime.run(feeds)
    return [results[str(value.name)] for value in wanted]
