"""The variants ``pytorch -> onnx -> simplified -> quantized -> engine``: each held against PyTorch and the one before.

Pure: recordings, sizes and latencies go in, a result comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitexport.benchmark.latency import Latency
from vitexport.bundle.recording import Recording
from vitexport.recipe.settings import Gates, Tolerance
from vitexport.tensors import Array
from vitexport.verification.accuracy import accuracy, compare_top1
from vitexport.verification.gates import judge_gates
from vitexport.verification.parity import class_scores, compare
from vitexport.verification.result import VariantResult, VerificationResult

__all__ = ["VariantInput", "evaluate_variants"]


@dataclass(frozen=True)
class VariantInput:
    """What is known about a variant before it is judged.

    Attributes:
        name: Name of the variant, e.g. ``int8``.
        precision: What its body computes in.
        recording: Its outputs, or why there are none.
        tolerance: What it must reach.
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


def evaluate_variants(
    reference: VariantInput,
    variants: Sequence[VariantInput],
    *,
    targets: Sequence[int] | None = None,
    gates: Gates | None = None,
) -> VerificationResult:
    """Judge every variant against the reference and the variant before it.

    Args:
        reference: PyTorch's outputs.
        variants: The others, in the order they were made.
        targets: Class index per image, or None.
        gates: Limits for the last variant.
    """
    judged = [_judge(reference, None, None, targets)]
    before = reference
    for variant in variants:
        if variant.recording.not_run:
            judged.append(_not_run(variant))
            continue
        judged.append(_judge(variant, reference, before, targets))
        before = variant
    results, unchecked = judge_gates(gates or Gates(), judged)
    return VerificationResult(tuple(judged), results if variants else (), unchecked)


def _judge(
    variant: VariantInput, reference: VariantInput | None, before: VariantInput | None, targets: Sequence[int] | None
) -> VariantResult:
    parity = step = difference = None
    own = _logits(variant.recording.outputs, targets)
    if reference is not None and before is not None:
        parity = compare(
            reference.recording,
            variant.recording,
            variant.tolerance,
            names=(reference.name, variant.name),
            same_inputs=variant.same_inputs,
        )
        step = compare(
            before.recording,
            variant.recording,
            Tolerance(),
            names=(before.name, variant.name),
            same_inputs=variant.same_inputs == before.same_inputs,
        )
        expected = _logits(reference.recording.outputs, targets)
        if targets is not None and own is not None and expected is not None:
            difference = compare_top1(expected, own, targets)
    return VariantResult(
        name=variant.name,
        runtime=variant.recording.runtime,
        precision=variant.precision,
        parity=parity,
        step=step,
        accuracy=None if targets is None or own is None else accuracy(own, targets),
        difference=difference,
        bytes=variant.bytes,
        latency=variant.latency,
        executed=variant.executed,
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


def _logits(outputs: Mapping[str, Array], targets: Sequence[int] | None) -> Array | None:
    """Return the class scores, if they can be held against the labels."""
    found = class_scores(outputs)
    if found is None or (targets is not None and len(found) != len(targets)):
        return None
    return found
