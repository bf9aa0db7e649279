"""Reading and writing ONNX files: weights stay on disk until used, and are written one after the other."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError

from vitexport.files import atomic_path

__all__ = [
    "EXTERNAL_DATA_BYTES",
    "companions_of",
    "forget_pages",
    "initializer_bytes",
    "read_onnx",
    "unload_weights",
    "write_onnx",
]

EXTERNAL_DATA_BYTES = 1_800_000_000
"""Weights above this go to a file beside the model: a protobuf message cannot exceed 2 GiB."""


_MAPPED = 1 << 16
"""Bytes from which a weight is worth a mapping, which takes a file descriptor."""


def read_onnx(path: Path) -> ir.Model:
    """Read a model; external weights are mapped, not loaded.

    Raises:
        ValueError: The file is no ONNX model.
        OSError: The file cannot be read.
    """
    try:
        model = ir.load(path)
    except DecodeError as error:
        raise ValueError(f"'{path}' is not an ONNX file: {error}") from error
    if len(model.graph.outputs) == 0:
        raise ValueError(f"'{path}' is not an ONNX file: it has no graph outputs")
    return model


def unload_weights(model: ir.Model, folder: Path) -> None:
    """Put the weights of a model that was read into a file, from which each is mapped while it is used.

    Args:
        model: The model; changed in place.
        folder: Where the file goes; it must stay while the model is used.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.nbytes <= _MAPPED:
            # As long as one tensor refers to the message that was parsed, all that the file holds stays in memory.
            value.const_value = ir.Tensor(
                np.array(tensor.numpy()), tensor.dtype, name=tensor.name, doc_string=tensor.doc_string
            )
    ir.external_data.unload_from_model(model, folder, "weights", size_threshold_bytes=_MAPPED)


def forget_pages(model: ir.Model) -> None:
    """Let go of the memory that mapped weights of a model took when they were read; used again, they are read again."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None:
        return
    for value in model.graph.initializers.values():
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, mmap.mmap):
            raw.madvise(advice)


def initializer_bytes(model: ir.Model) -> int:
    """Return the size of all weights in bytes."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def companions_of(path: Path) -> tuple[Path, ...]:
    """Return the external data file that :func:`write_onnx` wrote beside ``path``, if it did."""
    data = path.with_name(f"{path.name}.data")
    return (data,) if data.is_file() else ()


def write_onnx(model: ir.Model, out: Path, check: Callable[[Path], None] | None = None) -> tuple[Path, ...]:
    """Write a model in one step; weights above :data:`EXTERNAL_DATA_BYTES` go to ``OUT.data``.

    Args:
        model: The model.
        out: Where it goes.
        check: Called with the complete file under a temporary name; if it raises, nothing is left under ``out``.

    Returns:
        The companions: nothing, or the external data file.
    """
    external = initializer_bytes(model) > EXTERNAL_DATA_BYTES
    data = out.with_name(f"{out.name}.data")
    if not external:
        # A weight that still is in another file has to come along.
        ir.external_data.load_to_model(model)
    with atomic_path(out) as temporary:
        ir.save(model, temporary, external_data=data.name if external else None)
        if check is not None:
            check(temporary)
    if not external:
        data.unlink(missing_ok=True)
    return (data,) if external else ()
