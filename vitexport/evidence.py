"""The stages that run models: what PyTorch answers, what every rung answers, and how long each takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitexport.benchmark import Latency, interleave, summarize
from vitexport.bundle import Artifact, Bundle
from vitexport.files import write_atomic
from vitexport.images import batches, load_image
from vitexport.ladder import REFERENCE
from vitexport.machine import describe_machine
from vitexport.preprocess import pixels
from vitexport.recipe import BenchmarkSettings, VerifySettings
from vitexport.recording import ReplayInputs
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.record import record
from vitexport.stage import StageResult
from vitexport.tensors import Array, batch_limit
from vitexport.verdict import BENCHMARK_FILE, executed_shares, replay_feed, replay_inputs

if TYPE_CHECKING:
    from vitexport.host.sources import LoadedModel

__all__ = ["VerificationImages", "measure_latency", "record_reference", "record_rung"]


@dataclass(frozen=True)
class VerificationImages:
    """The images a model is verified on.

    Attributes:
        paths: The files.
        names: Their names relative to the folder.
        labels: Class index of each, or None.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: tuple[int, ...] | None


def record_reference(
    loaded: LoadedModel, images: VerificationImages, settings: VerifySettings, folder: Path
) -> StageResult:
    """Record PyTorch's answers on all images, and the inputs that will travel with them."""
    paths = images.paths
    with _pytorch(loaded) as runtime:
        feeds = batches(paths, loaded.preprocess, loaded.spec.inputs[0], settings.batch_size)
        recording = record(runtime, images.names, feeds)
    path = folder / f"{REFERENCE}.npz"
    recording.save(path)
    count = min(settings.replay_images, len(paths))
    rows = [index * len(paths) // count for index in range(count)]
    inputs = ReplayInputs(
        tuple(images.names[row] for row in rows),
        np.stack([pixels(load_image(paths[row]), loaded.preprocess) for row in rows]),
        None if images.labels is None else tuple(images.labels[row] for row in rows),
    )
    inputs_path = folder / "inputs.npz"
    inputs.save(inputs_path)
    return StageResult(path, "float32", (inputs_path,), {"images": len(paths), "image_labels": images.labels})


def record_rung(
    bundle: Bundle, artifact: Artifact, images: VerificationImages, settings: VerifySettings, folder: Path
) -> StageResult:
    """Record what a model of the bundle answers on all images."""
    with open_runtime(bundle.path(artifact)) as runtime:
        feeds = batches(images.paths, bundle.preprocess, runtime.inputs[0], settings.batch_size)
        recording = record(runtime, images.names, feeds)
    path = folder / f"{artifact.name}.npz"
    recording.save(path)
    return StageResult(path, artifact.precision)


def measure_latency(bundle: Bundle, loaded: LoadedModel, settings: BenchmarkSettings) -> StageResult:
    """Time PyTorch and every model of the bundle on real inputs, interleaved.

    A model exported for a fixed batch size is timed at that size only.
    """
    inputs = replay_inputs(bundle)
    options = RuntimeOptions(threads=settings.threads)
    runtimes: dict[str, Runtime] = {REFERENCE: _pytorch(loaded)}
    runtimes |= {artifact.name: open_runtime(bundle.path(artifact), options=options) for artifact in bundle.models}
    fixed = [size for size in (batch_limit(runtime.inputs[0]) for runtime in runtimes.values()) if size is not None]
    table: dict[str, list[Latency]] = {name: [] for name in runtimes}
    for size in fixed[:1] or settings.batch:
        calls = {name: _call(runtime, bundle, inputs, size) for name, runtime in runtimes.items()}
        for name, seconds in interleave(calls, seconds=settings.seconds, warmup=settings.warmup).items():
            table[name].append(summarize(seconds, size))
    executed = {
        artifact.name: executed_shares(runtimes[artifact.name], bundle, artifact, inputs, options)
        for artifact in bundle.models
    }
    for runtime in runtimes.values():
        runtime.close()
    path = bundle.root / BENCHMARK_FILE
    content = {
        "machine": describe_machine(),
        "executed": executed,
        "rungs": {name: [asdict(entry) for entry in entries] for name, entries in table.items()},
    }
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return StageResult(path, "")


def _pytorch(loaded: LoadedModel) -> Runtime:
    from vitexport.runtimes.pytorch import PyTorchRuntime

    return PyTorchRuntime.from_module(loaded.module, loaded.spec.inputs, loaded.spec.outputs)


def _call(runtime: Runtime, bundle: Bundle, inputs: ReplayInputs, size: int) -> Callable[[], object]:
    feed = replay_feed(runtime, bundle, inputs, slice(0, size))
    feeds: dict[str, Array] = {runtime.inputs[0].name: np.resize(feed, (size, *feed.shape[1:]))}
    return lambda: runtime.run(feeds)
