"""How much of the noise at the model's output each quantized layer and attention makes.

Every layer's own error is added to what the float model computes at that layer, one layer at a time, and an
attention's to its scores and to its output. One session does for all; nothing has to be quantized, written and opened
once for each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.intermediate import open_exposed
from vitexport.host.graph.layers import Attention, find_attention, find_linears
from vitexport.host.quantize.calibration.calibrate import ImageFeeds
from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.attention_noise import AttentionInputs, context_error, scores_error
from vitexport.host.quantize.planning.plan import GraphPlan, TensorPlan
from vitexport.host.quantize.planning.quality import judged_output
from vitexport.machine import usable_cores
from vitexport.runtimes import Runtime
from vitexport.tensors import Array, batch_limit

__all__ = ["GroupNoise", "measure_noise", "multiply_accumulates"]

Floats = NDArray[np.float32]
Rounding = tuple[float, float]

_SUFFIX = ".error"

_CLIPPED = 4.0
"""Factor over the rounding error on calibration images at which a tensor counts as clipped by others."""


@dataclass(frozen=True)
class GroupNoise:
    """Noise at the model's output.

    Attributes:
        signal: Energy of the float output, summed over the images.
        total: Energy that all layers together add.
        of: Energy that one group adds alone, by group.
        clipped: How many times the relative squared rounding error of calibration a tensor has on the median image,
            by name, where it is over four times: these images hold values that its range does not.
    """

    signal: float
    total: float
    of: Mapping[str, float]
    clipped: Mapping[str, float]

    def sqnr_db(self, group: str) -> float:
        """Return the SQNR of a model in which only that group is quantized, in dB."""
        return 10 * math.log10(self.signal / max(self.of[group], 1e-30))


def multiply_accumulates(
    plans: Sequence[TensorPlan], images: int, attention: Sequence[AttentionPlan] = ()
) -> dict[str, float]:
    """Return each group's multiply-accumulates as a fraction of those of all quantizable layers.

    Args:
        plans: Of all layers.
        images: How many images the plans' statistics come from.
        attention: Attentions to return too; they are no part of the whole.
    """
    work: dict[str, float] = {}
    for plan in plans:
        for layer in plan.layers:
            done = plan.statistics.rows / images * math.prod(layer.shape)
            work[layer.group] = work.get(layer.group, 0.0) + done
    total = sum(work.values())
    return {group: done / total for group, done in [*work.items(), *((one.group, one.work) for one in attention)]}


def measure_noise(
    model: ir.Model,
    plan: GraphPlan,
    feeds: ImageFeeds,
    images: Sequence[int],
    groups: Collection[str],
    *,
    leave_out: Collection[str] = (),
) -> GroupNoise:
    """Measure what some groups add to the output's noise, and what they and all layers add together.

    Args:
        model: The float graph; it stays as it is.
        plan: Of the graph.
        feeds: Calibration images.
        images: Which of them are run; none that the plans were fitted to.
        groups: What is measured alone.
        leave_out: Groups that stay float.
    """
    probe, output = model.clone(), judged_output(model)
    linears = {layer.name: layer for layer in find_linears(probe)}
    for name in plan.layers:
        _add_input(probe.graph, linears[name].output, name)
    tensors = [one.statistics.name for one in plan.tensors]
    # An attention's tensors are large: they are put out only where it is measured.
    quantized = {one.name: one for one in plan.attention if one.group in groups}
    attentions = [
        _ProbedAttention.of(quantized[one.name], one) for one in find_attention(probe) if one.name in quantized
    ]
    for one in attentions:
        tensors += one.operands
        for value in one.products:
            _add_input(probe.graph, value, str(value.name))
    with (
        open_exposed(model, tensors) as exact,
        open_exposed(probe, ()) as changed,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        inject = _Injection(exact, changed, output, plan, attentions, tuple(groups), frozenset(leave_out))
        found = list(pool.map(inject.run, (feeds.image(index) for index in images)))
    signal, total, *alone = np.sum([energies for energies, _ in found], axis=0)
    clipped = _clipped(plan, [rounding for _, rounding in found])
    return GroupNoise(float(signal), float(total), dict(zip(groups, map(float, alone), strict=True)), clipped)


def _clipped(plan: GraphPlan, found: Sequence[Mapping[str, Rounding]]) -> dict[str, float]:
    """Compare the rounding errors of some images with those of the calibration sample."""
    clipped = {}
    for tensor in plan.tensors:
        name = tensor.statistics.name
        if any(name not in image for image in found):
            continue
        rows, counts = tensor.statistics.rows_and_weights(class_token=False)
        moved = tensor.choice.transform(rows)
        known_error, known_energy = _rounding(moved, tensor.choice.qparams.fake_quantize(moved), counts)
        # Smaller values alone, which no range clips, raise a relative error too: over the larger energy, they do not.
        relative = [error / max(energy, known_energy, 1e-30) for error, energy in (image[name] for image in found)]
        # One image that reaches far out is usual (DeiT-Tiny: 10 times, and no harm done); half of them are not.
        times = float(np.median(relative)) / max(known_error / max(known_energy, 1e-30), 1e-30)
        if times > _CLIPPED:
            clipped[name] = times
    return clipped


def _rounding(exact: Floats, rounded: Floats, counts: Floats) -> Rounding:
    """Return the mean squared error of rounded rows ``[R, K]``, and the mean square of the exact ones."""
    return float(counts @ np.square(rounded - exact).mean(axis=1)), float(counts @ np.square(exact).mean(axis=1))


@dataclass(frozen=True)
class _ProbedAttention:
    """An attention that is measured.

    Attributes:
        plan: Of it.
        operands: Names of the float query, key, probabilities and value.
        products: Of query and key, and of probabilities and value; each gets an error.
    """

    plan: AttentionPlan
    operands: tuple[str, ...]
    products: tuple[ir.Value, ir.Value]

    @classmethod
    def of(cls, plan: AttentionPlan, one: Attention) -> _ProbedAttention:
        operands = (*one.scores.inputs[:2], *one.context.inputs[:2])
        names = tuple(str(value.name) for value in operands if value is not None)
        return cls(plan, names, (one.scores.outputs[0], one.context.outputs[0]))


def _add_input(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Add to a value an input of the graph, named ``name`` and a suffix."""
    name = f"{name}{_SUFFIX}"
    # Any size on every axis: where nothing is added, one zero is broadcast.
    axes = [ir.SymbolicDim(f"{name}.{axis}") for axis in range(len(value.shape or ()))]
    given = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(axes))
    add = ir.node("Add", [value, given], name=f"{name}.add")
    result = add.outputs[0]
    result.name, result.shape, result.type = f"{value.name}{_SUFFIX}.added", value.shape, value.type
    producer = value.producer()
    assert producer is not None
    value.replace_all_uses_with(result, replace_graph_outputs=False)
    add.replace_input_with(0, value)
    graph.insert_after(producer, add)
    graph.inputs.append(given)


class _Injection:
    """Runs images through the probe with no error, all errors, and one group's errors at a time."""

    def __init__(
        self,
        exact: Runtime,
        changed: Runtime,
        output: str,
        plan: GraphPlan,
        attentions: Sequence[_ProbedAttention],
        groups: tuple[str, ...],
        leave_out: frozenset[str],
    ) -> None:
        self._exact = exact
        self._changed = changed
        self._output = output
        self._plan = plan
        self._attentions = attentions
        self._groups = groups
        self._leave_out = leave_out
        self._nothing = {spec.name: np.zeros((1,) * len(spec.shape), dtype=np.float32) for spec in changed.inputs[1:]}

    def run(self, image: Array) -> tuple[list[float], dict[str, Rounding]]:
        """Return the energies of the output, of all errors' effect, and of each group's; and tensors' rounding."""
        spec = self._exact.inputs[0]
        feed = {spec.name: np.repeat(image, batch_limit(spec) or 1, axis=0)}
        exact = self._exact.run(feed)
        reference = self._first(exact)
        errors, rounding = self._errors(exact)
        del exact
        energies = [float(np.square(reference).sum())]
        everything = {name: error for group in errors.values() for name, error in group.items()}
        for chosen in (everything, *(errors[group] for group in self._groups)):
            changed = self._first(self._changed.run({**feed, **self._nothing, **chosen}))
            energies.append(float(np.square(changed - reference).sum()))
        return energies, rounding

    def _first(self, outputs: Mapping[str, Array]) -> NDArray[np.float64]:
        first: NDArray[np.float64] = outputs[self._output][:1].astype(np.float64)
        return first

    def _errors(self, exact: Mapping[str, Array]) -> tuple[dict[str, dict[str, Floats]], dict[str, Rounding]]:
        """Return the errors on one image, by group and name of the input that takes them; and tensors' rounding."""
        errors: dict[str, dict[str, Floats]] = {}
        rounding: dict[str, Rounding] = {}
        for tensor in self._plan.tensors:
            layers = [layer for layer in tensor.layers if layer.group not in self._leave_out]
            if not layers:
                continue
            value, choice = exact[tensor.statistics.name], tensor.choice
            rows = value.astype(np.float32).reshape(-1, value.shape[-1])
            moved = choice.transform(rows)
            rounded = choice.qparams.fake_quantize(moved)
            rounding[tensor.statistics.name] = _rounding(moved, rounded, np.full(len(rows), 1 / len(rows), np.float32))
            for layer in layers:
                planned = self._plan.layers[layer.name]
                error = rounded @ planned.weight.dequantized() + planned.correction
                error -= (rows - choice.shift) @ layer.weight()
                shape = (*value.shape[:-1], error.shape[-1])
                errors.setdefault(layer.group, {})[f"{layer.name}{_SUFFIX}"] = error.reshape(shape)
        for one in self._attentions:
            inputs = AttentionInputs(*(exact[name].astype(np.float32) for name in one.operands))
            changes = (scores_error(one.plan, inputs), context_error(one.plan, inputs))
            named = {f"{value.name}{_SUFFIX}": change for value, change in zip(one.products, changes, strict=True)}
            errors.setdefault(one.plan.group, {}).update(named)
        return errors, rounding
