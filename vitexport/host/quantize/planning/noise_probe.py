"""How much of the noise at the model's output each quantized layer and attention makes.

Every layer's own error is added to what the float model computes at that layer, one layer at a time, and an
attention's to its scores and to its output. One session does for all; nothing has to be quantized, written and opened
once for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.intermediate import open_exposed
from vitexport.host.graph.layers import Attention, find_attention, find_linears
from vitexport.host.quantize.calibration.calibrate import ImageFeeds
from vitexport.host.quantize.parallel import map_parallel
from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.attention_noise import AttentionInputs, context_error, scores_error
from vitexport.host.quantize.planning.noise import GroupNoise
from vitexport.host.quantize.planning.plan import GraphPlan, TensorPlan, rounding_error
from vitexport.host.quantize.planning.quality import judged_output
from vitexport.runtimes import Runtime
from vitexport.tensors import Array, batch_limit

__all__ = ["NoiseProbe", "open_probe"]

Floats = NDArray[np.float32]

_SUFFIX = ".error"


@contextmanager
def open_probe(model: ir.Model, plan: GraphPlan, feeds: ImageFeeds, *, attention: bool = False) -> Iterator[NoiseProbe]:
    """Open a graph in which noise can be measured.

    Args:
        model: The float graph; it stays as it is.
        plan: Of the graph.
        feeds: Calibration images.
        attention: Quantized attentions are measured too. Their tensors are large.
    """
    probe = model.clone()
    linears = {layer.name: layer for layer in find_linears(probe)}
    for name in plan.layers:
        _add_input(probe.graph, linears[name].output, name)
    quantized = {one.name: one for one in plan.attention if attention}
    attentions = [
        _ProbedAttention.of(quantized[one.name], one) for one in find_attention(probe) if one.name in quantized
    ]
    tensors = [name for one in plan.tensors for name in _names(one)]
    for one in attentions:
        tensors += one.operands
        for value in one.products:
            _add_input(probe.graph, value, str(value.name))
    with open_exposed(model, tensors) as exact, open_exposed(probe, ()) as changed:
        yield NoiseProbe(exact, changed, judged_output(model), plan, feeds, attentions)


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
    if value.is_graph_output():  # the answer that is judged keeps its name
        value.name, result.name = result.name, value.name
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    add.replace_input_with(0, value)
    graph.insert_after(producer, add)
    graph.inputs.append(given)


class NoiseProbe:
    """Runs images with all errors, and with one group's errors at a time; made by :func:`open_probe`."""

    def __init__(
        self,
        exact: Runtime,
        changed: Runtime,
        output: str,
        plan: GraphPlan,
        feeds: ImageFeeds,
        attentions: Sequence[_ProbedAttention],
    ) -> None:
        self._exact = exact
        self._changed = changed
        self._output = output
        self._plan = plan
        self._feeds = feeds
        self._attentions = attentions
        self._nothing = {spec.name: np.zeros((1,) * len(spec.shape), dtype=np.float32) for spec in changed.inputs[1:]}

    def measure(self, images: Sequence[int], groups: Collection[str], *, leave_out: Collection[str] = ()) -> GroupNoise:
        """Measure what some groups add to the output's noise, and what they and all layers add together.

        Args:
            images: Which calibration images are run; none that the plans were fitted to.
            groups: What is measured alone.
            leave_out: Groups that stay float.
        """
        found = map_parallel(lambda index: self._run(self._feeds.image(index), groups, leave_out), images)
        names = found[0].rounding.keys()
        return GroupNoise(
            sum(image.signal for image in found),
            sum(image.total for image in found),
            {group: sum(image.of[group] for image in found) for group in groups},
            {name: tuple(image.rounding[name][0] for image in found) for name in names},
        )

    def _run(self, image: Array, groups: Collection[str], leave_out: Collection[str]) -> GroupNoise:
        spec = self._exact.inputs[0]
        feed = {spec.name: np.repeat(image, batch_limit(spec) or 1, axis=0)}
        exact = self._exact.run(feed)
        reference = self._first(exact)
        errors, rounding = self._errors(exact, leave_out)
        del exact

        def energy(added: Mapping[str, Floats]) -> float:
            changed = self._first(self._changed.run({**feed, **self._nothing, **added}))
            return float(np.square(changed - reference).sum())

        total = energy({name: error for group in errors.values() for name, error in group.items()})
        of = {group: energy(errors[group]) for group in groups}
        return GroupNoise(float(np.square(reference).sum()), total, of, rounding)

    def _first(self, outputs: Mapping[str, Array]) -> NDArray[np.float64]:
        first: NDArray[np.float64] = outputs[self._output][:1].astype(np.float64)
        return first

    def _errors(
        self, exact: dict[str, Array], leave_out: Collection[str]
    ) -> tuple[dict[str, dict[str, Floats]], dict[str, tuple[float, ...]]]:
        """Return the errors on one image, by group and name of the input that takes them; and tensors' rounding.

        What the layers read and make is taken out of ``exact``: it and the errors would be all of an image twice.
        """
        uses = Counter(name for tensor in self._plan.tensors for name in _names(tensor))

        def take(name: str) -> Array:
            # What one layer makes the next may read as it is.
            uses[name] -= 1
            return exact[name] if uses[name] else exact.pop(name)

        errors: dict[str, dict[str, Floats]] = {}
        rounding: dict[str, tuple[float, ...]] = {}
        for one in self._attentions:
            inputs = AttentionInputs(*(exact[name].astype(np.float32) for name in one.operands))
            changes = (scores_error(one.plan, inputs), context_error(one.plan, inputs))
            named = {f"{value.name}{_SUFFIX}": change for value, change in zip(one.products, changes, strict=True)}
            errors.setdefault(one.plan.group, {}).update(named)
        for tensor in self._plan.tensors:
            layers = [layer for layer in tensor.layers if layer.group not in leave_out]
            if not layers:
                continue
            value, choice = take(tensor.statistics.name), tensor.choice
            rows = value.astype(np.float32).reshape(-1, value.shape[-1])
            moved = choice.transform(rows)
            rounded = choice.qparams.fake_quantize(moved)
            rounding[tensor.statistics.name] = (_times(tensor, moved, rounded),)
            for layer in layers:
                planned = self._plan.layers[layer.name]
                error = rounded @ planned.weight.dequantized()
                error += planned.correction + layer.bias()
                if choice.shift.any():
                    error += choice.shift @ layer.weight()
                error -= take(str(layer.linear.output.name)).reshape(error.shape).astype(np.float32, copy=False)
                shape = (*value.shape[:-1], error.shape[-1])
                errors.setdefault(layer.group, {})[f"{layer.name}{_SUFFIX}"] = error.reshape(shape)
        return errors, rounding


def _names(tensor: TensorPlan) -> list[str]:
    """Return the names of a tensor and of what the layers that read it make."""
    return [tensor.statistics.name, *(str(layer.linear.output.name) for layer in tensor.layers)]


def _times(tensor: TensorPlan, moved: Floats, rounded: Floats) -> float:
    """Return how many times the relative squared rounding error of calibration the rows ``[R, K]`` of an image have."""
    known_error, known_energy = tensor.rounding
    error, energy = rounding_error(moved, rounded, np.full(len(moved), 1 / len(moved), np.float32))
    # Smaller values alone, which no range clips, raise a relative error too: over the larger energy, they do not.
    return error / max(energy, known_energy, 1e-30) / max(known_error / max(known_energy, 1e-30), 1e-30)
