"""Behind the last attention only the tokens that the head reads are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitexport.host.graph.constants import add_initializer, add_lazy_initializer, array_of, is_constant, sizes_of
from vitexport.host.graph.scopes import inherit_module

__all__ = ["ReadTokens"]

_ELEMENTWISE = frozenset({"Gelu", "Erf", "Tanh", "Sigmoid", "Relu", "HardSwish", "Neg", "Sqrt", "Cast", "Identity"})
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_LAST_AXIS = frozenset({"LayerNormalization", "RMSNormalization", "Softmax"})

Use = tuple[ir.Node, int]
"""A node and the index of one of its inputs."""

Needs = list[tuple[int, int]]
"""(input index, axis) pairs of a node whose rows are not all needed."""


class ReadTokens(ir.passes.InPlacePass):
    """Carry the choice of tokens in front of a classifier back to the queries of the last attention.

    A head that reads the class token needs one row of the last block's output, so of that block only keys and values
    have to be computed for every token: queries, probabilities, projection and MLP work on the rows that are read. The
    results are the same numbers; for ViT-B/16 a sixteenth of all GEMMs is never computed. Requires shapes on values;
    ensures that no weighted MatMul that is understood computes tokens that only a Gather or Slice of others follows.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Narrow what follows the last attention, where it is understood and saves a GEMM."""
        changed = False
        # A plan may leave an earlier value to picks alone. Every plan narrows a value, so there is an end.
        while (plan := _first_plan(model.graph)) is not None:
            _apply(model.graph, plan)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that no GEMM computes tokens that are not read."""
        plan = _first_plan(model.graph)
        if plan is not None:
            raise ir.passes.PostconditionError(
                f"Expected only tokens that are read to be computed, found {plan.reads.tokens} in '{plan.value.name}', "
                f"of which {len(plan.reads.rows)} are read."
            )


@dataclass(frozen=True)
class _Reads:
    """Which tokens (axis 1) of a value are read, and by which nodes."""

    tokens: int
    rows: tuple[int, ...]
    consumers: dict[ir.Node, list[int]]


@dataclass
class _Plan:
    """What becomes of the graph.

    Attributes:
        value: The value in front of the consumers.
        reads: What is read of it.
        narrowed: Nodes that compute the read rows only, with the axis of their outputs.
        inputs: For each of them the (input, axis) pairs that carry the rows.
        gathered: Values of which all rows exist: (value, axis) to the uses that get the chosen rows.
    """

    value: ir.Value
    reads: _Reads
    narrowed: dict[ir.Node, int] = field(default_factory=dict)
    inputs: dict[ir.Node, Needs] = field(default_factory=dict)
    gathered: dict[tuple[ir.Value, int], list[Use]] = field(default_factory=dict)

    @property
    def saves_gemm(self) -> bool:
        return any(node.op_type == "MatMul" and is_constant(node.inputs[1]) for node in self.narrowed)


def _first_plan(graph: ir.Graph) -> _Plan | None:
    """Return the plan of the first value, in execution order, for which one saves a GEMM."""
    for node in graph:
        for value in node.outputs:
            reads = _reads(value)
            plan = None if reads is None else _plan(graph, value, reads)
            if plan is not None and plan.saves_gemm:
                return plan
    return None


def _reads(value: ir.Value) -> _Reads | None:
    """Return what is read of ``[N, tokens, C]`` when every use picks tokens by constant positions, and not most."""
    shape = value.shape
    if value.is_graph_output() or shape is None or len(shape) != 3 or not isinstance(shape[1], int):
        return None
    consumers = {node: _picked(node, value, shape[1]) for node in value.consumers()}
    known = {node: rows for node, rows in consumers.items() if rows is not None}
    if not known or len(known) < len(consumers):
        return None
    rows = tuple(sorted({row for picked in known.values() for row in picked}))
    return _Reads(shape[1], rows, known) if 2 * len(rows) < shape[1] else None


def _picked(node: ir.Node, value: ir.Value, tokens: int) -> list[int] | None:
    """Return the positions along axis 1 that a Gather or Slice takes, or None for anything else."""
    if node.inputs[0] is not value:
        return None
    if node.op_type == "Gather":
        index = array_of(node.inputs[1])
        if index is None or _axis(node, 0) not in (1, -2):
            return None
        return [int(row) % tokens for row in index.reshape(-1)]
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    bounds = [array_of(given) for given in node.inputs[1:]]
    if any(array is None or array.size != 1 for array in bounds):
        return None
    start, end, axis, *step = [int(array.reshape(()).item()) for array in bounds if array is not None]
    return list(range(tokens))[start : end : step[0] if step else 1] if axis in (1, -2) else None


def _plan(graph: ir.Graph, value: ir.Value, reads: _Reads) -> _Plan:
    """Walk backwards from ``value``: a node is narrowed when nothing needs its other rows."""
    plan = _Plan(value, reads)
    wanted: dict[ir.Value, list[tuple[Use, int]]] = {value: [((use.node, use.idx), 1) for use in value.uses()]}
    for node in reversed(graph):
        outputs = [output for output in node.outputs if output.uses() or output.is_graph_output()]
        if not any(output in wanted for output in outputs):
            continue
        axes = {axis for output in outputs for _, axis in wanted.get(output, [])}
        whole = any(output.is_graph_output() or len(wanted.get(output, [])) < len(output.uses()) for output in outputs)
        needs = None if whole or len(axes) > 1 else _needs(node, next(iter(axes)), reads.tokens)
        if needs is None:
            for output in outputs:
                for use, axis in wanted.get(output, []):
                    plan.gathered.setdefault((output, axis), []).append(use)
            continue
        plan.narrowed[node], plan.inputs[node] = axes.pop(), needs
        for index, axis in needs:
            source, use = node.inputs[index], (node, index)
            assert source is not None
            if source.producer() is None:
                plan.gathered.setdefault((source, axis), []).append(use)
            else:
                wanted.setdefault(source, []).append((use, axis))
    return plan


def _needs(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    """Return which inputs carry the rows along ``axis`` of the outputs, or None if the node is not understood."""
    rule = _RULES.get(node.op_type)
    if (
        node.domain != ""
        or rule is None
        or any(value.shape is None for value in (*node.inputs, *node.outputs) if value)
    ):
        return None
    return rule(node, axis, tokens)


def _same_axis(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    return [(0, axis)]


def _along_last_axis(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    rank = _rank(node.outputs[0])
    return [(0, axis)] if _axis(node, -1) in (-1, rank - 1) and axis < rank - 1 else None


def _broadcasting(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    needs = []
    for index, value in enumerate(node.inputs):
        assert value is not None and value.shape is not None
        own = axis - _rank(node.outputs[0]) + len(value.shape)
        if own >= 0 and value.shape[own] == tokens:
            needs.append((index, own))
        elif own >= 0 and value.shape[own] != 1:
            return None
    return needs


def _matmul(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    """Rows of a GEMM are rows of its first operand."""
    first, second = node.inputs
    rank = _rank(node.outputs[0])
    if _rank(first) != rank or axis == rank - 1 or (_rank(second) > 2 and axis != rank - 2):
        return None
    return [(0, axis)]


def _transposed(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    return [(0, node.attributes["perm"].as_ints()[axis])] if "perm" in node.attributes else None


def _reshaped(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    """An axis passes a Reshape when what lies before and behind it keeps its size; at most axis 0 is dynamic."""
    before, after = (list(value.shape) for value in (node.inputs[0], node.outputs[0]) if value and value.shape)
    if axis >= len(before) or any(not isinstance(size, int) for size in (*before[1:], *after[1:])):
        return None
    same = before[axis] == tokens and before[1:axis] == after[1:axis] and array_of(node.inputs[1]) is not None
    return [(0, axis)] if same and axis > 0 and _size(before[axis:]) == _size(after[axis:]) else None


def _split(node: ir.Node, axis: int, tokens: int) -> Needs | None:
    return [(0, axis)] if _axis(node, 0) not in (axis, axis - _rank(node.inputs[0])) else None


_RULES: dict[str, Callable[[ir.Node, int, int], Needs | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _same_axis),
    **dict.fromkeys(_LAST_AXIS, _along_last_axis),
    **dict.fromkeys(_BROADCASTING, _broadcasting),
    "MatMul": _matmul,
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Split": _split,
}


def _apply(graph: ir.Graph, plan: _Plan) -> None:
    rows = plan.reads.rows
    for (value, axis), uses in plan.gathered.items():
        chosen = _take(graph, value, axis, rows)
        for node, index in uses:
            node.replace_input_with(index, chosen)
    for node, axis in plan.narrowed.items():
        if node.op_type == "Reshape":
            shape = array_of(node.inputs[1])
            assert shape is not None
            if shape[axis] == plan.reads.tokens:
                new = shape.copy()
                new[axis] = len(rows)
                node.replace_input_with(1, add_initializer(graph, "read_shape", new))
        for output in node.outputs:
            _narrow_shape(output, axis, len(rows))
    for node, picked in plan.reads.consumers.items():
        _renumber(graph, node, [rows.index(row) for row in picked])


def _take(graph: ir.Graph, value: ir.Value, axis: int, rows: Sequence[int]) -> ir.Value:
    """Return the chosen rows of a value: computed now for a constant, by a Gather otherwise."""
    tensor = value.const_value
    if is_constant(value) and tensor is not None:
        shape = [*sizes_of(tensor)]
        shape[axis] = len(rows)
        name = f"{value.name}.read"
        return add_lazy_initializer(
            graph, name, lambda: np.take(tensor.numpy(), rows, axis=axis), tensor.dtype, tuple(shape)
        )
    index = add_initializer(graph, "read_tokens", np.array(rows, dtype=np.int64))
    gather = ir.node("Gather", [value, index], {"axis": axis})
    chosen = gather.outputs[0]
    chosen.type, chosen.shape = value.type, ir.Shape(value.shape or ())
    _narrow_shape(chosen, axis, len(rows))
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], gather)
    else:
        graph.insert_after(producer, inherit_module(gather, producer))
    return chosen


def _renumber(graph: ir.Graph, node: ir.Node, positions: Sequence[int]) -> None:
    """Let a consumer pick its tokens among those that are left."""
    if node.op_type == "Gather":
        index = array_of(node.inputs[1])
        assert index is not None
        new = np.array(positions, dtype=index.dtype).reshape(index.shape)
        node.replace_input_with(1, add_initializer(graph, "read_index", new))
        return
    # A Slice of rows that are all kept: consecutive numbers, or none.
    for place, bound in ((1, positions[0]), (2, positions[-1] + 1)):
        node.replace_input_with(place, add_initializer(graph, "read_bound", np.array([bound], dtype=np.int64)))
    if len(node.inputs) > 4:
        node.replace_input_with(4, add_initializer(graph, "read_step", np.array([1], dtype=np.int64)))


def _narrow_shape(value: ir.Value, axis: int, size: int) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([size if index == axis else old for index, old in enumerate(value.shape)])


def _axis(node: ir.Node, default: int) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else default


def _rank(value: ir.Value | None) -> int:
    assert value is not None and value.shape is not None
    return len(value.shape)


def _size(axes: Sequence[object]) -> int:
    return int(np.prod([axis for axis in axes if isinstance(axis, int)], dtype=np.int64))
