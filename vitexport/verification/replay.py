"""Running the models of a bundle again, on this machine: do they answer as they did where the bundle was made?

There every variant was judged against PyTorch on all images. Here a sample of them is at hand, which says less, and
something sharper: the answers that each variant itself gave there. A float model must give them again up to the order
of its sums; what a machine changes in a quantized one must be less than what quantizing changed. PyTorch's answers are
compared for information, and judge only what could not run where the bundle was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import ENGINE, REFERENCE, read_labels, read_recording, read_replay_inputs, recording_name
from vitexport.bundle.recording import Recording, ReplayInputs
from vitexport.errors import BundleError, NoKernelError
from vitexport.recipe.settings import Recipe, Tolerance
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.record import record
from vitexport.runtimes.tensorrt.sidecar import read_sidecar
from vitexport.scoring import Head
from vitexport.tensors import batch_limit, tile_rows
from vitexport.verification.checks import library_check, metadata_check, originals_check, targets_check
from vitexport.verification.gates import GATES, not_set, of_outputs
from vitexport.verification.judge import bundle_head, judge, variant_input, with_checks
from vitexport.verification.parity import compare
from vitexport.verification.result import GateResult, VerificationResult
from vitexport.verification.variants import VariantInput, evaluate_variants

__all__ = ["executed_precisions", "replay", "replay_engine"]

_SAME_FLOAT = 1e-4
"""Largest difference, over the largest output, by another order of float32 sums; the recipe's, where it has one."""

_SAME_DB = 60.0
"""SQNR above which answers are as good as equal: what is exact there may be off by a 16-bit rounding here."""


def replay(
    bundle: Bundle, recipe: Recipe, *, runtime: str | None = None, options: RuntimeOptions | None = None
) -> VerificationResult:
    """Run the models of a bundle on this machine and judge them against PyTorch's recorded answers.

    Args:
        bundle: Made anywhere; neither PyTorch nor the checkpoint is needed.
        recipe: Whose tolerances count.
        runtime: Open every model with this runtime; None lets each file choose.
        options: For the runtime.

    Raises:
        BundleError: The bundle holds no recording to compare with, or no model.
    """
    inputs = read_replay_inputs(bundle)
    reference = read_recording(bundle, REFERENCE).select(inputs.images)
    if not bundle.models:
        raise BundleError(f"Expected a model in the bundle '{bundle.root}', found none.", "Run its recipe to the end.")
    variants = []
    metadata: dict[str, Mapping[str, str]] = {}
    for artifact in bundle.models:
        executed = None
        try:
            with open_runtime(bundle.path(artifact), runtime, options) as opened:
                metadata[artifact.name] = opened.metadata
                feeds = inputs.feeds(opened.inputs[0], bundle.preprocess, recipe.verify.batch_size)
                recording = record(opened, inputs.images, feeds)
                executed = executed_precisions(opened, bundle, inputs)
        except NoKernelError as error:
            recording = Recording.of_nothing(error.message)
        given = variant_input(artifact, recording, recipe.verify, (), executed)
        variants.append(_held_to_recording(given, _recorded(bundle, artifact, inputs), reference, recipe))
    return _judge(bundle, recipe, inputs, reference, variants, metadata, bundle.models[-1])


def replay_engine(
    bundle: Bundle,
    recipe: Recipe,
    engine: Path,
    *,
    runtime: str | None = None,
    options: RuntimeOptions | None = None,
) -> VerificationResult:
    """Run an engine on this machine and judge it against PyTorch's recorded answers.

    The model it was built from stands before it in the result, with the outputs the bundle recorded for it, so that a
    loss has an owner.

    Args:
        bundle: Holds the ONNX file the engine was built from.
        recipe: Whose tolerances and gates count.
        engine: The plan, with its sidecar.
        runtime: Open it with this runtime; None lets the sidecar choose.
        options: For the runtime.

    Raises:
        BundleError: The engine has no sidecar, or was built from no model of this bundle.
        RuntimeBackendError: The engine does not run here.
    """
    if not engine.is_file():
        raise BundleError(f"Expected an engine at '{engine}', found none.", "Build it with `vitexport build-engine`.")
    inputs = read_replay_inputs(bundle)
    reference = read_recording(bundle, REFERENCE).select(inputs.images)
    model, size = _built_from(bundle, engine, recipe.verify.batch_size)
    with open_runtime(engine, runtime, options) as opened:
        metadata = {ENGINE: opened.metadata}
        feeds = inputs.feeds(opened.inputs[0], bundle.preprocess, size or recipe.verify.batch_size)
        outputs = record(opened, inputs.images, feeds, size=size)
        executed = executed_precisions(opened, bundle, inputs)
    before = []
    known = _recorded(bundle, model, inputs)
    variant = replace(
        variant_input(model, outputs, recipe.verify, (), executed), name=ENGINE, bytes=engine.stat().st_size
    )
    if known is not None:
        # Judged where it was recorded; here it only shows what the engine adds.
        before = [replace(variant_input(model, known, recipe.verify, (), None), tolerance=Tolerance())]
        if model.precision != "float32":  # an engine may compute a float32 model in other formats: PyTorch is its judge
            variant = _held_to_recording(variant, known, reference, recipe)
    return _judge(bundle, recipe, inputs, reference, [*before, variant], metadata, model)


def _judge(
    bundle: Bundle,
    recipe: Recipe,
    inputs: ReplayInputs,
    reference: Recording,
    variants: Sequence[VariantInput],
    metadata: Mapping[str, Mapping[str, str]],
    model: Artifact,
) -> VerificationResult:
    """Hold outputs of this machine against the recorded ones, with every check a bundle allows."""
    head = bundle_head(bundle, recipe)
    verification = evaluate_variants(
        VariantInput(REFERENCE, "float32", reference, recipe.verify.float_tolerance),
        variants,
        targets=inputs.targets,
        gates=of_outputs(recipe.gates),
        head=head,
    )
    verification = replace(verification, gates=_excused(verification.gates, reference, variants, recipe, head))
    # A kit lacks what some gates were measured with, and so says nothing of them.
    there = {gate.gate: gate for gate in judge(bundle, recipe).gates if gate.value is not None}
    gates = verification.gates
    if model.name == bundle.models[-1].name:  # the one that the gates judged there
        gates = _still_rejected(gates, there)
    again = {gate.gate for gate in gates}
    verification = replace(
        verification,
        gates=gates,
        judged_before=tuple(gate for name, gate in there.items() if name not in again),
        unchecked=not_set(recipe.gates, head),
    )
    return with_checks(
        verification,
        targets_check(reference, inputs.targets, class_names=bundle.class_names, matched=read_labels(bundle)[1]),
        metadata_check(bundle, metadata),
        library_check(bundle),
        originals_check(bundle, inputs),
    )


def _still_rejected(gates: Sequence[GateResult], there: Mapping[str, GateResult]) -> tuple[GateResult, ...]:
    """Keep the verdict on answers that were rejected where the bundle was made: the same answers are no better here."""
    rejected = {name: gate for name, gate in there.items() if not gate.passed and GATES[name].of_answers}
    kept = tuple(_reject(gate, rejected[gate.gate]) if gate.gate in rejected else gate for gate in gates)
    again = {gate.gate for gate in gates}
    return (*kept, *(_reject(gate, gate) for name, gate in rejected.items() if name not in again))


def _reject(gate: GateResult, there: GateResult) -> GateResult:
    note = f"rejected where the bundle was made: {there.value:.4g}"
    return replace(gate, passed=False, note=f"{gate.note}; {note}" if gate.note else note)


def _excused(
    gates: Sequence[GateResult], reference: Recording, variants: Sequence[VariantInput], recipe: Recipe, head: Head
) -> tuple[GateResult, ...]:
    """Let a figure of this sample pass that is no worse than the recorded answers give on the very same images.

    Where the bundle was made the gate was judged on all images; hard ones among them say nothing against this machine.
    """
    last = variants[-1]
    if last.recorded is None or all(gate.passed for gate in gates):
        return tuple(gates)
    answered = replace(last, recording=last.recorded[0], recorded=None)
    before = VariantInput(REFERENCE, "float32", reference, Tolerance())
    then = evaluate_variants(before, [answered], gates=of_outputs(recipe.gates), head=head)
    recorded = {gate.gate: gate.value for gate in then.gates}
    return tuple(_excuse(gate, recorded.get(gate.gate)) for gate in gates)


def _excuse(gate: GateResult, recorded: float | None) -> GateResult:
    if gate.passed or gate.value is None or gate.interval is None or recorded is None or gate.value < recorded:
        return gate
    return replace(gate, passed=True, note=f"{gate.note}; {recorded:.4g} of these images where the bundle was made")


def _recorded(bundle: Bundle, model: Artifact, inputs: ReplayInputs) -> Recording | None:
    """Return what a model answered to these inputs where the bundle was made; None where it was not run."""
    found = bundle.find(recording_name(model.name))
    recording = None if found is None else Recording.load(bundle.path(found))
    return None if recording is None or recording.not_run else recording.select(inputs.images)


def _held_to_recording(
    variant: VariantInput, known: Recording | None, reference: Recording, recipe: Recipe
) -> VariantInput:
    """Ask for the recorded answers instead of PyTorch's, where there are any."""
    if known is None:
        return variant
    if variant.precision == "float32":
        again = Tolerance(max_rel=recipe.verify.float_tolerance.max_rel or _SAME_FLOAT)
    else:
        quantizing = compare(reference, known, Tolerance(), same_inputs=variant.same_inputs).main
        noise_db = _SAME_DB if quantizing is None else min(quantizing.sqnr_db, _SAME_DB)
        again = Tolerance(min_sqnr_db=noise_db)
    return replace(variant, tolerance=Tolerance(), recorded=(known, again))


def _built_from(bundle: Bundle, engine: Path, limit: int) -> tuple[Artifact, int | None]:
    """Return the model an engine was built from, and the batch size to run it with: the largest it takes below a limit.

    The batch size is None where the engine says nothing about it.
    """
    sidecar = read_sidecar(engine, check_hash=False)
    if sidecar is None:
        raise BundleError(
            f"'{engine}' has no sidecar, so nothing says which model of the bundle it was built from.",
            "Build it with `vitexport build-engine BUNDLE`, which writes one.",
        )
    model = next((artifact for artifact in bundle.models if artifact.file.sha256 == sidecar.onnx_sha256), None)
    if model is None:
        names = ", ".join(artifact.name for artifact in bundle.models) or "none"
        raise BundleError(
            f"'{engine}' was built from an ONNX file with sha256 {sidecar.onnx_sha256[:16]}..., which is no model of "
            f"the bundle '{bundle.root}' (it has {names}).",
            "Verify it with the bundle it was built from, or build it again from this one.",
        )
    name = sidecar.inputs[0].name
    ranges = [(profile[name].min[0], profile[name].max[0]) for profile in sidecar.profiles if name in profile]
    sizes = [min(high, limit) for low, high in ranges if low <= limit] or [low for low, _ in ranges]
    return model, max(sizes, default=None)


def executed_precisions(runtime: Runtime, bundle: Bundle, inputs: ReplayInputs) -> Mapping[str, float] | None:
    """Return the fraction of the weighted work a model executes in each precision; None where it does not tell."""
    tensor = runtime.inputs[0]
    feed = inputs.feed(tensor, bundle.preprocess, slice(0, 1))
    return runtime.executed({tensor.name: tile_rows(feed, batch_limit(tensor) or 1)})
