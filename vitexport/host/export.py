"""PyTorch to ONNX: trace with a dynamic batch, keep module names, write metadata, check what was written."""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import ExportError
from vitexport.files import StageResult
from vitexport.host.graph.constants import shape_of
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.graph.passes.padded_pool import PaddedPool
from vitexport.host.graph.passes.pixel_input import PixelInput
from vitexport.host.graph.randomness import describe_random, random_nodes
from vitexport.host.graph.schema import opset_of
from vitexport.host.graph.scopes import MODULE_KEY, ModuleNames, module_from_exporter, module_of
from vitexport.host.sources.families import generic_note, is_known
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.unreadable import brief
from vitexport.recipe.settings import ExportSettings
from vitexport.tensors import TensorSpec

__all__ = ["export_onnx"]


def export_onnx(loaded: LoadedModel, settings: ExportSettings, out: Path) -> StageResult:
    """Export a loaded model to an ONNX file that carries its preprocessing, labels and provenance.

    Args:
        loaded: From :func:`vitexport.host.sources.load_model`, loaded at ``settings.image_size``.
        settings: Batch, opset and input.
        out: The file to write; weights above 2 GB go to ``OUT.data``.

    Raises:
        ExportError: The model cannot be traced or translated, not in this opset, or the file breaks a postcondition.
    """
    started = time.perf_counter()
    spec = _with_batch(loaded.metadata.model, settings)
    model = _trace(loaded, spec, settings)
    _keep_modules(model)
    _refuse_randomness(model, spec)
    _declare_interface(model, spec)
    PaddedPool()(model)
    if settings.input == "uint8":
        spec = _take_pixels(model, spec, loaded)
    metadata = replace(loaded.metadata, model=spec, history=(_history(settings),))
    model.metadata_props.clear()
    model.metadata_props.update(metadata.to_metadata())
    ModuleNames()(model)
    companions = write_onnx(model, out, lambda written: _check_written(written, spec, settings.opset))
    operators = Counter(node.op_type for node in model.graph)
    notes = (*loaded.notes, *(() if is_known(spec.family) else (generic_note(spec),)))
    details = {
        "nodes": sum(operators.values()),
        "operators": dict(operators.most_common()),
        "seconds": round(time.perf_counter() - started, 2),
        **({"note": " ".join(notes)} if notes else {}),
    }
    return StageResult(out, "float32", companions, details)


def _with_batch(spec: ModelSpec, settings: ExportSettings) -> ModelSpec:
    """Return the spec with the batch axis of ``settings``."""

    def batch(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, shape=(settings.batch if settings.batch != "dynamic" else "batch", *tensor.shape[1:]))

    return replace(
        spec, inputs=tuple(batch(tensor) for tensor in spec.inputs), outputs=tuple(batch(t) for t in spec.outputs)
    )


def _trace(loaded: LoadedModel, spec: ModelSpec, settings: ExportSettings) -> ir.Model:
    dynamic = settings.batch == "dynamic"
    # torch.export specialises an axis of size 1, so a dynamic batch is traced with two images.
    example = torch.zeros(2 if dynamic else int(settings.batch), *(int(axis) for axis in spec.inputs[0].shape[1:]))
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    try:
        with _quiet(), _unfused_attention(loaded.module), torch.no_grad():
            program = torch.onnx.export(
                loaded.module,
                (example,),
                dynamo=True,
                opset_version=settings.opset,
                dynamic_shapes=shapes,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        raise ExportError(
            f"PyTorch cannot export '{spec.id}' to ONNX: {brief(_origin(error))}",
            "Try a fixed batch (`export.batch: 1`), or report the model with this message.",
        ) from error
    if program is None:
        raise ExportError(f"PyTorch returned no ONNX program for '{spec.id}'.", "Update torch and onnxscript.")
    _adopt_constants(program.model.graph)
    return program.model


def _adopt_constants(graph: ir.Graph) -> None:
    """Make initializers of the constants that nodes read and the graph does not hold.

    onnxscript's fusion of Min and Max into Clip names the limits after the clipped tensor, so that of several Clips of
    one tensor, each with its own limits, the graph keeps the last one's.
    """
    given = set(graph.inputs)
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is None or value.producer() is not None or value in given or value.const_value is None:
                continue
            if graph.initializers.get(str(value.name)) is not value:
                value.name = _unused(graph, value.name or "constant")
                graph.register_initializer(value)


def _unused(graph: ir.Graph, name: str) -> str:
    return next(new for number in itertools.count(1) if (new := f"{name}.{number}") not in graph.initializers)


def _origin(error: BaseException) -> BaseException:
    """Return what an error came from: torch.onnx wraps what is wrong in advice to the developers of PyTorch."""
    return error if error.__cause__ is None else _origin(error.__cause__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and onnxscript say about their own code paths, and nothing else."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(torch|copyreg|onnxscript)\b.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _unfused_attention(module: torch.nn.Module) -> Iterator[None]:
    """Trace attention as MatMul, Softmax, MatMul.

    The fused operator is translated with shape arithmetic and NaN guards in every block, and with a dynamic batch it
    fails where a relative position bias is involved.
    """
    flagged: list[Any] = [m for m in module.modules() if getattr(m, "fused_attn", None) is True]
    configured: list[Any] = [m for m in module.modules() if hasattr(m, "set_attn_implementation")]
    before = [m.config._attn_implementation for m in configured]
    for m in flagged:
        m.fused_attn = False
    for m in configured:
        m.set_attn_implementation("eager")
    try:
        yield
    finally:
        for m in flagged:
            m.fused_attn = True
        for m, implementation in zip(configured, before, strict=True):
            m.set_attn_implementation(implementation)


def _keep_modules(model: ir.Model) -> None:
    """Replace the exporter's node metadata (stack traces with local paths) by the PyTorch module's name."""
    for node in model.graph.all_nodes():
        module = module_from_exporter(node, "model")
        node.metadata_props.clear()
        node.doc_string = None
        if module:
            node.metadata_props[MODULE_KEY] = module
    _fill_gaps(model.graph)
    for value in tuple(model.graph.initializers.values()):
        if value.name is not None and value.name.startswith("model."):
            value.name = value.name.removeprefix("model.")
    for value in _all_values(model.graph):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.doc_string = None


def _refuse_randomness(model: ir.Model, spec: ModelSpec) -> None:
    """Raise for a graph that draws random numbers: it would answer otherwise every time.

    Raises:
        ExportError: It does.
    """
    nodes = random_nodes(model)
    if nodes:
        raise ExportError(
            f"Expected '{spec.id}' to answer the same for the same image, but its graph draws random numbers: "
            f"{describe_random(nodes)}.",
            "Take the random step out of the model's forward, such as masking or dropout that does not look at "
            "`self.training`; a masked autoencoder has an encoder without it (`--task features`).",
        )


def _fill_gaps(graph: ir.Graph) -> None:
    """Give a node that the exporter's optimizer made the module that its neighbours on both sides share."""
    for node in graph:
        if MODULE_KEY in node.metadata_props:
            continue
        before = {module_of(p) for v in node.inputs if v is not None and (p := v.producer()) is not None}
        after = {module_of(consumer) for output in node.outputs for consumer in output.consumers()}
        if len(before) == 1 and before == after and "" not in before:
            node.metadata_props[MODULE_KEY] = before.pop()


def _all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _declare_interface(model: ir.Model, spec: ModelSpec) -> None:
    """Give inputs and outputs the names and axes of the spec.

    Raises:
        ExportError: The exporter found other axes, e.g. a batch that the model's code fixes.
    """
    for values, tensors in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            found = shape_of(value) or ()
            if tuple("batch" if isinstance(axis, str) else axis for axis in found) != tensor.shape:
                raise ExportError(
                    f"Expected {tensor.describe()}, but the exported graph has the axes {list(found)}.",
                    "The model's code fixes an axis; try `export.batch: 1`.",
                )
            value.name = tensor.name
            value.shape = ir.Shape(tensor.shape)


def _take_pixels(model: ir.Model, spec: ModelSpec, loaded: LoadedModel) -> ModelSpec:
    """Make the graph take uint8 pixels, and return its spec."""
    try:
        PixelInput(loaded.metadata.preprocess)(model)
    except (ir.passes.PassError, ir.passes.InvariantError) as error:
        raise ExportError(
            f"'{spec.id}' cannot take uint8 pixels: {error}", "Export it with `input: float32`."
        ) from error
    batch, channels, height, width = spec.inputs[0].shape
    return replace(spec, inputs=(TensorSpec(spec.inputs[0].name, (batch, height, width, channels), "uint8"),))


def _history(settings: ExportSettings) -> dict[str, str]:
    tools = {name: version(name) for name in ("torch", "onnxscript", "vitexport")}
    return {"stage": "export", "settings": settings.model_dump_json(), **tools}


def _check_written(path: Path, spec: ModelSpec, opset: int) -> None:
    """Read the file again and compare it with what was asked for.

    Raises:
        ExportError: Opset, inputs, outputs or metadata differ.
    """
    model = read_onnx(path)
    if opset_of(model) != opset:
        # torch translates to opset 18 at least; it leaves the graph as it is where it cannot be converted to 17.
        raise ExportError(
            f"Expected a graph of opset {opset}, found one of opset {opset_of(model)}: PyTorch cannot write this model "
            "in the opset that was asked for.",
            "Export it with `--opset 20`.",
        )
    for kind, values, tensors in (
        ("inputs", model.graph.inputs, spec.inputs),
        ("outputs", model.graph.outputs, spec.outputs),
    ):
        found = tuple(
            TensorSpec(str(v.name), tuple(a if isinstance(a, int) else str(a.value) for a in v.shape or ()), _dtype(v))
            for v in values
        )
        if found != tensors:
            raise ExportError(
                f"Expected the {kind} {[t.describe() for t in tensors]} in '{path.name}', "
                f"found {[t.describe() for t in found]}.",
                "Export the model with a fixed batch, or report it.",
            )
    ModelMetadata.from_metadata(model.metadata_props, where=path.name)


def _dtype(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else str(value.dtype.numpy())
