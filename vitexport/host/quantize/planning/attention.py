"""Quantizing the two GEMMs of attention: query, key, probabilities and value, all or nothing per block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.layers import find_attention
from vitexport.host.quantize.calibration.statistics import TensorStatistics
from vitexport.host.quantize.numerics.qparams import QuantParams, symmetric_qparams
from vitexport.host.quantize.planning.attention_scales import AttentionScales, probability_qparams
from vitexport.host.quantize.planning.layers import group_name
from vitexport.host.quantize.planning.transforms import projection_columns
from vitexport.host.quantize.scheme import QdqScheme

__all__ = [
    "AttentionPlan",
    "attention_tensors",
    "plan_attention",
]

Floats = NDArray[np.float32]

_VIEWS = frozenset({"Reshape", "Transpose"})


@dataclass(frozen=True)
class AttentionPlan:
    """Quantization parameters of one attention.

    Attributes:
        name: Module name of the attention.
        block: Its transformer block, or None outside of blocks.
        rows: Whether each row of probabilities is divided by its maximum before it is quantized.
        query: Of the query.
        key: Of the key.
        probabilities: Of the softmax output.
        value: Of the value.
        query_scale: What the query's channels are multiplied by, ``[C]``.
        key_scale: What the key's channels are multiplied by, ``[C]``.
        key_offset: What is added to them after that, ``[C]``.
        value_scale: What the value's channels were divided by for the layer after attention, ``[C]``.
        value_shift: What was subtracted from them before that, ``[C]``.
        gain: What the value's channels are multiplied by after both while this attention is quantized, ``[C]``.
        work: Multiply-accumulates of its two products, per image.
    """

    name: str
    block: int | None
    rows: bool
    query: QuantParams
    key: QuantParams
    probabilities: QuantParams
    value: QuantParams
    query_scale: Floats
    key_scale: Floats
    key_offset: Floats
    value_scale: Floats
    value_shift: Floats
    gain: Floats
    work: float

    @property
    def group(self) -> str:
        """What a budget demotes together: e.g. ``3.attention``."""
        return group_name(self.name, self.block, "attention")


def attention_tensors(model: ir.Model) -> dict[str, tuple[str, str, str]]:
    """Return the tensors ``[N, tokens, channels]`` that become query, key and value, by attention name.

    Attentions whose inputs pass anything but views (rotary embeddings, norms) are left out: they stay float.
    """
    tensors = {}
    for one in find_attention(model):
        sources = [_source(v) for v in (*one.scores.inputs[:2], one.context.inputs[1])]
        if all(source is not None for source in sources):
            query, key, value = (str(source.name) for source in sources if source is not None)
            tensors[one.name] = (query, key, value)
    return tensors


def _source(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None and node.op_type in _VIEWS:
        value = node.inputs[0]
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type not in ("Split", "Add"):
        return None
    return value


def plan_attention(
    model: ir.Model,
    tensors: Mapping[str, tuple[str, str, str]],
    statistics: Mapping[str, TensorStatistics],
    values: Mapping[str, tuple[Floats, Floats]],
    scales: Mapping[str, AttentionScales],
    scheme: QdqScheme,
    *,
    rows: bool,
    images: int,
) -> tuple[AttentionPlan, ...]:
    """Make query and key easier to quantize, exactly, and choose the quantization parameters of every attention.

    ``(q * s) . ((k - c) / s)`` differs from ``q . k`` by ``q . c``, the same for every key, which softmax ignores. So
    each channel can have the same range in query and key, and keys can be centred.

    Args:
        model: The float graph; it stays as it is.
        tensors: From :func:`attention_tensors`.
        statistics: Of those tensors, before any transform.
        values: Scale and shift that were already applied to a value tensor, by its name.
        scales: What was fitted, by attention name.
        scheme: What the target computes.
        rows: Whether rows of probabilities are divided by their maxima.
        images: How many images the statistics come from.
    """
    sources = {value.name: value for node in model.graph for value in node.outputs}
    blocks = {one.name: one.block for one in find_attention(model)}

    def qparams(amax: float) -> QuantParams:
        return symmetric_qparams(amax, scheme.activation, float16_scale=scheme.float16_scales)

    plans = []
    for name, (query, key, value) in tensors.items():
        q, k, v = (statistics[tensor] for tensor in (query, key, value))
        centre = ((k.maximum + k.minimum) / 2).astype(np.float32)
        key_amax = np.maximum((k.maximum - k.minimum) / 2, 1e-6)
        query_amax = np.maximum(np.maximum(q.maximum, -q.minimum), 1e-6)
        scale, offset = np.ones_like(centre), np.zeros_like(centre)
        if all(projection_columns(sources[tensor]) is not None for tensor in (query, key)):
            scale = np.sqrt(key_amax / query_amax).astype(np.float32)
            offset = (-centre / scale).astype(np.float32)
            query_amax, key_amax = query_amax * scale, key_amax / scale
        else:
            key_amax = np.maximum(k.maximum, -k.minimum)
        v_scale, v_shift = values.get(value, (np.ones_like(v.maximum), np.zeros_like(v.maximum)))
        # The gain is one around the centre: it holds only for values that were centred.
        gain = scales[name].gain if value in values else np.ones_like(v.maximum)
        value_amax = np.maximum((v.maximum - v_shift) / v_scale, (v_shift - v.minimum) / v_scale)
        plans.append(
            AttentionPlan(
                name,
                blocks[name],
                rows,
                qparams(float(query_amax.max())),
                qparams(float(key_amax.max())),
                probability_qparams(scheme, scales[name].clipping_threshold),
                qparams(float((value_amax * gain).max())),
                scale,
                (1 / scale).astype(np.float32),
                offset,
                v_scale,
                v_shift,
                gain,
                2 * q.channels * q.rows * k.rows / images**2,
            )
        )
    return tuple(plans)
