"""Export and simplify with this package. The job's model is a source; option ``input``: ``float32`` or ``uint8``."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxsim
import timm
import torch
import transformers

from benchmarks.peers.job import Job, work
from vitexport.host.export import export_onnx
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import load_model
from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings

# The clock starts with every package imported, for all tools alike.
_IMPORTED = (onnx, onnxsim, timm, torch, transformers.AutoModelForImageClassification)


def _run(job: Job) -> None:
    loaded = load_model(ModelSettings(source=job.model))
    exported = Path(job.out).with_name("exported.onnx")
    export_onnx(loaded, ExportSettings(input=job.options["input"]), exported)
    simplify_onnx(exported, SimplifySettings(), Path(job.out))
    exported.unlink()


if __name__ == "__main__":
    work(_run, ("vitexport", "torch", "onnxsim"))
