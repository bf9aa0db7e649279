"""ONNX to canonical ONNX: onnxsim where it helps, then the ViT passes, then a check against the graph it came from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import BundleError, RuntimeBackendError, SimplifyError
from vitexport.files import StageResult
from vitexport.host.graph.file import read_onnx, runnable_file, weight_precision, write_onnx
from vitexport.host.graph.interface import fix_shapes, input_specs, with_shapes_of
from vitexport.host.graph.onnxsim import simplify_structure
from vitexport.host.graph.passes.canonical import canonicalize
from vitexport.host.graph.randomness import describe_random, random_nodes
from vitexport.inputs.shapes import Shapes, feed_shape, with_shapes
from vitexport.recipe.settings import SimplifySettings
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.tensors import Array, TensorSpec

__all__ = ["SELF_CHECK_TOLERANCE", "simplify_onnx"]

SELF_CHECK_TOLERANCE = 1e-4
"""Largest accepted max |difference| / max |reference| between the two graphs on random inputs, in float32."""

_TOLERANCES = {"float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8}
"""The same where weights have fewer bits: a scale that is folded into them rounds each once more (eight roundings)."""


def simplify_onnx(
    model: Path, settings: SimplifySettings, out: Path, *, shapes: Shapes = MappingProxyType({})
) -> StageResult:
    """Simplify an ONNX file; names of inputs and outputs and all metadata stay.

    Shapes stay too, but for axes that ``shapes`` fixes, or whose size the simplification finds out.

    Args:
        model: The ONNX file.
        settings: Whether onnxsim runs first.
        out: The file to write; not ``model`` itself.
        shapes: Sizes that dynamic axes of the inputs get in the written file.

    Raises:
        SimplifyError: A pass failed, the result computes something else, or its interface or metadata differ.
        RecipeError: A shape does not fit the model, or an axis after the first is dynamic and has none.
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
    fix_shapes(graph, with_shapes(input_specs(graph), shapes))
    feeds = _feeds(graph)
    if settings.onnxsim:
        graph = simplify_structure(graph)
    interface = [(v.name, str(v.shape), v.dtype) for v in (*graph.graph.inputs, *graph.graph.outputs)]
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
    precision = weight_precision(graph)
    with runnable_file(model) as source:
        expected = _outputs(source, feeds)

    def check(written: Path) -> None:
        differences.append(_check_same(expected, _outputs(written, feeds), model.name, precision))

    companions = write_onnx(graph, out, check)
    after = Counter(node.op_type for node in graph.graph)
    details = {
        "nodes_before": sum(before.values()),
        "nodes": sum(after.values()),
        "operators": dict(after.most_common()),
        "passes": list(changed),
        "self_check": differences[0],
        "seconds": round(time.perf_counter() - started, 2),
    }
    return StageResult(out, precision, companions, details)


def _record_history(graph: ir.Model, settings: SimplifySettings, name: str) -> None:
    """Add this stage to the history in the file's metadata, where it has one."""
    try:
        metadata = ModelMetadata.from_metadata(graph.metadata_props, where=name)
    except BundleError:
        return  # a file of another tool: it has no metadata to extend
    tools = {package: version(package) for package in ("onnxsim", "onnx-ir", "vitexport")}
    entry = {"stage": "simplify", "settings": settings.model_dump_json(), **tools}
    described = replace(
        metadata.model,
        inputs=with_shapes_of(metadata.model.inputs, graph.graph.inputs),
        outputs=with_shapes_of(metadata.model.outputs, graph.graph.outputs),
    )
    changed = replace(metadata, model=described, history=(*metadata.history, entry))
    graph.metadata_props.update(changed.to_metadata())


def _check_same(expected: Mapping[str, Array], found: Mapping[str, Array], name: str, precision: str) -> float:
    """Compare what the simplified graph answers with what the graph answered that it was made of.

    Returns:
        The largest max |difference| / max |reference| of any output.

    Raises:
        SimplifyError: It exceeds the tolerance of the precision.
    """
    tolerance = _TOLERANCES.get(precision, SELF_CHECK_TOLERANCE)
    worst = 0.0
    for output, reference in expected.items():
        wanted, answer = reference.astype(np.float64), found[output].astype(np.float64)
        difference = float(np.abs(wanted - answer).max() / max(float(np.abs(wanted).max()), 1e-30))
        if not difference <= tolerance:  # NaN fails too
            raise SimplifyError(
                f"The simplified graph differs from '{name}' in '{output}': max |difference| / max |reference| is "
                f"{difference:.2e}, expected at most {tolerance:.0e}.",
                "Report the model; the exported file itself can be used.",
            )
        worst = max(worst, difference)
    return worst


def _outputs(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    try:
        with open_runtime(path, "onnxruntime", RuntimeOptions()) as runtime:
            return runtime.run(feeds)
    except RuntimeBackendError as error:
        raise SimplifyError(f"ONNX Runtime cannot run '{path.name}': {error.message}", error.hint) from error


def _feeds(graph: ir.Model) -> dict[str, Array]:
    """Return the same numbers for the same inputs every time; two images where the batch is dynamic.

    Raises:
        RecipeError: An axis after the first is dynamic.
    """
    return {spec.name: _random(spec) for spec in input_specs(graph)}


def _random(spec: TensorSpec) -> Array:
    shape = feed_shape(spec, 2)
    generator = np.random.default_rng(0)
    if spec.dtype == "uint8":
        return generator.integers(0, 256, size=shape, dtype=np.uint8)
    return generator.standard_normal(size=shape).astype(spec.dtype)
