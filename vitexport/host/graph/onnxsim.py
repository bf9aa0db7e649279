"""onnxsim on the structure of a graph: it sees shapes and small constants, never the weights.

So it needs no copy of them, works beyond 2 GB, and leaves the linear layers in their form (given the weights it turns
MatMul + Add into Reshape -> Gemm -> Reshape).
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from vitexport.errors import SimplifyError
from vitexport.host.graph.interface import same_or_narrower
from vitexport.host.graph.scopes import MERGED_KEY, MODULE_KEY

__all__ = ["simplify_structure"]

_VISIBLE_ELEMENTS = 64
_SKIPPED = ["fuse_matmul_add_bias_into_gemm"]
_KEPT_KEYS = (MODULE_KEY, MERGED_KEY)


def simplify_structure(model: ir.Model) -> ir.Model:
    """Run onnxsim and return the simplified model with its weights, metadata and module names restored.

    Args:
        model: A graph; its weights are moved to the result.

    Raises:
        SimplifyError: onnxsim failed, or returned a graph with other inputs or outputs.
    """
    import onnxsim

    weights = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > _VISIBLE_ELEMENTS
    }
    interface = (tuple(model.graph.inputs), tuple(model.graph.outputs))
    modules = {node.name: {k: v for k, v in node.metadata_props.items() if k in _KEPT_KEYS} for node in model.graph}
    metadata = dict(model.metadata_props)
    skeleton = ir.to_proto(_without(model, weights))
    try:
        simplified, _ = onnxsim.simplify(skeleton, skipped_optimizers=_SKIPPED)
    except (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SimplifyError(
            f"onnxsim {onnxsim.__version__} failed: {error}",
            "Set `simplify.onnxsim: false` to run only the package's own passes.",
        ) from error
    result: ir.Model = ir.from_proto(simplified)
    _restore(result, weights)
    for node in result.graph:
        node.metadata_props.update(modules.get(node.name or "", {}))
    result.metadata_props.clear()
    result.metadata_props.update(metadata)
    changed = (tuple(result.graph.inputs), tuple(result.graph.outputs))
    if not all(map(same_or_narrower, changed, interface)):
        described = [", ".join(map(str, (*inputs, *outputs))) for inputs, outputs in (interface, changed)]
        raise SimplifyError(
            f"onnxsim changed the model's interface from {described[0]} to {described[1]}.",
            "Set `simplify.onnxsim: false` to run only the package's own passes.",
        )
    return result


def _without(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    """Turn the named initializers into graph inputs."""
    for name in weights:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    return model


def _restore(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    """Turn graph inputs that stand for weights back into initializers; unused ones are dropped."""
    inputs = list(model.graph.inputs)
    model.graph.inputs.clear()
    for value in inputs:
        tensor = weights.get(value.name or "")
        if tensor is None:
            model.graph.inputs.append(value)
        elif value.uses() or value.is_graph_output():
            value.const_value = tensor
            model.graph.register_initializer(value)
