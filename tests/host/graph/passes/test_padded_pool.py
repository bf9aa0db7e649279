"""A pool behind a padding gives what PyTorch gives, in every runtime and with every optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from vitexport.host.export import export_onnx
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.passes.padded_pool import PaddedPool
from vitexport.host.sources.live import wrap_module
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.recipe.settings import ExportSettings

SPEC = PreprocessSpec(image_size=(13, 11), resize=Resize(mode="squash", size=(13, 11)), mean=(0.5,) * 3, std=(0.3,) * 3)


class Pooled(torch.nn.Module):
    """A stem as BiT has it: of negative numbers, padded by a value, then pooled."""

    def __init__(self, pad: tuple[int, int, int, int], value: float, **pool: Any) -> None:
        super().__init__()
        self.pad, self.value = pad, value
        self.pool = torch.nn.MaxPool2d(**pool)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return self.pool(torch.nn.functional.pad(planes - 3, self.pad, value=self.value)).flatten(1)


CASES: dict[str, tuple[tuple[int, int, int, int], float, dict[str, Any], bool]] = {
    "BiT": ((1, 1, 1, 1), 0.0, {"kernel_size": 3, "stride": 2}, True),
    "one side": ((0, 1, 0, 2), 0.0, {"kernel_size": 4, "stride": 3}, True),
    "a value": ((1, 0, 2, 1), -2.5, {"kernel_size": 3, "stride": 1}, True),
    "dilated": ((1, 1, 1, 1), 0.0, {"kernel_size": 2, "stride": 2, "dilation": 3}, True),
    "nothing": ((1, 1, 1, 1), float("-inf"), {"kernel_size": 3, "stride": 2}, False),
    "cut": ((-1, 1, 0, 0), 0.0, {"kernel_size": 3, "stride": 2}, False),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_border_is_pytorchs(name: str, tmp_path: Path) -> None:
    pad, value, pool, rewritten = CASES[name]
    module = Pooled(pad, value, **pool)
    path = export_onnx(wrap_module(module, SPEC), ExportSettings(), tmp_path / "m.onnx").path
    assert ("Pad" not in {node.op_type for node in read_onnx(path).graph}) == rewritten
    planes = torch.randn(3, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for size in (1, 3):
            (found,) = session.run(None, {session.get_inputs()[0].name: planes[:size].numpy()})
            np.testing.assert_allclose(found, module(planes[:size]).numpy(), atol=1e-6)


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    module = Pooled((1, 1, 1, 1), 0.0, kernel_size=3, stride=2)
    model = read_onnx(export_onnx(wrap_module(module, SPEC), ExportSettings(), tmp_path / "m.onnx").path)
    result: ir.passes.PassResult = PaddedPool()(model)
    assert not result.modified
