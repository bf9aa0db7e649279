"""NVIDIA Model Optimizer on ONNX. Options: ``mode`` (int8 or fp8), ``method`` (max or entropy) and ``body``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize

from benchmarks.peers.job import Job, feeds, work


def _run(job: Job) -> None:
    # The tool rewrites its input in place, and leaves files beside it.
    copy = Path(job.out).parent / "modelopt" / "model.onnx"
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(job.model, copy)
    metadata = {entry.key: entry.value for entry in onnx.load(job.model, load_external_data=False).metadata_props}
    images = list(feeds(job, metadata))
    name = next(iter(images[0]))
    quantize(
        str(copy),
        quantize_mode=job.options["mode"],
        calibration_data={name: np.concatenate([image[name] for image in images])},
        calibration_method=job.options["method"],
        calibration_eps=["cpu"],
        # Its default body is float16, which ONNX Runtime's CPU provider only emulates.
        high_precision_dtype=job.options.get("body", "fp32"),
        output_path=job.out,
        log_level="WARNING",
    )
    shutil.rmtree(copy.parent)


if __name__ == "__main__":
    work(_run, ("nvidia-modelopt", "onnxruntime"))
