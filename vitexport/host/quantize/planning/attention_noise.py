"""What quantizing an attention's inputs changes in its two products, as each is computed from float inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.planning.attention import AttentionPlan

__all__ = ["AttentionInputs", "context_error", "scores_error"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class AttentionInputs:
    """What the two products of an attention read in the float model, for one batch.

    Attributes:
        query: ``[N, heads, rows, D]``.
        key: ``[N, heads, D, tokens]``, transposed.
        probabilities: ``[N, heads, rows, tokens]``.
        value: ``[N, heads, tokens, D]``.
    """

    query: Floats
    key: Floats
    probabilities: Floats
    value: Floats

    def per_channel(self, channels: Floats) -> Floats:
        """Return a number per channel, ``[heads * D]``, as ``[heads, 1, D]``."""
        return channels.reshape(self.value.shape[1], 1, -1)


def scores_error(plan: AttentionPlan, inputs: AttentionInputs) -> Floats:
    """Return what is added to the scores, ``[N, heads, rows, tokens]``.

    Against the product of the transformed query and key, which softmax cannot tell from that of the original ones.
    """
    query = inputs.query * inputs.per_channel(plan.query_scale)
    scale, offset = (inputs.per_channel(one).swapaxes(1, 2) for one in (plan.key_scale, plan.key_offset))
    key = inputs.key * scale + offset
    error: Floats = plan.query.fake_quantize(query) @ plan.key.fake_quantize(key) - query @ key
    return error


def context_error(plan: AttentionPlan, inputs: AttentionInputs) -> Floats:
    """Return what is added to attention's output, ``[N, heads, rows, D]``, in the units of the float model."""
    scale, shift, gain = (inputs.per_channel(one) for one in (plan.value_scale, plan.value_shift, plan.gain))
    value = (inputs.value - shift) / scale
    exact = probabilities = inputs.probabilities
    peak = probabilities.max(axis=-1, keepdims=True) if plan.rows else np.float32(1)
    rounded = plan.probabilities.fake_quantize(probabilities / peak) * peak
    error: Floats = scale * (rounded @ plan.value.fake_quantize(value * gain) - exact @ value)
    return error
