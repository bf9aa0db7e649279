"""What the quantized tensors of a graph hold on real images, and what their quantization parameters can represent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.diagnose.probe import Probe
from vitexport.host.graph.constants import array_of, is_constant
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.scopes import module_of
from vitexport.host.quantize.numerics.qparams import E4M3_MAX

__all__ = ["QuantizedRange", "measure_ranges"]

_LARGEST = {
    ir.DataType.INT8: 127.0,
    ir.DataType.UINT8: 255.0,
    ir.DataType.FLOAT8E4M3FN: E4M3_MAX,
}


@dataclass(frozen=True)
class QuantizedRange:
    """One quantized activation.

    Attributes:
        tensor: Name of the float tensor.
        layer: PyTorch module that made it.
        min: Smallest value seen.
        max: Largest value seen.
        low: Smallest value that can be represented.
        high: Largest value that can be represented.
        clipped: Fraction of values more than half a scale outside of these: what clipping, not rounding, changes.
    """

    tensor: str
    layer: str
    min: float
    max: float
    low: float
    high: float
    clipped: float


def measure_ranges(model: Path, feeds: Sequence[NDArray[np.generic]]) -> tuple[QuantizedRange, ...]:
    """Run images through a quantized model and look at the input of every per-tensor QuantizeLinear.

    Args:
        model: ONNX file.
        feeds: One batch per image.

    Returns:
        In execution order; empty for a float model.
    """
    representable = _representable(read_onnx(model))
    if not representable:
        return ()
    lowest = dict.fromkeys(representable, np.inf)
    highest = dict.fromkeys(representable, -np.inf)
    outside = dict.fromkeys(representable, 0)
    count = dict.fromkeys(representable, 0)
    with Probe(model, list(representable)) as probe:
        for feed in feeds:
            for name, tensor in probe.run(feed).items():
                values = tensor.astype(np.float64)
                _, low, high, scale = representable[name]
                lowest[name] = min(lowest[name], float(values.min()))
                highest[name] = max(highest[name], float(values.max()))
                outside[name] += int(((values < low - scale / 2) | (values > high + scale / 2)).sum())
                count[name] += values.size
    return tuple(
        QuantizedRange(name, layer, lowest[name], highest[name], low, high, outside[name] / max(1, count[name]))
        for name, (layer, low, high, _) in representable.items()
    )


def _representable(model: ir.Model) -> dict[str, tuple[str, float, float, float]]:
    """Return tensor name to (layer, lowest and highest value that can be represented, scale)."""
    ranges: dict[str, tuple[str, float, float, float]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "QuantizeLinear" or source is None or is_constant(source) or source.is_graph_input():
            continue
        stored = array_of(node.inputs[1])
        largest = _LARGEST.get(node.outputs[0].dtype or _zero_point_type(node))
        if stored is None or stored.size != 1 or largest is None:
            continue
        zero = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
        scale, offset = float(stored.reshape(())), 0.0 if zero is None else float(zero.astype(np.float32).reshape(()))
        smallest = 0.0 if largest == 255 else -largest - (1 if largest == 127 else 0)
        producer = source.producer()
        layer = module_of(producer) if producer is not None else ""
        ranges[str(source.name)] = (layer, (smallest - offset) * scale, (largest - offset) * scale, scale)
    return ranges


def _zero_point_type(node: ir.Node) -> ir.DataType:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return (zero.dtype if zero is not None else None) or ir.DataType.UINT8
