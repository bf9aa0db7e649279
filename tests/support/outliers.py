"""Outlier channels planted in a float model, undone in the layers that read them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tests.support.input_plans import input_plan
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.quantize.planning.layers import QuantizedLayer, choose_layers, layers_by_input
from vitexport.host.quantize.planning.transforms import (
    apply_to_source,
    find_absorber,
    fold_into_consumers,
    scale_projection,
)

__all__ = ["plant_after_gelu", "plant_in_absorbed"]

_TIMES = 100.0


def plant_in_absorbed(model: Path, out: Path, groups: Collection[str], *, channels: int = 1) -> Path:
    """Scale channels of the inputs of some groups a hundredfold; what reads them undoes it.

    The float model computes what it did.

    Args:
        model: A float model.
        out: Where the planted one is written.
        groups: Such as ``2.fc1``; all of them read what a LayerNormalization or attention makes.
        channels: How many of each input, chosen at random.
    """
    graph = read_onnx(model)
    random = np.random.default_rng(0)
    for group in _inputs(graph, groups):
        absorber = find_absorber(group)
        assert absorber.kind in ("norm", "value")
        scale = _one_over(group[0].shape[0], random, channels)
        shift = np.zeros_like(scale)
        fold_into_consumers(graph.graph, group, input_plan(scale, shift))
        apply_to_source(graph.graph, absorber, scale, shift)
    write_onnx(graph, out)
    return out


def plant_after_gelu(model: Path, out: Path, blocks: Collection[int]) -> Path:
    """Scale one output channel of fc1 a hundredfold, and the row of fc2 that reads it by one hundredth.

    Where the channel was positive it is a hundred times as large behind the activation function, and counts for as
    much as before; where it was negative it becomes zero. The planted model is a model of its own.

    Args:
        model: A float model.
        out: Where the planted one is written.
        blocks: One channel of each.
    """
    graph = read_onnx(model)
    random = np.random.default_rng(0)
    layers = {layer.group: layer for layer in choose_layers(graph, where=str(model))}
    for block in blocks:
        fc1, fc2 = layers[f"{block}.fc1"], layers[f"{block}.fc2"]
        scale = _one_over(fc1.shape[1], random, 1)
        zeros = np.zeros_like(scale)
        scale_projection(graph.graph, fc1.linear, slice(None), 1 / scale, zeros)
        fold_into_consumers(graph.graph, [fc2], input_plan(scale))
    write_onnx(graph, out)
    return out


def _inputs(graph: ir.Model, groups: Collection[str]) -> list[tuple[QuantizedLayer, ...]]:
    found = layers_by_input(choose_layers(graph, where="the model")).values()
    chosen = [group for group in found if group[0].group in groups]
    assert len(chosen) == len(groups)
    return chosen


def _one_over(size: int, random: np.random.Generator, channels: int) -> NDArray[np.float32]:
    scale: NDArray[np.float32] = np.ones(size, dtype=np.float32)
    scale[random.choice(size, channels, replace=False)] = 1 / _TIMES
    return scale
