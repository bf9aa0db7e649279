"""The quantize stage: a float ONNX file and real images in, a Q/DQ ONNX file out."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import NoKernelError, QuantizeError
from vitexport.files import StageResult
from vitexport.host.graph.file import read_onnx, unload_weights, write_onnx
from vitexport.host.quantize.calibration.calibrate import (
    ImageFeeds,
    Progress,
    collect_statistics,
    split_images,
)
from vitexport.host.quantize.calibration.checks import check_images, check_model, warn_of_few
from vitexport.host.quantize.calibration.statistics import EXTREMES_ONLY, StatisticsConfig, TensorStatistics
from vitexport.host.quantize.calibration.statistics_file import load_statistics, save_statistics, statistics_key
from vitexport.host.quantize.explanation import explain, warn_of_clipping, warn_of_quality
from vitexport.host.quantize.parallel import one_blas_thread
from vitexport.host.quantize.planning.attention_planner import AttentionPlanner, form_remark
from vitexport.host.quantize.planning.exclude import find_excluded
from vitexport.host.quantize.planning.importance import reads_class_token
from vitexport.host.quantize.planning.islands import Islands, find_clipped, find_islands, rank_groups
from vitexport.host.quantize.planning.layers import choose_layers, layers_by_input
from vitexport.host.quantize.planning.mixed import MixedReport, search_mixed
from vitexport.host.quantize.planning.plan import GraphPlan, plan_layers, plan_tensors
from vitexport.host.quantize.planning.quality import Judge, float_outputs, judged_output
from vitexport.host.quantize.planning.transforms import ensure_biases
from vitexport.host.quantize.qdq.body16 import Body16Report, float_ranges, to_body16
from vitexport.host.quantize.qdq.build import build_quantized, build_transformed
from vitexport.host.quantize.qdq.postconditions import check_postconditions
from vitexport.host.quantize.qdq.valid import check_valid, raise_opset
from vitexport.host.quantize.scheme import QdqScheme, scheme_of
from vitexport.machine import return_freed_memory
from vitexport.recipe.settings import Budget, QuantizeSettings
from vitexport.tensors import DTYPE_OF_PRECISION

__all__ = ["quantize_onnx"]

_RANGE_IMAGES = 4
"""Images over which ranges are taken again after transforms: those only move magnitudes between tensors."""


def quantize_onnx(
    model: Path,
    images: Sequence[Path],
    settings: QuantizeSettings,
    out: Path,
    *,
    statistics: Path | None = None,
    progress: Progress | None = None,
) -> StageResult:
    """Quantize an exported ONNX file, and measure what was written.

    A quarter of the images calibrates nothing: on them the file is compared with the float model.

    Args:
        model: Canonical float ONNX file that carries a :class:`~vitexport.bundle.metadata.ModelMetadata`.
        images: Calibration images.
        settings: What to quantize and for which target.
        out: Where the quantized model is written, in one step.
        statistics: File of calibration statistics: read when it scales this model and these images, written otherwise.
        progress: Called with a stage name and the fraction of it that is done.

    Raises:
        CalibrationError: The images cannot be used, or activations are not finite.
        QuantizeError: The model is quantized already, has nothing to quantize, the target cannot run the precision, an
            exclusion names nothing, the budget cannot be met, or a postcondition fails.
        ImageError: An image cannot be read.
        BundleError: The file carries no model metadata.
    """
    report = progress or _silent
    scheme = scheme_of(settings)
    with one_blas_thread(), tempfile.TemporaryDirectory(prefix="vitexport-") as temporary:
        folder = Path(temporary)
        source = _read(model)
        unload_weights(source, folder)  # while images run only the runtime needs them
        check_model(source, str(model))
        metadata = ModelMetadata.from_metadata(source.metadata_props, where=str(model))
        feeds = ImageFeeds(
            images, metadata.preprocess, metadata.model.inputs[0], folder / "images", batch_size=settings.batch_size
        )
        check_images(images, feeds.hashes)
        warn_of_few(feeds.hashes)
        if settings.precision in DTYPE_OF_PRECISION:
            result, details, judge = _convert_only(source, feeds, settings, scheme)
        else:
            raised = raise_opset(source, scheme, folder)
            result, details, judge = _Work(source, settings, scheme, model, feeds).quantize(statistics, report)
            if raised:
                details["opset"] = raised
        entry = {"stage": "quantize", "precision": settings.precision, "target": settings.target}
        result.metadata_props.update(replace(metadata, history=(*metadata.history, entry)).to_metadata())
        companions = write_onnx(result, out, check_valid)
        del source, result
        return_freed_memory()  # the runtime that measures needs some
        report("measuring", 0.0)
        details |= _measured(judge, out)
    warn_of_quality(details)
    warn_of_clipping(details)
    if statistics is not None and details.get("quantized"):
        companions = (*companions, statistics)
    report("done", 1.0)
    precision = DTYPE_OF_PRECISION.get(settings.precision, settings.precision)
    return StageResult(out, precision, companions, details)


def _convert_only(
    source: ir.Model, feeds: ImageFeeds, settings: QuantizeSettings, scheme: QdqScheme
) -> tuple[ir.Model, dict[str, Any], Judge]:
    """Give a float model a 16-bit body; return also what can measure it."""
    if settings.exclude:
        raise QuantizeError(
            f"Expected int8 or fp8 for layers to be excluded from, found {settings.precision}, which quantizes none.",
            "Leave out `exclude`; what overflows in 16 bits stays float32 by itself.",
        )
    judge, ranges = _judge(source, feeds, settings, scheme)
    body = to_body16(source, scheme.body, ranges)
    return source, {"body": scheme.body, "kept_float32": dict(body.kept)}, judge


def _judge(
    source: ir.Model, feeds: ImageFeeds, settings: QuantizeSettings, scheme: QdqScheme
) -> tuple[Judge, dict[str, float]]:
    """Run the float model on the images that judge.

    Returns:
        The judge, and for a 16-bit body the largest magnitude of every tensor, by name.
    """
    held_out = split_images(feeds).held_out
    # Where a CPU runs the file its integer kernels are measured; of other files, what they say.
    on_cpu = settings.target != "tensorrt" and settings.precision == "int8"
    head = ModelMetadata.from_metadata(source.metadata_props, where="the float model").head
    if scheme.body == "float32":
        return Judge(feeds, held_out, float_outputs(source, feeds, held_out), head, optimize=on_cpu), {}
    ranges, reference = float_ranges(source, feeds, held_out, judged_output(source))
    return Judge(feeds, held_out, reference, head, optimize=on_cpu), ranges


def _measured(judge: Judge, file: Path) -> dict[str, Any]:
    try:
        return {"quality": asdict(judge.measure_file(file))}
    except NoKernelError as error:
        return {"quality": None, "not_measured": str(error)}


class _Work:
    """One graph on its way from float to quantized."""

    def __init__(
        self, model: ir.Model, settings: QuantizeSettings, scheme: QdqScheme, file: Path, feeds: ImageFeeds
    ) -> None:
        where = str(file)
        self.model = model
        self._file = file
        self._settings = settings
        self._scheme = scheme
        self._feeds = feeds
        self._split = split_images(feeds)
        self._class_token = reads_class_token(model)
        self._float_ranges: dict[str, float] = {}
        self._transformed_ranges: dict[str, float] | None = None
        self._body = choose_layers(model, where=where)
        if ensure_biases(model, self._body):
            self._body = choose_layers(model, where=where)
        self._attention = AttentionPlanner(model, self._body, settings, scheme, where=where)
        self._excluded = find_excluded(model, self._body, self._attention.tensors, settings.exclude)
        self._attention.leave_out(self._excluded.names)
        self._layers = tuple(layer for layer in self._body if layer.name not in self._excluded.names)

    def _config(self, *, stored: bool) -> StatisticsConfig:
        """Return what calibration has to keep: what the settings read, and in a file also what other methods would."""
        fast = self._settings.preset == "fast"
        histogram = self._settings.method not in ("auto", "max") or (stored and not fast)
        return (
            StatisticsConfig(covariance_rows=0, histogram=histogram) if fast else StatisticsConfig(histogram=histogram)
        )

    def _statistics(self, path: Path | None, report: Progress) -> dict[str, TensorStatistics]:
        """Read statistics that fit, or run the calibrating images and save them."""
        wanted = dict.fromkeys(
            (name for tensors in self._attention.tensors.values() for name in tensors), EXTREMES_ONLY
        )
        # A file serves runs that exclude other layers too.
        layers = self._layers if path is None else self._body
        wanted |= dict.fromkeys(layers_by_input(layers), self._config(stored=path is not None))
        key = ""
        if path is not None:
            key = statistics_key(self._file, self._feeds.hashes, self._config(stored=True))
            stored = load_statistics(path, key, list(wanted)) if path.is_file() else None
            if stored is not None:
                return stored
        collected = collect_statistics(
            self.model,
            wanted,
            self._feeds,
            images=self._split.calibrating,
            class_token=self._class_token,
            progress=report,
        )
        if path is not None:
            save_statistics(path, key, collected)
        return collected

    def quantize(self, statistics: Path | None, report: Progress) -> tuple[ir.Model, dict[str, Any], Judge]:
        """Return the final graph, checked, what there is to say about it, and what can measure it.

        Args:
            statistics: File of calibration statistics, if any.
            report: Called with a stage name and the fraction of it that is done.
        """
        collected = self._statistics(statistics, report)
        plan = self._plan(collected, report)
        collected = {name: one.without_rows() for name, one in collected.items()}
        report("noise", 0.0)
        judge, self._float_ranges = _judge(self.model, self._feeds, self._settings, self._scheme)
        islands = self._islands(plan)
        mixed = None
        if self._settings.budget is not None:
            report("mixed precision", 0.0)
            mixed = self._search(plan, islands, judge, self._settings.budget)
        kept = (*islands.kept_float, *(() if mixed is None else mixed.kept_float))
        result, body = self._build(plan, kept)
        check_postconditions(
            result,
            layers=[layer.name for layer in self._layers if layer.group not in kept],
            symmetric=self._scheme.activation != "uint8",
            attention={one.name: one.rows for one in plan.attention if one.group not in kept},
        )
        details = explain(self._body, plan, collected, islands, mixed, self._excluded)
        if plan.attention:
            details |= {"attention_form": self._settings.attention, "attention_remark": form_remark(self._settings)}
        if body is not None:
            details |= {"body": body.dtype, "kept_float32": dict(body.kept)}
        details["images"] = {"calibrating": len(self._split.calibrating), "held_out": len(self._split.held_out)}
        return result, details, judge

    def _plan(self, collected: Mapping[str, TensorStatistics], report: Progress) -> GraphPlan:
        report("ranges", 0.0)
        images = self._split.calibrating
        tensors = plan_tensors(
            self._layers,
            self._attention.fit(collected, self._feeds, images, class_token=self._class_token),
            self._settings,
            self._scheme,
            class_token=self._class_token,
            images=len(images),
        )
        attention = self._attention.plan(tensors, collected, len(images))
        report("weights", 0.0)
        layers = plan_layers(tensors, self._settings, self._scheme)
        return GraphPlan(tuple(one.without_rows() for one in tensors), layers, attention)

    def _islands(self, plan: GraphPlan) -> Islands:
        if self._settings.keep_float == "none":
            return Islands(clipped=find_clipped(self.model, plan, self._feeds, self._split.held_out))
        split, price = self._split, self._scheme.island_price_db
        return find_islands(self.model, plan, self._feeds, len(split.calibrating), split.held_out, price)

    def _search(self, plan: GraphPlan, islands: Islands, judge: Judge, budget: Budget) -> MixedReport:
        def build(kept: Collection[str]) -> ir.Model:
            return self._build(plan, kept)[0]

        def rank() -> dict[str, tuple[float, float]]:
            return rank_groups(
                self.model, plan, self._feeds, len(self._split.calibrating), self._split.held_out, islands.kept_float
            )

        return search_mixed(build, islands.kept_float, rank, judge, budget)

    def _build(self, plan: GraphPlan, kept: Collection[str]) -> tuple[ir.Model, Body16Report | None]:
        """Return the final graph that keeps some groups in float, its body converted."""
        graph = build_quantized(self.model, plan, kept)
        if self._scheme.body == "float32":
            return graph, None
        return graph, to_body16(graph, self._scheme.body, self._ranges(plan))

    def _ranges(self, plan: GraphPlan) -> dict[str, float]:
        """Return the largest magnitude of every float tensor, before and after transforms."""
        if self._transformed_ranges is None:
            images = self._split.held_out[:_RANGE_IMAGES]
            self._transformed_ranges, _ = float_ranges(build_transformed(self.model, plan), self._feeds, images)
        before, after = self._float_ranges, self._transformed_ranges
        return {name: max(before.get(name, 0.0), after.get(name, 0.0)) for name in {**before, **after}}


def _read(path: Path) -> ir.Model:
    try:
        return read_onnx(path)
    except (OSError, ValueError) as error:
        raise QuantizeError(
            f"Expected an ONNX model at '{path}': {error}", "Give a file written by `vitexport export`."
        ) from error


def _silent(stage: str, fraction: float) -> None:
    """Report nothing."""
