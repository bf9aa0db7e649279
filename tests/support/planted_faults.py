"""Planting one fault in one layer of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.generic]


def weighted_layers(path: Path) -> list[str]:
    """Return the PyTorch names of all layers with weights: linear layers and norms."""
    names = [tensor.name for tensor in onnx.load(path).graph.initializer]
    stems = {name.split(".weight")[0] for name in names if ".weight" in name}
    return sorted(stems)


def plant(source: Path, target: Path, layer: str, change: Callable[[str, Array], Array]) -> None:
    """Copy a model with the parameters of one layer changed.

    Args:
        source: Model.
        target: Where the faulty copy goes.
        layer: Dotted path of the layer.
        change: Gets ``weight``, ``weight.scale``, ``weight.quantized`` or ``bias``, and its content; returns another.
    """
    model = onnx.load(source)
    changed = 0
    for tensor in model.graph.initializer:
        stem, dot, kind = tensor.name.partition(f"{layer}.")
        if stem or not dot:
            continue
        content = numpy_helper.to_array(tensor)
        replaced = change(kind, content.copy())
        if not np.array_equal(replaced, content):
            changed += 1
            tensor.CopyFrom(numpy_helper.from_array(replaced.astype(content.dtype), tensor.name))
    assert changed, f"nothing to change in {layer}"
    onnx.save(model, target)


def scale_by_four(kind: str, value: Array) -> Array:
    """All weights (or their quantization scale) x 4."""
    return value * 4 if kind in ("weight", "weight.scale") else value


def swap_two_channels(kind: str, value: Array) -> Array:
    """Exchange two output channels, whatever they hold: of nearly equal ones the fault is next to nothing."""
    if kind not in ("weight", "weight.quantized", "weight.scale", "bias") or value.ndim == 0:
        return value
    axis = -1 if value.ndim < 4 else 0
    count = value.shape[axis]
    order = np.arange(count)
    order[[1, count // 2]] = order[[count // 2, 1]]
    return np.take(value, order, axis=axis)


def perturb_one_weight(kind: str, value: Array) -> Array:
    """One weight gets four times the largest magnitude (the largest code, where quantized)."""
    if kind == "weight":
        place = value.size // 2 + 3 if value.ndim > 1 else value.size // 2
        value.reshape(-1)[place] = 4 * np.abs(value).max()
    if kind == "weight.scale" and value.ndim == 1:
        value[value.size // 2] *= 8
    return value


FAULTS = (scale_by_four, swap_two_channels, perturb_one_weight)
