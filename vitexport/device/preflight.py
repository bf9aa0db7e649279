"""Refuse what cannot work on a device before anything is built or copied there."""

from __future__ import annotations

from dataclasses import dataclass

from vitexport.device.profiles import JETPACKS, RTX_CAPABILITIES, DeviceProfile
from vitexport.errors import EngineBuildError
from vitexport.runtimes.cuda.probe import GpuInfo
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar, mismatches

__all__ = ["Problem", "check_build", "check_engine", "preflight"]

_NAMES = {"float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "fp8": "FP8", "fp4": "FP4", "float32": "FP32"}


@dataclass(frozen=True)
class Problem:
    """Why something cannot work, and what to do instead."""

    why: str
    fix: str


def check_build(
    profile: DeviceProfile,
    *,
    product: str,
    precision: str | None = None,
    version: str | None = None,
    jetpack: str | None = None,
    gpu: GpuInfo | None = None,
    compute_capabilities: tuple[str, ...] = (),
) -> list[Problem]:
    """Return what speaks against building for a device; empty when nothing does.

    Args:
        profile: The device.
        product: ``tensorrt`` or ``tensorrt-rtx``.
        precision: What the model computes in; None skips that check.
        version: TensorRT version that would build; None takes what the device's JetPack brings.
        jetpack: JetPack release on the device, e.g. ``6.2``; None takes every release that runs on it.
        gpu: GPU of the machine that would build, if it has one.
        compute_capabilities: Explicit targets of TensorRT-RTX.
    """
    if not profile.compute_capability:
        return [
            Problem(
                f"{profile.title} has no NVIDIA GPU, and an engine needs one", "Run the ONNX file with ONNX Runtime."
            )
        ]
    problems = _software(profile, version, jetpack) if product == "tensorrt" else _rtx(profile, compute_capabilities)
    if precision is not None and precision not in profile.precisions and precision != "other":
        usable = ", ".join(_NAMES.get(item, item) for item in profile.precisions)
        problems.append(
            Problem(
                f"{profile.title} (compute capability {profile.compute_capability}) has no "
                f"{_NAMES.get(precision, precision)}; it computes {usable}",
                "Quantize with --precision int8, or convert with --precision fp16.",
            )
        )
    if product == "tensorrt" and gpu is not None and gpu.compute_capability != profile.compute_capability:
        problems.append(
            Problem(
                f"a TensorRT engine is built on the device that runs it: {profile.title} has compute capability "
                f"{profile.compute_capability}, and this machine's {gpu.name} has {gpu.compute_capability}",
                "Copy the ONNX file to the device and run `vitexport build-engine` there.",
            )
        )
    return problems


def check_engine(
    profile: DeviceProfile, sidecar: EngineSidecar, *, version: str | None = None, jetpack: str | None = None
) -> list[Problem]:
    """Return why an engine cannot run on a device; empty when nothing speaks against it.

    Args:
        profile: The device.
        sidecar: The engine.
        version: TensorRT version on the device; None takes what its JetPack brings, and skips the check without one.
        jetpack: JetPack release on the device.
    """
    if not profile.compute_capability:
        return [Problem(f"{profile.title} has no NVIDIA GPU", "Run the ONNX file with ONNX Runtime.")]
    releases = _releases(profile, jetpack)
    there = version or (JETPACKS[releases[-1]].tensorrt if releases else sidecar.version)
    gpu = GpuInfo(0, profile.title, profile.compute_capability, int(profile.memory_gib * 2**30), profile.shared_memory)
    rebuild = "Build it on the device: an engine belongs to one GPU model and one version."
    problems = [
        Problem(reason, rebuild)
        for reason in mismatches(sidecar, product=sidecar.product, version=there, gpu=gpu)
        if "was built on" not in reason
    ]
    if not sidecar.platform.endswith(profile.architecture):
        problems.append(
            Problem(f"it was built on {sidecar.platform}, and {profile.title} is {profile.architecture}", rebuild)
        )
    return problems


def preflight(
    profile: DeviceProfile,
    *,
    product: str,
    precision: str | None = None,
    version: str | None = None,
    jetpack: str | None = None,
    gpu: GpuInfo | None = None,
    compute_capabilities: tuple[str, ...] = (),
) -> None:
    """Raise if :func:`check_build` finds anything.

    Raises:
        EngineBuildError: Names every reason.
    """
    problems = check_build(
        profile,
        product=product,
        precision=precision,
        version=version,
        jetpack=jetpack,
        gpu=gpu,
        compute_capabilities=compute_capabilities,
    )
    if problems:
        raise EngineBuildError(
            f"This cannot work on {profile.title}: {'; '.join(problem.why for problem in problems)}.",
            " ".join(dict.fromkeys(problem.fix for problem in problems)),
        )


def _releases(profile: DeviceProfile, jetpack: str | None) -> tuple[str, ...]:
    """Return the JetPack releases in question; a patch release counts as its release (7.2.2 as 7.2)."""
    if jetpack is None:
        return profile.jetpacks
    return tuple(name for name in profile.jetpacks if jetpack == name or jetpack.startswith(f"{name}."))


def _software(profile: DeviceProfile, version: str | None, jetpack: str | None) -> list[Problem]:
    if not profile.is_jetson:
        return []
    releases = _releases(profile, jetpack)
    if not releases:
        return [
            Problem(
                f"JetPack {jetpack} does not run on {profile.title}; {', '.join(profile.jetpacks)} do",
                "Check the release with `cat /etc/nv_tegra_release`.",
            )
        ]
    newest = JETPACKS[releases[-1]]
    major = int((version or newest.tensorrt).partition(".")[0])
    highest = newest.max_tensorrt if profile.tensorrt_11 else min(newest.max_tensorrt, 10)
    if major > highest:
        return [
            Problem(
                f"TensorRT {version} does not run on JetPack {newest.name} of {profile.title}, which takes "
                f"TensorRT {highest} at most",
                f"Build with the TensorRT {newest.tensorrt} that JetPack {newest.name} brings.",
            )
        ]
    if major < 10:
        return [
            Problem(
                f"JetPack {newest.name} on {profile.title} brings TensorRT {newest.tensorrt} and Python "
                f"{newest.python}; strongly typed networks need TensorRT 10",
                "Use JetPack 6.1 or later, or run the ONNX file with ONNX Runtime on this device.",
            )
        ]
    return []


def _rtx(profile: DeviceProfile, compute_capabilities: tuple[str, ...]) -> list[Problem]:
    if profile.architecture != "x86_64":
        return [
            Problem(
                f"TensorRT-RTX is for x86-64 machines, and {profile.title} is {profile.architecture}",
                "Build with --product tensorrt on the device.",
            )
        ]
    if profile.compute_capability not in RTX_CAPABILITIES:
        return [
            Problem(
                f"TensorRT-RTX has no compute capability {profile.compute_capability} ({profile.title}); it has "
                f"{', '.join(RTX_CAPABILITIES)}",
                "Build with --product tensorrt on the device.",
            )
        ]
    if compute_capabilities and profile.compute_capability not in compute_capabilities:
        return [
            Problem(
                f"{profile.title} has compute capability {profile.compute_capability}, which is not among the targets "
                f"{', '.join(compute_capabilities)}",
                "Add it to --compute-capability, or leave that option out.",
            )
        ]
    return []
