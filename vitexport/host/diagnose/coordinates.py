"""Telling an exact transform from a fault.

Quantizers rescale and shift channels (SmoothQuant and its relatives) and undo it in the next layer, so a tensor of the
quantized graph may rightly be ``scale * x + shift`` per channel. That is so only where the weights that read it say the
same; a channel that changed without them is a fault. The bias of K may go altogether: softmax cannot see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import array_of
from vitexport.host.graph.layers import LinearLayer

__all__ = ["Affine", "linear_parameters", "match_channels"]

Floats = NDArray[np.float64]

_NOISE = 0.1
"""Error, against the whole tensor, that 8 bits explain."""

_CLOSE = 0.05
"""How far the weights may be from the exact inverse of a channel's scale; int8 rounding stays well below it."""


@dataclass(frozen=True)
class Affine:
    """Per channel (last axis): what the candidate holds where the reference holds ``x`` is ``scale * x + shift``."""

    scale: Floats
    shift: Floats

    def apply(self, reference: NDArray[np.generic]) -> NDArray[np.generic]:
        """Bring a tensor of the reference into the candidate's coordinates."""
        return (reference.astype(np.float64) * self.scale + self.shift).astype(reference.dtype)

    def undo(self, candidate: NDArray[np.generic]) -> Floats:
        """Bring a tensor of the candidate into the reference's coordinates."""
        return (candidate.astype(np.float64) - self.shift) / self.scale


def match_channels(
    reference: Floats,
    candidate: Floats,
    weights: tuple[Floats, Floats],
    biases: tuple[Floats, Floats] | None,
    *,
    rounded: bool = True,
) -> Affine | None:
    """Find the transform of a tensor that the weights reading it undo.

    Args:
        reference: Tensor of the reference, ``[N, K]``.
        candidate: The same of the candidate, given exact inputs.
        weights: ``[K, out]`` of the layer that reads it, in reference and candidate.
        biases: ``[out]`` of that layer, or None.
        rounded: Whether the candidate's weights are quantized. Those of a layer in float say exactly what they undo,
            and a scale off by what the tensor's noise explains would look like an error of that layer.

    Returns:
        None where the tensor is meant to be unchanged.
    """
    scale, shift = _fit(reference, candidate)
    before, _ = weights
    inverse = _row_factors(*weights)
    slack = _slack(reference, candidate, scale, shift)
    undone = 1 / np.where(inverse > 1e-6, inverse, 1.0)
    agreed, from_tensor = _agree(np.where(scale > 1e-6, scale, 1.0), undone, slack)
    if not rounded:
        agreed = np.where(np.abs(agreed / undone - 1) < _CLOSE, undone, agreed)
    offset = np.where(from_tensor, candidate.mean(axis=0) - agreed * reference.mean(axis=0), 0.0)
    if biases is None or not _shift_undone(offset / agreed, before, biases):
        offset = np.zeros_like(offset)
    if np.all(np.abs(agreed - 1) < 1e-6) and not offset.any():
        return None
    return Affine(agreed, offset)


def _slack(reference: Floats, candidate: Floats, scale: Floats, shift: Floats) -> Floats:
    """Return how far a fitted scale may be off because of noise; 0 where the fit explains too little to be noise.

    Two rows fix a scale and a shift whatever the noise, and say nothing of it: one token from each of two images is all
    there is where a model computes only its class token. Rows that are all alike say nothing either.
    """
    spare = len(reference) - 2
    if spare < 1:
        return np.full_like(scale, np.inf)
    noise = ((candidate - scale * reference - shift) ** 2).sum(axis=0) / spare
    signal, total, loudness = reference.var(axis=0), candidate.var(axis=0), float(np.square(candidate).mean())
    # A few rows may by chance lie on a line in one channel: none is taken to be less noisy than the median channel.
    noise = np.maximum(noise, float(np.median(noise)))
    is_noise = (noise < 0.25 * total) | (noise <= _NOISE**2 * loudness)
    moving = signal > 1e-12 * loudness
    # Estimates from few rows have long tails (Student's t).
    tolerance = (2 + 6 / spare) * np.sqrt(noise / np.where(moving, signal, 1.0))
    slack: Floats = np.where(is_noise, np.where(moving, tolerance, np.inf), 0.0)
    return slack


def _agree(tensor: Floats, weights: Floats, slack: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Settle on one scale per channel between what the tensor shows and what the weights that read it undo.

    Where they differ by no more than noise explains, the weights know better: few tokens that are much alike, as in the
    last block, fix a scale badly.

    Where the two differ one of them is at fault, and the one further from no change is taken to be it: as a whole when
    they differ by one factor everywhere (a layer scaled by 4), otherwise channel by channel.

    Returns:
        The scales, and where they are the tensor's.
    """
    ratio = tensor / weights
    same = np.abs(ratio - 1) < _CLOSE
    middle = float(np.median(ratio))
    if abs(middle - 1) >= _CLOSE and np.mean(np.abs(ratio / middle - 1) < _CLOSE) > 0.6:
        distance = [abs(float(np.median(np.log(scale)))) for scale in (tensor, weights)]
        from_tensor = np.full(tensor.shape, distance[0] <= distance[1])
    else:
        from_tensor = same | (np.abs(np.log(tensor)) <= np.abs(np.log(weights)))
        unsure = ~same & (np.abs(tensor - weights) <= slack)
        return np.where(from_tensor & ~unsure, tensor, weights), from_tensor | unsure
    return np.where(from_tensor, tensor, weights), from_tensor


def _row_factors(before: Floats, after: Floats) -> Floats:
    """Return, for every row, the factor that ``after`` has over ``before``, by least squares.

    Columns that no row factor explains (exchanged or perturbed outputs) are left out of the second fit.
    """
    columns = np.ones(before.shape[1], dtype=bool)
    factors = np.ones(len(before))
    for _ in range(2):
        energy = (before[:, columns] ** 2).sum(axis=1)
        known = np.where(energy > 0, energy, 1)
        factors = np.where(energy > 0, (before[:, columns] * after[:, columns]).sum(axis=1) / known, 1.0)
        residual = ((after - factors[:, None] * before) ** 2).sum(axis=0)
        columns = residual <= max(4 * float(np.median(residual)), 1e-12)
    return factors


def _fit(reference: Floats, candidate: Floats) -> tuple[Floats, Floats]:
    """Fit ``candidate = scale * reference + shift`` per channel by least squares."""
    mean, other = reference.mean(axis=0), candidate.mean(axis=0)
    centred = reference - mean
    variance = (centred**2).mean(axis=0)
    covariance = (centred * (candidate - other)).mean(axis=0)
    scale = np.where(variance > 1e-12, covariance / np.where(variance > 1e-12, variance, 1), 1.0)
    return scale, other - scale * mean


def _shift_undone(shift: Floats, weights: Floats, biases: tuple[Floats, Floats]) -> bool:
    """Whether the bias that follows takes a shift back: its change is then ``-shift @ weights``.

    Medians, so that a few outputs at fault do not decide.
    """
    expected = -shift @ weights
    change = biases[1] - biases[0]
    size = float(np.median(np.abs(expected)))
    return size > 1e-7 and float(np.median(np.abs(change - expected))) < 0.5 * size


def linear_parameters(layer: LinearLayer) -> tuple[Floats, Floats | None] | None:
    """Return weight ``[in, out]`` and bias of a linear layer as float64, dequantized; None for no constants."""
    weight = _constant(layer.weight)
    if weight is None or weight.ndim != 2:
        return None
    if layer.matmul.op_type == "Gemm" and "transB" in layer.matmul.attributes:
        weight = weight.T if layer.matmul.attributes["transB"].as_int() else weight
    return weight, None if layer.bias is None else _constant(layer.bias)


def _constant(value: ir.Value | None) -> Floats | None:
    """Return a constant's content, through the DequantizeLinear or Cast that may follow it."""
    plain = array_of(value)
    if plain is not None:
        return plain.astype(np.float64)
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "Cast":
        return _constant(node.inputs[0])
    if node.op_type != "DequantizeLinear":
        return None
    quantized, scale = _constant(node.inputs[0]), _constant(node.inputs[1])
    if quantized is None or scale is None:
        return None
    zero = _constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scale.ndim == 1 and scale.size > 1:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        shape = [1] * quantized.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape)
    return (quantized - (0.0 if zero is None else zero)) * scale
