"""Range estimators: the clipping threshold of a histogram by max, percentile, KL divergence or squared error."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILE", "Method", "clipping_threshold", "magnitudes"]

Method = Literal["max", "percentile", "entropy", "mse"]

PERCENTILE = 99.999
"""Fraction of magnitudes, in percent, that the ``percentile`` method keeps inside the range."""

_LEVELS = 128
_CANDIDATES = 64


def magnitudes(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Fold a histogram over ``[-bound, bound)`` into one of magnitudes over ``[0, bound)``."""
    middle = len(histogram) // 2
    return histogram[middle:] + histogram[:middle][::-1]


def clipping_threshold(counts: NDArray[np.generic], bound: float, amax: float, method: Method) -> float:
    """Return the largest magnitude that is represented without clipping.

    Args:
        counts: Histogram of magnitudes over ``[0, bound)``.
        bound: Upper edge of the last bin.
        amax: Largest magnitude seen.
        method: ``max``; ``percentile``; ``entropy``, the threshold whose 128-level histogram is nearest to the original
            in KL divergence (as in NVIDIA's "8-bit inference with TensorRT", GTC 2017); ``mse``, the least expected
            squared error.
    """
    density = np.asarray(counts, dtype=np.float64)
    width = bound / len(density)
    if method == "max" or amax <= 0 or not density.any():
        return amax
    if method == "percentile":
        enough = np.cumsum(density) / density.sum() >= PERCENTILE / 100
        return min(amax, float((np.argmax(enough) + 1) * width))
    last = max(int(np.ceil(amax / width)), _LEVELS)
    ends = np.unique(np.linspace(min(_LEVELS, last), last, _CANDIDATES).round().astype(int))
    cost = _divergence if method == "entropy" else _squared_error
    costs = [cost(density[:last], int(end)) for end in ends]
    return min(amax, float(ends[int(np.argmin(costs))] * width))


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """Return KL(P || Q) of the counts clipped at ``end`` and their merging into 128 levels."""
    reference = counts[:end].copy()
    reference[-1] += counts[end:].sum()
    levels = np.minimum(np.arange(end) * _LEVELS // end, _LEVELS - 1)
    present = counts[:end] > 0
    sums = np.bincount(levels, weights=counts[:end], minlength=_LEVELS)
    members = np.bincount(levels, weights=present, minlength=_LEVELS)
    merged = np.where(present, sums[levels] / np.maximum(members[levels], 1), 0.0)
    p, q = reference / reference.sum(), merged / max(merged.sum(), 1e-30)
    used = p > 0
    # A bin that clipping filled and merging left empty would be infinite; a small floor keeps it comparable.
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-9))))


def _squared_error(counts: NDArray[np.float64], end: int) -> float:
    """Return the expected squared error, in bins, of clipping at ``end`` and rounding at a scale of ``end / 127``."""
    centres = np.arange(len(counts)) + 0.5
    clipped = np.maximum(centres - end, 0.0)
    scale = end / (_LEVELS - 1)
    return float(counts @ (clipped**2)) + float(counts[:end].sum()) * scale**2 / 12
