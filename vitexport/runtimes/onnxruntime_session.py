"""Opening a session of ONNX Runtime: threads, execution provider, graph optimisation, profiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitexport.errors import MissingDependencyError, NoKernelError, RuntimeBackendError
from vitexport.runtimes.base import RuntimeOptions

__all__ = ["open_session", "vendor_errors"]

_EXECUTION_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

_NO_QDQ_FUSIONS = ("session.disable_quant_qdq", "1")
"""Setting that keeps Q/DQ apart from the operators they surround. ONNX Runtime 1.31 fuses those of FP8 into integer
operators that do not take FP8, moves Transpose between them where the opset has none for FP8, and then refuses its own
graph as invalid. Nothing is lost without: it has no FP8 kernels to fuse them for.
"""

_SPIN_MICROSECONDS = "1000"
"""How long an idle thread waits busily. ONNX Runtime's default goes on for tens of milliseconds after a run, and takes
the cores from what runs next: another model, the decoding of images. Between operators of one run the wait is shorter.
"""


def open_session(model: Path, options: RuntimeOptions, *, profile: Path | None = None) -> Any:
    """Open an ``onnxruntime.InferenceSession`` as the options say.

    Args:
        model: ONNX file.
        options: Threads, execution provider and graph optimisation.
        profile: Prefix of the profile that the session shall write; None writes none.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        NoKernelError: The model is sound, and the execution provider has no kernel for one of its types.
        RuntimeBackendError: The file is no ONNX model, uses what this version lacks, or the execution provider is
            absent.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "ort", "Running ONNX models") from error
    chosen = _execution_provider(ort, options)
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    if profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(profile)
    session_options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if options.in_order:
        session_options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if options.threads is not None:
        session_options.intra_op_num_threads = options.threads
    if not options.optimize:
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = _open(ort, model, session_options, chosen)
    except _vendor_error("NotImplemented") as error:
        raise NoKernelError(
            f"The {chosen[0]} of ONNX Runtime {ort.__version__} lacks a kernel that '{model.name}' needs: {error}",
            "The file itself is sound: run it where its precision has kernels, or choose another precision.",
        ) from error
    except vendor_errors() as error:
        raise RuntimeBackendError(
            f"ONNX Runtime cannot open '{model}': {error}",
            "Check that the file is a complete ONNX model, with its external data beside it; "
            "`vitexport inspect` shows what it holds.",
        ) from error
    if chosen[0] not in session.get_providers():
        # ONNX Runtime logs that an execution provider cannot start (no GPU, another CUDA version) and goes on with the
        # CPU.
        raise RuntimeBackendError(
            f"ONNX Runtime cannot use {chosen[0]} here; it fell back to {', '.join(session.get_providers())}.",
            "Check the GPU, its driver and the CUDA and cuDNN versions onnxruntime-gpu asks for; see `vitexport "
            "doctor`.",
        )
    return session


def _open(ort: Any, model: Path, options: Any, provider: tuple[str, dict[str, str]]) -> Any:
    """Open a session; once more without Q/DQ fusions where ONNX Runtime calls a graph invalid."""
    try:
        return ort.InferenceSession(str(model), options, providers=[provider])
    except _vendor_error("InvalidGraph") as refused:
        options.add_session_config_entry(*_NO_QDQ_FUSIONS)
        try:
            return ort.InferenceSession(str(model), options, providers=[provider])
        except _vendor_error("InvalidGraph"):
            raise refused from None  # then it is the file


def _execution_provider(ort: Any, options: RuntimeOptions) -> tuple[str, dict[str, str]]:
    """Return an execution provider and its options; a GPU is chosen by ``cuda:N``."""
    name = options.execution_provider or ("cuda" if options.device.startswith("cuda") else "cpu")
    if name not in _EXECUTION_PROVIDERS:
        raise RuntimeBackendError(
            f"Expected an ONNX Runtime execution provider of {', '.join(_EXECUTION_PROVIDERS)}, found '{name}'.",
            "Choose one of those.",
        )
    available = ort.get_available_providers()
    if _EXECUTION_PROVIDERS[name] not in available:
        raise RuntimeBackendError(
            f"This ONNX Runtime has no {_EXECUTION_PROVIDERS[name]}; it has {', '.join(available)}.",
            "Install the build that brings it (onnxruntime-gpu for CUDA and TensorRT).",
        )
    if name == "cpu":
        return _EXECUTION_PROVIDERS[name], {}
    index = options.device.partition(":")[2] or "0"
    graph = {"enable_cuda_graph": "1"} if options.cuda_graph and name == "cuda" else {}
    return _EXECUTION_PROVIDERS[name], {"device_id": index, **graph}


def _vendor_error(name: str) -> type[Exception]:
    """Return one of ONNX Runtime's exceptions, named after its status code."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: type[Exception] = getattr(state, name)
    return found


def vendor_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its own tree hangs directly under Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = tuple(
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == state.__name__
    )
    return (*own, RuntimeError, ValueError)
