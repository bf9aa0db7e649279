"""Deciding everything about a graph's quantization, transforms included, before any Q/DQ is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.numerics.qparams import QuantizedWeight, QuantParams, asymmetric_qparams, symmetric_qparams
from vitexport.host.quantize.numerics.range_estimators import Method, clipping_threshold, magnitudes
from vitexport.host.quantize.numerics.weights import quantize_weight
from vitexport.host.quantize.planning.importance import column_importance
from vitexport.host.quantize.planning.layers import QuantizedLayer, layers_by_input
from vitexport.host.quantize.planning.search import (
    FAST,
    ONE_SIDED_RATIOS,
    RATIOS,
    STRENGTHS,
    Consumer,
    InputPlan,
    search_absorbed,
    search_fixed,
)
from vitexport.host.quantize.planning.transforms import (
    Absorber,
    apply_explicitly,
    apply_to_source,
    find_absorber,
    fold_into_consumers,
)
from vitexport.host.quantize.scheme import QdqScheme
from vitexport.recipe.settings import QuantizeSettings

__all__ = ["LayerPlan", "TensorPlan", "plan_layers", "plan_tensors"]

Floats = NDArray[np.float32]

_BINS = 2048
"""Histogram bins of a tensor's transformed magnitudes."""

_OVERFLOW_MARGIN = 1.25
"""Factor over the largest value seen in a channel up to which int8 kernels that add in 16 bits stay exact."""


@dataclass(frozen=True)
class TensorPlan:
    """One quantized activation and the layers that read it.

    Attributes:
        value: The tensor after transforms.
        layers: The layers.
        kind: What absorbed the transform: ``norm``, ``value``, ``gelu`` or ``none``.
        choice: Scale, shift, quantization parameters and the error they leave.
        statistics: Of the tensor before the transform.
        class_token: Row 0 of each image is what the head reads.
        ceilings: Largest uint8 that each channel is expected to take in a kernel that adds in 16 bits, ``[K]``; None
            where the target has no such kernel.
    """

    value: ir.Value
    layers: tuple[QuantizedLayer, ...]
    kind: str
    choice: InputPlan
    statistics: TensorStatistics
    class_token: bool
    ceilings: NDArray[np.int64] | None

    def rows_and_weights(self) -> tuple[Floats, Floats]:
        """Return the transformed sample, ``[R, K]``, and what each row counts for."""
        rows, counts = self.statistics.rows_and_weights(class_token=self.class_token)
        return self.choice.transform(rows), counts

    def covariance(self) -> Floats | None:
        """Return that of the channels after the transform and before rounding, ``[K, K]``; None if it was not kept."""
        covariance = self.statistics.covariance()
        if covariance is not None:
            covariance /= self.choice.channel_scale
            covariance /= self.choice.channel_scale[:, None]
        return covariance


def plan_tensors(
    model: ir.Model,
    layers: Sequence[QuantizedLayer],
    statistics: Mapping[str, TensorStatistics],
    settings: QuantizeSettings,
    scheme: QdqScheme,
    class_token: bool,
) -> tuple[TensorPlan, ...]:
    """Choose transform and quantization parameters of every input tensor, and apply the transforms to the graph.

    Args:
        model: The float graph; changed in place.
        layers: Layers to quantize.
        statistics: By name of the input tensor.
        settings: Method, margin and preset.
        scheme: What the target computes.
        class_token: Whether row 0 of each image is what the head reads.
    """
    plans = []
    for name, group in layers_by_input(layers).items():
        stats = statistics[name]
        absorber = find_absorber(group)
        rows, counts = stats.rows_and_weights(class_token=class_token)
        consumers = [Consumer(layer.weight(), column_importance(layer)) for layer in group]
        choice = _choose(absorber, stats, rows, counts, consumers, settings, scheme)
        value = _apply(model.graph, absorber, group, choice)
        ceilings = _ceilings(choice, stats) if scheme.pair_limit else None
        plans.append(TensorPlan(value, group, absorber.kind, choice, stats, class_token, ceilings))
    return tuple(plans)


def _ceilings(choice: InputPlan, stats: TensorStatistics) -> NDArray[np.int64]:
    """Return the largest uint8 of each channel, with room for images of larger values than those of calibration.

    Kernels that take only uint8 (AVX2's) are given int8 with 128 added.
    """
    largest = (
        np.maximum(choice.transform(stats.maximum), 0) * _OVERFLOW_MARGIN * stats.range_margin / choice.qparams.scale
    )
    zero = choice.qparams.zero_point + (128 if choice.qparams.dtype == "int8" else 0)
    ceilings: NDArray[np.int64] = np.clip(np.ceil(largest) + zero, 1, 255).astype(np.int64)
    return ceilings


def _choose(
    absorber: Absorber,
    stats: TensorStatistics,
    rows: Floats,
    counts: Floats,
    consumers: Sequence[Consumer],
    settings: QuantizeSettings,
    scheme: QdqScheme,
) -> InputPlan:
    fast = settings.preset == "fast"
    margin = 1.0 + (settings.margin or 0.0)

    def qparams_up_to(amax: float) -> QuantParams:
        return symmetric_qparams(amax * margin, scheme.activation, float16_scale=scheme.float16_scales)

    if scheme.activation == "float8_e4m3fn":
        # Floating point keeps its relative precision everywhere: neither a shift nor a clipped range gains anything.
        return search_fixed(rows, counts, consumers, [(1.0, 0.0, qparams_up_to(stats.amax))])
    method: Method = "max" if settings.method == "auto" else settings.method
    searched = settings.method == "auto"
    if absorber.kind in ("norm", "value"):
        threshold_of = None if method == "max" else _threshold_of(method, counts)
        strength, ratio = FAST[absorber.kind]
        tried_ratios: Sequence[float] = (ratio,) if fast else RATIOS[absorber.kind]
        return search_absorbed(
            rows,
            counts,
            stats.minimum,
            stats.maximum,
            consumers,
            qparams_up_to,
            strengths=(strength,) if fast else STRENGTHS[absorber.kind],
            ratios=tried_ratios if searched else (1.0,),
            range_margin=stats.range_margin,
            threshold=threshold_of,
            try_plain=not fast,
        )
    low, high = float(stats.minimum.min()), float(stats.maximum.max())
    if method != "max":
        threshold = clipping_threshold(magnitudes(stats.histogram), stats.bound, stats.amax, method)
        low, high = max(low, -threshold), min(high, threshold)
    tried: Sequence[float] = (0.7,) if fast else ONE_SIDED_RATIOS
    ratios = [ratio * stats.range_margin for ratio in tried] if searched else [1.0]
    shifts = absorber.kind == "gelu" and scheme.shift_after_gelu
    candidates = [(ratio, *_one_sided(low, high, ratio * margin, shifts=shifts, scheme=scheme)) for ratio in ratios]
    return search_fixed(rows, counts, consumers, candidates)


def _threshold_of(method: Method, counts: Floats) -> Callable[[Floats], float]:
    """Return a function from transformed rows to the clipping threshold that ``method`` chooses."""

    def threshold(rows: Floats) -> float:
        absolute = np.abs(rows)
        amax = float(absolute.max())
        bound = amax * (1 + 1e-6) or 1.0
        weights = np.broadcast_to(counts[:, None], rows.shape)
        histogram, _ = np.histogram(absolute, bins=_BINS, range=(0, bound), weights=weights)
        return clipping_threshold(histogram, bound, amax, method)

    return threshold


def _one_sided(low: float, high: float, ratio: float, *, shifts: bool, scheme: QdqScheme) -> tuple[float, QuantParams]:
    """Return (shift, parameters) over ``[low, high * ratio]``; a shift by a multiple of the scale keeps zero exact."""
    if abs(low) > abs(high):
        low *= ratio
    else:
        high *= ratio
        low = max(low, -high)
    if scheme.activation == "uint8":
        return 0.0, asymmetric_qparams(low, high, float16_scale=scheme.float16_scales)
    if not shifts:
        return 0.0, symmetric_qparams(max(-low, high), scheme.activation, float16_scale=scheme.float16_scales)
    qparams = symmetric_qparams((high - low) / 2 * (254 / 255), scheme.activation, float16_scale=scheme.float16_scales)
    shift = float(np.rint((high + low) / 2 / qparams.scale) * qparams.scale)
    # A float16 body subtracts what float16 makes of the shift: the bias must make up for that very number.
    return float(np.float16(shift)) if scheme.float16_scales else shift, qparams


def _apply(graph: ir.Graph, absorber: Absorber, group: Sequence[QuantizedLayer], choice: InputPlan) -> ir.Value:
    value = group[0].input
    if not choice.shift.any() and np.all(choice.channel_scale == 1):
        return value
    fold_into_consumers(graph, group, choice.channel_scale, choice.shift)
    if absorber.kind in ("norm", "value"):
        apply_to_source(graph, absorber, choice.channel_scale, choice.shift)
        return value
    consumers = [layer.linear.matmul for layer in group]
    return apply_explicitly(graph, value, choice.channel_scale, choice.shift, consumers)


@dataclass(frozen=True)
class LayerPlan:
    """What a quantized layer gets.

    Attributes:
        weight: Its quantized weight.
        correction: float32 ``[N]`` added to its bias: the mean error that quantizing its input and weight causes.
    """

    weight: QuantizedWeight
    correction: Floats


def plan_layers(plans: Sequence[TensorPlan], settings: QuantizeSettings, scheme: QdqScheme) -> dict[str, LayerPlan]:
    """Quantize every weight for the inputs it will really see; the graph stays as it is.

    Args:
        plans: All tensor plans; every transform must have been applied.
        settings: The preset decides how much is searched.
        scheme: What the target computes.

    Returns:
        Layer plans by layer name.
    """
    done = {}
    for plan in plans:
        exact, mean, variance, covariance = _moments(plan, settings)
        for layer in plan.layers:
            weight = layer.weight()
            quantized = quantize_weight(
                weight, scheme.weight, variance=variance, covariance=covariance, ceilings=plan.ceilings
            )
            lost = exact @ weight - mean @ quantized.dequantized()
            done[layer.name] = LayerPlan(quantized, lost.astype(np.float32))
    return done


def _moments(
    plan: TensorPlan, settings: QuantizeSettings
) -> tuple[Floats, Floats, Floats | None, NDArray[np.float64] | None]:
    """Return the mean of a tensor, and after rounding its mean, variances and covariance as far as they are used."""
    rows, counts = plan.rows_and_weights()
    rounded = plan.choice.qparams.fake_quantize(rows)
    exact, mean = counts @ rows, counts @ rounded
    if settings.preset == "fast":
        return exact, mean, None, None
    covariance = plan.covariance()
    if covariance is None:
        return exact, mean, counts @ np.square(rounded - mean), None
    # Rounding an input adds noise of a twelfth of its squared scale to each channel.
    variance = np.diagonal(covariance) + np.float32(plan.choice.qparams.scale**2 / 12)
    if settings.rounding != "learned":
        return exact, mean, variance, None
    rounded_covariance = covariance.astype(np.float64)
    np.fill_diagonal(rounded_covariance, variance)
    return exact, mean, variance, rounded_covariance
