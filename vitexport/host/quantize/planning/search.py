"""Choosing scale, shift and range of a layer input by the error they leave in the layers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.calibration.statistics import Fold
from vitexport.host.quantize.numerics.qparams import QuantParams
from vitexport.host.quantize.numerics.rotation import Rotation
from vitexport.host.quantize.numerics.weights import round_to_nearest

__all__ = [
    "Consumer",
    "InputPlan",
    "OutputError",
    "rounded_weights",
    "search_absorbed",
    "search_explicit",
    "smoothquant_scales",
]

Floats = NDArray[np.float32]

STRENGTHS = {"norm": (0.5, 0.6, 0.7, 0.8, 0.9), "value": (0.5, 0.6, 0.7, 0.8)}
"""SmoothQuant strengths tried, by what absorbs the scales: the exponent of the activation range against that of the
weight range. Attention's output has rarer extremes, which other images show in other channels: there 0.9 loses."""

RATIOS = {"norm": (1.2, 1.1, 1.0, 0.9), "value": (1.6, 1.4, 1.2, 1.1, 1.0)}
"""Ranges tried for tensors whose channels were scaled alike, as fractions of a tenth more than the largest magnitude
seen. Every channel reaches the end of such a range, so cutting into what was seen clips them all on other images."""

FAST = {"norm": (0.8, 0.9), "value": (0.7, 1.0)}
"""(strength, range) where nothing is searched."""

ONE_SIDED_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Ranges tried after an activation function, where few channels of few tokens are large."""

TWO_SIDED_RATIOS = (1.0, 0.85, 0.7, 0.6, 0.5)
"""Ranges tried of a rotated tensor, whose few largest values are far out."""

LARGEST_PRODUCT = 8.0
"""Factor over the largest output that a product may reach in a 16-bit body, before a bias takes it back."""

_WIDER, _NARROWEST = 1.1, 0.15


@dataclass(frozen=True)
class Consumer:
    """A linear layer that reads the tensor.

    Attributes:
        weight: float32 ``[K, N]``.
        importance: float32 ``[N]`` weight of each output column's squared error.
    """

    weight: Floats
    importance: Floats


@dataclass(frozen=True)
class InputPlan:
    """What was chosen for one tensor.

    Attributes:
        channel_scale: ``[K]`` divisor of each channel, absorbed by the tensor's producer.
        shift: ``[K]`` subtracted before that.
        qparams: Of the transformed tensor.
        error: Weighted squared error of the layer outputs on the sample, over their weighted variance.
        strength: SmoothQuant strength chosen, or None for no scaling.
        ratio: Range chosen, as a fraction of the largest magnitude seen.
        rotation: Applied last, by nodes of its own, or None.
    """

    channel_scale: Floats
    shift: Floats
    qparams: QuantParams
    error: float
    strength: float | None = None
    ratio: float = 1.0
    rotation: Rotation | None = None

    def transform(self, rows: Floats) -> Floats:
        """Return the transformed rows, ``[R, K]``."""
        out: Floats = (rows - self.shift) / self.channel_scale
        return out if self.rotation is None else self.rotation.rows(out)

    def transform_weight(self, weight: Floats) -> Floats:
        """Return the weight ``[K, N]`` of a layer that reads the transformed tensor."""
        out: Floats = weight * self.channel_scale[:, None]
        return out if self.rotation is None else self.rotation.weight(out)

    def transform_covariance(self, covariance: Floats) -> Floats:
        """Return the covariance ``[K, K]`` of the transformed channels."""
        out: Floats = covariance / self.channel_scale / self.channel_scale[:, None]
        return out if self.rotation is None else self.rotation.covariance(out)


def smoothquant_scales(half_range: Floats, consumers: Sequence[Consumer], strength: float) -> Floats:
    """Return SmoothQuant's channel scales (arXiv:2211.10438, equation 4) with a geometric mean of 1.

    Args:
        half_range: Half the range of each channel, ``[K]``, positive.
        consumers: The layers whose weights take the scales.
        strength: 0 leaves the activations, 1 makes every channel's range equal.
    """
    rows = np.max([np.abs(consumer.weight).max(axis=1) for consumer in consumers], axis=0)
    rows = np.maximum(rows, 1e-5 * max(float(rows.max()), 1e-6))
    logs = strength * np.log(np.maximum(half_range, 1e-8)) - (1 - strength) * np.log(rows)
    scales: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return scales


class OutputError:
    """Measures what quantizing an input loses in the outputs of its consumers.

    Args:
        rows: Sampled float rows, ``[R, K]``, before any transform.
        counts: What each row counts for, ``[R]``; they sum to 1.
        consumers: The layers that read the tensor.
        product_noise: Variance of what storing a product loses, over the product's square; 0 for float32.
    """

    def __init__(
        self, rows: Floats, counts: Floats, consumers: Sequence[Consumer], *, product_noise: float = 0.0
    ) -> None:
        self._counts = counts
        self._consumers = consumers
        self._product_noise = product_noise
        self._exact = [rows @ consumer.weight for consumer in consumers]
        energies = (
            _variance(exact, counts) @ consumer.importance
            for exact, consumer in zip(self._exact, consumers, strict=True)
        )
        self._energy = max(float(sum(energies)), 1e-30)

    def of(self, rounded: Floats, weights: Sequence[Floats]) -> float:
        """Return the relative squared error of the outputs, means removed (bias correction restores them).

        It is infinite where the body has 16 bits and a product exceeds its output by an order of magnitude.

        Args:
            rounded: The transformed rows after quantization.
            weights: Of each consumer, ``[K, N]``, transformed and rounded.
        """
        error = 0.0
        for consumer, exact, weight in zip(self._consumers, self._exact, weights, strict=True):
            product = rounded @ weight
            lost = _variance(product - exact, self._counts)
            if self._product_noise:
                # A large shift makes products that the bias takes back: their rounding stays.
                if np.abs(product).max() > LARGEST_PRODUCT * max(float(np.abs(exact).max()), 1e-30):
                    return np.inf
                lost += np.float32(self._product_noise) * (self._counts @ np.square(product))
            error += float(lost @ consumer.importance)
        return error / self._energy


def rounded_weights(consumers: Sequence[Consumer], transform: Callable[[Floats], Floats]) -> list[Floats]:
    """Return the weights of a transformed input's consumers after rounding to 8 bits."""
    return [round_to_nearest(transform(consumer.weight)).dequantized() for consumer in consumers]


def _variance(values: Floats, counts: Floats) -> Floats:
    mean = counts @ values
    variance: Floats = counts @ np.square(values - mean)
    return variance


@dataclass(frozen=True)
class _Reach:
    """How far the channels of a tensor are expected to reach, ``[K]`` each: where, and how far to either side."""

    centre: Floats
    half_range: Floats

    @classmethod
    def of(cls, minimum: Floats, maximum: Floats, range_margin: float) -> _Reach:
        seen = (maximum - minimum) / 2
        # A channel's extremes on other images lie further out, most of all where calibration saw next to nothing in it.
        # How far a massive activation reaches says nothing of the other channels.
        narrowest = min(_NARROWEST * float(seen.max()), float(np.median(seen)))
        half_range = np.maximum(seen * _WIDER * range_margin, narrowest)
        return cls(((maximum + minimum) / 2).astype(np.float32), half_range.astype(np.float32))

    def scale(self, consumers: Sequence[Consumer], strength: float | None) -> Floats:
        if strength is None:
            return np.ones_like(self.centre)
        return smoothquant_scales(self.half_range, consumers, strength)

    def amax(self, scale: Floats, middle: Floats) -> float:
        return float(((self.half_range + np.abs(self.centre - middle)) / scale).max())


def search_absorbed(
    minimum: Floats,
    maximum: Floats,
    folds: Sequence[Fold],
    consumers: Sequence[Consumer],
    make_qparams: Callable[[float], QuantParams],
    *,
    strengths: Sequence[float],
    ratios: Sequence[float],
    range_margin: float = 1.0,
    threshold: Callable[[Floats], float] | None = None,
    try_plain: bool = True,
    product_noise: float = 0.0,
) -> InputPlan:
    """Choose scale, shift and range of a tensor whose producer absorbs any channel scale and shift.

    A candidate is judged on images that its ranges were not made from: half of them makes scale and range, the other
    half shows the error, and the other way round. On the very images no range ever clips, and on others some do: 45 %
    of images reach beyond what 96 others showed of attention's late outputs, and a few of those twice as far.

    Args:
        minimum: Smallest value per channel over all images.
        maximum: Largest value per channel over all images.
        folds: Of the images.
        consumers: The layers that read the tensor.
        make_qparams: From the largest magnitude to quantization parameters.
        strengths: SmoothQuant strengths to try.
        ratios: Ranges to try at the best strength.
        range_margin: Factor by which channels are expected to exceed these extremes on other images.
        threshold: From transformed rows to the clipping threshold that ratio 1 stands for; else the largest magnitude.
        try_plain: Also try no scaling at all.
        product_noise: See :class:`OutputError`.
    """
    reach = _Reach.of(minimum, maximum, range_margin)
    halves = [
        (
            fold.rows,
            _Reach.of(fold.minimum, fold.maximum, range_margin),
            OutputError(fold.rows, fold.counts, consumers, product_noise=product_noise),
        )
        for fold in folds
    ]
    scaled: dict[float | None, list[tuple[Floats, list[Floats]]]] = {}
    best: InputPlan | None = None

    def parameters(rows: Floats, one: _Reach, scale: Floats, ratio: float, middle: Floats) -> QuantParams:
        amax = one.amax(scale, middle) if threshold is None else threshold((rows - middle) / scale)
        return make_qparams(amax * ratio)

    def error_of(strength: float | None, ratio: float, *, shifts: bool) -> float:
        error = 0.0
        if strength not in scaled:
            scales = [one.scale(consumers, strength) for _, one, _ in halves]
            scaled[strength] = [
                (scale, [round_to_nearest(reader.weight * scale[:, None]).dequantized() for reader in consumers])
                for scale in scales
            ]
        for (rows, one, output_error), (scale, weights) in zip(halves, scaled[strength], strict=True):
            middle = one.centre if shifts else np.zeros_like(one.centre)
            rounded = parameters(rows, one, scale, ratio, middle).fake_quantize((rows - middle) / scale)
            error += output_error.of(rounded, weights) / len(halves)
        return error

    def consider(strength: float | None, ratio: float, *, shifts: bool) -> None:
        nonlocal best
        error = error_of(strength, ratio, shifts=shifts)
        if best is None or error < best.error:
            scale, middle = reach.scale(consumers, strength), reach.centre if shifts else np.zeros_like(reach.centre)
            rows = np.concatenate([rows for rows, _, _ in halves])
            best = InputPlan(scale, middle, parameters(rows, reach, scale, ratio, middle), error, strength, ratio)

    first = ratios[len(ratios) // 2]
    for shifts in (True, False):
        for strength in (None, *strengths) if try_plain else strengths:
            consider(strength, first, shifts=shifts)
        assert best is not None
        chosen = best.strength
        for ratio in ratios:
            if ratio != first:
                consider(chosen, ratio, shifts=shifts)
        if np.isfinite(best.error):
            break
    assert best is not None
    return best


def search_explicit(
    rows: Floats,
    output_error: OutputError,
    consumers: Sequence[Consumer],
    candidates: Iterable[tuple[float, float, QuantParams]],
    rotation: Rotation | None = None,
) -> InputPlan | None:
    """Choose shift and range of a tensor whose producer can absorb nothing; None where every error is infinite.

    Args:
        rows: Sampled rows, ``[R, K]``, shifted by nothing and rotated.
        output_error: Of the rows before any transform.
        consumers: The layers that read the tensor.
        candidates: (ratio, shift, qparams) to try, from wide to narrow: the search ends where the error grows. The
            shift is a multiple of the scale, so that zero stays exact.
        rotation: What rotated the rows.
    """
    ones = np.ones(rows.shape[1], dtype=np.float32)
    transform = (lambda weight: weight) if rotation is None else rotation.weight
    weights = rounded_weights(consumers, transform)
    best: InputPlan | None = None
    for ratio, shift, qparams in candidates:
        error = output_error.of(qparams.fake_quantize(rows - np.float32(shift)), weights)
        if not np.isfinite(error):
            continue
        if best is not None and error >= best.error:
            break
        best = InputPlan(ones, np.full_like(ones, shift), qparams, error, None, ratio, rotation)
    return best
