"""Interpolation as ``torch.nn.functional.interpolate(align_corners=False)`` does it, without PyTorch.

Both kinds are separable: a row of the result is a weighted sum of a few rows, then of a few columns. Sources: PyTorch's
``aten/src/ATen/native/UpSample.h`` for the positions; R. Keys, "Cubic convolution interpolation for digital image
processing" (1981), with PyTorch's a = -0.75, for the cubic weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitexport.tensors import Array

__all__ = ["Resampling", "resample"]

Kernel = Literal["bilinear", "bicubic"]
Floats = NDArray[np.float32]

_A = -0.75


@dataclass(frozen=True)
class _Taps:
    """Which inputs each output is made of: ``[outputs, taps]`` positions and weights."""

    positions: NDArray[np.intp]
    weights: Floats


class Resampling:
    """Planes ``[C, h, w]`` brought to another size, a strip of rows at a time, so that memory is bounded.

    Args:
        planes: float32 ``[C, h, w]``.
        size: (height, width) of the result, in pixels.
        kernel: ``bilinear`` or ``bicubic``.
    """

    def __init__(self, planes: Array, size: tuple[int, int], kernel: Kernel) -> None:
        self._planes = np.asarray(planes, dtype=np.float32)
        self._rows = _taps(self._planes.shape[1], size[0], kernel)
        self._columns = _taps(self._planes.shape[2], size[1], kernel)

    def strip(self, start: int, end: int) -> Floats:
        """Return the rows from ``start`` up to ``end`` of the result: ``[C, end - start, width]``."""
        rows = _Taps(self._rows.positions[start:end], self._rows.weights[start:end])
        return _apply(_apply(self._planes, rows, 1), self._columns, 2)


def resample(planes: Array, size: tuple[int, int], kernel: Kernel) -> Floats:
    """Return planes ``[C, h, w]`` at another (height, width) in pixels, all at once."""
    return Resampling(planes, size, kernel).strip(0, size[0])


def _apply(planes: Floats, taps: _Taps, axis: int) -> Floats:
    shape = (-1, 1) if axis == 1 else (-1,)
    parts = zip(taps.positions.T, taps.weights.T, strict=True)
    total: Floats | None = None
    for positions, weights in parts:
        part = np.take(planes, positions, axis=axis) * weights.reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


def _taps(before: int, after: int, kernel: Kernel) -> _Taps:
    centre = (np.arange(after) + 0.5) * (before / after) - 0.5
    if kernel == "bilinear":
        centre = np.maximum(centre, 0.0)
    first = np.floor(centre)
    offsets = np.array([0, 1]) if kernel == "bilinear" else np.array([-1, 0, 1, 2])
    positions = first[:, None] + offsets
    distance = np.abs(centre[:, None] - positions)
    weights = 1 - distance if kernel == "bilinear" else _cubic(distance)
    inside = np.clip(positions, 0, before - 1).astype(np.intp)
    return _Taps(inside, weights.astype(np.float32))


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
    return np.where(distance <= 1, near, far)
