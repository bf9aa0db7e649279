"""Reading and writing ONNX files: weights stay on disk until used, and are written one after the other."""

from __future__ import annotations

import mmap
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

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
    "runnable_file",
    "unload_weights",
    "weight_precision",
    "write_onnx",
]

EXTERNAL_DATA_BYTES = 1_800_000_000
"""Weights above this go to a file beside the model: a protobuf message cannot exceed 2 GiB."""


_INSIDE = 1 << 10
"""Bytes up to which a tensor of another file is read at once: shapes, axes and other constants of the structure."""

_MAPPED = 1 << 16
"""Bytes from which a weight is worth a mapping, which takes a file descriptor."""


_PRECISIONS = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
}


def read_onnx(path: Path) -> ir.Model:
    """Read a model; external weights are mapped, not loaded, and small tensors are in memory wherever they lay.

    Raises:
        ValueError: The file is no ONNX model.
        OSError: The file cannot be read.
    """
    try:
        # The format is said, since onnx would otherwise guess it from the suffix.
        model = ir.load(path, format="protobuf")
    except DecodeError as error:
        raise ValueError(f"'{path}' is not an ONNX file: {error}") from error
    if len(model.graph.outputs) == 0:
        raise ValueError(f"'{path}' is not an ONNX file: it has no graph outputs")
    for value in model.graph.initializers.values():
        if _outside(value.const_value):
            value.const_value = _in_memory(value.const_value)
    for node, name, tensor in _constants_outside(model):
        node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor))
    return model


def _outside(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.ExternalTensor]:
    """Return whether a tensor is in another file although shape inference has to read it, which it does only inside."""
    return isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= _INSIDE


def _constants_outside(model: ir.Model) -> list[tuple[ir.Node, str, ir.TensorProtocol]]:
    """Return node, attribute and tensor of every attribute, of subgraphs too, whose tensor is in another file."""
    return [
        (node, name, attribute.as_tensor())
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for name, attribute in node.attributes.items()
        if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor)
    ]


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.array(tensor.numpy()), tensor.dtype, name=tensor.name)


@contextmanager
def runnable_file(path: Path) -> Iterator[Path]:
    """Yield a file that ONNX Runtime can open: this one, or a copy with the small tensors inside where none is.

    Raises:
        ValueError: The file is no ONNX model.
        OSError: The file cannot be read.
    """
    model = ir.load(path, format="protobuf")
    if not _constants_outside(model) and not any(_outside(v.const_value) for v in model.graph.initializers.values()):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
        copy = Path(folder) / path.name
        write_onnx(read_onnx(path), copy)
        yield copy


def weight_precision(model: ir.Model) -> str:
    """Return what most weights are stored as: ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``fp8``."""
    elements: Counter[str] = Counter()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _PRECISIONS:
            elements[_PRECISIONS[tensor.dtype]] += tensor.size
    return max(elements, key=elements.__getitem__, default="float32")


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
