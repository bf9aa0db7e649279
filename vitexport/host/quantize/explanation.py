"""What a quantization says about itself: every range, the channels that stand out, and what stayed float and why."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.planning.exclude import Excluded
from vitexport.host.quantize.planning.islands import ONE_TOKEN, Islands
from vitexport.host.quantize.planning.layers import QuantizedLayer
from vitexport.host.quantize.planning.mixed import MixedReport
from vitexport.host.quantize.planning.plan import GraphPlan, TensorPlan
from vitexport.host.quantize.planning.quality import LOWEST_SQNR_DB
from vitexport.host.quantize.planning.taming import MASSIVE

__all__ = [
    "QuantizationWarning",
    "explain",
    "massive_activation",
    "outlier_channels",
    "warn_of_clipping",
    "warn_of_quality",
]

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
    excluded: Excluded,
) -> dict[str, Any]:
    """Return the details of a quantized model, ready for JSON; ranges come with the worst layer first.

    Args:
        layers: All layers that could be quantized.
        plan: Of the graph.
        statistics: Of the float model, by tensor name.
        islands: What stays float by default.
        mixed: What the search for a budget did; None without a budget.
        excluded: What the user named.
    """
    kept = {*islands.kept_float, *(() if mixed is None else mixed.kept_float)}
    quantized = [layer.name for layer in layers if layer.group not in kept and layer.name not in excluded.names]
    attention = [one.name for one in plan.attention if one.group not in kept]
    names = dict.fromkeys((*(one.name for one in layers), *(one.name for one in plan.attention), *excluded.names))
    ranges = [_range(one, statistics[one.statistics.name], kept) for one in plan.tensors]
    details: dict[str, Any] = {
        "quantized": quantized,
        "kept_float": [name for name in names if name not in {*quantized, *attention}],
        "kept_float_reasons": _reasons(plan, islands, mixed, excluded),
        "islands": {"kept_float": islands.kept_float, "reasons": dict(islands.reasons), "work": islands.work},
        "clipped": _clipped(plan, islands.clipped, kept),
        "attention": attention,
        "ranges": sorted(ranges, key=lambda entry: entry["layer_sqnr_db"]),
        "weights_bytes": sum(plan.layers[name].weight.values.nbytes for name in quantized),
    }
    if mixed is not None:
        details["mixed_precision"] = asdict(mixed)
    return details


def _reasons(plan: GraphPlan, islands: Islands, mixed: MixedReport | None, excluded: Excluded) -> dict[str, str]:
    """Return why everything that stayed float did, by group, or by name where only part of a group did."""
    massive = {
        layer.group: found
        for tensor in plan.tensors
        # A producer that absorbs channel scales takes outliers away.
        if tensor.kind not in ("norm", "value") and (found := massive_activation(tensor.statistics))
        for layer in tensor.layers
    }
    measured = {**islands.reasons, **({} if mixed is None else mixed.reasons)}
    told = {
        group: f"{massive[group]}; {reason}" if group in massive and reason != ONE_TOKEN else reason
        for group, reason in measured.items()
    }
    return {**told, **excluded.reasons}


def _clipped(plan: GraphPlan, times: Mapping[str, float], kept: Collection[str]) -> list[dict[str, Any]]:
    """Return the quantized inputs that held-out images clip, the worst first."""
    found = [
        {"layers": [layer.name for layer in one.layers], "times": round(times[one.statistics.name], 1)}
        for one in plan.tensors
        if one.statistics.name in times and not all(layer.group in kept for layer in one.layers)
    ]
    return sorted(found, key=lambda entry: -float(str(entry["times"])))


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


def warn_of_clipping(details: Mapping[str, Any]) -> None:
    """Warn of ranges that do not hold what images show that did not calibrate them.

    Args:
        details: Of the file; ``clipped`` are the inputs concerned.
    """
    clipped = details.get("clipped")
    if not clipped:
        return
    named = ", ".join(f"{entry['layers'][0]} ({entry['times']:g} times)" for entry in clipped[:_NAMED])
    warnings.warn(
        f"On calibration images held out, rounding the input of {named} loses far more than on those that calibrated: "
        "they reach further. Give more calibration images like those of the application, or widen the ranges "
        "(`quantize: {margin: 0.2}` in a recipe).",
        QuantizationWarning,
        stacklevel=3,
    )


def massive_activation(stats: TensorStatistics) -> str:
    """Say how far one channel reaches beyond the others; empty where it is under twenty times the median channel.

    Args:
        stats: Of a tensor, before any transform.
    """
    amax = _reach(stats)
    largest, median = float(amax.max()), float(np.median(amax))
    if largest < MASSIVE * median:
        return ""
    return f"massive activation: one channel reaches {_short(largest)}, the median channel {_short(median)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _range(plan: TensorPlan, stats: TensorStatistics, kept: Collection[str]) -> dict[str, Any]:
    choice = plan.choice
    return {
        "tensor": plan.statistics.name,
        "layers": [layer.name for layer in plan.layers],
        "groups": list(dict.fromkeys(layer.group for layer in plan.layers)),
        "kept_float": all(layer.group in kept for layer in plan.layers),
        "absorbed_by": plan.kind,
        "seen": [float(stats.minimum.min()), float(stats.maximum.max())],
        "median_channel": float(np.median(_reach(stats))),
        "rotation": None if choice.rotation is None else choice.rotation.size,
        "scaled_channels": 0 if plan.kind in ("norm", "value") else int(np.count_nonzero(choice.channel_scale != 1)),
        "transformed": list(plan.transformed),
        "outliers": outlier_channels(stats),
        "scale": choice.qparams.scale,
        "zero_point": choice.qparams.zero_point,
        "strength": choice.strength,
        "ratio": choice.ratio,
        "layer_sqnr_db": -10 * float(np.log10(max(choice.error, 1e-30))),
    }


def _reach(stats: TensorStatistics) -> NDArray[np.float32]:
    """Return the largest magnitude of each channel, ``[C]``."""
    return np.maximum(np.abs(stats.minimum), np.abs(stats.maximum))


def outlier_channels(stats: TensorStatistics) -> list[dict[str, Any]]:
    """Return the channels whose largest magnitude is over six times the median channel's, the worst five first.

    Args:
        stats: Of a tensor, before any transform.
    """
    amax = _reach(stats)
    times = amax / max(float(np.median(amax)), 1e-30)
    furthest = np.argsort(-times, kind="stable")[:_NAMED]
    return [
        {"channel": int(index), "times_median": round(float(times[index]), 1)}
        for index in furthest
        if times[index] > _OUTLIER
    ]
