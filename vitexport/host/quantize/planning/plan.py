"""Deciding everything about a graph's quantization, transforms included, before any Q/DQ is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.numerics.qparams import Grid, QuantizedWeight, between, symmetric
from vitexport.host.quantize.numerics.range_estimators import Method, magnitude_range, magnitudes
from vitexport.host.quantize.numerics.weights import quantize_weight
from vitexport.host.quantize.planning.importance import column_importance
from vitexport.host.quantize.planning.layers import Site, sites_by_input
from vitexport.host.quantize.planning.search import (
    FAST,
    ONE_SIDED_RATIOS,
    RATIOS,
    STRENGTHS,
    InputPlan,
    Reader,
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
from vitexport.host.quantize.targets import Form
from vitexport.recipe.settings import QuantizeSettings

__all__ = ["LayerPlan", "TensorPlan", "plan_layers", "plan_tensors"]

Floats = NDArray[np.float32]

_SHIFTS = 4096

_REACH = 1.25
"""How far beyond the largest value seen in a channel int8 kernels that add in 16 bits stay exact."""


@dataclass(frozen=True)
class TensorPlan:
    """One quantized activation and the layers that read it.

    Attributes:
        value: The tensor after transforms.
        sites: The layers.
        kind: What absorbed the transform: ``norm``, ``value``, ``gelu`` or ``none``.
        choice: Scale, shift, grid and the error they leave.
        statistics: Of the tensor before the transform.
        class_token: Row 0 of each image is what the head reads.
        ceilings: Largest uint8 that each channel is expected to reach in a kernel that adds in 16 bits, ``[K]``; None
            where the target has no such kernel.
    """

    value: ir.Value
    sites: tuple[Site, ...]
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
            covariance /= self.choice.scale
            covariance /= self.choice.scale[:, None]
        return covariance


def plan_tensors(
    model: ir.Model,
    sites: Sequence[Site],
    statistics: Mapping[str, TensorStatistics],
    settings: QuantizeSettings,
    form: Form,
    class_token: bool,
) -> tuple[TensorPlan, ...]:
    """Choose transform and grid of every input tensor, and apply the transforms to the graph.

    Args:
        model: The float graph; changed in place.
        sites: Layers to quantize.
        statistics: By name of the input tensor.
        settings: Method, margin and preset.
        form: What the target computes.
        class_token: Whether row 0 of each image is what the head reads.
    """
    plans = []
    for name, group in sites_by_input(sites).items():
        stats = statistics[name]
        absorber = find_absorber(group)
        rows, counts = stats.rows_and_weights(class_token=class_token)
        readers = [Reader(site.weight(), column_importance(site)) for site in group]
        choice = _choose(absorber, stats, rows, counts, readers, settings, form)
        value = _apply(model.graph, absorber, group, choice)
        ceilings = _ceilings(choice, stats) if form.pair_limit else None
        plans.append(TensorPlan(value, group, absorber.kind, choice, stats, class_token, ceilings))
    return tuple(plans)


def _ceilings(choice: InputPlan, stats: TensorStatistics) -> NDArray[np.int64]:
    """Return the largest uint8 of each channel, with room for images that reach further than those of calibration.

    Kernels that take only uint8 (AVX2's) are given int8 with 128 added.
    """
    reach = np.maximum(choice.transform(stats.maximum), 0) * _REACH * stats.beyond / choice.grid.step
    zero = choice.grid.zero_point + (128 if choice.grid.dtype == "int8" else 0)
    ceilings: NDArray[np.int64] = np.clip(np.ceil(reach) + zero, 1, 255).astype(np.int64)
    return ceilings


def _choose(
    absorber: Absorber,
    stats: TensorStatistics,
    rows: Floats,
    counts: Floats,
    readers: Sequence[Reader],
    settings: QuantizeSettings,
    form: Form,
) -> InputPlan:
    fast = settings.preset == "fast"
    margin = 1.0 + (settings.margin or 0.0)

    def grid_up_to(amax: float) -> Grid:
        return symmetric(amax * margin, form.activation, half=form.half_scales)

    if form.activation == "float8_e4m3fn":
        # Floating point keeps its relative precision everywhere: neither a shift nor a clipped range gains anything.
        return search_fixed(rows, counts, readers, [(1.0, 0.0, grid_up_to(stats.amax))])
    method: Method = "max" if settings.method == "auto" else settings.method
    searched = settings.method == "auto"
    if absorber.kind in ("norm", "value"):
        limit = None if method == "max" else _limit(method, counts)
        strength, ratio = FAST[absorber.kind]
        reaches: Sequence[float] = (ratio,) if fast else RATIOS[absorber.kind]
        return search_absorbed(
            rows,
            counts,
            stats.minimum,
            stats.maximum,
            readers,
            grid_up_to,
            strengths=(strength,) if fast else STRENGTHS[absorber.kind],
            ratios=reaches if searched else (1.0,),
            beyond=stats.beyond,
            limit=limit,
            try_plain=not fast,
        )
    low, high = float(stats.minimum.min()), float(stats.maximum.max())
    if method != "max":
        reach = magnitude_range(magnitudes(stats.histogram), stats.bound, stats.amax, method)
        low, high = max(low, -reach), min(high, reach)
    tried: Sequence[float] = (0.7,) if fast else ONE_SIDED_RATIOS
    ratios = [ratio * stats.beyond for ratio in tried] if searched else [1.0]
    shifts = absorber.kind == "gelu" and form.shift_after_gelu
    candidates = [(ratio, *_one_sided(low, high, ratio * margin, shifts=shifts, form=form)) for ratio in ratios]
    return search_fixed(rows, counts, readers, candidates)


def _limit(method: Method, counts: Floats) -> Callable[[Floats], float]:
    """Return a function from transformed rows to the largest magnitude that ``method`` keeps."""

    def limit(rows: Floats) -> float:
        absolute = np.abs(rows)
        amax = float(absolute.max())
        bound = amax * (1 + 1e-6) or 1.0
        weights = np.broadcast_to(counts[:, None], rows.shape)
        histogram, _ = np.histogram(absolute, bins=_SHIFTS // 2, range=(0, bound), weights=weights)
        return magnitude_range(histogram, bound, amax, method)

    return limit


def _one_sided(low: float, high: float, ratio: float, *, shifts: bool, form: Form) -> tuple[float, Grid]:
    """Return (shift, grid) over ``[low, high * ratio]``; a multiple of the step keeps zero on the grid."""
    if abs(low) > abs(high):
        low *= ratio
    else:
        high *= ratio
        low = max(low, -high)
    if form.activation == "uint8":
        return 0.0, between(low, high, half=form.half_scales)
    if not shifts:
        return 0.0, symmetric(max(-low, high), form.activation, half=form.half_scales)
    grid = symmetric((high - low) / 2 * (254 / 255), form.activation, half=form.half_scales)
    shift = float(np.rint((high + low) / 2 / grid.step) * grid.step)
    # A float16 body subtracts what float16 makes of the shift: the bias must make up for that very number.
    return float(np.float16(shift)) if form.half_scales else shift, grid


def _apply(graph: ir.Graph, absorber: Absorber, group: Sequence[Site], choice: InputPlan) -> ir.Value:
    value = group[0].input
    if not choice.shift.any() and np.all(choice.scale == 1):
        return value
    fold_into_consumers(graph, group, choice.scale, choice.shift)
    if absorber.kind in ("norm", "value"):
        apply_to_source(graph, absorber, choice.scale, choice.shift)
        return value
    readers = [site.layer.matmul for site in group]
    return apply_explicitly(graph, value, choice.scale, choice.shift, readers)


@dataclass(frozen=True)
class LayerPlan:
    """What a quantized layer gets.

    Attributes:
        weight: Its quantized weight.
        correction: float32 ``[N]`` added to its bias: the mean error that quantizing its input and weight causes.
    """

    weight: QuantizedWeight
    correction: Floats


def plan_layers(plans: Sequence[TensorPlan], settings: QuantizeSettings, form: Form) -> dict[str, LayerPlan]:
    """Quantize every weight for the inputs it will really see; the graph stays as it is.

    Args:
        plans: All tensor plans; every transform must have been applied.
        settings: The preset decides how much is searched.
        form: What the target computes.

    Returns:
        Layer plans by site name.
    """
    done = {}
    for plan in plans:
        exact, mean, energy, gram = _moments(plan, settings)
        for site in plan.sites:
            weight = site.weight()
            quantized = quantize_weight(weight, form.weight, energy=energy, gram=gram, ceilings=plan.ceilings)
            lost = exact @ weight - mean @ quantized.dequantized()
            done[site.name] = LayerPlan(quantized, lost.astype(np.float32))
    return done


def _moments(
    plan: TensorPlan, settings: QuantizeSettings
) -> tuple[Floats, Floats, Floats | None, NDArray[np.float64] | None]:
    """Return the mean of a tensor, and after rounding its mean, variances and covariance as far as they are used."""
    rows, counts = plan.rows_and_weights()
    rounded = plan.choice.grid.apply(rows)
    exact, mean = counts @ rows, counts @ rounded
    if settings.preset == "fast":
        return exact, mean, None, None
    covariance = plan.covariance()
    if covariance is None:
        return exact, mean, counts @ np.square(rounded - mean), None
    # Rounding an input adds noise of a twelfth of its squared step to each channel.
    energy = np.diagonal(covariance) + np.float32(plan.choice.grid.step**2 / 12)
    if settings.rounding != "learned":
        return exact, mean, energy, None
    gram = covariance.astype(np.float64)
    np.fill_diagonal(gram, energy)
    return exact, mean, energy, gram
