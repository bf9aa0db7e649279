"""ONNX Runtime's own quantizer.

Options: ``method`` (a calibration method, or ``dynamic``), ``activation`` and ``nodes``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from benchmarks.peers.job import Job, feeds, work


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no annotations
    """Feeds images as they are decoded."""

    def __init__(self, images: Iterator[dict[str, Any]]) -> None:
        self._images = images

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed, or None at the end."""
        return next(self._images, None)


def _run(job: Job) -> None:
    options = job.options
    if options["method"] == "dynamic":
        quantize_dynamic(job.model, job.out)
        return
    metadata = {entry.key: entry.value for entry in onnx.load(job.model, load_external_data=False).metadata_props}
    nodes = options.get("nodes")
    quantize_static(
        job.model,
        job.out,
        _Reader(feeds(job, metadata)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType[options.get("activation", "QInt8")],
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"] if nodes else ["MatMul", "Gemm", "Conv"],
        nodes_to_quantize=nodes,
        calibrate_method=CalibrationMethod[options["method"]],
        # QuantizeBias would store biases as int32 behind a DequantizeLinear, which TensorRT's parser refuses.
        extra_options={"ActivationSymmetric": options.get("activation") != "QUInt8", "QuantizeBias": False},
    )
    if not Path(job.out).is_file():
        raise SystemExit(f"quantize_static wrote no '{job.out}'")


if __name__ == "__main__":
    work(_run, ("onnxruntime", "onnx"))
