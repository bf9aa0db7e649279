"""Rounding weights to 8 bits, a scale per output channel: clipping search, learned rounding, kernels that saturate."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.grid import E4M3_MAX, QuantizedWeight

__all__ = ["PAIR_LIMIT", "quantize_weight", "round_learned", "round_to_nearest", "saturating_pairs"]

Floats = NDArray[np.float32]

PAIR_LIMIT = 128
"""Largest magnitude of two neighbouring weights of one sign: 255 * 128 still fits the int16 that AVX2's vpmaddubsw adds
two products in."""

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_PAIR_CLIPS = (1.4, 1.25, 1.1, 1.0, 0.9, 0.8)


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
    energy: Floats | None = None,
    gram: NDArray[np.float64] | None = None,
    pairs: bool = False,
) -> QuantizedWeight:
    """Quantize ``[K, N]`` per output channel.

    Args:
        weight: float32 ``[K, N]``.
        dtype: ``int8`` or ``float8_e4m3fn``.
        energy: Variance of each input channel, ``[K]``; given, every channel's range is chosen by its output error.
        gram: Covariance of the inputs, ``[K, K]``; given, rounding errors are compensated by later weights (GPTQ).
        pairs: Keep neighbouring weights of one sign below :data:`PAIR_LIMIT` together.
    """
    if dtype == "float8_e4m3fn":
        scale = _storable(_full_scale(weight) * np.float32(127 / E4M3_MAX))
        return QuantizedWeight((weight / scale).astype(ml_dtypes.float8_e4m3fn), scale)
    scale = _full_scale(weight)
    if energy is not None or pairs:
        scale = scale * _best_clips(weight, scale, energy, _PAIR_CLIPS if pairs else _CLIPS, pairs)
    scale = _storable(scale)
    if gram is not None:
        return QuantizedWeight(round_learned(weight, scale, gram, pairs=pairs), scale)
    return QuantizedWeight(_round(weight, scale, pairs), scale)


def _full_scale(weight: Floats) -> Floats:
    amax = np.abs(weight).max(axis=0)
    scale: Floats = np.where(amax > 0, amax / 127, 1.0).astype(np.float32)
    return scale


def _storable(scale: Floats) -> Floats:
    """Put scales that float16 holds only as subnormals, or as zero, on its grid of 2^-24, before weights are rounded.

    A folded LayerScale leaves channels of tiny weights, whose scale became zero in float16: TensorRT refuses that.
    """
    grid: Floats = np.maximum(np.ceil(scale * 2.0**24), 1.0).astype(np.float32) * np.float32(2.0**-24)
    stored: Floats = np.where(scale < 2.0**-14, grid, scale)
    return stored


def _round(weight: Floats, scale: Floats, pairs: bool) -> NDArray[np.int8]:
    values = np.clip(np.rint(weight / scale), -127, 127)
    if pairs and len(values) > 1:
        even = len(values) // 2 * 2
        first, second = values[0:even:2], values[1:even:2]
        excess = np.where(np.sign(first) == np.sign(second), np.abs(first) + np.abs(second) - PAIR_LIMIT, 0)
        excess = np.maximum(excess, 0)
        # Both move towards zero by half of the excess: the least squared error that meets the limit.
        first -= np.sign(first) * np.ceil(excess / 2)
        second -= np.sign(second) * np.floor(excess / 2)
    rounded: NDArray[np.int8] = values.astype(np.int8)
    return rounded


def _best_clips(weight: Floats, scale: Floats, energy: Floats | None, ratios: Sequence[float], pairs: bool) -> Floats:
    """Return the ratio per output channel with the least weighted squared error."""
    weights = np.ones(len(weight), dtype=np.float32) if energy is None else energy
    errors = []
    for ratio in ratios:
        tried = scale * np.float32(ratio)
        left = _round(weight, tried, pairs) * tried - weight
        errors.append(weights @ np.square(left))
    chosen: Floats = np.asarray(ratios, dtype=np.float32)[np.argmin(errors, axis=0)]
    return chosen


def round_learned(
    weight: Floats, scale: Floats, gram: NDArray[np.float64], *, pairs: bool = False, damping: float = 0.02
) -> NDArray[np.int8]:
    """Round row by row, each rounding error made up for by the rows still to come (GPTQ, arXiv:2210.17323).

    Args:
        weight: float32 ``[K, N]``.
        scale: float32 ``[N]``.
        gram: Covariance of the quantized inputs, ``[K, K]``.
        pairs: Keep neighbouring weights of one sign below :data:`PAIR_LIMIT` together.
        damping: Added to the diagonal, as a fraction of its mean.

    Returns:
        int8 ``[K, N]``.
    """
    rows = len(weight)
    diagonal = np.diagonal(gram)
    order = np.arange(rows)
    if not pairs:
        order = np.argsort(-diagonal, kind="stable")
    damped = gram[np.ix_(order, order)] + np.eye(rows) * (damping * max(float(diagonal.mean()), 1e-12))
    # The upper Cholesky factor of the inverse: row i holds how an error in row i spreads to the later rows.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = (weight[order] / scale).astype(np.float32)
    values = np.empty_like(left)
    block = 64
    for start in range(0, rows, block):
        end = min(start + block, rows)
        errors = np.empty((end - start, left.shape[1]), dtype=np.float32)
        for row in range(start, end):
            low, high = -127.0, 127.0
            bounds = (low, high)
            rounded = np.rint(left[row])
            if pairs and row % 2:
                before = values[row - 1]
                np.clip(
                    rounded,
                    np.maximum(low, np.maximum(-before, 0) - PAIR_LIMIT),
                    np.minimum(high, PAIR_LIMIT - np.maximum(before, 0)),
                    out=rounded,
                )
            else:
                np.clip(rounded, *bounds, out=rounded)
            values[row] = rounded
            error = (left[row] - rounded) / factor[row, row]
            errors[row - start] = error
            left[row + 1 : end] -= factor[row, row + 1 : end, None] * error
        left[end:] -= factor[start:end, end:].T @ errors
    result = np.empty_like(values)
    result[order] = values
    return result.astype(np.int8)


def saturating_pairs(values: NDArray[np.int8]) -> int:
    """Return how many neighbouring pairs along K could overflow 16 bits in ``vpmaddubsw``."""
    even = len(values) // 2 * 2
    first, second = values[0:even:2].astype(np.int32), values[1:even:2].astype(np.int32)
    worst = np.maximum(np.maximum(first, 0) + np.maximum(second, 0), np.maximum(-first, 0) + np.maximum(-second, 0))
    return int((worst > PAIR_LIMIT).sum())
