"""Only valid ONNX is written: the opset that Q/DQ need, and ONNX's own checker on every file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.host.graph.schema import first_opset, opset_of, permits_input, permits_output
from vitexport.host.quantize.scheme import QdqScheme

__all__ = ["check_valid", "raise_opset"]


def check_valid(path: Path) -> None:
    """Check a written file with ONNX's checker, with strict inference of types and shapes.

    Args:
        path: The file, with its external data beside it; that is looked for and not read.

    Raises:
        QuantizeError: It is no valid ONNX; carries what the checker said.
    """
    problem = _problem(path)
    if problem is not None:
        raise QuantizeError(
            f"Expected a valid ONNX file from quantization, found: {problem}",
            "This is a defect of the quantizer or of the graph it was given: report it with the model. Another opset "
            "at export (`--opset`) may avoid it.",
        ) from problem


def _problem(path: Path) -> Exception | None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return error
    return None


def raise_opset(model: ir.Model, scheme: QdqScheme, folder: Path) -> str:
    """Raise a model's opset to the first in which Q and DQ take a scheme's types; one that is high enough stays.

    The converter of onnxscript works on the graph in memory: names, the metadata of model and nodes, and weights in
    other files stay as they are. That of the onnx package drops the metadata of nodes, and with it their modules.

    Args:
        model: Float model; changed in place.
        scheme: What Q and DQ will take and give.
        folder: Where the model's external data lies; the result is written there for the checker.

    Returns:
        What was done, in words; empty where nothing was.

    Raises:
        QuantizeError: The model cannot be converted.
    """
    found = opset_of(model)
    needed = first_opset(found, lambda opset: not _refused(opset, scheme))
    if needed == found:
        return ""
    types = " and ".join(_refused(found, scheme))
    if needed is None:
        raise QuantizeError(f"Expected an opset with {types} in QuantizeLinear, found none.", "Update onnx.")
    problem = _convert(model, needed, folder / "raised.onnx")
    if problem is not None:
        raise QuantizeError(
            f"Expected a model of opset {needed}, the first with {types} in QuantizeLinear, found one of opset {found} "
            f"that cannot be converted: {problem}",
            "Export it with `--opset 20` and quantize that file.",
        ) from problem
    return f"raised from {found} to {needed}, the first with {types} in QuantizeLinear"


def _convert(model: ir.Model, opset: int, path: Path) -> Exception | None:
    """Convert a model in place and write it for the checker; return why the result is not what was asked for."""
    from onnxscript.version_converter import convert_version

    try:
        convert_version(model, opset)
    except (RuntimeError, ValueError) as error:
        return error
    if opset_of(model) != opset:
        return ValueError(f"the converter left it at opset {opset_of(model)}")
    oldest = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.ir_version = max(model.ir_version, oldest)
    ir.save(model, path)
    # The converter has no rules for what changed in opset 18 (axes of reductions, sizes of Split).
    return _problem(path)


def _refused(opset: int, scheme: QdqScheme) -> tuple[str, ...]:
    """Return the types of a scheme that QuantizeLinear or DequantizeLinear do not take or give in an opset."""
    quantize, dequantize = "QuantizeLinear", "DequantizeLinear"
    body, stored = _type(scheme.body), [_type(scheme.activation), _type(scheme.weight)]
    refused = {
        scheme.body: not (
            all(permits_input(quantize, opset, index, body) for index in (0, 1))
            and permits_input(dequantize, opset, 1, body)
            and permits_output(dequantize, opset, 0, body)
        ),
        scheme.activation: not all(
            permits_output(quantize, opset, 0, dtype) and permits_input(dequantize, opset, 0, dtype) for dtype in stored
        ),
    }
    return tuple(name for name, breach in refused.items() if breach)


def _type(name: str) -> ir.DataType:
    """Return a type by the name that NumPy or ml_dtypes has for it."""
    return ir.DataType.from_numpy(np.dtype(getattr(ml_dtypes, name, name)))
