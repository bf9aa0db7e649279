"""The quantize stage: a float ONNX file and real images in, a Q/DQ ONNX file out."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import QuantizeError
from vitexport.files import StageResult
from vitexport.host.graph.file import read_onnx, unload_weights, write_onnx
from vitexport.host.graph.layers import find_attention
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, Progress, collect_statistics, evenly_spread
from vitexport.host.quantize.calibration.checks import check_images, check_model
from vitexport.host.quantize.calibration.statistics import EXTREMES_ONLY, StatisticsConfig, TensorStatistics
from vitexport.host.quantize.calibration.statistics_file import load_statistics, save_statistics, statistics_key
from vitexport.host.quantize.explanation import explain
from vitexport.host.quantize.planning.attention import AttentionPlan, attention_tensors, plan_attention
from vitexport.host.quantize.planning.attention_scales import AttentionScales, centred, fit_attention_scales
from vitexport.host.quantize.planning.importance import reads_class_token
from vitexport.host.quantize.planning.layers import QuantizedLayer, choose_layers, layers_by_input
from vitexport.host.quantize.planning.mixed import search_mixed
from vitexport.host.quantize.planning.plan import TensorPlan, plan_layers, plan_tensors
from vitexport.host.quantize.planning.transforms import ensure_biases, zero_key_biases
from vitexport.host.quantize.qdq.body16 import Body16Report, float_ranges, to_body16
from vitexport.host.quantize.qdq.build import build_quantized
from vitexport.host.quantize.qdq.postconditions import check_postconditions
from vitexport.host.quantize.qdq.valid import check_valid, raise_opset
from vitexport.host.quantize.scheme import QdqScheme, scheme_of
from vitexport.recipe.settings import QuantizeSettings
from vitexport.tensors import DTYPE_OF_PRECISION

__all__ = ["quantize_onnx"]

_RANGE_IMAGES = 16
"""Images over which every tensor's range is taken for a 16-bit body."""


def quantize_onnx(
    model: Path,
    images: Sequence[Path],
    settings: QuantizeSettings,
    out: Path,
    *,
    verification: Sequence[Path] = (),
    statistics: Path | None = None,
    progress: Progress | None = None,
) -> StageResult:
    """Quantize an exported ONNX file.

    Args:
        model: Canonical float ONNX file that carries a :class:`~vitexport.bundle.metadata.ModelMetadata`.
        images: Calibration images.
        settings: What to quantize and for which target.
        out: Where the quantized model is written, in one step.
        verification: Images that will judge the result; none of them may be used for calibration.
        statistics: File of calibration statistics: read when it scales this model and these images, written otherwise.
        progress: Called with a stage name and the fraction of it that is done.

    Raises:
        CalibrationError: The images cannot be used, or activations are not finite.
        QuantizeError: The model is quantized already, has nothing to quantize, the target cannot run the precision, the
            budget cannot be met, or a postcondition fails.
        ImageError: An image cannot be read.
        BundleError: The file carries no model metadata.
    """
    report = progress or _silent
    scheme = scheme_of(settings)
    with tempfile.TemporaryDirectory(prefix="vitexport-") as temporary:
        folder = Path(temporary)
        source = _read(model)
        unload_weights(source, folder)  # while images run only the runtime needs them
        check_model(source, str(model))
        metadata = ModelMetadata.from_metadata(source.metadata_props, where=str(model))
        feeds = ImageFeeds(
            images, metadata.preprocess, metadata.model.inputs[0], folder / "images", batch_size=settings.batch_size
        )
        check_images(images, feeds.hashes, verification)
        if settings.precision in DTYPE_OF_PRECISION:
            result, details = source, dict[str, Any]()
        else:
            raised = raise_opset(source, scheme, folder)
            work = _Work(source, settings, scheme, str(model))
            config = _statistics_config(settings, stored=statistics is not None)
            key = statistics_key(model, feeds.hashes, config)
            collected = work.statistics(feeds, config, statistics, key, report)
            result, details = work.quantize(collected, feeds, report)
            if raised:
                details["opset"] = raised
        if scheme.body != "float32":
            report("converting", 0.0)
            body = _convert(result, source, scheme, feeds)
            details = {**details, "body": scheme.body, "kept_float32": dict(body.kept)}
        entry = {"stage": "quantize", "precision": settings.precision, "target": settings.target}
        result.metadata_props.update(replace(metadata, history=(*metadata.history, entry)).to_metadata())
        companions = write_onnx(result, out, check_valid)
    if statistics is not None and details.get("quantized"):
        companions = (*companions, statistics)
    report("done", 1.0)
    precision = DTYPE_OF_PRECISION.get(settings.precision, settings.precision)
    return StageResult(out, precision, companions, details)


class _Work:
    """One graph on its way from float to quantized."""

    def __init__(self, model: ir.Model, settings: QuantizeSettings, scheme: QdqScheme, where: str) -> None:
        self.model = model
        self._settings = settings
        self._scheme = scheme
        self._layers = choose_layers(model, where=where)
        if ensure_biases(model, self._layers):
            self._layers = choose_layers(model, where=where)
        self._attention = attention_tensors(model) if settings.attention == "int8" else {}
        if settings.attention == "int8" and not self._attention:
            raise QuantizeError(
                f"Expected attentions whose query, key and value can be quantized in '{where}', found none.",
                "Leave out `attention: int8`.",
            )

    def statistics(
        self, feeds: ImageFeeds, config: StatisticsConfig, path: Path | None, key: str, report: Progress
    ) -> dict[str, TensorStatistics]:
        """Read statistics that fit, or run every image and save them."""
        wanted = dict.fromkeys((name for tensors in self._attention.values() for name in tensors), EXTREMES_ONLY)
        wanted |= dict.fromkeys(layers_by_input(self._layers), config)
        if path is not None and path.is_file():
            stored = load_statistics(path, key, list(wanted))
            if stored is not None:
                return stored
        collected = collect_statistics(
            self.model,
            wanted,
            feeds,
            class_token=reads_class_token(self.model),
            progress=report,
        )
        if path is not None:
            save_statistics(path, key, collected)
        return collected

    def quantize(
        self, collected: Mapping[str, TensorStatistics], feeds: ImageFeeds, report: Progress
    ) -> tuple[ir.Model, dict[str, Any]]:
        """Return the quantized graph, checked, and what there is to say about it."""
        class_token = reads_class_token(self.model)
        report("ranges", 0.0)
        if not self._attention:
            zero_key_biases(self.model)
        scales = self._fit_attention_scales(collected, feeds, class_token) if self._attention else {}
        statistics = {**collected, **self._centred(collected, scales)}
        plans = plan_tensors(self.model, self._layers, statistics, self._settings, self._scheme, class_token)
        attention = self._plan_attention(plans, collected, scales)
        report("weights", 0.0)
        layer_plans = plan_layers(plans, self._settings, self._scheme)

        def build(keep_float: Collection[str]) -> ir.Model:
            return build_quantized(self.model, plans, layer_plans, attention, keep_float)

        mixed = None
        if self._settings.budget is not None:
            report("mixed precision", 0.0)
            groups = dict.fromkeys([*(layer.group for layer in self._layers), *(plan.group for plan in attention)])
            mixed = search_mixed(self.model, build, list(groups), feeds, self._settings.budget)
        kept = () if mixed is None else mixed.kept_float
        result = build(kept)
        names = [layer.name for layer in self._layers if layer.group not in kept]
        symmetric = self._scheme.activation != "uint8"
        check_postconditions(
            result,
            layers=names,
            symmetric=symmetric,
            attention=[plan.name for plan in attention if plan.group not in kept],
        )
        return result, explain(self._layers, plans, layer_plans, attention, collected, mixed)

    def _outputs(self) -> dict[str, QuantizedLayer]:
        """Return the layer that reads each attention's output, by attention name."""
        consumers = {layer.linear.block: layer for layer in self._layers if layer.linear.role == "proj"}
        return {one.name: consumers[one.block] for one in find_attention(self.model) if one.block in consumers}

    def _fit_attention_scales(
        self, collected: Mapping[str, TensorStatistics], feeds: ImageFeeds, class_token: bool
    ) -> dict[str, AttentionScales]:
        importance = {name: np.square(layer.weight()).sum(axis=1) for name, layer in self._outputs().items()}
        return fit_attention_scales(
            self.model, self._attention, collected, importance, feeds, self._scheme, class_token
        )

    def _centred(
        self, collected: Mapping[str, TensorStatistics], scales: Mapping[str, AttentionScales]
    ) -> dict[str, TensorStatistics]:
        names = {name: layer.input_name for name, layer in self._outputs().items() if name in scales}
        return {
            tensor: centred(collected[tensor], scales[name].centre)
            for name, tensor in names.items()
            if collected[tensor].channels == len(scales[name].centre)
        }

    def _plan_attention(
        self,
        plans: Sequence[TensorPlan],
        collected: Mapping[str, TensorStatistics],
        scales: Mapping[str, AttentionScales],
    ) -> tuple[AttentionPlan, ...]:
        after = {plan.layers[0].linear.block: plan.choice for plan in plans if plan.kind == "value"}
        blocks = {one.name: one.block for one in find_attention(self.model)}
        chosen = {tensors[2]: after.get(blocks[name]) for name, tensors in self._attention.items()}
        values = {name: (choice.channel_scale, choice.shift) for name, choice in chosen.items() if choice is not None}
        return plan_attention(self.model, self._attention, collected, values, scales, self._scheme)


def _statistics_config(settings: QuantizeSettings, *, stored: bool) -> StatisticsConfig:
    """Return what calibration has to keep: what these settings read, and in a file also what other methods would."""
    fast = settings.preset == "fast"
    histogram = settings.method not in ("auto", "max") or (stored and not fast)
    return StatisticsConfig(covariance_rows=0, histogram=histogram) if fast else StatisticsConfig(histogram=histogram)


def _convert(result: ir.Model, floating: ir.Model, scheme: QdqScheme, feeds: ImageFeeds) -> Body16Report:
    """Give ``result`` a 16-bit body; ranges come from the float graph it was made from."""
    ranges = float_ranges(floating, feeds, evenly_spread(feeds.count, _RANGE_IMAGES))
    return to_body16(result, scheme.body, ranges)


def _read(path: Path) -> ir.Model:
    try:
        return read_onnx(path)
    except (OSError, ValueError) as error:
        raise QuantizeError(
            f"Expected an ONNX model at '{path}': {error}", "Give a file written by `vitexport export`."
        ) from error


def _silent(stage: str, fraction: float) -> None:
    """Report nothing."""
