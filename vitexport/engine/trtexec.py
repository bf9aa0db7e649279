"""The ``trtexec`` command line that builds the same engine, for people who want to check us with the vendor's tool."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vitexport.device.profiles import DeviceProfile
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.tensors import TensorSpec

__all__ = ["trtexec_command"]


def trtexec_command(
    model: Path,
    settings: EngineSettings,
    inputs: Sequence[TensorSpec],
    *,
    engine: Path | None = None,
    device: DeviceProfile | None = None,
) -> str:
    """Return a command that can be pasted into a shell.

    Args:
        model: ONNX file.
        settings: How the engine is built.
        inputs: Inputs of the ONNX file.
        engine: Where trtexec writes its engine; None leaves that out.
        device: Device profile that bounds the workspace.
    """
    rtx = settings.product == "tensorrt-rtx"
    words = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={model}"]
    if not rtx:
        # TensorRT-RTX and TensorRT 11 know no other mode; 10.x still has to be told, and 11 accepts the option.
        words.append("--stronglyTyped")
    if engine is not None:
        words.append(f"--saveEngine={engine}")
    words += _shapes(settings, inputs)
    workspace = settings.workspace_mib or (device.workspace_mib if device else None)
    if workspace is not None:
        words.append(f"--memPoolSize=workspace:{workspace}M")
    if settings.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if not settings.tf32:
        words.append("--noTF32")
    if settings.timing_cache is not None and not rtx:
        words.append(f"--timingCacheFile={settings.timing_cache}")
    words += ["--versionCompatible"] if settings.version_compatible else []
    words += ["--stripWeights"] if settings.strip_weights else []
    words += ["--refit"] if settings.refit else []
    words += ["--allowWeightStreaming"] if settings.weight_streaming else []
    levels = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
    if settings.hardware_compatibility != "none":
        words.append(f"--hardwareCompatibilityLevel={levels[settings.hardware_compatibility]}")
    targets = settings.compute_capabilities or ((device.compute_capability,) if device else ())
    if rtx and targets:
        words.append("--computeCapabilities=" + ",".join(target.replace(".", "") for target in targets))
    words.append("--profilingVerbosity=detailed")
    return " ".join(shlex.quote(word) for word in words)


def _shapes(settings: EngineSettings, inputs: Sequence[TensorSpec]) -> list[str]:
    dynamic = [spec for spec in inputs if any(isinstance(axis, str) for axis in spec.shape)]
    if not dynamic:
        return []
    words: list[str] = []
    for index, batch in enumerate(settings.batch):
        # trtexec takes several profiles as --profile=N followed by that profile's shapes.
        words += [f"--profile={index}"] if len(settings.batch) > 1 else []
        for position, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            shapes = [f"{spec.name}:{_shape(settings, spec, batch, position)}" for spec in dynamic]
            words.append(f"{option}={','.join(shapes)}")
    return words


def _shape(settings: EngineSettings, spec: TensorSpec, batch: tuple[int, int, int], position: int) -> str:
    given = settings.shapes.get(spec.name)
    if given is not None:
        return "x".join(map(str, given[position]))
    return "x".join(str(batch[position] if isinstance(axis, str) else axis) for axis in spec.shape)
