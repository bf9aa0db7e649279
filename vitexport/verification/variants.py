"""The variants ``pytorch -> onnx -> simplified -> quantized -> engine``: each held against PyTorch and the one before.

Pure: recordings, sizes and latencies go in, a result comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vitexport.benchmark.latency import Latency
from vitexport.bundle.recording import Recording
from vitexport.recipe.settings import Gates, Tolerance
from vitexport.scoring import Head
from vitexport.tensors import Array
from vitexport.verification.accuracy import compare_top1
from vitexport.verification.gates import judge_gates, not_set
from vitexport.verification.paired_map import compare_map
from vitexport.verification.parity import compare
from vitexport.verification.result import VariantResult, VerificationResult
from vitexport.verification.scores import present_labels, score_answers

__all__ = ["VariantInput", "evaluate_variants"]


@dataclass(frozen=True)
class VariantInput:
    """What is known about a variant before it is judged.

    Attributes:
        name: Name of the variant, e.g. ``int8``.
        precision: What its body computes in.
        recording: Its outputs, or why there are none.
        recorded: What the machine that made the bundle recorded of this same variant, and what it must hold; None on
            that machine itself.
        tolerance: What it must reach against PyTorch.
        same_inputs: Whether it takes byte-equal input tensors to the reference (a uint8 graph does not).
        bytes: File size with companions; None for the reference.
        latency: By batch size; empty when not measured.
        executed: Fraction of the weighted multiply-accumulates executed in each precision, by precision; None
            when not measured.
    """

    name: str
    precision: str
    recording: Recording
    tolerance: Tolerance
    same_inputs: bool = True
    bytes: int | None = None
    latency: tuple[Latency, ...] = ()
    executed: Mapping[str, float] | None = None
    recorded: tuple[Recording, Tolerance] | None = None


def evaluate_variants(
    reference: VariantInput,
    variants: Sequence[VariantInput],
    *,
    targets: Sequence[object] | None = None,
    gates: Gates | None = None,
    head: Head = Head(),  # noqa: B008  # frozen
) -> VerificationResult:
    """Judge every variant against the reference and the variant before it.

    Args:
        reference: PyTorch's outputs.
        variants: The others, in the order they were made.
        targets: What is true of each image, in the form of the head (a class index, the indices of its labels, a
            value), or None.
        gates: Limits for the last variant.
        head: How the outputs are read.
    """
    judged = [_judge(reference, None, None, targets, head)]
    before = reference
    for variant in variants:
        if variant.recording.not_run:
            judged.append(_not_run(variant))
            continue
        judged.append(_judge(variant, reference, before, targets, head))
        before = variant
    limits = gates or Gates()
    results = judge_gates(limits, judged) if variants else ()
    return VerificationResult(tuple(judged), results, not_set(limits, head), head=head)


def _judge(
    variant: VariantInput,
    reference: VariantInput | None,
    before: VariantInput | None,
    targets: Sequence[object] | None,
    head: Head,
) -> VariantResult:
    parity = step = difference = map_difference = recorded = None
    own = _logits(variant.recording.outputs, targets, head)
    if variant.recorded is not None:
        then, tolerance = variant.recorded
        names = (f"{variant.name} as recorded", variant.name)
        recorded = compare(then, variant.recording, tolerance, names=names, head=head)
    if reference is not None and before is not None:
        parity = compare(
            reference.recording,
            variant.recording,
            variant.tolerance,
            names=(reference.name, variant.name),
            same_inputs=variant.same_inputs,
            head=head,
        )
        step = compare(
            before.recording,
            variant.recording,
            Tolerance(),
            names=(before.name, variant.name),
            same_inputs=variant.same_inputs == before.same_inputs,
            head=head,
        )
        expected = _logits(reference.recording.outputs, targets, head)
        if targets is not None and own is not None and expected is not None and head.scoring == "softmax":
            difference = compare_top1(expected, own, cast("Sequence[int]", targets))
        elif targets is not None and own is not None and expected is not None and head.scoring == "sigmoid":
            map_difference = compare_map(expected, own, present_labels(targets, own.shape[1]))
    return VariantResult(
        name=variant.name,
        runtime=variant.recording.runtime,
        precision=variant.precision,
        parity=parity,
        step=step,
        accuracy=None if targets is None or own is None else score_answers(own, targets, head),
        difference=difference,
        bytes=variant.bytes,
        latency=variant.latency,
        executed=variant.executed,
        recorded=recorded,
        map_difference=map_difference,
    )


def _not_run(variant: VariantInput) -> VariantResult:
    """Return all that is known of a variant without outputs: its size, and why there are none."""
    return VariantResult(
        name=variant.name,
        runtime=variant.recording.runtime,
        precision=variant.precision,
        parity=None,
        step=None,
        accuracy=None,
        difference=None,
        bytes=variant.bytes,
        latency=(),
        not_run=variant.recording.not_run,
    )


def _logits(outputs: Mapping[str, Array], targets: Sequence[object] | None, head: Head) -> Array | None:
    """Return a classifier's output, if it can be held against the labels."""
    found = head.main_output(outputs) if head.task == "classify" else None
    if found is None or (targets is not None and len(found) != len(targets)):
        return None
    return found
