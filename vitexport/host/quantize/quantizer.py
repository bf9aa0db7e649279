"""The quantize stage: a float ONNX file and real images in, a Q/DQ ONNX file out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.files import atomic_path
from vitexport.host.quantize.calibrate import ImageFeeds, Progress, collect_statistics
from vitexport.host.quantize.checks import check_images, check_model
from vitexport.host.quantize.emit import ActivationRange, emit_activation, emit_weight
from vitexport.host.quantize.sites import Site, find_sites
from vitexport.host.quantize.statistics import TensorStatistics
from vitexport.host.quantize.weights import round_to_nearest
from vitexport.model import ModelCard
from vitexport.recipe import QuantizeSettings
from vitexport.stage import StageResult

__all__ = ["quantize_onnx"]

_SMALLEST = 16  # K or N below this is not worth a kernel, and vendors' int8 kernels need multiples of 16
_INLINE_LIMIT = 1_900_000_000  # protobuf files end at 2 GiB


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
    source = ir.load(model)
    check_model(source, str(model))
    card = ModelCard.from_metadata(source.metadata_props, where=str(model))
    sites = choose_sites(find_sites(source.graph), where=str(model))
    check_images(images, verification)
    names = list(dict.fromkeys(site.input.name or "" for site in sites))
    with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
        feeds = ImageFeeds(images, card.preprocess, card.model.inputs[0], Path(folder))
        collected = collect_statistics(source, names, feeds, sample_rows=1024, progress=progress)
        _quantize(source, sites, collected)
    entry = {"stage": "quantize", "precision": settings.precision, "target": settings.target}
    source.metadata_props.update(replace(card, history=(*card.history, entry)).to_metadata())
    with atomic_path(out) as temporary:
        save_model(source, temporary)
    details: dict[str, Any] = {"quantized": [site.name for site in sites]}
    return StageResult(out, settings.precision, details=details)


def _quantize(model: ir.Model, sites: Sequence[Site], collected: dict[str, TensorStatistics]) -> None:
    graph = model.graph
    by_input: dict[str, list[Site]] = {}
    for site in sites:
        by_input.setdefault(site.input.name or "", []).append(site)
    for name, sharing in by_input.items():
        how = ActivationRange(scale=max(collected[name].amax, 1e-8) / 127)
        emit_activation(graph, sharing[0].input, how, [site.node for site in sharing])
    for site in sites:
        emit_weight(graph, site, round_to_nearest(site.weight()))


def choose_sites(sites: Sequence[Site], *, where: str) -> tuple[Site, ...]:
    """Return the sites to quantize: not the head, none with fewer than 16 rows or columns, fc1 only together with fc2.

    Raises:
        QuantizeError: Nothing is left.
    """
    kept = [site for site in sites if site.role != "head" and min(site.shape) >= _SMALLEST]
    with_fc2 = {site.block for site in kept if site.role == "fc2"}
    kept = [site for site in kept if site.role != "fc1" or site.block in with_fc2]
    if not kept:
        raise QuantizeError(
            f"Expected weighted MatMuls to quantize in '{where}', found {len(sites)} and none that qualifies.",
            "The model must be a transformer exported by `vitexport export`; its head and patch embedding stay in float.",
        )
    return tuple(kept)


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model, with its weights in a second file only where one file cannot hold them."""
    total = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    if total > _INLINE_LIMIT:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)
