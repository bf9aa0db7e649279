"""This package. Options: settings of :class:`~vitexport.recipe.settings.QuantizeSettings`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.job import Job, work
from vitexport.host.quantize import quantize_onnx
from vitexport.recipe.load import validated
from vitexport.recipe.settings import QuantizeSettings


def _run(job: Job) -> None:
    images = [Path(path) for path in job.images]
    settings = validated(QuantizeSettings, job.options, where="quantize")
    quantize_onnx(Path(job.model), images, settings, Path(job.out))


if __name__ == "__main__":
    work(_run, ("vitexport", "onnxruntime"))
