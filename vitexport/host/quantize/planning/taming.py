"""Channel scales for massive activations behind an activation function: few channels that reach far beyond the rest.

Nothing absorbs a scale there, so one multiplication is added, and the layers that read the tensor undo it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.planning.search import Consumer

__all__ = ["MASSIVE", "massive_channels", "taming_scales"]

Floats = NDArray[np.float32]

MASSIVE = 20.0
"""Factor over the largest magnitude of the median channel from which a channel is called a massive activation: 8 bits
leave the median channel 13 of 256 levels."""

_STRENGTHS = (0.5, 0.75, 1.0)
"""Exponents of how far a channel reaches against how small its weights are: what a scale takes from an activation, it
adds to the weights."""


def massive_channels(reach: Floats) -> NDArray[np.bool_]:
    """Return which channels are massive, ``[K]``.

    Args:
        reach: Largest magnitude of each channel, ``[K]``.
    """
    massive: NDArray[np.bool_] = (reach >= MASSIVE * np.median(reach)) & (reach > 0)
    return massive


def taming_scales(reach: Floats, consumers: Sequence[Consumer]) -> list[Floats]:
    """Return scales ``[K]`` to try, 1 for every channel that is not massive; none where no channel is.

    They are powers of two, so that a 16-bit body multiplies exactly.

    Args:
        reach: Largest magnitude of each channel, ``[K]``.
        consumers: The layers that read the tensor.
    """
    typical, massive = float(np.median(reach)), massive_channels(reach)
    if typical <= 0 or not massive.any():
        return []
    rows = np.max([np.abs(consumer.weight).max(axis=1) for consumer in consumers], axis=0)
    smaller = float(np.median(rows)) / np.maximum(rows, 1e-5 * max(float(rows.max()), 1e-6))
    found = []
    for strength in _STRENGTHS:
        wanted = (reach / typical) ** strength * smaller ** (1 - strength)
        powers = np.exp2(np.rint(np.log2(np.clip(wanted, 1, MASSIVE**3))))
        found.append(np.where(massive, powers, 1).astype(np.float32))
    return found
