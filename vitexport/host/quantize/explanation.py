"""What a quantization says about itself: every range, the channels that stand out, and what a budget left in float."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.layers import QuantizedLayer
from vitexport.host.quantize.planning.mixed import MixedReport
from vitexport.host.quantize.planning.plan import LayerPlan, TensorPlan

__all__ = ["explain", "outlier_channels"]

_OUTLIER = 6.0
"""Factor over the largest magnitude of the median channel at which a channel is called an outlier."""

_NAMED = 5


def explain(
    layers: Sequence[QuantizedLayer],
    plans: Sequence[TensorPlan],
    layer_plans: Mapping[str, LayerPlan],
    attention: Sequence[AttentionPlan],
    statistics: Mapping[str, TensorStatistics],
    mixed: MixedReport | None,
) -> dict[str, Any]:
    """Return the details of a quantized model, ready for JSON; ranges come with the worst layer first.

    Args:
        layers: All layers that could be quantized.
        plans: Of every activation.
        layer_plans: Of every layer, by name.
        attention: Of every attention.
        statistics: Of the float model, by tensor name.
        mixed: What the search for a budget did; None without a budget.
    """
    kept = () if mixed is None else mixed.kept_float
    quantized = [layer.name for layer in layers if layer.group not in kept]
    ranges = [_range(plan, statistics[plan.statistics.name], kept) for plan in plans]
    details: dict[str, Any] = {
        "quantized": quantized,
        "kept_float": [
            *(layer.name for layer in layers if layer.group in kept),
            *(plan.name for plan in attention if plan.group in kept),
        ],
        "attention": [plan.name for plan in attention if plan.group not in kept],
        "ranges": sorted(ranges, key=lambda entry: entry["layer_sqnr_db"]),
        "weights_bytes": sum(layer_plans[name].weight.values.nbytes for name in quantized),
    }
    if mixed is not None:
        details["mixed_precision"] = asdict(mixed)
    return details


def _range(plan: TensorPlan, stats: TensorStatistics, kept: Collection[str]) -> dict[str, Any]:
    choice = plan.choice
    return {
        "tensor": str(plan.value.name),
        "layers": [layer.name for layer in plan.layers],
        "kept_float": all(layer.group in kept for layer in plan.layers),
        "absorbed_by": plan.kind,
        "seen": [float(stats.minimum.min()), float(stats.maximum.max())],
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
