"""ONNX files as other tools write them: no metadata of ours, every axis dynamic, weights beside the file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx
import timm
import torch

__all__ = ["SIZE", "export_plainly", "foreign_model", "outside"]

SIZE = 32


@cache
def foreign_model() -> torch.nn.Module:
    """Return a small timm ViT of 10 classes, every parameter perturbed; tests must not change it."""
    arguments = {"img_size": SIZE, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 10}
    model: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def export_plainly(
    path: Path, model: torch.nn.Module | None = None, *, dynamic: tuple[int, ...] = (0,), dtype: Any = torch.float32
) -> Path:
    """Write a file with ``torch.onnx.export`` alone.

    Args:
        path: Where it goes.
        model: Takes ``input`` ``[N, 3, 32, 32]`` and gives ``output``; :func:`foreign_model` otherwise.
        dynamic: Axes of the input that get names.
        dtype: Of input, weights and output.
    """
    import copy

    chosen = copy.deepcopy(model or foreign_model()).to(dtype)
    names = {axis: name for axis, name in enumerate("nchw") if axis in dynamic}
    outputs = {0: "n", 1: "k"} if len(dynamic) > 1 else {0: "n"}
    torch.onnx.export(
        chosen,
        (torch.zeros(2, 3, SIZE, SIZE, dtype=dtype),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": names, "output": outputs},
    )
    return path


def outside(path: Path, copy: Path) -> Path:
    """Write a copy of a file with every tensor, shapes and constants too, in a second file."""
    onnx.save_model(
        onnx.load(path),
        str(copy),
        save_as_external_data=True,
        location=f"{copy.name}.weights",
        size_threshold=0,
        convert_attribute=True,
    )
    return copy
