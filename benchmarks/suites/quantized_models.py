"""How far a quantized ONNX file is off the float model, and whether TensorRT parses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import VitexportError
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.scoring import Head
from vitexport.verification.accuracy import compare_top1
from vitexport.verification.parity import measure

__all__ = ["Score", "main_output", "score", "tensorrt_verdict"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """The output of a quantized model against that of the float model, on the same images.

    Attributes:
        sqnr_db: ``10 log10(sum(float^2) / sum(difference^2))`` in dB.
        agreement: Images with the same top-1 class, in percent; None for features.
        top1_change: Points of top-1 gained (positive) or lost; None for features.
    """

    sqnr_db: float
    agreement: float | None = None
    top1_change: float | None = None


def main_output(path: Path, images: Sequence[Floats], *, optimize: bool = True) -> Floats:
    """Run a model on each image on its own, as a latency-bound server does; returns its logits, or first output.

    Args:
        path: ONNX file.
        images: Preprocessed images, float32 ``[1, 3, H, W]`` each.
        optimize: Let ONNX Runtime fuse Q/DQ into integer kernels; without, the graph is computed as written.
    """
    with open_runtime(path, "onnxruntime", RuntimeOptions(optimize=optimize)) as runtime:
        name = runtime.inputs[0].name
        output = next((spec.name for spec in runtime.outputs if spec.name == "logits"), runtime.outputs[0].name)
        rows = [runtime.run({name: image})[output].astype(np.float32) for image in images]
    return np.concatenate(rows)


def score(reference: Floats, found: Floats, labels: Sequence[int] | None) -> Score:
    """Score logits ``[N, classes]`` against the float model's; features ``[N, ...]`` where there are no labels."""
    parity = measure("output", reference, found, Head() if labels is not None else None)
    if labels is None or parity.agreement is None:
        return Score(parity.sqnr_db)
    return Score(parity.sqnr_db, 100 * parity.agreement, 0.0 - compare_top1(reference, found, labels).drop_points)


def tensorrt_verdict(path: Path) -> Mapping[str, Any]:
    """Return what TensorRT-RTX's ONNX parser says, without a GPU: ``accepts`` (None: not installed), ``reason``."""
    from vitexport.engine.network import parse_network
    from vitexport.runtimes.tensorrt.api import load_api

    try:
        api = load_api("tensorrt-rtx")
    except VitexportError as error:
        return {"accepts": None, "reason": str(error)}
    try:
        parse_network(api, path).close()
    except VitexportError as error:
        return {"accepts": False, "reason": str(error)}
    return {"accepts": True, "reason": ""}
