"""What a linter says, and for whom it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitexport.device.profiles import DeviceProfile
from vitexport.errors import RecipeError

__all__ = ["Finding", "LintTarget", "Severity", "parse_target"]

Severity = Literal["error", "warning", "info"]
Engine = Literal["tensorrt", "onnxruntime"]
Release = Literal["10.3", "11", "rtx", ""]


@dataclass(frozen=True)
class Finding:
    """One thing that will fail or run slowly.

    Attributes:
        rule: Name of the rule, e.g. ``int32-bias``.
        severity: ``error`` (will not build, or not compute what was asked), ``warning`` (slower or less accurate) or
            ``info`` (slower in exchange for something).
        node: ONNX node or tensor; empty for the whole model.
        module: PyTorch module the node came from; empty where the file does not say.
        why: What is wrong.
        fix: What to do.
    """

    rule: str
    severity: Severity
    node: str
    module: str
    why: str
    fix: str


@dataclass(frozen=True)
class LintTarget:
    """What the model is meant for.

    Attributes:
        engine: ``tensorrt`` or ``onnxruntime``.
        release: ``10.3`` stands for every 10.x, ``11``, or ``rtx``; empty for ONNX Runtime.
        device: Device profile, or None.
        shapes_given: Inputs whose dynamic axes have a range beside the batch.
    """

    engine: Engine
    release: Release
    device: DeviceProfile | None = None
    shapes_given: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name for messages."""
        if self.engine == "onnxruntime":
            return "ONNX Runtime"
        return "TensorRT-RTX" if self.release == "rtx" else f"TensorRT {self.release}"


def parse_target(text: str, *, device: DeviceProfile | None = None, shapes_given: tuple[str, ...] = ()) -> LintTarget:
    """Read ``tensorrt``, ``tensorrt:10.3``, ``tensorrt:11``, ``tensorrt:rtx``, ``tensorrt-rtx`` or ``onnxruntime``.

    ``tensorrt`` alone means the oldest release we build with, 10.3: what passes there passes on all.

    Raises:
        RecipeError: It is none of those.
    """
    name, _, release = text.partition(":")
    if name == "onnxruntime" and not release:
        return LintTarget("onnxruntime", "", device, shapes_given)
    if (name, release) == ("tensorrt-rtx", "") or (name, release) == ("tensorrt", "rtx"):
        return LintTarget("tensorrt", "rtx", device, shapes_given)
    major = release.partition(".")[0]
    if name == "tensorrt" and (not release or major == "10"):
        return LintTarget("tensorrt", "10.3", device, shapes_given)
    if name == "tensorrt" and major == "11":
        return LintTarget("tensorrt", "11", device, shapes_given)
    raise RecipeError(
        f"Expected a lint target, found '{text}'.",
        "Known are tensorrt, tensorrt:10.3, tensorrt:11, tensorrt:rtx and onnxruntime.",
    )
