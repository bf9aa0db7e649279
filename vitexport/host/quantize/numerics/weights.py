"""Rounding weights to 8 bits, a scale per output channel: clipping search, GPTQ, kernels that saturate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.numerics.qparams import E4M3_MAX, QuantizedWeight

__all__ = ["quantize_weight", "round_gptq", "round_to_nearest", "saturating_pairs"]

Floats = NDArray[np.float32]

_INT16 = 32767
"""What AVX2's vpmaddubsw, which adds two neighbouring uint8 x int8 products in 16 bits, can hold."""

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)

_SMALL = 64
"""Size of a triangular matrix that is inverted at once."""

_PHASES = tuple(float(2 ** (step / 8)) for step in range(8))
"""Factors of a float8 scale within one binade: what they move is where the numbers fall between powers of two."""


def round_to_nearest(weight: Floats, ratio: float = 1.0) -> QuantizedWeight:
    """Quantize ``[K, N]`` to int8 symmetrically per output channel, rounding half to even.

    Args:
        weight: float32 ``[K, N]``.
        ratio: Range as a fraction of each channel's largest magnitude.
    """
    scale = _storable(_full_scale(weight) * np.float32(ratio))
    values = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return QuantizedWeight(values, scale)


def quantize_weight(
    weight: Floats,
    dtype: str,
    *,
    variance: Floats | None = None,
    covariance: NDArray[np.float64] | None = None,
    ceilings: NDArray[np.integer[Any]] | None = None,
) -> QuantizedWeight:
    """Quantize ``[K, N]`` per output channel.

    Args:
        weight: float32 ``[K, N]``.
        dtype: ``int8`` or ``float8_e4m3fn``.
        variance: Of each input channel, ``[K]``; given, every channel's range is chosen by its output error.
        covariance: Of the inputs, ``[K, K]``; given, rounding errors are compensated by later weights (GPTQ).
        ceilings: Largest uint8 of each input channel, ``[K]``; given, no two neighbouring products
            overflow 16 bits below them.
    """
    is_float = dtype == "float8_e4m3fn"
    rounding = _to_float8 if is_float else _to_int8
    scale = _full_scale(weight) * np.float32(127 / E4M3_MAX if is_float else 1)
    if variance is not None:
        scale = scale * _best_factors(weight, scale, variance, _PHASES if is_float else _CLIPS, rounding)
    if ceilings is not None:
        scale = np.maximum(scale, _pair_scale(np.clip(weight, -127 * scale, 127 * scale), ceilings))
    scale = _storable(scale)
    if covariance is not None:
        values = round_gptq(weight, scale, covariance, ceilings=ceilings, rounding=rounding)
    elif is_float:
        values = _to_float8(weight / scale)
    else:
        values = _round(weight, scale, ceilings).astype(np.float32)
    return QuantizedWeight(values.astype(ml_dtypes.float8_e4m3fn if is_float else np.int8), scale)


def _to_int8(scaled: Floats) -> Floats:
    """Return the integers nearest to scaled weights, as float32."""
    rounded: Floats = np.clip(np.rint(scaled), -127.0, 127.0)
    return rounded


def _to_float8(scaled: Floats) -> Floats:
    """Return the float8 E4M3 numbers nearest to scaled weights, as float32."""
    rounded: Floats = np.clip(scaled, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return rounded


def _full_scale(weight: Floats) -> Floats:
    amax = np.abs(weight).max(axis=0)
    scale: Floats = np.where(amax > 0, amax / 127, 1.0).astype(np.float32)
    return scale


def _storable(scale: Floats) -> Floats:
    """Put scales that float16 holds only as subnormals, or as zero, on multiples of 2^-24, before weights are rounded.

    A folded LayerScale leaves channels of tiny weights, whose scale became zero in float16: TensorRT refuses that.
    """
    multiples: Floats = np.maximum(np.ceil(scale * 2.0**24), 1.0).astype(np.float32) * np.float32(2.0**-24)
    stored: Floats = np.where(scale < 2.0**-14, multiples, scale)
    return stored


def _round(weight: Floats, scale: Floats, ceilings: NDArray[np.integer[Any]] | None) -> NDArray[np.int8]:
    values = np.clip(np.rint(weight / scale), -127, 127)
    if ceilings is not None and len(values) > 1:
        even = len(values) // 2 * 2
        first, second = values[0:even:2], values[1:even:2]
        one, other = (ceilings[part:even:2].astype(np.float32)[:, None] for part in (0, 1))
        same = np.sign(first) == np.sign(second)
        excess = np.where(same, np.abs(first) * one + np.abs(second) * other - _INT16, 0)
        multiplier = np.maximum(excess, 0) / np.square([one, other]).sum(axis=0)
        # Both move towards zero along the constraint's normal: the least squared error that meets it.
        first -= np.sign(first) * np.ceil(multiplier * one)
        second -= np.sign(second) * np.ceil(multiplier * other)
    rounded: NDArray[np.int8] = values.astype(np.int8)
    return rounded


def _best_factors(
    weight: Floats, scale: Floats, variance: Floats, factors: Sequence[float], rounding: Callable[[Floats], Floats]
) -> Floats:
    """Return the factor of each output channel's scale with the least weighted squared error."""
    errors = []
    for factor in factors:
        tried = scale * np.float32(factor)
        errors.append(variance @ np.square(rounding(weight / tried) * tried - weight))
    chosen: Floats = np.asarray(factors, dtype=np.float32)[np.argmin(errors, axis=0)]
    return chosen


def _pair_scale(weight: Floats, ceilings: NDArray[np.integer[Any]]) -> Floats:
    """Return the smallest scale per output channel at which no pair of neighbouring products overflows 16 bits.

    A larger scale for the whole channel loses far less than moving the few weights that overflow: on DeiT-Tiny 1.5
    times the error of unlimited weights, where moving them, within 5 % of this scale, loses 6 times.
    """
    even = len(weight) // 2 * 2
    products = weight * ceilings.astype(np.float32)[:, None]
    first, second = products[0:even:2], products[1:even:2]
    same = np.sign(first) == np.sign(second)
    worst = np.where(same, np.abs(first + second), np.maximum(np.abs(first), np.abs(second)))
    scale: Floats = (worst.max(axis=0, initial=0.0) / np.float32(_INT16)).astype(np.float32)
    return scale


def round_gptq(
    weight: Floats,
    scale: Floats,
    covariance: NDArray[np.float64],
    *,
    ceilings: NDArray[np.integer[Any]] | None = None,
    rounding: Callable[[Floats], Floats] = _to_int8,
    damping: float = 0.02,
) -> Floats:
    """Round row by row, each rounding error made up for by the rows still to come (GPTQ, arXiv:2210.17323).

    Args:
        weight: float32 ``[K, N]``.
        scale: float32 ``[N]``.
        covariance: Covariance of the quantized inputs, ``[K, K]``.
        ceilings: Largest uint8 of each input channel, ``[K]``; given, no two neighbouring products
            overflow 16 bits below them.
        rounding: To the numbers that can be stored.
        damping: Added to the diagonal, as a fraction of its mean; more where the matrix is not positive definite.

    Returns:
        float32 ``[K, N]`` of such numbers.
    """
    rows = len(weight)
    diagonal = np.diagonal(covariance)
    order = np.argsort(-diagonal, kind="stable") if ceilings is None else _paired_order(diagonal)
    factor = _inverse_factor(covariance[np.ix_(order, order)], damping)
    left = (weight[order] / scale).astype(np.float32)
    values = np.empty_like(left)
    block = 32
    for start in range(0, rows, block):
        end = min(start + block, rows)
        errors = np.empty((end - start, left.shape[1]), dtype=np.float32)
        for row in range(start, end):
            rounded = rounding(left[row])
            if ceilings is not None and row % 2:
                before, (one, other) = values[row - 1], ceilings[order[row - 1 : row + 1]].astype(np.float32)
                room = [np.floor((_INT16 - np.maximum(sign * before, 0) * one) / other) for sign in (-1, 1)]
                rounded = np.clip(rounded, -room[0], room[1])
            values[row] = rounded
            error = (left[row] - rounded) / factor[row, row]
            errors[row - start] = error
            left[row + 1 : end] -= factor[row, row + 1 : end, None] * error
        left[end:] -= factor[start:end, end:].T @ errors
    result = np.empty_like(values)
    result[order] = values
    return result


def _inverse_factor(covariance: NDArray[np.float64], damping: float) -> Floats:
    """Return the upper Cholesky factor of the inverse: row i holds how an error in row i spreads to the later rows.

    Correlations of fewer rows than channels, kept in 16 bits, may not be positive definite: damping grows until they
    are.
    """
    diagonal = np.diagonal(covariance)
    while True:
        damped = covariance + np.diag(damping * (diagonal + max(float(diagonal.mean()), 1e-12)))
        try:
            # Of the matrix read backwards, C = R R^T with R upper triangular, and C^-1 = R^-T R^-1.
            upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
            factor: Floats = _invert_upper(upper).astype(np.float32)
        except np.linalg.LinAlgError:
            damping *= 4
            continue
        return factor


def _invert_upper(upper: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the inverse of an upper triangular matrix, half by half: a sixth of what a general inverse computes."""
    size = len(upper)
    if size <= _SMALL:
        return np.linalg.inv(upper)
    half = size // 2
    first, last = _invert_upper(upper[:half, :half]), _invert_upper(upper[half:, half:])
    inverse = np.zeros_like(upper)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -first @ (upper[:half, half:] @ last)
    return inverse


def _paired_order(diagonal: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return rows by falling variance, neighbours (2i, 2i + 1) together and in order; a row without one comes last."""
    even = len(diagonal) // 2 * 2
    first = np.argsort(-(diagonal[0:even:2] + diagonal[1:even:2]), kind="stable") * 2
    order: NDArray[np.intp] = np.stack([first, first + 1], axis=1).reshape(-1)
    return np.concatenate([order, np.arange(even, len(diagonal))])


def saturating_pairs(values: NDArray[np.int8], ceilings: NDArray[np.integer[Any]] | int = 255) -> int:
    """Return how many neighbouring pairs along K can overflow 16 bits in ``vpmaddubsw``.

    Args:
        values: int8 weight ``[K, N]``.
        ceilings: Largest uint8 of each input channel, ``[K]``, or one for all.
    """
    even = len(values) // 2 * 2
    products = values.astype(np.int64) * np.broadcast_to(ceilings, len(values))[:, None]
    first, second = products[0:even:2], products[1:even:2]
    worst = np.maximum(np.maximum(first, 0) + np.maximum(second, 0), np.maximum(-first, 0) + np.maximum(-second, 0))
    return int((worst > _INT16).sum())
