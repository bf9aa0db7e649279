"""What a quantization says about itself: every range, the channels that stand out, and what a budget left in float."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.planning.islands import Islands
from vitexport.host.quantize.planning.layers import QuantizedLayer
from vitexport.host.quantize.planning.mixed import MixedReport
from vitexport.host.quantize.planning.plan import GraphPlan, TensorPlan

__all__ = ["LOWEST_SQNR_DB", "QuantizationWarning", "explain", "outlier_channels", "warn_of_quality"]

LOWEST_SQNR_DB = 20.0
"""Signal-to-noise ratio of the first output below which a warning is due."""

_OUTLIER = 6.0
"""Factor over the largest magnitude of the median channel at which a channel is called an outlier."""

_NAMED = 5


class QuantizationWarning(UserWarning):
    """The file is written, and may not be what its users expect."""


def explain(
    layers: Sequence[QuantizedLayer],
    plan: GraphPlan,
    statistics: Mapping[str, TensorStatistics],
    islands: Islands,
    mixed: MixedReport | None,
) -> dict[str, Any]:
    """Return the details of a quantized model, ready for JSON; ranges come with the worst layer first.

    Args:
        layers: All layers that could be quantized.
        plan: Of the graph.
        statistics: Of the float model, by tensor name.
        islands: What stays float by default.
        mixed: What the search for a budget did; None without a budget.
    """
    kept = {*islands.kept_float, *(() if mixed is None else mixed.kept_float)}
    quantized = [layer.name for layer in layers if layer.group not in kept]
    ranges = [_range(one, statistics[one.statistics.name], kept) for one in plan.tensors]
    details: dict[str, Any] = {
        "quantized": quantized,
        "kept_float": [
            *(layer.name for layer in layers if layer.group in kept),
            *(one.name for one in plan.attention if one.group in kept),
        ],
        "islands": asdict(islands),
        "attention": [one.name for one in plan.attention if one.group not in kept],
        "ranges": sorted(ranges, key=lambda entry: entry["layer_sqnr_db"]),
        "weights_bytes": sum(plan.layers[name].weight.values.nbytes for name in quantized),
    }
    if mixed is not None:
        details["mixed_precision"] = asdict(mixed)
    return details


def warn_of_quality(details: Mapping[str, Any]) -> None:
    """Warn of a file that is far from float32 on images that did not calibrate it.

    Args:
        details: Of the file; ``quality`` is what was measured.
    """
    quality = details.get("quality")
    if quality is None or quality["sqnr_db"] >= LOWEST_SQNR_DB:
        return
    warnings.warn(
        f"On {quality['images']} calibration images held out, the quantized model is {quality['sqnr_db']:.1f} dB from "
        f"float32; below {LOWEST_SQNR_DB:.0f} dB classes change. Give a budget (`--min-sqnr-db {LOWEST_SQNR_DB:.0f}`), "
        "which keeps the worst layers in float, or more calibration images like those of the application.",
        QuantizationWarning,
        stacklevel=3,
    )


def _range(plan: TensorPlan, stats: TensorStatistics, kept: Collection[str]) -> dict[str, Any]:
    choice = plan.choice
    rows, _ = plan.rows_and_weights()
    return {
        "tensor": plan.statistics.name,
        "layers": [layer.name for layer in plan.layers],
        "kept_float": all(layer.group in kept for layer in plan.layers),
        "absorbed_by": plan.kind,
        "seen": [float(stats.minimum.min()), float(stats.maximum.max())],
        "rotation": None if choice.rotation is None else choice.rotation.size,
        "transformed": [float(rows.min()), float(rows.max())],
        "outliers": outlier_channels(stats),
        "scale": choice.qparams.scale,
        "zero_point": choice.qparams.zero_point,
        "strength": choice.strength,
        "ratio": choice.ratio,
        "layer_sqnr_db": -10 * float(np.log10(max(choice.error, 1e-30))),
    }


def outlier_channels(stats: TensorStatistics) -> list[dict[str, Any]]:
    """Return the channels whose largest magnitude is over six times the median channel's, the worst five first.

    Args:
        stats: Of a tensor, before any transform.
    """
    amax = np.maximum(np.abs(stats.minimum), np.abs(stats.maximum))
    times = amax / max(float(np.median(amax)), 1e-30)
    furthest = np.argsort(-times, kind="stable")[:_NAMED]
    return [
        {"channel": int(index), "times_median": round(float(times[index]), 1)}
        for index in furthest
        if times[index] > _OUTLIER
    ]
