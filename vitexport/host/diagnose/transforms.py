"""Which tensors of a candidate are exact transforms of the reference's, measured on real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.diagnose.coordinates import Affine, linear_parameters, match_channels
from vitexport.host.diagnose.cuts import Cut, computed_in_float
from vitexport.host.diagnose.probe import Probe
from vitexport.host.diagnose.rows import first_rows
from vitexport.host.graph.conversions import source_of
from vitexport.host.graph.layers import LinearLayer, find_linears
from vitexport.host.graph.scopes import block_path

__all__ = ["find_transforms"]

_INVARIANT = frozenset({"residual", "softmax", "activation"})
_ROWS = 512
"""Tokens per tensor that a fit uses; a channel's scale and shift are two numbers."""

Floats = NDArray[np.float64]


def find_transforms(
    reference: ir.Model,
    candidate: ir.Model,
    cuts: Sequence[Cut],
    files: tuple[Path, Path],
    feeds: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Affine]:
    """Return tensor name to its transform, for the tensors that have one.

    The candidate is given the reference's hidden state, probabilities and activations, so that an error elsewhere
    cannot be mistaken for a transform.
    """
    before, after = ({layer.name: layer for layer in find_linears(model)} for model in (reference, candidate))
    consumers: dict[str, list[str]] = {}
    for layer in after.values():
        source = source_of(layer.matmul.inputs[0])
        if source is not None and layer.name in before:
            consumers.setdefault(str(source.name), []).append(layer.name)
    wanted = [cut for cut in cuts if cut.role in ("norm", "context", "qkv")]
    names = [cut.tensor for cut in wanted]
    if not names:
        return {}
    exact, candidate_rows = _collect(
        files, names, [cut.tensor for cut in cuts if cut.role in _INVARIANT], feeds, shapes
    )
    transforms: dict[str, Affine] = {}
    for cut in wanted:
        if cut.role != "qkv" and cut.tensor in consumers:
            name = consumers[cut.tensor][0]
            matched = _match(exact[cut.tensor], candidate_rows[cut.tensor], before[name], after[name])
            if matched is not None:
                transforms[cut.tensor] = matched
    contexts = {block_path(cut.layer): cut.tensor for cut in wanted if cut.role == "context"}
    for cut in wanted:
        context = contexts.get(block_path(cut.layer))
        if cut.role == "qkv" and context is not None:
            merged = _merged(
                exact[cut.tensor], candidate_rows[cut.tensor], exact[context].shape[1], transforms.get(context)
            )
            if merged is not None:
                transforms[cut.tensor] = merged
    return transforms


def _collect(
    files: tuple[Path, Path],
    names: Sequence[str],
    given: Sequence[str],
    feeds: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return tensors of both models as ``[rows, channels]``, the candidate's on exact inputs."""
    exact: dict[str, list[Floats]] = {name: [] for name in names}
    candidate_rows: dict[str, list[Floats]] = {name: [] for name in names}
    with Probe(files[0], [*names, *given]) as right, Probe(files[1], names, given) as other:
        for feed, own in feeds:
            expected = first_rows(right.run(feed), shapes)
            outputs = other.run(own, expected)
            for name in names:
                exact[name].append(_rows(expected[name], len(feeds)))
                candidate_rows[name].append(_rows(outputs[name], len(feeds)))
    return (
        {name: np.concatenate(parts) for name, parts in exact.items()},
        {name: np.concatenate(parts) for name, parts in candidate_rows.items()},
    )


def _rows(tensor: NDArray[np.generic], images: int) -> Floats:
    flat = tensor.reshape(-1, tensor.shape[-1])
    stride = max(1, len(flat) * images // _ROWS)
    rows: Floats = flat[::stride].astype(np.float64)
    # What overflows is found later; here it must not spoil the fit of the other channels.
    return np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)


def _match(exact: Floats, candidate_rows: Floats, before: LinearLayer, after: LinearLayer) -> Affine | None:
    mine, theirs = linear_parameters(before), linear_parameters(after)
    if mine is None or theirs is None:
        return None
    (weight, bias), (other, other_bias) = mine, theirs
    if weight.shape != other.shape or len(weight) != exact.shape[1]:
        return None
    # Q is the only third of a merged qkv whose own output is never transformed.
    columns = slice(0, weight.shape[1] // 3) if before.role == "qkv" and weight.shape[1] % 3 == 0 else slice(None)
    biases = None
    if other_bias is not None:
        biases = (np.zeros_like(other_bias) if bias is None else bias)[columns], other_bias[columns]
    pair = weight[:, columns], other[:, columns]
    return match_channels(exact, candidate_rows, pair, biases, rounded=not computed_in_float(after))


def _merged(exact: Floats, candidate_rows: Floats, width: int, value: Affine | None) -> Affine | None:
    """Return the transform of a merged qkv: K may lose its bias, V has the transform of what is read from it."""
    if exact.shape[1] != 3 * width:
        return None
    key = slice(width, 2 * width)
    lost = (candidate_rows[:, key] - exact[:, key]).mean(axis=0)
    # A constant per channel is all that softmax cannot see: what varies with K itself is no bias (a norm before it that
    # is four times too large, say).
    spread = (candidate_rows[:, key] - exact[:, key] - lost).std(axis=0)
    constant = spread < np.maximum(0.5 * exact[:, key].std(axis=0), 0.1 * exact[:, key].std())
    lost = np.where((np.abs(lost) > 2 * spread) & constant, lost, 0.0)
    if value is None and not lost.any():
        return None
    ones, zeros = np.ones(width), np.zeros(width)
    scale = np.concatenate([ones, ones, ones if value is None else value.scale])
    return Affine(scale, np.concatenate([zeros, lost, zeros if value is None else value.shift]))
