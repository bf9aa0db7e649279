"""Runtimes: one protocol, one way to open them, one place where feeds are checked.

Adding a runtime is one new file with an :class:`~vitexport.runtimes.base.Adapter` and one line in ``_ADAPTERS``: what
is special about it (threads, which files are its own, how ``vitexport doctor`` checks it) is said by the adapter.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from vitexport.errors import RuntimeBackendError
from vitexport.runtimes.base import Adapter, Runtime, RuntimeOptions

__all__ = ["Runtime", "RuntimeOptions", "adapter_class", "available_runtimes", "open_runtime"]

# name -> (module:class, file suffixes it opens)
_ADAPTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnxruntime": ("vitexport.runtimes.onnxruntime:OnnxRuntime", (".onnx",)),
    "tensorrt": ("vitexport.runtimes.tensorrt.runtime:TensorRTRuntime", (".engine", ".plan")),
    "tensorrt-rtx": ("vitexport.runtimes.tensorrt.runtime:TensorRTRtxRuntime", (".engine", ".plan")),
    "pytorch": ("vitexport.runtimes.pytorch:PyTorchRuntime", (".pt2",)),
}


def available_runtimes() -> tuple[str, ...]:
    """Return the names :func:`open_runtime` accepts."""
    return tuple(_ADAPTERS)


def adapter_class(name: str) -> type[Adapter]:
    """Return the class behind one of :func:`available_runtimes`; its vendor's package need not be installed."""
    module, _, attribute = _ADAPTERS[name][0].partition(":")
    return cast(type[Adapter], getattr(importlib.import_module(module), attribute))


def open_runtime(model: Path, name: str | None = None, options: RuntimeOptions | None = None) -> Runtime:
    """Open a model file with a runtime.

    Args:
        model: Model file.
        name: Runtime name; None takes the first that opens files with this suffix.
        options: Threads and the like; defaults otherwise.

    Raises:
        RuntimeBackendError: No such runtime, no such file, or the runtime refuses the model.
        MissingDependencyError: The runtime's package is not installed.
    """
    chosen = name or _by_suffix(model)
    if chosen is None or chosen not in _ADAPTERS:
        wanted = f"a runtime named '{name}'" if name else f"a runtime for '{model.suffix}' files"
        raise RuntimeBackendError(f"Expected {wanted}; known are {', '.join(_ADAPTERS)}.", "Choose one with --runtime.")
    if not model.is_file():
        raise RuntimeBackendError(f"Expected a model file at '{model}', found none.", "Check the path.")
    _, suffixes = _ADAPTERS[chosen]
    adapter = adapter_class(chosen)
    if model.suffix not in suffixes and _by_suffix(model) is not None:
        raise RuntimeBackendError(
            f"The runtime '{chosen}' opens {' and '.join(suffixes)} files, found '{model}'.", adapter.without_a_file
        )
    return adapter.open(model, options or RuntimeOptions())


def _by_suffix(model: Path) -> str | None:
    """Return the first runtime that opens files with this suffix and takes this one for its own."""
    for name, (_, suffixes) in _ADAPTERS.items():
        if model.suffix in suffixes and adapter_class(name).claims(model):
            return name
    return None
