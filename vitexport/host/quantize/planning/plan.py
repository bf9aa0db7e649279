"""Deciding everything about a graph's quantization, transforms included, before any Q/DQ is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.numerics.qparams import QuantizedWeight
from vitexport.host.quantize.numerics.weights import quantize_weight
from vitexport.host.quantize.parallel import map_parallel
from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.choice import InputChooser
from vitexport.host.quantize.planning.importance import column_importance
from vitexport.host.quantize.planning.layers import QuantizedLayer, layers_by_input
from vitexport.host.quantize.planning.search import Consumer, InputPlan
from vitexport.host.quantize.planning.transforms import find_absorber
from vitexport.host.quantize.scheme import QdqScheme
from vitexport.recipe.settings import QuantizeSettings

__all__ = ["GraphPlan", "LayerPlan", "RoundingError", "TensorPlan", "plan_layers", "plan_tensors", "rounding_error"]

Floats = NDArray[np.float32]
RoundingError = tuple[float, float]

_ERROR_ROWS = 256
"""Rows on which the error of a layer's columns is measured."""

_COVARIANCES = 8
"""Matrices of the size of a float32 covariance that rounding a layer holds at once, those of float64 counted twice."""

_OVERFLOW_MARGIN = 1.25
"""Factor over the largest value seen in a channel up to which int8 kernels that add in 16 bits stay exact."""


@dataclass(frozen=True)
class TensorPlan:
    """One quantized activation and the layers that read it.

    Attributes:
        layers: The layers, of the float graph.
        kind: What absorbed the transform: ``norm``, ``value``, ``gelu`` or ``none``.
        choice: Scale, shift, quantization parameters and the error they leave.
        statistics: Of the tensor before the transform.
        transformed: Smallest and largest value of the transformed sample.
        rounding: What :func:`rounding_error` makes of it.
        class_token: Row 0 of each image is what the head reads.
        ceilings: Largest uint8 that each channel is expected to take in a kernel that adds in 16 bits, ``[K]``; None
            where the target has no such kernel.
    """

    layers: tuple[QuantizedLayer, ...]
    kind: str
    choice: InputPlan
    statistics: TensorStatistics
    transformed: tuple[float, float]
    rounding: RoundingError
    class_token: bool
    ceilings: NDArray[np.int64] | None

    def rows_and_weights(self) -> tuple[Floats, Floats]:
        """Return the transformed sample, ``[R, K]``, and what each row counts for."""
        rows, counts = self.statistics.rows_and_weights(class_token=self.class_token)
        return self.choice.transform(rows), counts

    def covariance(self) -> Floats | None:
        """Return that of the channels after the transform and before rounding, ``[K, K]``; None if it was not kept."""
        covariance = self.statistics.covariance()
        return None if covariance is None else self.choice.transform_covariance(covariance)

    def without_rows(self) -> TensorPlan:
        """Return the plan without the sample and the covariance, which nothing needs once weights are rounded."""
        return replace(self, statistics=self.statistics.without_rows())


def plan_tensors(
    layers: Sequence[QuantizedLayer],
    statistics: Mapping[str, TensorStatistics],
    settings: QuantizeSettings,
    scheme: QdqScheme,
    *,
    class_token: bool,
    images: int,
) -> tuple[TensorPlan, ...]:
    """Choose transform and quantization parameters of every input tensor; the graph stays as it is.

    Args:
        layers: Layers to quantize.
        statistics: By name of the input tensor.
        settings: Method, margin and preset.
        scheme: What the target computes.
        class_token: Whether row 0 of each image is what the head reads.
        images: How many images the statistics come from.
    """

    def plan(named: tuple[str, tuple[QuantizedLayer, ...]]) -> TensorPlan:
        name, group = named
        stats = statistics[name]
        kind = find_absorber(group).kind
        consumers = [Consumer(layer.weight(), column_importance(layer)) for layer in group]
        chooser = InputChooser(stats, consumers, settings, scheme, class_token=class_token)
        if kind in ("norm", "value") and scheme.activation != "float8_e4m3fn":
            choice = chooser.absorbed(kind)
        else:
            choice = chooser.explicit(
                shifts=kind == "gelu" and scheme.shift_after_gelu,
                rotates=kind in ("gelu", "none") and group[0].linear.role == "fc2",
                free=stats.rows <= images,
            )
        ceilings = _ceilings(choice, stats, class_token) if scheme.pair_limit else None
        rows, counts = stats.rows_and_weights(class_token=False)
        rows = choice.transform(rows)
        seen = float(rows.min()), float(rows.max())
        rounding = rounding_error(rows, choice.qparams.fake_quantize(rows), counts)
        return TensorPlan(group, kind, choice, stats, seen, rounding, class_token, ceilings)

    return tuple(map_parallel(plan, layers_by_input(layers).items()))


def rounding_error(rows: Floats, rounded: Floats, counts: Floats) -> RoundingError:
    """Return the mean squared error of rounding, and the mean square of the rows.

    Args:
        rows: Transformed rows, ``[R, K]``.
        rounded: The same rows, rounded.
        counts: What each row counts for, ``[R]``; they sum to 1.
    """
    error, energy = (np.einsum("rk,rk->r", values, values) / rows.shape[1] for values in (rounded - rows, rows))
    return float(counts @ error), float(counts @ energy)


def _ceilings(choice: InputPlan, stats: TensorStatistics, class_token: bool) -> NDArray[np.int64]:
    """Return the largest uint8 of each channel, with room for images of larger values than those of calibration.

    Kernels that take only uint8 (AVX2's) are given int8 with 128 added.
    """
    # The extremes of rotated channels are not kept: those of the sample and of the rows of largest magnitude are.
    if choice.rotation is None:
        largest = choice.transform(stats.maximum)
    else:
        largest = choice.transform(stats.rows_and_weights(class_token=class_token)[0]).max(axis=0)
    reached = np.maximum(largest, 0) * _OVERFLOW_MARGIN * stats.range_margin / choice.qparams.scale
    zero = choice.qparams.zero_point + (128 if choice.qparams.dtype == "int8" else 0)
    ceilings: NDArray[np.int64] = np.clip(np.ceil(reached) + zero, 1, 255).astype(np.int64)
    return ceilings


@dataclass(frozen=True)
class LayerPlan:
    """What a quantized layer gets.

    Attributes:
        weight: Its quantized weight.
        correction: float32 ``[N]`` added to its bias: the mean error that quantizing its input and weight causes.
        column_error: Variance of the error of an output column over the column's own, on average over columns: a
            column of massive values does not hide what the others lose.
    """

    weight: QuantizedWeight
    correction: Floats
    column_error: float


@dataclass(frozen=True)
class GraphPlan:
    """Everything that was decided about a graph.

    Attributes:
        tensors: Every activation that is quantized.
        layers: What each layer gets, by name.
        attention: Every attention that is quantized.
    """

    tensors: tuple[TensorPlan, ...]
    layers: Mapping[str, LayerPlan]
    attention: tuple[AttentionPlan, ...] = ()


def plan_layers(plans: Sequence[TensorPlan], settings: QuantizeSettings, scheme: QdqScheme) -> dict[str, LayerPlan]:
    """Quantize every weight for the inputs it will really see; the graph stays as it is.

    Args:
        plans: All tensor plans.
        settings: The preset decides how much is searched.
        scheme: What the target computes.

    Returns:
        Layer plans by layer name.
    """

    def plan_readers(plan: TensorPlan) -> dict[str, LayerPlan]:
        done = {}
        rows, counts = plan.rows_and_weights()
        rounded = plan.choice.qparams.fake_quantize(rows)
        variance, covariance = _spread(plan, rounded, counts, settings)
        few = slice(None, None, max(1, len(rows) // _ERROR_ROWS))
        for layer in plan.layers:
            weight = plan.choice.transform_weight(layer.weight())
            quantized = quantize_weight(
                weight, scheme.weight, variance=variance, covariance=covariance, ceilings=plan.ceilings
            )
            stored = quantized.dequantized()
            lost = (counts @ rows) @ weight - (counts @ rounded) @ stored
            exact = rows[few] @ weight
            error = _column_error(rounded[few] @ stored - exact, exact, counts[few] / counts[few].sum())
            done[layer.name] = LayerPlan(quantized, lost.astype(np.float32), error)
        return done

    largest = max((plan.statistics.deviation.size for plan in plans), default=0)
    found = map_parallel(plan_readers, plans, bytes_each=_COVARIANCES * 4 * largest**2)
    return {name: one for each in found for name, one in each.items()}


def _column_error(difference: Floats, exact: Floats, counts: Floats) -> float:
    noise, signal = (counts @ np.square(values - counts @ values) for values in (difference, exact))
    return float((noise / np.maximum(signal, 1e-6 * max(float(signal.max()), 1e-30))).mean())


def _spread(
    plan: TensorPlan, rounded: Floats, counts: Floats, settings: QuantizeSettings
) -> tuple[Floats | None, NDArray[np.float64] | None]:
    """Return the variances and the covariance of a rounded tensor as far as they are used."""
    if settings.preset == "fast":
        return None, None
    covariance = plan.covariance()
    if covariance is None:
        return counts @ np.square(rounded - counts @ rounded), None
    variance = np.diagonal(covariance) + plan.choice.qparams.noise_variance(counts @ np.square(rounded))
    if settings.rounding != "learned":
        return variance, None
    rounded_covariance = covariance.astype(np.float64)
    np.fill_diagonal(rounded_covariance, variance)
    return variance, rounded_covariance
