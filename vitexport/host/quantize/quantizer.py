"""The quantize stage: a float ONNX file and real images in, a Q/DQ ONNX file out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.quantize.calibrate import ImageFeeds, Progress, collect_statistics
from vitexport.host.quantize.checks import check_images, check_model
from vitexport.host.quantize.emit import emit_activation, emit_weight
from vitexport.host.quantize.importance import reads_class_token
from vitexport.host.quantize.plan import plan_tensors, plan_weights
from vitexport.host.quantize.sites import choose_sites, sites_by_input
from vitexport.host.quantize.statistics_file import load_statistics, save_statistics, statistics_key
from vitexport.host.quantize.targets import form_of
from vitexport.host.quantize.transforms import ensure_biases, zero_key_biases
from vitexport.model import ModelCard
from vitexport.recipe import QuantizeSettings
from vitexport.stage import StageResult

__all__ = ["SAMPLE_ROWS", "quantize_onnx"]

SAMPLE_ROWS = 1024
"""Rows of each activation kept for measuring layer-output errors."""


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
        model: Canonical float ONNX file that carries a :class:`~vitexport.model.ModelCard`.
        images: Calibration images.
        settings: What to quantize and for which target.
        out: Where the quantized model is written, in one step.
        verification: Images that will judge the result; none of them may be used for calibration.
        statistics: File of calibration statistics: read when it fits this model and these images, written otherwise.
        progress: Called with a step name and the fraction of it that is done.

    Raises:
        CalibrationError: The images cannot be used, or activations are not finite.
        QuantizeError: The model is quantized already, has nothing to quantize, or a postcondition fails.
        ImageError: An image cannot be read.
        BundleError: The file carries no model card.
    """
    source = _read(model)
    check_model(source, str(model))
    card = ModelCard.from_metadata(source.metadata_props, where=str(model))
    form = form_of(settings)
    sites = choose_sites(source, where=str(model))
    if ensure_biases(source, sites):
        sites = choose_sites(source, where=str(model))
    hashes = check_images(images, verification)
    names = list(sites_by_input(sites))
    key = statistics_key(model, hashes, SAMPLE_ROWS)
    collected = load_statistics(statistics, key, names) if statistics is not None and statistics.is_file() else None
    if collected is None:
        with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
            feeds = ImageFeeds(
                images, card.preprocess, card.model.inputs[0], Path(folder), batch_size=settings.batch_size
            )
            collected = collect_statistics(source, names, feeds, sample_rows=SAMPLE_ROWS, progress=progress)
        if statistics is not None:
            save_statistics(statistics, key, collected)
    class_token = reads_class_token(source)
    zero_key_biases(source)
    plans = plan_tensors(source, sites, collected, settings, form, class_token)
    weights = plan_weights(source, plans, settings, form)
    for plan in plans:
        emit_activation(source.graph, plan.value, plan.choice.grid, [site.layer.matmul for site in plan.sites])
        for site in plan.sites:
            emit_weight(source.graph, site, weights[site.name])
    entry = {"stage": "quantize", "precision": settings.precision, "target": settings.target}
    source.metadata_props.update(replace(card, history=(*card.history, entry)).to_metadata())
    companions = write_onnx(source, out)
    details: dict[str, Any] = {
        "quantized": [site.name for site in sites],
        "ranges": [
            (plan.sites[0].name, plan.kind, plan.choice.strength, plan.choice.ratio, plan.choice.error)
            for plan in plans
        ],
    }
    return StageResult(out, settings.precision, companions, details)


def _read(path: Path) -> ir.Model:
    try:
        return read_onnx(path)
    except (OSError, ValueError) as error:
        raise QuantizeError(
            f"Expected an ONNX model at '{path}': {error}", "Give a file written by `vitexport export`."
        ) from error
