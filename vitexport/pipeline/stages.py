"""What the stages of a run do that run models: record outputs, measure latency, compare, keep what a report shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitexport.benchmark.latency import Latency, batch_run, load_warning, time_by_turns
from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import (
    DISAGREEMENTS,
    ERRORS,
    PREPROCESSING,
    REFERENCE,
    SAMPLES,
    analysis_path,
    benchmark_path,
    read_labels,
    read_recording,
    read_replay_inputs,
    recording_path,
    replay_inputs_path,
)
from vitexport.bundle.recording import Recording, ReplayInputs
from vitexport.errors import NoKernelError
from vitexport.files import StageResult, finite, write_atomic
from vitexport.inputs.decoded import DecodedImages
from vitexport.inputs.labels.targets import Labels
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.machine import describe_machine
from vitexport.recipe.settings import BenchmarkSettings, ModelSettings, VerifySettings
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.record import record
from vitexport.tensors import batch_limit
from vitexport.verification.disagreement import worst_images
from vitexport.verification.replay import executed_precisions

if TYPE_CHECKING:
    from vitexport.host.sources import LoadedModel

__all__ = [
    "VerificationImages",
    "compare_preprocessing",
    "keep_disagreements",
    "locate_errors",
    "measure_latency",
    "record_reference",
    "record_variant",
]

_SAMPLES = 8


class VerificationImages:
    """The images a model is verified on, decoded once for everything that looks at them.

    Attributes:
        paths: The files.
        names: Their names relative to the folder.
    """

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.names = tuple(path.relative_to(folder).as_posix() for path in paths)
        self._decoded: DecodedImages | None = None

    def decoded(self, spec: PreprocessSpec) -> DecodedImages:
        """Return their pixels; decoding happens at the first call, and again for another preprocessing."""
        if self._decoded is None or self._decoded.spec != spec:
            self.close()
            self._decoded = DecodedImages(self.paths, spec)
        return self._decoded

    def close(self) -> None:
        """Release the pixels."""
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None


def record_reference(
    loaded: LoadedModel,
    images: VerificationImages,
    settings: VerifySettings,
    root: Path,
    *,
    labels: Labels | None = None,
) -> StageResult:
    """Record what PyTorch answers on all images and what is true of them, and the inputs that will travel with it."""
    targets = None if labels is None else labels.targets
    decoded = images.decoded(loaded.metadata.preprocess)
    with _pytorch(loaded) as runtime:
        recording = record(runtime, images.names, decoded.feeds(runtime.inputs[0], settings.batch_size))
    path, inputs_path = recording_path(root, REFERENCE), replay_inputs_path(root)
    recording.save(path)
    total = len(images.paths)
    rows = [index * total // count for count in [min(settings.replay_images, total)] for index in range(count)]
    ReplayInputs(
        tuple(images.names[row] for row in rows),
        decoded.rows(rows),
        None if targets is None else tuple(targets[row] for row in rows),
    ).save(inputs_path)
    details = {"images": total, "targets": targets, "labels": None if labels is None else str(labels)}
    return StageResult(path, "float32", (inputs_path,), details)


def record_variant(
    bundle: Bundle, artifact: Artifact, images: VerificationImages, settings: VerifySettings
) -> StageResult:
    """Record what a model of the bundle answers on all images, or that nothing here can execute it."""
    decoded = images.decoded(bundle.preprocess)
    try:
        with open_runtime(bundle.path(artifact)) as runtime:
            recording = record(runtime, images.names, decoded.feeds(runtime.inputs[0], settings.batch_size))
    except NoKernelError as error:
        recording = Recording.of_nothing(error.message)
    path = recording_path(bundle.root, artifact.name)
    recording.save(path)
    return StageResult(path, artifact.precision)


def measure_latency(bundle: Bundle, loaded: LoadedModel, settings: BenchmarkSettings) -> StageResult:
    """Time PyTorch and every model of the bundle on real inputs, interleaved; what cannot run here has no time.

    A model exported for a fixed batch size is timed at that size only.
    """
    inputs = read_replay_inputs(bundle)
    options = RuntimeOptions(threads=settings.threads)
    table: dict[str, list[Latency]] = {}
    warning = load_warning()
    with ExitStack() as opened:
        runtimes: dict[str, Runtime] = {REFERENCE: opened.enter_context(_pytorch(loaded))}
        for artifact in bundle.models:
            with suppress(NoKernelError):
                runtimes[artifact.name] = opened.enter_context(open_runtime(bundle.path(artifact), options=options))
        fixed = [size for size in (batch_limit(runtime.inputs[0]) for runtime in runtimes.values()) if size is not None]
        for size in fixed[:1] or settings.batch:
            runs = {
                name: batch_run(runtime, inputs.feed(runtime.inputs[0], bundle.preprocess, slice(0, size)), size)
                for name, runtime in runtimes.items()
            }
            timings = time_by_turns(runs, size, seconds=settings.seconds, warmup=settings.warmup)
            for name, timing in timings.items():
                table.setdefault(name, []).append(timing.latency)
        executed = {
            name: executed_precisions(runtime, bundle, inputs)
            for name, runtime in runtimes.items()
            if name != REFERENCE
        }
    path = benchmark_path(bundle.root)
    content = {
        "machine": describe_machine(),
        "warnings": [] if warning is None else [warning],
        "executed": executed,
        "variants": {name: [asdict(entry) for entry in entries] for name, entries in table.items()},
    }
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return StageResult(path, "")


def compare_preprocessing(
    loaded: LoadedModel, settings: ModelSettings, images: VerificationImages, bundle: Bundle
) -> StageResult:
    """Compare our preprocessing with the source library's, and keep some original image files in the bundle.

    The files are among those whose pixels travel with the bundle, so that any machine can repeat the way from a file to
    an input.
    """
    from vitexport.host.preprocess_parity import compare_with_library, copy_samples

    by_name = dict(zip(images.names, images.paths, strict=True))
    carried = [name for name in read_replay_inputs(bundle).images if name in by_name]
    chosen = carried[:: max(1, len(carried) // _SAMPLES)][:_SAMPLES]
    path = analysis_path(bundle.root, PREPROCESSING)
    content = compare_with_library(loaded, settings, [by_name[name] for name in chosen])
    files = copy_samples([by_name[name] for name in chosen], path.parent / SAMPLES)
    content["samples"] = [{"file": file, "image": name} for file, name in zip(files, chosen, strict=False)]
    write_atomic(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
    return StageResult(path, "", tuple(path.parent / SAMPLES / file for file in files))


def locate_errors(bundle: Bundle) -> StageResult:
    """Find out how much error every block and layer of every variant adds."""
    from vitexport.host.diagnose.bundle import write_errors

    path = analysis_path(bundle.root, ERRORS)
    write_errors(bundle, path)
    return StageResult(path, "")


def keep_disagreements(bundle: Bundle, images: VerificationImages) -> StageResult:
    """Keep the pixels of the images that PyTorch and the final variant disagree on most, for the report to show."""
    reference, last = (read_recording(bundle, name) for name in (REFERENCE, bundle.models[-1].name))
    row_of = {name: row for row, name in enumerate(images.names)}
    worst = worst_images(reference, last, read_labels(bundle)[0], head=bundle.metadata.head)
    names = tuple(entry.image for entry in worst if entry.image in row_of)
    shown = images.decoded(bundle.preprocess).rows([row_of[name] for name in names]) if names else None
    path = analysis_path(bundle.root, DISAGREEMENTS, ".npz")
    empty = np.zeros((0, *bundle.preprocess.image_size, bundle.preprocess.channels), dtype=np.uint8)
    ReplayInputs(names, empty if shown is None else shown, None).save(path)
    return StageResult(path, "")


def _pytorch(loaded: LoadedModel) -> Runtime:
    from vitexport.runtimes.pytorch import PyTorchRuntime

    return PyTorchRuntime.from_module(loaded.module, loaded.metadata.model.inputs, loaded.metadata.model.outputs)
