"""The error tree. Every message says what was expected, what was found, and what to do.

::

    VitexportError(message, hint)
    ├── RecipeError            a recipe or setting is wrong
    ├── MissingDependencyError a package of an extra is not installed
    ├── ModelSourceError       a checkpoint cannot be found, read or trusted
    ├── ImageError             an image or image folder cannot be used
    ├── BundleError            a bundle is incomplete, altered or of another schema
    ├── StageError             a pipeline stage could not do what was asked
    │   ├── ExportError
    │   ├── SimplifyError
    │   ├── CalibrationError
    │   ├── QuantizeError
    │   └── EngineBuildError
    └── RuntimeBackendError    a runtime cannot open or run a model
        ├── NoKernelError
        ├── FeedMismatchError
        └── InferenceError

Failed parity and failed gates are results (exit code 3), not exceptions.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CalibrationError",
    "EngineBuildError",
    "ExportError",
    "FeedMismatchError",
    "ImageError",
    "InferenceError",
    "MissingDependencyError",
    "ModelSourceError",
    "NoKernelError",
    "QuantizeError",
    "RecipeError",
    "RuntimeBackendError",
    "SimplifyError",
    "StageError",
    "VitexportError",
]


class VitexportError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What was expected and what was found.
        hint: What to do about it; printed on a line of its own.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class RecipeError(VitexportError):
    """A recipe file or a setting is wrong: unknown key, wrong type, contradictory values."""


class MissingDependencyError(VitexportError):
    """A package that an extra provides is not installed.

    Args:
        package: The distribution that is missing, e.g. ``onnxruntime``.
        extra: The extra of vitexport that brings it, e.g. ``ort``.
        purpose: What needs it, e.g. ``running ONNX models``.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.",
            f"Install it with: pip install 'vitexport[{extra}]'",
        )
        self.package = package
        self.extra = extra


class ModelSourceError(VitexportError):
    """A checkpoint cannot be found, read or trusted."""


class ImageError(VitexportError):
    """An image or image folder is missing, empty, unreadable, truncated or too large."""


class BundleError(VitexportError):
    """A bundle or artifact is missing, altered since it was written, or of an unknown schema."""


class StageError(VitexportError):
    """A pipeline stage could not do what was asked of it."""


class ExportError(StageError):
    """PyTorch to ONNX failed, or its result broke a postcondition."""


class SimplifyError(StageError):
    """Graph simplification failed, or its result broke a postcondition."""


class CalibrationError(StageError):
    """Calibration images or the activations they produce cannot be used."""


class QuantizeError(StageError):
    """Quantization failed, or its result broke a postcondition."""


class EngineBuildError(StageError):
    """An inference engine could not be built as asked."""


class RuntimeBackendError(VitexportError):
    """A runtime cannot open a model or is not usable on this machine."""


class NoKernelError(RuntimeBackendError):
    """A runtime reads a sound model and cannot execute it here: it has no kernel for one of the model's types."""


class FeedMismatchError(RuntimeBackendError):
    """The arrays given to a runtime do not match the inputs the model declares."""


class InferenceError(RuntimeBackendError):
    """The runtime failed while executing a model."""
