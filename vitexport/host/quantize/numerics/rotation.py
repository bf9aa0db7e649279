"""Rotations: an orthonormal block-Hadamard that spreads a few large channels over many small ones.

Rotating an activation before it is quantized and its weight by the inverse leaves the product as it was (QuaRot,
arXiv:2404.00456). Blocks of 16 or 64 channels cost one small GEMM instead of one as large as the layer's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.host.graph.hadamard import hadamard

__all__ = ["Rotation"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rotation:
    """A Hadamard matrix on every block of channels.

    Which channels share a block does not matter: dealing them by magnitude gained 0.0 dB on DeiT-Tiny.

    Attributes:
        size: Channels of a block; those of the tensor are a multiple of it.
    """

    size: int

    def rows(self, x: Floats) -> Floats:
        """Return rotated activations, ``[R, K]``."""
        rotated: Floats = (x.reshape(-1, self.size) @ hadamard(self.size)).reshape(x.shape)
        return rotated

    def weight(self, weight: Floats) -> Floats:
        """Return the weight ``[K, N]`` that undoes the rotation of its input."""
        blocks = weight.reshape(-1, self.size, weight.shape[1])
        rotated: Floats = np.matmul(hadamard(self.size).T, blocks).reshape(weight.shape)
        return rotated

    def covariance(self, covariance: Floats) -> Floats:
        """Return that of the rotated channels, ``[K, K]``."""
        return self.rows(self.weight(covariance))
