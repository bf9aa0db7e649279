"""ONNX to canonical ONNX: onnxsim where it helps, then the ViT passes, then a check against the graph it came from."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import BundleError, RuntimeBackendError, SimplifyError
from vitexport.files import StageResult
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.graph.onnxsim import simplify_structure
from vitexport.host.graph.passes.canonical import canonicalize
from vitexport.host.graph.randomness import describe_random, random_nodes
from vitexport.recipe.settings import SimplifySettings
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.tensors import Array, TensorSpec

__all__ = ["SELF_CHECK_TOLERANCE", "simplify_onnx"]

SELF_CHECK_TOLERANCE = 1e-4
"""Largest accepted max |difference| / max |reference| between the two graphs on random inputs."""


def simplify_onnx(model: Path, settings: SimplifySettings, out: Path) -> StageResult:
    """Simplify an ONNX file; names and shapes of inputs and outputs, and all metadata, stay.

    Args:
        model: The ONNX file.
        settings: Whether onnxsim runs first.
        out: The file to write; not ``model`` itself.

    Raises:
        SimplifyError: A pass failed, the result computes something else, or its interface or metadata differ.
    """
    started = time.perf_counter()
    if out.resolve() == model.resolve():
        raise SimplifyError(f"Expected another output file than the input '{model}'.", "Give another path with -o.")
    try:
        graph = read_onnx(model)
    except (OSError, ValueError) as error:
        raise SimplifyError(f"Cannot read '{model}': {error}", "Give a complete ONNX file.") from error
    if drawn := random_nodes(graph):
        raise SimplifyError(
            f"Expected '{model.name}' to answer the same for the same input, but it draws random numbers: "
            f"{describe_random(drawn)}.",
            "Export the model in inference mode, without masking or dropout; no comparison with it means anything.",
        )
    before = Counter(node.op_type for node in graph.graph)
    interface = [(v.name, str(v.shape), v.dtype) for v in (*graph.graph.inputs, *graph.graph.outputs)]
    if settings.onnxsim:
        graph = simplify_structure(graph)
    try:
        changed = canonicalize(graph)
    except (ir.passes.PassError, ir.passes.InvariantError, RuntimeBackendError) as error:
        raise SimplifyError(
            f"Simplifying '{model.name}' failed: {error}", "Report the model; the exported file itself can be used."
        ) from error
    if [(v.name, str(v.shape), v.dtype) for v in (*graph.graph.inputs, *graph.graph.outputs)] != interface:
        raise SimplifyError(f"Simplifying '{model.name}' changed its inputs or outputs.", "Report the model.")
    _record_history(graph, settings, model.name)
    differences: list[float] = []
    companions = write_onnx(graph, out, lambda written: differences.append(_check_same(model, written)))
    after = Counter(node.op_type for node in graph.graph)
    details = {
        "nodes_before": sum(before.values()),
        "nodes": sum(after.values()),
        "operators": dict(after.most_common()),
        "passes": list(changed),
        "self_check": differences[0],
        "seconds": round(time.perf_counter() - started, 2),
    }
    return StageResult(out, "float32", companions, details)


def _record_history(graph: ir.Model, settings: SimplifySettings, name: str) -> None:
    """Add this stage to the history in the file's metadata, where it has one."""
    try:
        metadata = ModelMetadata.from_metadata(graph.metadata_props, where=name)
    except BundleError:
        return  # a file of another tool: it has no metadata to extend
    tools = {package: version(package) for package in ("onnxsim", "onnx-ir", "vitexport")}
    entry = {"stage": "simplify", "settings": settings.model_dump_json(), **tools}
    graph.metadata_props.update(replace(metadata, history=(*metadata.history, entry)).to_metadata())


def _check_same(before: Path, after: Path) -> float:
    """Run both files on the same pseudo-random inputs.

    Returns:
        The largest max |difference| / max |reference| of any output.

    Raises:
        SimplifyError: It exceeds :data:`SELF_CHECK_TOLERANCE`, or one of the files does not run.
    """
    expected, results = _outputs(before), _outputs(after)
    worst = 0.0
    for name, reference in expected.items():
        wanted, found = reference.astype(np.float64), results[name].astype(np.float64)
        difference = float(np.abs(wanted - found).max() / max(float(np.abs(wanted).max()), 1e-30))
        if not difference <= SELF_CHECK_TOLERANCE:  # NaN fails too
            raise SimplifyError(
                f"The simplified graph differs from '{before.name}' in '{name}': max |difference| / max |reference| is "
                f"{difference:.2e}, expected at most {SELF_CHECK_TOLERANCE:.0e}.",
                "Report the model; the exported file itself can be used.",
            )
        worst = max(worst, difference)
    return worst


def _outputs(path: Path) -> dict[str, Array]:
    try:
        with open_runtime(path, "onnxruntime", RuntimeOptions()) as runtime:
            return runtime.run({spec.name: _random(spec) for spec in runtime.inputs})
    except RuntimeBackendError as error:
        raise SimplifyError(f"ONNX Runtime cannot run '{path.name}': {error.message}", error.hint) from error


def _random(spec: TensorSpec) -> Array:
    """Return the same numbers for the same input every time; two images where the batch is dynamic."""
    shape = tuple(axis if isinstance(axis, int) else 2 for axis in spec.shape)
    generator = np.random.default_rng(0)
    if spec.dtype == "uint8":
        return generator.integers(0, 256, size=shape, dtype=np.uint8)
    return generator.standard_normal(size=shape).astype(spec.dtype)
