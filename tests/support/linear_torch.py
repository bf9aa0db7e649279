"""The classifier of :mod:`tests.support.linear_model` as PyTorch has it, loaded."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from tests.support.linear_model import model_metadata
from vitexport.host.sources import LoadedModel

__all__ = ["load_linear"]


def load_linear(path: Path) -> LoadedModel:
    """Return a module that computes what the ONNX file computes."""
    weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in onnx.load(path).graph.initializer}
    linear = torch.nn.Linear(*weights["weight"].shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weights["weight"].T.copy()))
        linear.bias.copy_(torch.from_numpy(weights["bias"]))
    return LoadedModel(torch.nn.Sequential(torch.nn.Flatten(), linear).eval(), model_metadata())
