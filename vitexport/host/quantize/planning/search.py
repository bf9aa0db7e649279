"""Choosing scale, shift and range of a layer input by the error they leave in the layers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.numerics.qparams import Grid
from vitexport.host.quantize.numerics.weights import round_to_nearest

__all__ = ["InputPlan", "OutputError", "Reader", "balance", "search_absorbed", "search_fixed"]

Floats = NDArray[np.float32]

STRENGTHS = {"norm": (0.5, 0.6, 0.7, 0.8, 0.9), "value": (0.5, 0.6, 0.7, 0.8)}
"""SmoothQuant strengths tried, by what absorbs the scales: the exponent of the activation range against that of the
weight range. Attention's output has rarer extremes, which other images show in other channels: there 0.9 loses."""

RATIOS = {"norm": (1.1, 1.0, 0.9), "value": (1.2, 1.1, 1.0)}
"""Ranges tried for tensors whose channels were scaled alike, as fractions of a tenth more than the largest magnitude
seen. Every channel reaches the end of such a range, so cutting into what was seen clips them all on other images."""

FAST = {"norm": (0.8, 0.9), "value": (0.7, 1.0)}
"""(strength, range) where nothing is searched."""

ONE_SIDED_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Ranges tried after an activation function, where few channels of few tokens reach far."""

_WIDER, _NARROWEST = 1.1, 0.15


@dataclass(frozen=True)
class Reader:
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
        scale: ``[K]`` divisor of each channel, absorbed by the tensor's producer.
        shift: ``[K]`` subtracted before that.
        grid: Grid of the transformed tensor.
        error: Weighted squared error of the layer outputs on the sample, over their weighted variance.
        strength: SmoothQuant strength chosen, or None for no scaling.
        ratio: Range chosen, as a fraction of the largest magnitude seen.
    """

    scale: Floats
    shift: Floats
    grid: Grid
    error: float
    strength: float | None = None
    ratio: float = 1.0

    def transform(self, rows: Floats) -> Floats:
        """Return the transformed rows."""
        out: Floats = (rows - self.shift) / self.scale
        return out


def balance(half: Floats, readers: Sequence[Reader], strength: float) -> Floats:
    """Return SmoothQuant's channel scales (arXiv:2211.10438, equation 4) with a geometric mean of 1.

    Args:
        half: Half the range of each channel, ``[K]``, positive.
        readers: The layers whose weights take the scales.
        strength: 0 leaves the activations, 1 makes every channel's range equal.
    """
    rows = np.max([np.abs(reader.weight).max(axis=1) for reader in readers], axis=0)
    rows = np.maximum(rows, 1e-5 * max(float(rows.max()), 1e-6))
    logs = strength * np.log(np.maximum(half, 1e-8)) - (1 - strength) * np.log(rows)
    scales: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return scales


class OutputError:
    """Measures what quantizing an input loses in the outputs of its readers.

    Args:
        rows: Sampled float rows, ``[R, K]``, before any transform.
        counts: What each row counts for, ``[R]``; they sum to 1.
        readers: The layers that read the tensor.
    """

    def __init__(self, rows: Floats, counts: Floats, readers: Sequence[Reader]) -> None:
        self._counts = counts
        self._readers = readers
        self._exact = [rows @ reader.weight for reader in readers]
        energies = (
            _variance(exact, counts) @ reader.importance for exact, reader in zip(self._exact, readers, strict=True)
        )
        self._energy = max(float(sum(energies)), 1e-30)

    def of(self, rounded: Floats, scale: Floats) -> float:
        """Return the relative squared error of the outputs, means removed (bias correction restores them).

        Args:
            rounded: The transformed rows after quantization.
            scale: ``[K]`` factor of the weights' rows that undoes the transform.
        """
        error = 0.0
        for reader, exact in zip(self._readers, self._exact, strict=True):
            weight = round_to_nearest(reader.weight * scale[:, None]).dequantized()
            error += float(_variance(rounded @ weight - exact, self._counts) @ reader.importance)
        return error / self._energy


def _variance(values: Floats, counts: Floats) -> Floats:
    mean = counts @ values
    variance: Floats = counts @ np.square(values - mean)
    return variance


def search_absorbed(
    rows: Floats,
    counts: Floats,
    minimum: Floats,
    maximum: Floats,
    readers: Sequence[Reader],
    make_grid: Callable[[float], Grid],
    *,
    strengths: Sequence[float],
    ratios: Sequence[float],
    beyond: float = 1.0,
    limit: Callable[[Floats], float] | None = None,
    try_plain: bool = True,
) -> InputPlan:
    """Choose scale, shift and range of a tensor whose producer absorbs any channel scale and shift.

    Args:
        rows: Sampled rows, ``[R, K]``.
        counts: What each row counts for, ``[R]``.
        minimum: Smallest value per channel over all images.
        maximum: Largest value per channel over all images.
        readers: The layers that read the tensor.
        make_grid: From the largest magnitude to the grid.
        strengths: SmoothQuant strengths to try.
        ratios: Ranges to try at the best strength.
        beyond: How many times as far channels are expected to reach on other images.
        limit: From transformed rows to the range that ratio 1 stands for; the largest magnitude otherwise.
        try_plain: Also try no scaling at all.
    """
    middle = ((maximum + minimum) / 2).astype(np.float32)
    # A channel's extremes on other images lie further out, most of all where calibration saw next to nothing in it.
    half = np.maximum((maximum - minimum) / 2 * _WIDER * beyond, _NARROWEST * (maximum - minimum).max() / 2)
    measure = OutputError(rows, counts, readers)
    best: InputPlan | None = None

    def consider(strength: float | None, ratio: float) -> None:
        nonlocal best
        scale = np.ones_like(middle) if strength is None else balance(half, readers, strength)
        moved = (rows - middle) / scale
        amax = float((half / scale).max()) if limit is None else limit(moved)
        grid = make_grid(amax * ratio)
        error = measure.of(grid.apply(moved), scale)
        if best is None or error < best.error:
            best = InputPlan(scale, middle, grid, error, strength, ratio)

    first = ratios[len(ratios) // 2]
    for strength in (None, *strengths) if try_plain else strengths:
        consider(strength, first)
    assert best is not None
    chosen = best.strength
    for ratio in ratios:
        if ratio != first:
            consider(chosen, ratio)
    return best


def search_fixed(
    rows: Floats, counts: Floats, readers: Sequence[Reader], candidates: Sequence[tuple[float, float, Grid]]
) -> InputPlan:
    """Choose the range of a tensor that can only be shifted as a whole.

    Args:
        rows: Sampled rows, ``[R, K]``.
        counts: What each row counts for, ``[R]``.
        readers: The layers that read the tensor.
        candidates: (ratio, shift, grid) to try; the shift is a multiple of the step, so that zero stays on the grid.
    """
    ones = np.ones(rows.shape[1], dtype=np.float32)
    measure = OutputError(rows, counts, readers)
    best: InputPlan | None = None
    for ratio, shift, grid in candidates:
        error = measure.of(grid.apply(rows - np.float32(shift)), ones)
        if best is None or error < best.error:
            best = InputPlan(ones, np.full_like(ones, shift), grid, error, None, ratio)
    assert best is not None
    return best
