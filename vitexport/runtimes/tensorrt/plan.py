"""Loading a plan: whether it can run here, in words, before TensorRT is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitexport.errors import RuntimeBackendError
from vitexport.runtimes.cuda import GpuInfo
from vitexport.runtimes.tensorrt.api import TensorRTApi
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar, mismatches

__all__ = ["deserialize", "require_compatible", "stream_weights"]


def require_compatible(model: Path, sidecar: EngineSidecar | None, api: TensorRTApi, gpu: GpuInfo) -> None:
    """Refuse an engine that cannot run here.

    Raises:
        RuntimeBackendError: It was made for another product, version, platform or GPU, or its weights were left out.
    """
    if sidecar is None:
        return
    reasons = mismatches(sidecar, product=api.product, version=api.version, gpu=gpu)
    if sidecar.needs_refit:
        reasons.append("its weights were left out and have not been put back (`vitexport refit`)")
    if reasons:
        raise _refusal(model, reasons)


def deserialize(api: TensorRTApi, plan: Path) -> Any:
    """Load a plan; the caller has made sure that there is a GPU.

    Raises:
        RuntimeBackendError: TensorRT refuses it; carries what TensorRT logged.
    """
    with api.messages() as messages:
        runtime = api.module.Runtime(api.logger)
        if runtime is None:
            raise RuntimeBackendError(
                f"{api.product} {api.version} cannot start: {'; '.join(messages)}", "Run `vitexport doctor`."
            )
        # Version-compatible engines carry a lean runtime, which is host code; TensorRT wants that said.
        runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise RuntimeBackendError(
            f"{api.product} {api.version} cannot load '{plan}': {'; '.join(messages) or 'no reason given'}",
            "An engine runs on the GPU model and version it was built for: build it again on this machine with "
            "`vitexport build-engine`.",
        )
    return engine


def stream_weights(engine: Any) -> None:
    """Give an engine with streamable weights the budget TensorRT proposes; must precede any execution context."""
    if engine.streamable_weights_size > 0:
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()


def _refusal(model: Path, reasons: list[str]) -> RuntimeBackendError:
    return RuntimeBackendError(
        f"'{model}' cannot run here: {'; '.join(reasons)}.",
        "Build it again on this machine with `vitexport build-engine`, from the ONNX file it was made of.",
    )
