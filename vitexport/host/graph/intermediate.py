"""Inner tensors of a graph: made outputs, so that they can be read, or inputs, so that they can be given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from vitexport.host.graph.file import forget_pages
from vitexport.machine import return_freed_memory
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime

__all__ = ["exposed_file", "open_exposed", "take_as_inputs"]


@contextmanager
def exposed_file(model: ir.Model, names: Iterable[str]) -> Iterator[Path]:
    """Write ``model`` with the inner tensors ``names`` as further outputs; the model itself is left as it was.

    Args:
        model: A model.
        names: Tensors to put out after the model's own outputs. One without a known type is written as float32.

    Yields:
        The file, which is there until the context ends.
    """
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    present = {value.name for value in graph.outputs}
    extra = [values[name] for name in dict.fromkeys(names) if name not in present]
    untyped = [value for value in extra if value.type is None]
    with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
        path = Path(folder) / "exposed.onnx"
        before = len(graph.outputs)
        graph.outputs.extend(extra)
        try:
            for value in untyped:
                value.type = ir.TensorType(ir.DataType.FLOAT)
            # Weights in a file of their own never are in memory twice: neither to write the graph nor to open it.
            ir.save(model, path, external_data="exposed.data")
            forget_pages(model)
        finally:
            while len(graph.outputs) > before:
                graph.outputs.pop()
            for value in untyped:
                value.type = None
        yield path


@contextmanager
def open_exposed(model: ir.Model, names: Iterable[str]) -> Iterator[Runtime]:
    """Open a runtime on ``model`` that also returns the inner tensors ``names``, one thread per run.

    Images are run side by side then, and results do not depend on how many cores there are.

    Args:
        model: A model; left as it was.
        names: Tensors to return besides the model's outputs.
    """
    try:
        with (
            exposed_file(model, names) as path,
            open_runtime(path, "onnxruntime", RuntimeOptions(threads=1, in_order=True)) as runtime,
        ):
            yield runtime
    finally:
        return_freed_memory()  # a session's weights, and what images left in every thread that ran them


def take_as_inputs(model: ir.Model, names: Iterable[str], suffix: str) -> dict[str, ir.DataType]:
    """Let the consumers of a tensor read an input of the model instead; what the graph computes can still be put out.

    Args:
        model: Changed in place.
        names: Tensors that are given from outside.
        suffix: What their names get to become those of the inputs.

    Returns:
        Element type of each input, by name of the tensor; float32 where it is unknown.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    types: dict[str, ir.DataType] = {}
    for name in names:
        value = values[name]
        types[name] = value.dtype or ir.DataType.FLOAT
        given = ir.Value(name=f"{name}{suffix}", type=ir.TensorType(types[name]))
        for node, index in value.uses():
            node.replace_input_with(index, given)
        model.graph.inputs.append(given)
    return types
