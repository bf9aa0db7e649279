"""What ONNX Runtime really computes in: its own profile of one run, after all its optimisations.

A graph with Q/DQ nodes is a request. Whether a layer then runs in int8 or is dequantized and run in float is the
runtime's decision, and only its profile shows it: kernel names, element types and shapes, for every node executed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitexport.errors import InferenceError, RuntimeBackendError
from vitexport.runtimes.base import RuntimeOptions
from vitexport.runtimes.onnxruntime_session import open_session, vendor_errors
from vitexport.tensors import ROTATION_SUFFIX, Array

__all__ = ["ExecutedLayer", "executed_layers", "fraction_of_work"]

_GEMMS = frozenset(
    {
        "DynamicQuantizeMatMul",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearMatMul",
    }
)
_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"})
# These quantize their float input themselves, just before the integer GEMM.
_INTEGER_INSIDE = frozenset({"DynamicQuantizeMatMul"})

_PRECISIONS = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "uint8": "int8",
    "float8e4m3fn": "fp8",
}


@dataclass(frozen=True)
class ExecutedLayer:
    """One multiplication with weights that the runtime executed.

    Attributes:
        name: Node name; starts with the PyTorch module for graphs this package exported.
        operator: Kernel that ran, e.g. ``MatMulIntegerToFloat``.
        precision: What its operands are: ``int8``, ``float32``, ``float16``, ...
        work: Multiply-accumulate operations for the batch that was profiled.
    """

    name: str
    operator: str
    precision: str
    work: int


def executed_layers(
    model: Path, feeds: Mapping[str, Array], options: RuntimeOptions | None = None
) -> tuple[ExecutedLayer, ...]:
    """Run a model once under ONNX Runtime's profiler.

    Args:
        model: ONNX file.
        feeds: One batch of inputs.
        options: As for the measurement this is to explain: threads, execution provider, graph optimisation. Only a
            CUDA graph is left out: it replays the same kernels, and the profiler does not see them.

    Returns:
        Every GEMM and convolution with constant weights; the attention's GEMMs of two activations are left out, and
        the rotations that quantization adds.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        RuntimeBackendError: The model cannot be opened.
        InferenceError: It cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="vitexport-profile-") as folder:
        options = replace(options or RuntimeOptions(), cuda_graph=False)
        session = open_session(model, options, profile=Path(folder) / "run")
        try:
            session.run(None, dict(feeds))
            profile = Path(session.end_profiling())
        except vendor_errors() as error:
            raise InferenceError(f"ONNX Runtime cannot profile '{model}': {error}", "Check the file.") from error
        events = _read(profile)
    return tuple(_layers(events))


def fraction_of_work(layers: Sequence[ExecutedLayer], precision: str) -> float:
    """Return the fraction, 0 to 1, of all multiply-accumulates that ran in ``precision``.

    Raises:
        RuntimeBackendError: No layer was found, so there is no fraction of anything.
    """
    total = sum(layer.work for layer in layers)
    if total == 0:
        raise RuntimeBackendError(
            "Expected GEMMs with weights in the runtime's profile, found none.", "Check that the file is a model."
        )
    return sum(layer.work for layer in layers if layer.precision == precision) / total


def _read(profile: Path) -> list[dict[str, Any]]:
    try:
        events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InferenceError(f"ONNX Runtime's profile cannot be read: {error}", "Free disk space and retry.") from error
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def _layers(events: Iterable[Mapping[str, Any]]) -> Iterable[ExecutedLayer]:
    for event in events:
        arguments = event["args"]
        operator = str(arguments.get("op_name", ""))
        inputs = [next(iter(entry.items())) for entry in arguments.get("input_type_shape", []) if entry]
        outputs = [next(iter(entry.items())) for entry in arguments.get("output_type_shape", []) if entry]
        if not inputs or not outputs or operator not in _GEMMS | _CONVOLUTIONS:
            continue
        name = str(event["name"]).removesuffix("_kernel_time")
        work = _work(operator, inputs, outputs[0][1])
        if work is None or name.endswith(ROTATION_SUFFIX):
            continue
        kind = _PRECISIONS.get(inputs[0][0], inputs[0][0])
        precision = "int8" if operator in _INTEGER_INSIDE else kind
        yield ExecutedLayer(name, operator, precision, work)


def _work(operator: str, inputs: Sequence[tuple[str, list[int]]], output: Sequence[int]) -> int | None:
    """Return multiply-accumulates, or None for a GEMM of two activations.

    Weights that the runtime packed for its kernel are missing among the inputs; the reduced length is read from the
    activation then.
    """
    first = inputs[0][1]
    if operator in _CONVOLUTIONS:
        kernel = next((shape for _, shape in inputs[1:] if len(shape) == len(first)), None)
        per_output = math.prod(kernel[1:]) if kernel else math.prod(first) // max(1, math.prod(output[2:]))
        return math.prod(output) * per_output
    matrices = [shape for _, shape in inputs[1:] if len(shape) >= 3]
    if len(first) >= 3 and matrices and math.prod(matrices[0]) > 1:
        return None
    return math.prod(output) * first[-1]
