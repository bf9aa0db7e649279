"""Which extra brings a package that is not installed, said wherever a function finds out that it is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from vitexport.errors import MissingDependencyError

__all__ = ["PACKAGES", "names_missing_extras"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

PACKAGES: dict[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "ort"),
    "torch": ("torch", "host"),
    "transformers": ("transformers", "host"),
    "timm": ("timm", "host"),
    "safetensors": ("safetensors", "host"),
    "onnx": ("onnx", "host"),
    "onnx_ir": ("onnx-ir", "host"),
    "onnxscript": ("onnxscript", "host"),
    "onnxsim": ("onnxsim", "host"),
    "ml_dtypes": ("ml_dtypes", "host"),
    "threadpoolctl": ("threadpoolctl", "host"),
    "google": ("protobuf", "host"),
}
"""What a package is imported as: its distribution, and the extra that brings it (onnx brings protobuf)."""


def names_missing_extras(purpose: str) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Make a function say what to install when a package of :data:`PACKAGES` is missing anywhere below it.

    A package that is missing and not in the table is none of ours, and passes as it is.

    Args:
        purpose: What needs the package, to begin the sentence, e.g. ``Exporting a model``.
    """

    def guard(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        @wraps(function)
        def guarded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            try:
                return function(*args, **kwargs)
            except ModuleNotFoundError as error:
                found = PACKAGES.get((error.name or "").partition(".")[0])
                if found is None:
                    raise
                raise MissingDependencyError(*found, purpose) from error

        return guarded

    return guard
