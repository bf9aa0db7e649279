"""Choosing how an activation is transformed and quantized: by which search, over which ranges, scaled or rotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vitexport.host.graph.hadamard import ROTATION_SIZES
from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.numerics.qparams import QuantParams, asymmetric_qparams, symmetric_qparams
from vitexport.host.quantize.numerics.range_estimators import Method, clipping_threshold, magnitudes
from vitexport.host.quantize.numerics.rotation import Rotation
from vitexport.host.quantize.planning.search import (
    FAST,
    ONE_SIDED_RATIOS,
    RATIOS,
    STRENGTHS,
    TWO_SIDED_RATIOS,
    Consumer,
    InputPlan,
    OutputError,
    search_absorbed,
    search_explicit,
)
from vitexport.host.quantize.planning.taming import taming_scales
from vitexport.host.quantize.scheme import QdqScheme
from vitexport.recipe.settings import QuantizeSettings

__all__ = ["InputChooser"]

Floats = NDArray[np.float32]

_BINS = 2048
"""Histogram bins of a tensor's transformed magnitudes."""

_FAST_RATIO = 0.7
"""Range after an activation function where nothing is searched, as a fraction of the largest magnitude seen."""


class InputChooser:
    """Chooses transform and quantization parameters of one tensor.

    Args:
        stats: Of the tensor.
        consumers: The layers that read it.
        settings: Method, margin, preset and rotation.
        scheme: What the target computes.
        class_token: Whether row 0 of each image is what the head reads.
    """

    def __init__(
        self,
        stats: TensorStatistics,
        consumers: Sequence[Consumer],
        settings: QuantizeSettings,
        scheme: QdqScheme,
        *,
        class_token: bool,
    ) -> None:
        self._stats = stats
        self._consumers = consumers
        self._settings = settings
        self._scheme = scheme
        self._class_token = class_token
        self._rows, self._counts = stats.rows_and_weights(class_token=class_token)
        self._fast = settings.preset == "fast"
        self._searched = settings.method == "auto"
        self._method: Method = "max" if settings.method == "auto" else settings.method
        self._margin = 1.0 + (settings.margin or 0.0)

    def absorbed(self, kind: str) -> InputPlan:
        """Choose for a tensor whose producer absorbs any channel scale and shift.

        Args:
            kind: ``norm`` or ``value``.
        """
        strength, ratio = FAST[kind]
        ratios: Sequence[float] = (ratio,) if self._fast else RATIOS[kind]
        return search_absorbed(
            self._stats.minimum,
            self._stats.maximum,
            self._stats.folds(class_token=self._class_token),
            self._consumers,
            self._symmetric,
            strengths=(strength,) if self._fast else STRENGTHS[kind],
            ratios=ratios if self._searched else (1.0,),
            range_margin=self._stats.range_margin,
            threshold=None if self._method == "max" else self._threshold,
            try_plain=not self._fast,
            product_noise=self._scheme.product_noise,
        )

    def explicit(self, *, shifts: bool, rotates: bool, free: bool) -> InputPlan:
        """Choose for a tensor whose producer absorbs nothing: scale, shift and rotation take nodes of their own.

        Args:
            shifts: Whether a constant may be subtracted.
            rotates: Whether it may be rotated.
            free: Whether so few rows are computed that such nodes cost nothing.
        """
        asked = {"auto": ROTATION_SIZES, "none": ()}.get(self._settings.rotate)
        sizes = ((int(self._settings.rotate),) if asked is None else asked) if rotates else ()
        minimum, maximum = self._stats.minimum, self._stats.maximum
        ones = np.ones_like(minimum)
        plans = self._scaled(ones, sizes, shifts=shifts)
        if asked is None:
            return plans[-1]
        if self._searched and not self._fast and self._scheme.activation != "float8_e4m3fn":
            for scale in taming_scales(np.maximum(-minimum, maximum), self._consumers):
                plans += self._scaled(scale, sizes, shifts=shifts)
        return min(plans, key=lambda plan: self._priced(plan, free=free))

    def _scaled(self, scale: Floats, sizes: Sequence[int], *, shifts: bool) -> list[InputPlan]:
        """Return plans of the tensor over some channel scales: the best without rotation, then one for each size."""
        rows = self._rows / scale
        low, high = float((self._stats.minimum / scale).min()), float((self._stats.maximum / scale).max())
        consumers = [Consumer(one.weight * scale[:, None], one.importance) for one in self._consumers]
        error = OutputError(rows, self._counts, consumers, product_noise=self._scheme.product_noise)
        plain = search_explicit(rows, error, consumers, self._unrotated(low, high, shifts=shifts))
        if plain is None:  # every shift makes products far beyond the output
            error = OutputError(rows, self._counts, consumers)
            plain = search_explicit(rows, error, consumers, self._unrotated(low, high, shifts=False))
        assert plain is not None
        plans = [plain]
        for size in sizes:
            if rows.shape[1] % size == 0:
                rotation = Rotation(size)
                rotated = rotation.rows(rows)
                plan = search_explicit(rotated, error, consumers, self._rotated(rotated), rotation)
                plans += [] if plan is None else [plan]
        return [replace(plan, channel_scale=scale, shift=plan.shift * scale) for plan in plans]

    def _priced(self, plan: InputPlan, *, free: bool) -> float:
        """Return a plan's error in dB with the price of its nodes on it."""
        price = 0.0 if plan.rotation is None else self._scheme.rotation_price_db[plan.rotation.size]
        if np.any(plan.channel_scale != 1):
            price += self._scheme.scaling_price_db
        return 10 * float(np.log10(max(plan.error, 1e-30))) + (0.0 if free else price)

    def _symmetric(self, amax: float) -> QuantParams:
        return symmetric_qparams(
            amax * self._margin, self._scheme.activation, float16_scale=self._scheme.float16_scales
        )

    def _threshold(self, rows: Floats) -> float:
        """Return the clipping threshold that the method chooses for transformed rows."""
        absolute = np.abs(rows)
        amax = float(absolute.max())
        bound = amax * (1 + 1e-6) or 1.0
        weights = np.broadcast_to(self._counts[:, None], rows.shape)
        histogram, _ = np.histogram(absolute, bins=_BINS, range=(0, bound), weights=weights)
        return clipping_threshold(histogram, bound, amax, self._method)

    def _ratios(self, tried: Sequence[float]) -> list[float]:
        if self._scheme.activation == "float8_e4m3fn":
            return [1.0]  # floating point keeps its relative precision everywhere: a clipped range gains nothing
        if not self._searched:
            return [1.0]
        return [ratio * self._stats.range_margin for ratio in ((_FAST_RATIO,) if self._fast else tried)]

    def _unrotated(self, low: float, high: float, *, shifts: bool) -> list[tuple[float, float, QuantParams]]:
        if self._method != "max":
            stats = self._stats
            threshold = clipping_threshold(magnitudes(stats.histogram), stats.bound, stats.amax, self._method)
            low, high = max(low, -threshold), min(high, threshold)
        ratios = self._ratios(ONE_SIDED_RATIOS)
        return [
            (ratio, *_one_sided(low, high, ratio * self._margin, shifts=shifts, scheme=self._scheme))
            for ratio in ratios
        ]

    def _rotated(self, rows: Floats) -> list[tuple[float, float, QuantParams]]:
        """Return candidates for a rotated tensor: it reaches as far on either side, and both are clipped alike."""
        amax = float(np.abs(rows).max()) if self._method == "max" else self._threshold(rows)
        found = []
        for ratio in self._ratios(TWO_SIDED_RATIOS):
            if self._scheme.activation == "uint8":
                reach = amax * ratio * self._margin
                found.append((ratio, 0.0, asymmetric_qparams(-reach, reach, float16_scale=self._scheme.float16_scales)))
            else:
                found.append((ratio, 0.0, self._symmetric(amax * ratio)))
        return found


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
