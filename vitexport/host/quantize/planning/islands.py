"""Float islands: the few layers that stay float because their noise is large for the work they do."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitexport.host.quantize.calibration.calibrate import ImageFeeds, evenly_spread
from vitexport.host.quantize.planning.noise import GroupNoise, multiply_accumulates
from vitexport.host.quantize.planning.noise_probe import open_probe
from vitexport.host.quantize.planning.plan import GraphPlan
from vitexport.host.quantize.planning.quality import LOWEST_SQNR_DB
from vitexport.host.quantize.planning.taming import massive_channels

__all__ = ["ONE_TOKEN", "Islands", "find_clipped", "find_islands", "rank_groups"]

_LARGEST = 0.05
"""Fraction of the multiply-accumulates that may stay float by default, besides destroyed groups."""

_ALARMING = 0.1
"""Loss in a layer's own outputs, over their variance, from which a group is measured however many are."""

_FREE = 0.001
"""Fraction of the multiply-accumulates below which a group costs nothing."""

_FREE_ONE_TOKEN = 0.01
"""The same where one token is computed, as in a last block: that is never what takes the time."""

ONE_TOKEN = "computes one token"
"""Why such a group stays float."""

_CANDIDATES = 8

_IMAGES = 4
"""Images that every suspect is measured on."""

_MORE_IMAGES = 12
"""Images that those are measured on which may be worth their work: on four, a part of the noise is off by a third."""

_CLOSE = 2.0
"""How far below its price a group's first figure may lie to be measured again."""

_RANKING_IMAGES = 8


@dataclass(frozen=True)
class Islands:
    """What stays float by default.

    Attributes:
        kept_float: Groups, in the order in which they were chosen.
        reasons: Why, by group.
        work: Fraction of the quantizable layers' multiply-accumulates that they do.
        clipped: See :class:`~vitexport.host.quantize.planning.noise.GroupNoise`.
    """

    kept_float: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    work: float = 0.0
    clipped: Mapping[str, float] = field(default_factory=dict)


def find_islands(
    model: ir.Model, plan: GraphPlan, feeds: ImageFeeds, calibrated: int, held_out: Sequence[int], price_db: float
) -> Islands:
    """Choose the groups whose noise is not worth their speed.

    The groups that lose most in their own outputs, and most for their work, are measured at the model's output. Those
    that are destroyed go, whatever work they do; then the others one by one, the largest gain for its cost first, as
    long as it is worth it.

    Args:
        model: The float graph.
        plan: Of the graph.
        feeds: Calibration images.
        calibrated: How many of them the plan was fitted to.
        held_out: The others.
        price_db: What one percent of the multiply-accumulates in float must gain at the output, in dB.
    """
    work = multiply_accumulates(plan.tensors, calibrated)
    single = {layer.group for one in plan.tensors if one.statistics.rows <= calibrated for layer in one.layers}
    free = [group for group in work if work[group] < (_FREE_ONE_TOKEN if group in single else _FREE)]
    suspects = _suspects(plan, work, free)
    reasons = {group: ONE_TOKEN if group in single else f"{work[group]:.2%} of the work" for group in free}
    few = _spread(held_out, _IMAGES)
    with open_probe(model, plan, feeds) as probe:
        noise = probe.measure(few, suspects, leave_out=free)
        destroyed = sorted((group for group in suspects if noise.sqnr_db(group) < LOWEST_SQNR_DB), key=noise.sqnr_db)
        reasons |= {group: f"quantized alone it leaves {noise.sqnr_db(group):.1f} dB" for group in destroyed}
        suspects = [group for group in suspects if group not in destroyed and work[group] <= _LARGEST]
        left_out = [*free, *destroyed]
        if destroyed:
            # What large errors add up to says nothing of the small ones.
            noise = probe.measure(few, suspects, leave_out=left_out)
        close = [
            group for group in suspects if _gain(noise, group, noise.total) > price_db * 100 * work[group] / _CLOSE
        ]
        more = [index for index in _spread(held_out, _MORE_IMAGES) if index not in few]
        if close and more:
            noise = noise.joined(probe.measure(more, close, leave_out=left_out))
    for group, share in _worth_their_work(noise, suspects, work, price_db):
        which = "noise" if not destroyed and len(reasons) == len(free) else "remaining noise"
        reasons[group] = f"{share:.0%} of the {which} for {work[group]:.1%} of the work"
    return Islands(tuple(reasons), reasons, sum(work[group] for group in reasons), noise.clipped)


def _worth_their_work(
    noise: GroupNoise, suspects: Sequence[str], work: Mapping[str, float], price_db: float
) -> list[tuple[str, float]]:
    """Return the groups to keep float, and what each takes of the noise that the ones before it left.

    The largest gain for its work goes first. What the last of them gain, on top of the others, can be more than a
    group in between does, so the row ends where the sum of gains less prices is largest.
    """
    left, spent, worth, best = noise.total, 0.0, 0.0, 0.0
    chosen: list[tuple[str, float]] = []
    end = 0
    rest = list(suspects)
    while rest:
        group = max(rest, key=lambda one: _gain(noise, one, left) / work[one])
        rest.remove(group)
        if spent + work[group] > _LARGEST:
            continue
        worth += _gain(noise, group, left) - price_db * 100 * work[group]
        chosen.append((group, min(1.0, noise.of[group] / max(left, 1e-30))))
        left, spent = left - noise.of[group], spent + work[group]
        if worth > best:
            best, end = worth, len(chosen)
    return chosen[:end]


def find_clipped(model: ir.Model, plan: GraphPlan, feeds: ImageFeeds, held_out: Sequence[int]) -> Mapping[str, float]:
    """Return what :func:`find_islands` finds clipped, where nothing else is measured."""
    with open_probe(model, plan, feeds) as probe:
        return probe.measure(_spread(held_out, _MORE_IMAGES), ()).clipped


def _spread(held_out: Sequence[int], images: int) -> list[int]:
    return [held_out[index] for index in evenly_spread(len(held_out), images)]


def _gain(noise: GroupNoise, group: str, left: float) -> float:
    """Return how many dB less noise there is without a group; no group takes more than nearly all of it."""
    return -10 * math.log10(max(1 - noise.of[group] / max(left, 1e-30), 1e-3))


def rank_groups(
    model: ir.Model,
    plan: GraphPlan,
    feeds: ImageFeeds,
    calibrated: int,
    held_out: Sequence[int],
    kept: Collection[str],
) -> dict[str, tuple[float, float]]:
    """Return what every group adds to the output's noise alone, over the signal, and its part of the work.

    Groups are those of layers, and attention where it is quantized.

    Args:
        model: The float graph.
        plan: Of the graph.
        feeds: Calibration images.
        calibrated: How many of them the plan was fitted to.
        held_out: The others.
        kept: Groups that stay float anyway.
    """
    work = multiply_accumulates(plan.tensors, calibrated, plan.attention)
    groups = [group for group in work if group not in kept]
    with open_probe(model, plan, feeds, attention=True) as probe:
        noise = probe.measure(_spread(held_out, _RANKING_IMAGES), groups)
    return {group: (noise.of[group] / noise.signal, work[group]) for group in groups}


def _suspects(plan: GraphPlan, work: Mapping[str, float], known: Collection[str]) -> list[str]:
    """Return the groups that may be worth measuring: large errors in their own outputs, alone or for their work.

    Massive activations behind GELU are measured in any case: the residual stream carries what little error they leave.
    """
    errors: dict[str, float] = {}
    always: list[str] = []
    for tensor in plan.tensors:
        reach = np.maximum(-tensor.statistics.minimum, tensor.statistics.maximum)
        massive = tensor.kind not in ("norm", "value") and bool(massive_channels(reach).any())
        for layer in tensor.layers:
            error = plan.layers[layer.name].column_error
            errors[layer.group] = max(errors.get(layer.group, 0.0), error)
            always += [layer.group] if massive or error > _ALARMING else []
    possible = [group for group in errors if group not in known and work[group] <= _LARGEST]
    worst = sorted(possible, key=lambda group: -errors[group])[: _CANDIDATES // 2]
    dearest = sorted(possible, key=lambda group: -errors[group] / work[group])
    usual = list(dict.fromkeys([*worst, *dearest]))[:_CANDIDATES]
    return list(dict.fromkeys([*usual, *(group for group in always if group not in known)]))
