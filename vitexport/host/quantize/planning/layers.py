"""Where quantization happens: the linear layers worth it, and which of them share an input.

Structure is found by :mod:`vitexport.host.graph.layers`; everything else in the quantizer works on
:class:`QuantizedLayer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.errors import QuantizeError
from vitexport.host.graph.constants import array_of, is_constant
from vitexport.host.graph.layers import LinearLayer, find_linears

__all__ = ["SMALLEST", "QuantizedLayer", "choose_layers", "group_name", "is_transposed", "layers_by_input"]

SMALLEST = 16
"""K or N below this is not worth quantizing: vendors' int8 kernels want multiples of 16."""

_FLOAT_ROLES = frozenset({"patch", "head"})


@dataclass(frozen=True)
class QuantizedLayer:
    """A linear layer to quantize.

    Attributes:
        linear: Its nodes in the graph.
        transposed: The stored weight is ``[N, K]`` (Gemm with transB).
    """

    linear: LinearLayer
    transposed: bool

    @property
    def name(self) -> str:
        """Dotted path of its PyTorch module."""
        return self.linear.name

    @property
    def group(self) -> str:
        """What is demoted together: e.g. ``3.fc1``; the layer's name outside of blocks."""
        return group_name(self.name, self.linear.block, self.linear.role)

    @property
    def input(self) -> ir.Value:
        """Activation input."""
        value = self.linear.matmul.inputs[0]
        assert value is not None
        return value

    @property
    def input_name(self) -> str:
        """Name of the activation input."""
        return str(self.input.name)

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N): input and output channels."""
        first, second = _matrix(self.linear).shape
        return (second, first) if self.transposed else (first, second)

    @property
    def bias_value(self) -> ir.Value | None:
        """Bias input of the Add or Gemm, or None."""
        if self.linear.add is not None:
            return next((v for v in self.linear.add.inputs if is_constant(v)), None)
        inputs = self.linear.matmul.inputs
        return inputs[2] if self.linear.matmul.op_type == "Gemm" and len(inputs) > 2 else None

    def bias(self) -> NDArray[np.float32]:
        """Return a float32 ``[N]`` copy of the bias, zeros where there is none."""
        array = array_of(self.bias_value)
        zeros: NDArray[np.float32] = np.zeros(self.shape[1], dtype=np.float32)
        return zeros if array is None else zeros + np.asarray(array, dtype=np.float32).reshape(-1)

    def weight(self) -> NDArray[np.float32]:
        """Return a float32 ``[K, N]`` copy of the weight."""
        matrix = _matrix(self.linear)
        return np.array(matrix.T if self.transposed else matrix, dtype=np.float32, order="C")


def group_name(name: str, block: int | None, role: str) -> str:
    """Return what a layer or an attention is demoted with: e.g. ``3.fc1``; its own name outside of blocks."""
    return name if block is None else f"{block}.{role}"


def _matrix(linear: LinearLayer) -> NDArray[np.generic]:
    array = array_of(linear.matmul.inputs[1])
    assert array is not None
    return array


def is_transposed(node: ir.Node) -> bool:
    """Return whether a Gemm stores its weight as ``[N, K]``."""
    attribute = node.attributes.get("transB")
    return node.op_type == "Gemm" and attribute is not None and attribute.as_int() == 1


def _is_plain(node: ir.Node) -> bool:
    """Return whether a node is a MatMul, or a Gemm that scales and transposes nothing but its weight."""
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    transposes = "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposes and all(f == 1.0 for f in factors))


def choose_layers(model: ir.Model, *, where: str) -> tuple[QuantizedLayer, ...]:
    """Return the layers to quantize: not the head, the patch embedding, nor any with under 16 input or output channels,
    fc1 only together with fc2 of its block.

    Raises:
        QuantizeError: Nothing is left.
    """
    linears = find_linears(model)
    plain = [linear for linear in linears if linear.role not in _FLOAT_ROLES and _is_plain(linear.matmul)]
    layers = [QuantizedLayer(one, is_transposed(one.matmul)) for one in plain if array_of(one.weight) is not None]
    chosen = [layer for layer in layers if min(layer.shape) >= SMALLEST]
    whole = {layer.linear.block for layer in chosen if layer.linear.role == "fc2"}
    chosen = [layer for layer in chosen if layer.linear.role != "fc1" or layer.linear.block in whole]
    if not chosen:
        raise QuantizeError(
            f"Expected weighted MatMuls to quantize in '{where}', found {len(linears)} linear layers, none that "
            "qualifies.",
            "Give a transformer exported by `vitexport export`; its head and patch embedding always stay float.",
        )
    return tuple(chosen)


def layers_by_input(layers: Sequence[QuantizedLayer]) -> dict[str, tuple[QuantizedLayer, ...]]:
    """Return the layers grouped by the tensor they read, in order: each group shares one Q."""
    groups: dict[str, tuple[QuantizedLayer, ...]] = {}
    for layer in layers:
        groups[layer.input_name] = (*groups.get(layer.input_name, ()), layer)
    return groups
