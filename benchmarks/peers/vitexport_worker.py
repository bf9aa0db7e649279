"""This package. Options: settings of :class:`~vitexport.recipe.settings.QuantizeSettings`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.job import Job, work
from vitexport.host.quantize import quantize_onnx
from vitexport.recipe.settings import QuantizeSettings


def _run(job: Job) -> None:
    images = [Path(path) for path in job.images]
    quantize_onnx(Path(job.model), images, QuantizeSettings.model_validate(dict(job.options)), Path(job.out))


if __name__ == "__main__":
    work(_run, ("vitexport", "onnxruntime"))
