"""Build an engine: ONNX in, plan and sidecar out.

The builder decides no precision. The network is strongly typed, so every type in the engine is one the ONNX graph wrote
down with Cast and Q/DQ nodes, on TensorRT 10.3, on 11 and on TensorRT-RTX alike.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from vitexport.device.preflight import preflight
from vitexport.device.profiles import DeviceProfile, device_profile
from vitexport.engine.config import (
    add_profiles,
    load_timing_cache,
    make_config,
    save_timing_cache,
    target_capabilities,
)
from vitexport.engine.network import Network, parse_network, requested_gemms, requested_precision
from vitexport.engine.onnx_file import read_metadata
from vitexport.engine.progress import BuildProgress, make_monitor
from vitexport.errors import EngineBuildError
from vitexport.files import StageResult, sha256_file, write_atomic
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.runtimes.cuda.probe import GpuInfo, probe_cuda, require_gpu
from vitexport.runtimes.tensorrt.api import TensorRTApi, load_api
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar, read_sidecar, sidecar_path, this_platform

__all__ = ["build_engine"]


def build_engine(
    model: Path,
    settings: EngineSettings,
    out: Path,
    *,
    variant: str = "",
    progress: BuildProgress | None = None,
    api: TensorRTApi | None = None,
) -> StageResult:
    """Build an engine and write it with its sidecar.

    Args:
        model: ONNX file; external data lies beside it.
        settings: How to build.
        out: Where the plan goes, e.g. ``model.engine``; the sidecar is ``model.engine.json``. The plan is raw, so that
            trtexec, Triton and DeepStream load it as it is.
        variant: Which variant of a bundle the file is, for the sidecar.
        progress: Receives the builder's progress.
        api: A loaded product; None loads the one the settings name.

    Returns:
        The plan, its precision and facts for the report.

    Raises:
        EngineBuildError: The device cannot do what the model needs, or TensorRT refuses model or settings.
        MissingDependencyError: The product is not installed.
        RecipeError: There is no device profile of that name.
        RuntimeBackendError: The product needs a GPU and there is none.
    """
    if not model.is_file():
        raise EngineBuildError(f"Expected an ONNX file at '{model}', found none.", "Check the path.")
    device = None if settings.device is None else device_profile(settings.device)
    if device is not None:
        # What needs no product is refused before one is loaded.
        preflight(device, product=settings.product, compute_capabilities=settings.compute_capabilities)
    api = api or load_api(settings.product)
    gpu = _gpu(api)
    started = time.monotonic()
    network = parse_network(api, model)
    try:
        requested = requested_gemms(network)
        precision = requested_precision(requested)
        if device is not None:
            preflight(
                device,
                product=settings.product,
                precision=precision,
                version=None if api.builds_without_gpu else api.version,
                gpu=None if api.builds_without_gpu else gpu,
                compute_capabilities=settings.compute_capabilities,
            )
        config = make_config(network, settings, device, has_gpu=gpu is not None)
        profiles = add_profiles(network, config, settings)
        cache = None if api.builds_without_gpu else settings.timing_cache or _default_timing_cache(api, gpu)
        load_timing_cache(config, cache)
        plan = _build(network, config, progress)
        save_timing_cache(config, cache)
        sidecar = EngineSidecar(
            product=settings.product,
            version=api.version,
            platform=this_platform(),
            gpu="" if api.builds_without_gpu or gpu is None else gpu.name,
            compute_capabilities=_runs_on(api, settings, device, gpu),
            hardware_compatibility=settings.hardware_compatibility,
            version_compatible=settings.version_compatible,
            needs_refit=settings.strip_weights,
            refittable=settings.refit or settings.strip_weights,
            weight_streaming=settings.weight_streaming,
            variant=variant,
            onnx_sha256=sha256_file(model),
            engine_sha256=hashlib.sha256(plan).hexdigest(),
            engine_bytes=len(plan),
            inputs=network.inputs,
            outputs=network.outputs,
            profiles=profiles,
            precision=precision,
            requested=requested,
            settings=settings.model_dump(mode="json", exclude={"timing_cache"}),
            metadata=read_metadata(model),
        )
    finally:
        network.close()
    # The sidecar goes first: a plan under its final name always has one.
    write_atomic(sidecar_path(out), sidecar.to_json())
    write_atomic(out, plan)
    read_sidecar(out)
    details = {
        "variant": sidecar.variant,
        "product": sidecar.product,
        "version": sidecar.version,
        "compute_capabilities": list(sidecar.compute_capabilities),
        "bytes": sidecar.engine_bytes,
        "seconds": round(time.monotonic() - started, 2),
        "profiles": len(profiles),
        "requested_flops": _flops(sidecar),
    }
    return StageResult(out, precision, (sidecar_path(out),), details)


def _gpu(api: TensorRTApi) -> GpuInfo | None:
    """Return the GPU; only a product that compiles ahead of time may do without one."""
    if api.builds_without_gpu:
        return next(iter(probe_cuda().gpus), None)
    return require_gpu(f"Building an engine with {api.product} {api.version}")


def _build(network: Network, config: Any, progress: BuildProgress | None) -> bytes:
    api = network.api
    monitor = None if progress is None else make_monitor(api, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    with api.messages() as messages:
        plan = network.builder.build_serialized_network(network.definition, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        reason = "\n".join(f"  {message}" for message in messages) or "  no reason given"
        raise EngineBuildError(
            f"{api.product} {api.version} cannot build this model:\n{reason}",
            "If memory ran out, lower the largest batch or workspace_mib; otherwise `vitexport lint MODEL.onnx --for "
            "tensorrt` explains what to change.",
        )
    return bytes(plan)


def _default_timing_cache(api: TensorRTApi, gpu: GpuInfo | None) -> Path:
    """Return a cache file per version and GPU model: timings of another one mean nothing."""
    name = f"{api.version}-{gpu.name if gpu else 'none'}".replace(" ", "_").replace("/", "_")
    return Path.home() / ".cache" / "vitexport" / "timing" / f"{name}.cache"


def _runs_on(
    api: TensorRTApi, settings: EngineSettings, device: DeviceProfile | None, gpu: GpuInfo | None
) -> tuple[str, ...]:
    if api.builds_without_gpu:
        return target_capabilities(api, settings, device)
    return () if gpu is None else (gpu.compute_capability,)


def _flops(sidecar: EngineSidecar) -> dict[str, int]:
    flops: dict[str, int] = {}
    for gemm in sidecar.requested:
        flops[gemm.precision] = flops.get(gemm.precision, 0) + gemm.flops
    return flops
