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
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, Progress, collect_statistics
from vitexport.host.quantize.calibration.checks import check_images, check_model
from vitexport.host.quantize.calibration.statistics import EXTREMES, Kept, TensorStatistics
from vitexport.host.quantize.calibration.statistics_file import load_statistics, save_statistics, statistics_key
from vitexport.host.quantize.explanation import explain
from vitexport.host.quantize.planning.attention import AttentionPlan, attention_tensors, plan_attention
from vitexport.host.quantize.planning.attention_fit import Fit, centred, fit_attention
from vitexport.host.quantize.planning.importance import reads_class_token
from vitexport.host.quantize.planning.layers import Site, choose_sites, sites_by_input
from vitexport.host.quantize.planning.mixed import search_mixed
from vitexport.host.quantize.planning.plan import TensorPlan, plan_layers, plan_tensors
from vitexport.host.quantize.planning.transforms import ensure_biases, zero_key_biases
from vitexport.host.quantize.qdq.body16 import HalfReport, float_ranges, to_half
from vitexport.host.quantize.qdq.build import build_quantized
from vitexport.host.quantize.qdq.postconditions import check
from vitexport.host.quantize.targets import Form, form_of
from vitexport.recipe.settings import QuantizeSettings

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
        statistics: File of calibration statistics: read when it fits this model and these images, written otherwise.
        progress: Called with a step name and the fraction of it that is done.

    Raises:
        CalibrationError: The images cannot be used, or activations are not finite.
        QuantizeError: The model is quantized already, has nothing to quantize, the target cannot run the precision, the
            budget cannot be met, or a postcondition fails.
        ImageError: An image cannot be read.
        BundleError: The file carries no model metadata.
    """
    report = progress or _silent
    form = form_of(settings)
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
        if settings.precision in ("fp16", "bf16"):
            result, details = source, dict[str, Any]()
        else:
            work = _Work(source, settings, form, str(model))
            kept = _kept(settings, stored=statistics is not None)
            key = statistics_key(model, feeds.hashes, kept)
            collected = work.statistics(feeds, kept, statistics, key, report)
            result, details = work.quantize(collected, feeds, report)
        if form.body != "float32":
            report("converting", 0.0)
            half = _convert(result, source, form, feeds)
            details = {**details, "body": form.body, "kept_float32": dict(half.kept)}
        entry = {"stage": "quantize", "precision": settings.precision, "target": settings.target}
        result.metadata_props.update(replace(metadata, history=(*metadata.history, entry)).to_metadata())
        companions = write_onnx(result, out)
    if statistics is not None and details.get("quantized"):
        companions = (*companions, statistics)
    report("done", 1.0)
    precision = {"fp16": "float16", "bf16": "bfloat16"}.get(settings.precision, settings.precision)
    return StageResult(out, precision, companions, details)


class _Work:
    """One graph on its way from float to quantized."""

    def __init__(self, model: ir.Model, settings: QuantizeSettings, form: Form, where: str) -> None:
        self.model = model
        self._settings = settings
        self._form = form
        self._sites = choose_sites(model, where=where)
        if ensure_biases(model, self._sites):
            self._sites = choose_sites(model, where=where)
        self._attention = attention_tensors(model) if settings.attention == "int8" else {}
        if settings.attention == "int8" and not self._attention:
            raise QuantizeError(
                f"Expected attentions whose query, key and value can be quantized in '{where}', found none.",
                "Leave out `attention: int8`.",
            )

    def statistics(
        self, feeds: ImageFeeds, kept: Kept, path: Path | None, key: str, report: Progress
    ) -> dict[str, TensorStatistics]:
        """Read statistics that fit, or run every image and save them."""
        wanted = dict.fromkeys((name for tensors in self._attention.values() for name in tensors), EXTREMES)
        wanted |= dict.fromkeys(sites_by_input(self._sites), kept)
        if path is not None and path.is_file():
            found = load_statistics(path, key, list(wanted))
            if found is not None:
                return found
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
        fits = self._fit_attention(collected, feeds, class_token) if self._attention else {}
        statistics = {**collected, **self._centred(collected, fits)}
        plans = plan_tensors(self.model, self._sites, statistics, self._settings, self._form, class_token)
        attention = self._plan_attention(plans, collected, fits)
        report("weights", 0.0)
        layers = plan_layers(plans, self._settings, self._form)

        def build(keep_float: Collection[str]) -> ir.Model:
            return build_quantized(self.model, plans, layers, attention, keep_float)

        mixed = None
        if self._settings.budget is not None:
            report("mixed precision", 0.0)
            groups = dict.fromkeys([*(site.group for site in self._sites), *(plan.group for plan in attention)])
            mixed = search_mixed(self.model, build, list(groups), feeds, self._settings.budget)
        kept = () if mixed is None else mixed.kept_float
        result = build(kept)
        names = [site.name for site in self._sites if site.group not in kept]
        symmetric = self._form.activation != "uint8"
        check(
            result,
            layers=names,
            symmetric=symmetric,
            attention=[plan.name for plan in attention if plan.group not in kept],
        )
        return result, explain(self._sites, plans, layers, attention, collected, mixed)

    def _outputs(self) -> dict[str, Site]:
        """Return the layer that reads each attention's output, by attention name."""
        readers = {site.layer.block: site for site in self._sites if site.layer.role == "proj"}
        return {one.name: readers[one.block] for one in find_attention(self.model) if one.block in readers}

    def _fit_attention(
        self, collected: Mapping[str, TensorStatistics], feeds: ImageFeeds, class_token: bool
    ) -> dict[str, Fit]:
        importance = {name: np.square(site.weight()).sum(axis=1) for name, site in self._outputs().items()}
        return fit_attention(self.model, self._attention, collected, importance, feeds, self._form, class_token)

    def _centred(
        self, collected: Mapping[str, TensorStatistics], fits: Mapping[str, Fit]
    ) -> dict[str, TensorStatistics]:
        names = {name: site.input_name for name, site in self._outputs().items() if name in fits}
        return {
            tensor: centred(collected[tensor], fits[name].centre)
            for name, tensor in names.items()
            if collected[tensor].channels == len(fits[name].centre)
        }

    def _plan_attention(
        self, plans: Sequence[TensorPlan], collected: Mapping[str, TensorStatistics], fits: Mapping[str, Fit]
    ) -> tuple[AttentionPlan, ...]:
        after = {plan.sites[0].layer.block: plan.choice for plan in plans if plan.kind == "value"}
        blocks = {one.name: one.block for one in find_attention(self.model)}
        chosen = {tensors[2]: after.get(blocks[name]) for name, tensors in self._attention.items()}
        values = {name: (choice.scale, choice.shift) for name, choice in chosen.items() if choice is not None}
        return plan_attention(self.model, self._attention, collected, values, fits, self._form)


def _kept(settings: QuantizeSettings, *, stored: bool) -> Kept:
    """Return what calibration has to keep: what these settings read, and in a file also what other methods would."""
    fast = settings.preset == "fast"
    histogram = settings.method not in ("auto", "max") or (stored and not fast)
    return Kept(covariance_rows=0, histogram=histogram) if fast else Kept(histogram=histogram)


def _convert(result: ir.Model, floating: ir.Model, form: Form, feeds: ImageFeeds) -> HalfReport:
    """Give ``result`` a 16-bit body; ranges come from the float graph it was made from."""
    count = min(feeds.count, _RANGE_IMAGES)
    ranges = float_ranges(floating, feeds, [index * feeds.count // count for index in range(count)])
    return to_half(result, form.body, ranges)


def _read(path: Path) -> ir.Model:
    try:
        return read_onnx(path)
    except (OSError, ValueError) as error:
        raise QuantizeError(
            f"Expected an ONNX model at '{path}': {error}", "Give a file written by `vitexport export`."
        ) from error


def _silent(step: str, fraction: float) -> None:
    """Report nothing."""
