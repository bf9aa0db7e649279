"""Quantizing the two matrix products of attention: query, key, probabilities and value, all or nothing per block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.layers import find_attention
from vitexport.host.quantize.calibrate import ImageFeeds, exposed, run_images
from vitexport.host.quantize.emit import emit_activation
from vitexport.host.quantize.grid import Grid, symmetric
from vitexport.host.quantize.statistics import CLASS_TOKEN_IMPORTANCE, TensorStatistics
from vitexport.host.quantize.targets import Form
from vitexport.host.quantize.transforms import projection_columns, scale_projection

__all__ = [
    "AttentionPlan",
    "attention_tensors",
    "centre_values",
    "emit_attention",
    "fit_probabilities",
    "plan_attention",
]

Floats = NDArray[np.float32]

_REACHES = (1.0, 0.85, 0.72, 0.6, 0.5, 0.42, 0.35, 0.29, 0.24, 0.2)
_FITTED_IMAGES = 8

_VIEWS = frozenset({"Reshape", "Transpose"})


@dataclass(frozen=True)
class AttentionPlan:
    """Grids of one attention.

    Attributes:
        name: Module name of the attention.
        group: What a budget demotes together: e.g. ``3.attention``.
        query: Grid of the query.
        key: Grid of the key.
        probabilities: Grid of the softmax output, whose range is always 0 to 1.
        value: Grid of the value.
    """

    name: str
    group: str
    query: Grid
    key: Grid
    probabilities: Grid
    value: Grid


def attention_tensors(model: ir.Model) -> dict[str, tuple[str, str, str]]:
    """Return the tensors ``[N, tokens, channels]`` that become query, key and value, by attention name.

    Attentions whose inputs pass anything but views (rotary embeddings, norms) are left out: they stay float.
    """
    found = {}
    for one in find_attention(model):
        sources = [_source(v) for v in (*one.scores.inputs[:2], one.context.inputs[1])]
        if all(source is not None for source in sources):
            query, key, value = (str(source.name) for source in sources if source is not None)
            found[one.name] = (query, key, value)
    return found


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
    form: Form,
) -> tuple[AttentionPlan, ...]:
    """Make query and key easier to quantize, exactly, and choose the grids of every attention.

    ``(q * s) . ((k - c) / s)`` differs from ``q . k`` by ``q . c``, the same for every key, which softmax ignores. So
    each channel can have the same range in query and key, and keys can be centred.

    Args:
        model: The float graph; query and key projections are changed in place.
        tensors: From :func:`attention_tensors`.
        statistics: Of those tensors, before any transform.
        values: Scale and shift that were already applied to a value tensor, by its name.
        form: What the target computes.
    """
    sources = {value.name: value for node in model.graph for value in node.outputs}
    blocks = {one.name: one.block for one in find_attention(model)}

    def grid(amax: float) -> Grid:
        return symmetric(amax, form.activation, half=form.half_scales)

    plans = []
    for name, (query, key, value) in tensors.items():
        q, k, v = (statistics[tensor] for tensor in (query, key, value))
        centre = ((k.maximum + k.minimum) / 2).astype(np.float32)
        reach_k = np.maximum((k.maximum - k.minimum) / 2, 1e-6)
        reach_q = np.maximum(np.maximum(q.maximum, -q.minimum), 1e-6)
        found = [projection_columns(sources[tensor]) for tensor in (query, key)]
        if found[0] is not None and found[1] is not None:
            scale = np.sqrt(reach_k / reach_q).astype(np.float32)
            scale_projection(model.graph, *found[0], scale, np.zeros_like(scale))
            scale_projection(
                model.graph, *found[1], (1 / scale).astype(np.float32), (-centre / scale).astype(np.float32)
            )
            reach_q, reach_k = reach_q * scale, reach_k / scale
        else:
            reach_k = np.maximum(k.maximum, -k.minimum)
        v_scale, v_shift = values.get(value, (np.ones_like(v.maximum), np.zeros_like(v.maximum)))
        reach_v = np.maximum((v.maximum - v_shift) / v_scale, (v_shift - v.minimum) / v_scale)
        plans.append(
            AttentionPlan(
                name,
                name if blocks[name] is None else f"{blocks[name]}.attention",
                grid(float(reach_q.max())),
                grid(float(reach_k.max())),
                _unit(form),
                grid(float(reach_v.max())),
            )
        )
    return tuple(plans)


def centre_values(
    tensors: Mapping[str, tuple[str, str, str]],
    statistics: Mapping[str, TensorStatistics],
    contexts: Mapping[str, str],
) -> dict[str, TensorStatistics]:
    """Return statistics of attention's outputs whose middle is the mean of the value, channel by channel.

    Rounding loses the small probabilities of a row and with them a share of the value's mean. Shifting values to a mean
    of zero, which the next bias makes up for, takes that loss away.

    Args:
        tensors: From :func:`attention_tensors`.
        statistics: By tensor name.
        contexts: Name of the tensor that attention's output is quantized as, by attention name.
    """
    centred = {}
    for name, (_, _, value) in tensors.items():
        context = contexts.get(name)
        if context is not None and statistics[context].channels == statistics[value].channels:
            stats, mean = statistics[context], statistics[value].mean
            half = np.maximum(stats.maximum - mean, mean - stats.minimum)
            low, high = (mean - half).astype(np.float32), (mean + half).astype(np.float32)
            centred[context] = replace(stats, minimum=low, maximum=high)
    return centred


def fit_probabilities(
    model: ir.Model, plans: Sequence[AttentionPlan], feeds: ImageFeeds, class_token: bool
) -> tuple[AttentionPlan, ...]:
    """Choose how far the grid of probabilities reaches in each attention by the error in what attention returns.

    Args:
        model: The transformed float graph.
        plans: Plans whose grid of probabilities reaches to 1.
        feeds: Calibration images; a few are run.
        class_token: Whether the error in row 0 counts for more.
    """
    by_name = {plan.name: plan for plan in plans}
    found = {one.name: one for one in find_attention(model) if one.name in by_name}
    names = {name: [str(value.name) for value in one.context.inputs if value] for name, one in found.items()}
    errors = {name: np.zeros(len(_REACHES)) for name in found}
    count = min(feeds.count, _FITTED_IMAGES)
    with exposed(model, [name for pair in names.values() for name in pair]) as runtime:
        for outputs in run_images(runtime, feeds, [index * feeds.count // count for index in range(count)]):
            for name, (probabilities, value) in names.items():
                p, v = outputs[probabilities].astype(np.float32), outputs[value].astype(np.float32)
                for index, reach in enumerate(_REACHES):
                    left = np.square((_reaching(by_name[name].probabilities, reach).apply(p) - p) @ v).sum(
                        axis=(0, 1, 3)
                    )
                    errors[name][index] += left.sum() + (CLASS_TOKEN_IMPORTANCE * left[0] if class_token else 0.0)
    best = {name: _REACHES[int(np.argmin(error))] for name, error in errors.items()}
    return tuple(replace(plan, probabilities=_reaching(plan.probabilities, best.get(plan.name, 1.0))) for plan in plans)


def _reaching(grid: Grid, reach: float) -> Grid:
    return replace(grid, step=float(np.float16(grid.step * reach)))


def _unit(form: Form) -> Grid:
    """Return the grid of probabilities, fixed as TensorRT's fused attention wants it: 1/127 for int8, 1/448 for fp8."""
    if form.activation == "uint8":
        return Grid(1 / 255, 0, "uint8")
    return symmetric(1.0, form.activation, half=form.half_scales)


def emit_attention(model: ir.Model, plans: Sequence[AttentionPlan]) -> None:
    """Write Q/DQ before both matrix products of the planned attentions."""
    by_name = {plan.name: plan for plan in plans}
    for one in find_attention(model):
        plan = by_name.get(one.name)
        if plan is None:
            continue
        for node, index, grid in (
            (one.scores, 0, plan.query),
            (one.scores, 1, plan.key),
            (one.context, 0, plan.probabilities),
            (one.context, 1, plan.value),
        ):
            value = node.inputs[index]
            assert value is not None
            emit_activation(model.graph, value, grid, [node])
