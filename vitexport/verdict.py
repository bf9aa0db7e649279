"""From a bundle to its ladder: by reading what was recorded, or by running the models again on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from vitexport.benchmark import Latency
from vitexport.bundle import Artifact, Bundle
from vitexport.checks import cards_check, labels_check, library_check, originals_check
from vitexport.errors import BundleError
from vitexport.ladder import REFERENCE, Check, Ladder, RungInput, climb
from vitexport.preprocess import normalize
from vitexport.recipe import Gates, Recipe, Tolerance, VerifySettings, parse_recipe
from vitexport.recording import Recording, ReplayInputs
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.executed import executed_layers, share_of_work
from vitexport.runtimes.record import record
from vitexport.runtimes.sidecar import read_sidecar
from vitexport.tensors import Array, batch_limit

__all__ = [
    "BENCHMARK_FILE",
    "ENGINE",
    "RECIPE_FILE",
    "bundle_recipe",
    "executed_shares",
    "judge",
    "recording_name",
    "replay",
    "replay_engine",
    "replay_feed",
    "replay_inputs",
]

BENCHMARK_FILE = "benchmark.json"
RECIPE_FILE = "recipe.yaml"
ENGINE = "engine"
"""Name of the rung that an engine is."""


def recording_name(rung: str) -> str:
    """Return the artifact name of a rung's recording."""
    return f"recording/{rung}"


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
    inputs = replay_inputs(bundle)
    reference = Recording.load(bundle.path(bundle.artifact(recording_name(REFERENCE)))).select(inputs.images)
    if not bundle.models:
        raise BundleError(f"Expected a model in the bundle '{bundle.root}', found none.", "Run its recipe to the end.")
    rungs = []
    cards: dict[str, Mapping[str, str]] = {}
    for artifact in bundle.models:
        with open_runtime(bundle.path(artifact), runtime, options) as opened:
            cards[artifact.name] = opened.metadata
            recording = record(opened, inputs.images, _replay_batches(opened, bundle, inputs, recipe.verify.batch_size))
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
    inputs = replay_inputs(bundle)
    reference = Recording.load(bundle.path(bundle.artifact(recording_name(REFERENCE)))).select(inputs.images)
    model, size = _built_from(bundle, engine, recipe.verify.batch_size)
    with open_runtime(engine, runtime, options) as opened:
        cards = {ENGINE: opened.metadata}
        feeds = _replay_batches(opened, bundle, inputs, size or recipe.verify.batch_size)
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


def replay_inputs(bundle: Bundle) -> ReplayInputs:
    """Read the inputs that travel with the reference recording of a bundle.

    Raises:
        BundleError: The bundle holds no reference recording.
    """
    reference = bundle.artifact(recording_name(REFERENCE))
    return ReplayInputs.load(bundle.root / reference.companions[0].path)


def _answer_gates(recipe: Recipe) -> Gates:
    """Return the gates that judge answers and what computes them; speed and size belong to the bundle's machine."""
    limits = recipe.gates.limits()
    return Gates.model_validate(
        {name: limits[name] for name in ("min_agreement", "min_cosine", "min_actual_precision")}
    )


def replay_feed(runtime: Runtime, bundle: Bundle, inputs: ReplayInputs, rows: slice) -> Array:
    """Return the feed that a model takes for some rows of the replay inputs: pixels, or normalized planes."""
    tensor = runtime.inputs[0]
    if tensor.dtype == "uint8":
        return inputs.pixels[rows]
    planes = [normalize(row, bundle.preprocess) for row in inputs.pixels[rows]]
    return np.stack(planes).astype(tensor.dtype, copy=False)


def _replay_batches(runtime: Runtime, bundle: Bundle, inputs: ReplayInputs, size: int) -> Sequence[Array]:
    starts = range(0, len(inputs.images), size)
    return [replay_feed(runtime, bundle, inputs, slice(start, start + size)) for start in starts]


def executed_shares(
    runtime: Runtime, bundle: Bundle, artifact: Artifact, inputs: ReplayInputs, options: RuntimeOptions | None
) -> Mapping[str, float] | None:
    """Return the share of the weighted work a runtime executes in each precision; None where it cannot be read."""
    if runtime.name in ("tensorrt", "tensorrt-rtx"):
        return _audited(bundle.path(artifact))
    if runtime.name != "onnxruntime":
        return None
    feed = replay_feed(runtime, bundle, inputs, slice(0, 1))
    size = batch_limit(runtime.inputs[0]) or 1
    feeds = {runtime.inputs[0].name: np.resize(feed, (size, *feed.shape[1:]))}
    layers = executed_layers(bundle.path(artifact), feeds, options)
    return {kind: share_of_work(layers, kind) for kind in sorted({layer.precision for layer in layers})}


def _audited(engine: Path) -> Mapping[str, float]:
    from vitexport.engine.audit import audit_engine

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
