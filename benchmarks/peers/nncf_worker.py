"""NNCF on ONNX. Options: ``preset`` (performance or mixed) and ``smooth_quant`` (true or false)."""

from __future__ import annotations

import nncf
import onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters

from benchmarks.peers.job import Job, feeds, work


def _run(job: Job) -> None:
    model = onnx.load(job.model)
    images = list(feeds(job, {entry.key: entry.value for entry in model.metadata_props}))
    # -1 turns SmoothQuant off for layers of that kind.
    alphas = AdvancedSmoothQuantParameters() if job.options["smooth_quant"] else AdvancedSmoothQuantParameters(-1, -1)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset(job.options["preset"]),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=AdvancedQuantizationParameters(smooth_quant_alphas=alphas),
    )
    onnx.save(quantized, job.out)


if __name__ == "__main__":
    work(_run, ("nncf", "onnxruntime"))
