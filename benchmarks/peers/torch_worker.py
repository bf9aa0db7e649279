"""What a user writes without this package: ``torch.onnx.export`` with a dynamic batch, then onnxsim.

The job's model is a checkpoint directory. Option ``library``: ``huggingface`` or ``timm``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxsim
import timm
import torch
from transformers import AutoModelForImageClassification

from benchmarks.peers.job import Job, work


def _load(job: Job) -> tuple[torch.nn.Module, tuple[int, ...]]:
    if job.options["library"] == "timm":
        model: Any = timm.create_model(f"local-dir:{job.model}", pretrained=True)
        return model.eval(), tuple(model.pretrained_cfg["input_size"])
    loaded: Any = AutoModelForImageClassification.from_pretrained(job.model)
    size = loaded.config.image_size
    return _Logits(loaded).eval(), (3, size, size)


class _Logits(torch.nn.Module):
    """Returns the logits alone: the exporter takes tensors, not a library's output objects."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return ``[N, classes]``."""
        logits: torch.Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def _run(job: Job) -> None:
    model, size = _load(job)
    exported = Path(job.out).with_name("exported.onnx")
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        model, (torch.zeros(2, *size),), dynamo=True, opset_version=20, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(exported)
    simplified, _ = onnxsim.simplify(str(exported))
    onnx.save(simplified, job.out)
    exported.unlink()


if __name__ == "__main__":
    work(_run, ("torch", "onnxsim", "onnx"))
