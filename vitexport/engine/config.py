"""Settings -> builder configuration. Every flag is looked up in the API; what a release lacks is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitexport.device.profiles import DeviceProfile
from vitexport.engine.network import Network
from vitexport.errors import EngineBuildError
from vitexport.files import write_atomic
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.runtimes.tensorrt.api import TensorRTApi
from vitexport.runtimes.tensorrt.sidecar import ProfileShapes

__all__ = ["add_profiles", "load_timing_cache", "make_config", "save_timing_cache", "target_capabilities"]


def make_config(network: Network, settings: EngineSettings, device: DeviceProfile | None, *, has_gpu: bool) -> Any:
    """Return an ``IBuilderConfig`` for these settings, without optimisation profiles.

    Args:
        network: The parsed network.
        settings: How to build.
        device: Profile that bounds the workspace and names the target.
        has_gpu: Whether this machine has a GPU; ahead-of-time builds can do less without one.

    Raises:
        EngineBuildError: A setting needs something this release does not have.
    """
    api = network.api
    config = network.builder.create_builder_config()
    # Without detailed layer information there is nothing to audit.
    config.profiling_verbosity = api.module.ProfilingVerbosity.DETAILED
    workspace = settings.workspace_mib or (device.workspace_mib if device else None)
    if workspace is not None:
        config.set_memory_pool_limit(api.module.MemoryPoolType.WORKSPACE, workspace << 20)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    # TF32 is on by default, and would silently round a model that asks for float32.
    _set_flag(api, config, "TF32", settings.tf32)
    _set_flag(api, config, "VERSION_COMPATIBLE", settings.version_compatible)
    _set_flag(api, config, "STRIP_PLAN", settings.strip_weights)
    _set_flag(api, config, "REFIT", settings.refit)
    _set_flag(api, config, "WEIGHT_STREAMING", settings.weight_streaming)
    if api.builds_without_gpu:
        _check_ahead_of_time(api, settings, has_gpu=has_gpu)
    if settings.hardware_compatibility != "none":
        name = settings.hardware_compatibility.upper()
        level = api.member("HardwareCompatibilityLevel", name)
        if level is None or api.builds_without_gpu:
            raise _lacks(api, f"hardware compatibility '{settings.hardware_compatibility}'")
        config.hardware_compatibility_level = level
    targets = target_capabilities(api, settings, device)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            member = api.member("ComputeCapability", f"SM{target.replace('.', '')}")
            if member is None or not config.set_compute_capability(member, index):
                raise EngineBuildError(
                    f"{api.product} {api.version} cannot build for compute capability {target}.",
                    f"It can build for {', '.join(api.target_capabilities)}.",
                )
    return config


def target_capabilities(api: TensorRTApi, settings: EngineSettings, device: DeviceProfile | None) -> tuple[str, ...]:
    """Return the compute capabilities to build for; empty means the product's default.

    Raises:
        EngineBuildError: Targets were given to a product that builds only for the GPU it runs on.
    """
    if settings.compute_capabilities and not api.builds_without_gpu:
        raise EngineBuildError(
            f"{api.product} builds for the GPU of this machine; it takes no list of compute capabilities.",
            "Leave --compute-capability out, or build with --product tensorrt-rtx.",
        )
    if not api.builds_without_gpu:
        return ()
    return settings.compute_capabilities or ((device.compute_capability,) if device else ())


def add_profiles(network: Network, config: Any, settings: EngineSettings) -> tuple[dict[str, ProfileShapes], ...]:
    """Add one optimisation profile per batch range and return their shapes; none for a network of fixed shapes.

    Raises:
        EngineBuildError: A range does not fit the network, or an axis other than the batch has no range.
    """
    dynamic = [item for item in network.inputs if any(isinstance(axis, str) for axis in item.shape)]
    known = {item.name for item in network.inputs}
    unknown = [name for name in settings.shapes if name not in known]
    if unknown:
        raise EngineBuildError(
            f"Shapes were given for '{unknown[0]}', which is no input; inputs are {', '.join(known)}.",
            "Correct the name.",
        )
    if not dynamic:
        _check_fixed_batch(network, settings)
        return ()
    profiles: list[dict[str, ProfileShapes]] = []
    for batch in settings.batch:
        profile = network.builder.create_optimization_profile()
        shapes: dict[str, ProfileShapes] = {}
        for item in dynamic:
            low, best, high = settings.shapes.get(item.name) or _batch_shapes(item.name, item.shape, batch)
            shapes[item.name] = ProfileShapes(min=low, opt=best, max=high)
            try:
                profile.set_shape(item.name, low, best, high)
            except (TypeError, ValueError) as error:
                raise _bad_profile(item.spec.describe(), low, best, high, str(error)) from error
        with network.api.messages() as messages:
            index = config.add_optimization_profile(profile)
        if index < 0:
            first = next(iter(shapes.values()))
            raise _bad_profile(dynamic[0].spec.describe(), first.min, first.opt, first.max, "; ".join(messages))
        profiles.append(shapes)
    return tuple(profiles)


def load_timing_cache(config: Any, path: Path | None) -> None:
    """Give the builder the kernel timings of earlier builds; a cache it refuses is started afresh."""
    if path is None:
        return
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_timing_cache(config: Any, path: Path | None) -> None:
    """Keep the kernel timings for the next build."""
    cache = None if path is None else config.get_timing_cache()
    if path is not None and cache is not None:
        write_atomic(path, bytes(cache.serialize()))


def _set_flag(api: TensorRTApi, config: Any, name: str, wanted: bool) -> None:
    flag = api.member("BuilderFlag", name)
    if flag is None:
        if wanted:
            raise _lacks(api, f"builder flag {name}")
        return
    if wanted:
        config.set_flag(flag)
    else:
        config.clear_flag(flag)


def _check_ahead_of_time(api: TensorRTApi, settings: EngineSettings, *, has_gpu: bool) -> None:
    """Refuse what an ahead-of-time build cannot do, in words rather than with a failed check inside the compiler."""
    if settings.version_compatible:
        raise EngineBuildError(
            f"{api.product} engines do not move between releases, so none is version-compatible.",
            "Leave --version-compatible out, and build again with every release.",
        )
    if (settings.strip_weights or settings.refit) and not has_gpu:
        raise EngineBuildError(
            f"{api.product} {api.version} compiles engines without weights or with replaceable ones only where "
            "there is a GPU, and this machine has none.",
            "Leave --strip-weights and --refit out, or build on a machine with a GPU.",
        )


def _batch_shapes(
    name: str, shape: tuple[int | str, ...], batch: tuple[int, int, int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    others = [axis for axis in shape[1:] if isinstance(axis, str)]
    if others:
        raise EngineBuildError(
            f"Input '{name}' has the dynamic axes {', '.join(others)} beside the batch, and no range for them.",
            "Give --shape NAME=MIN:OPT:MAX (e.g. pixel_values=1x3x224x224:8x3x224x224:8x3x384x384), or export with a "
            "fixed image size.",
        )
    fixed = tuple(axis for axis in shape[1:] if isinstance(axis, int))
    if isinstance(shape[0], int):
        return ((shape[0], *fixed),) * 3
    low, best, high = batch
    return (low, *fixed), (best, *fixed), (high, *fixed)


def _check_fixed_batch(network: Network, settings: EngineSettings) -> None:
    sizes = {item.shape[0] for item in network.inputs if item.shape}
    asked = {size for batch in settings.batch for size in batch}
    if settings.batch != ((1, 1, 1),) and asked != sizes:
        fixed = ", ".join(str(size) for size in sizes)
        raise EngineBuildError(
            f"The model has a fixed batch of {fixed}, and {', '.join(map(str, sorted(asked)))} was asked for.",
            "Export with --batch dynamic, or leave --batch out.",
        )


def _bad_profile(
    spec: str, low: tuple[int, ...], best: tuple[int, ...], high: tuple[int, ...], reason: str
) -> EngineBuildError:
    return EngineBuildError(
        f"TensorRT refuses the range {list(low)} : {list(best)} : {list(high)} for {spec}: "
        f"{reason or 'no reason given'}",
        "Give a range whose fixed axes equal the model's and whose sizes ascend.",
    )


def _lacks(api: TensorRTApi, what: str) -> EngineBuildError:
    return EngineBuildError(
        f"{api.product} {api.version} has no {what}.", "Leave that setting out, or build with another product."
    )
