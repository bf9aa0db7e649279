"""From a bundle to its ladder: by reading what was recorded, or by running the models again on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from vitexport.bench.latency import Latency
from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import ENGINE, REFERENCE, read_recording, read_replay_inputs, recording_name
from vitexport.bundle.recording import Recording, ReplayInputs
from vitexport.errors import BundleError
from vitexport.recipe.settings import Gates, Recipe, Tolerance, VerifySettings, parse_recipe
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.onnxruntime_profile import executed_layers, share_of_work
from vitexport.runtimes.record import record
from vitexport.runtimes.tensorrt.sidecar import read_sidecar
from vitexport.tensors import batch_limit, tile_rows
from vitexport.verify.checks import cards_check, labels_check, library_check, originals_check
from vitexport.verify.variants import Check, Ladder, RungInput, climb

__all__ = [
    "bundle_recipe",
    "executed_shares",
    "judge",
    "replay",
    "replay_engine",
]


def bundle_recipe(bundle: Bundle) -> Recipe:
    """Read the resolved recipe a bundle was made from."""
    path = bundle.path(bundle.artifact("recipe"))
    return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))


def judge(bundle: Bundle, recipe: Recipe) -> Ladder:
    """Judge a bundle by the recordings and latencies inside it.

    Raises:
        BundleError: The bundle holds no reference recording.
    """
    reference = bundle.artifact(recording_name(REFERENCE))
    labels = reference.details.get("image_labels")
    measured = _measured(bundle)
    rungs = []
    for artifact in bundle.models:
        recorded = bundle.find(recording_name(artifact.name))
        if recorded is not None:
            recording = Recording.load(bundle.path(recorded))
            latency, executed = measured.get(artifact.name, ((), None))
            rungs.append(_rung(artifact, recording, recipe.verify, latency, executed))
    answers = Recording.load(bundle.path(reference))
    ladder = climb(
        RungInput(
            REFERENCE,
            "float32",
            answers,
            recipe.verify.float_tolerance,
            latency=measured.get(REFERENCE, ((), None))[0],
        ),
        rungs,
        labels=labels,
        gates=recipe.gates,
    )
    return _with_checks(ladder, labels_check(answers, labels), library_check(bundle))


def _with_checks(ladder: Ladder, *checks: Check | None) -> Ladder:
    return replace(ladder, checks=tuple(check for check in checks if check is not None))


def replay(
    bundle: Bundle, recipe: Recipe, *, runtime: str | None = None, options: RuntimeOptions | None = None
) -> Ladder:
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
    rungs = []
    cards: dict[str, Mapping[str, str]] = {}
    for artifact in bundle.models:
        with open_runtime(bundle.path(artifact), runtime, options) as opened:
            cards[artifact.name] = opened.metadata
            feeds = inputs.feeds(opened.inputs[0], bundle.preprocess, recipe.verify.batch_size)
            recording = record(opened, inputs.images, feeds)
            executed = executed_shares(opened, bundle, artifact, inputs, options)
        rungs.append(_rung(artifact, recording, recipe.verify, (), executed))
    return _judge(bundle, recipe, inputs, reference, rungs, cards)


def replay_engine(
    bundle: Bundle,
    recipe: Recipe,
    engine: Path,
    *,
    runtime: str | None = None,
    options: RuntimeOptions | None = None,
) -> Ladder:
    """Run an engine on this machine and judge it against PyTorch's recorded answers.

    The model it was built from stands before it in the ladder, with the answers the bundle recorded for it, so that a
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
        cards = {ENGINE: opened.metadata}
        feeds = inputs.feeds(opened.inputs[0], bundle.preprocess, size or recipe.verify.batch_size)
        answers = record(opened, inputs.images, feeds, size=size)
    before = []
    recorded = bundle.find(recording_name(model.name))
    if recorded is not None:
        # Judged where it was recorded; here it only shows what the engine adds.
        known = Recording.load(bundle.path(recorded)).select(inputs.images)
        before = [replace(_rung(model, known, recipe.verify, (), None), tolerance=Tolerance())]
    rung = replace(_rung(model, answers, recipe.verify, (), _audited(engine)), name=ENGINE, bytes=engine.stat().st_size)
    return _judge(bundle, recipe, inputs, reference, [*before, rung], cards)


def _judge(
    bundle: Bundle,
    recipe: Recipe,
    inputs: ReplayInputs,
    reference: Recording,
    rungs: Sequence[RungInput],
    cards: Mapping[str, Mapping[str, str]],
) -> Ladder:
    """Hold answers of this machine against the recorded ones, with every check a bundle allows."""
    ladder = climb(
        RungInput(REFERENCE, "float32", reference, recipe.verify.float_tolerance),
        rungs,
        labels=inputs.labels,
        gates=_answer_gates(recipe),
    )
    return _with_checks(
        ladder,
        labels_check(reference, inputs.labels),
        cards_check(bundle, cards),
        library_check(bundle),
        originals_check(bundle, inputs),
    )


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


def _answer_gates(recipe: Recipe) -> Gates:
    """Return the gates that judge answers and what computes them; speed and size belong to the bundle's machine."""
    limits = recipe.gates.limits()
    return Gates.model_validate(
        {name: limits[name] for name in ("min_agreement", "min_cosine", "min_actual_precision")}
    )


def executed_shares(
    runtime: Runtime, bundle: Bundle, artifact: Artifact, inputs: ReplayInputs, options: RuntimeOptions | None
) -> Mapping[str, float] | None:
    """Return the share of the weighted work a runtime executes in each precision; None where it cannot be read."""
    if runtime.name in ("tensorrt", "tensorrt-rtx"):
        return _audited(bundle.path(artifact))
    if runtime.name != "onnxruntime":
        return None
    tensor = runtime.inputs[0]
    feed = inputs.feed(tensor, bundle.preprocess, slice(0, 1))
    feeds = {tensor.name: tile_rows(feed, batch_limit(tensor) or 1)}
    layers = executed_layers(bundle.path(artifact), feeds, options)
    return {kind: share_of_work(layers, kind) for kind in sorted({layer.precision for layer in layers})}


def _audited(engine: Path) -> Mapping[str, float]:
    from vitexport.runtimes.tensorrt.audit import audit_engine

    return audit_engine(engine).weighted_share


def _rung(
    artifact: Artifact,
    recording: Recording,
    verify: VerifySettings,
    latency: tuple[Latency, ...],
    executed: Mapping[str, float] | None,
) -> RungInput:
    return RungInput(
        name=artifact.name,
        precision=artifact.precision,
        recording=recording,
        tolerance=verify.float_tolerance if artifact.precision == "float32" else verify.quantized_tolerance,
        same_inputs=artifact.details.get("input", "float32") == "float32",
        bytes=artifact.total_bytes,
        latency=latency,
        executed=executed,
    )


def _measured(bundle: Bundle) -> dict[str, tuple[tuple[Latency, ...], Mapping[str, float] | None]]:
    """Return latencies and executed precisions by rung; empty where nothing was measured."""
    artifact = bundle.find("benchmark")
    if artifact is None:
        return {}
    path: Path = bundle.path(artifact)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        executed = data.get("executed", {})
        return {
            name: (tuple(Latency.from_dict(entry) for entry in entries), executed.get(name))
            for name, entries in data["rungs"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"Expected latencies in '{path}', found: {error!r}", "Run the recipe again.") from error
