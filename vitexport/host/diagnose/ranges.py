"""What the quantized tensors of a graph reach on real images, and what their grid can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.diagnose.probe import Probe
from vitexport.host.graph.constants import array_of, is_constant
from vitexport.host.graph.scopes import module_of

__all__ = ["QuantizedRange", "measure_ranges"]

_LARGEST = {
    ir.DataType.INT8: 127.0,
    ir.DataType.UINT8: 255.0,
    ir.DataType.FLOAT8E4M3FN: 448.0,
}


@dataclass(frozen=True)
class QuantizedRange:
    """One quantized activation.

    Attributes:
        tensor: Name of the float tensor.
        layer: PyTorch module that made it.
        min: Smallest value seen.
        max: Largest value seen.
        low: Smallest value the grid holds.
        high: Largest value the grid holds.
        clipped: Share of values more than half a step outside of the grid: what clipping, not rounding, changes.
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
    grids = _grids(ir.load(model))
    if not grids:
        return ()
    lowest = dict.fromkeys(grids, np.inf)
    highest = dict.fromkeys(grids, -np.inf)
    outside = dict.fromkeys(grids, 0)
    count = dict.fromkeys(grids, 0)
    with Probe(model, list(grids)) as probe:
        for feed in feeds:
            for name, tensor in probe.run(feed).items():
                values = tensor.astype(np.float64)
                _, low, high, step = grids[name]
                lowest[name] = min(lowest[name], float(values.min()))
                highest[name] = max(highest[name], float(values.max()))
                outside[name] += int(((values < low - step / 2) | (values > high + step / 2)).sum())
                count[name] += values.size
    return tuple(
        QuantizedRange(name, layer, lowest[name], highest[name], low, high, outside[name] / max(1, count[name]))
        for name, (layer, low, high, _) in grids.items()
    )


def _grids(model: ir.Model) -> dict[str, tuple[str, float, float, float]]:
    """Return tensor name to (layer, lowest, highest value, step of its grid)."""
    found: dict[str, tuple[str, float, float, float]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "QuantizeLinear" or source is None or is_constant(source) or source.is_graph_input():
            continue
        scale = array_of(node.inputs[1])
        largest = _LARGEST.get(node.outputs[0].dtype or _zero_point_type(node))
        if scale is None or scale.size != 1 or largest is None:
            continue
        zero = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
        step, offset = float(scale.reshape(())), 0.0 if zero is None else float(zero.astype(np.float32).reshape(()))
        smallest = 0.0 if largest == 255 else -largest - (1 if largest == 127 else 0)
        producer = source.producer()
        layer = module_of(producer) if producer is not None else ""
        found[str(source.name)] = (layer, (smallest - offset) * step, (largest - offset) * step, step)
    return found


def _zero_point_type(node: ir.Node) -> ir.DataType:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return (zero.dtype if zero is not None else None) or ir.DataType.UINT8
