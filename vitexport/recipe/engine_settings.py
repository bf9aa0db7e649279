"""What an engine is built for: the ``engine`` part of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from vitexport.recipe.frozen import Settings

__all__ = ["EngineSettings"]


class EngineSettings(Settings):
    """ONNX to a TensorRT or TensorRT-RTX engine. No precision: the ONNX graph decides every precision.

    Attributes:
        product: ``tensorrt`` (built on the device that runs it) or ``tensorrt-rtx`` (builds with no GPU present).
        device: Name of a device profile, e.g. ``orin-nano``; None takes the GPU of this machine.
        batch: One optimisation profile each, as (min, opt, max). A plain number N covers every size above the previous
            entry up to N and is tuned for N; ``"2:8:16"`` gives min, opt and max.
        shapes: Input name -> (min, opt, max) shape, for inputs with a dynamic axis that is not the batch.
        workspace_mib: Scratch memory the builder may plan with, in MiB; None takes what the device profile allows.
        optimization_level: 0 (fast build) to 5 (fast engine); None takes TensorRT's default.
        timing_cache: File that keeps kernel timings between builds; None keeps one beside the user's cache.
        tf32: Let float32 matrix products run in TF32, which rounds their inputs to 10 mantissa bits.
        version_compatible: Build an engine that later TensorRT releases can run.
        hardware_compatibility: ``ampere_plus`` or ``same_compute_capability`` make the engine portable between GPUs.
        strip_weights: Leave the weights out; the engine is completed on the device from the ONNX file (refit).
        refit: Allow the weights to be replaced later.
        weight_streaming: Keep weights in host memory and stream them, for models larger than device memory.
        compute_capabilities: Targets of TensorRT-RTX, e.g. ``("8.6", "8.9")``; empty takes the device profile's or the
            product's default.
    """

    product: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt"
    device: str | None = None
    batch: tuple[tuple[int, int, int], ...] = ((1, 1, 1),)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {}
    workspace_mib: int | None = Field(default=None, ge=1)
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    timing_cache: Path | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    strip_weights: bool = False
    refit: bool = False
    weight_streaming: bool = False
    compute_capabilities: tuple[str, ...] = ()

    @field_validator("batch", mode="before")
    @classmethod
    def _batch_buckets(cls, value: object) -> object:
        """Turn ``[1, 8, "9:16:32"]`` or ``"1,8,9:16:32"`` into (min, opt, max) triples."""
        entries: list[object] = list(value.split(",")) if isinstance(value, str) else [value]
        if isinstance(value, list | tuple):
            entries = list(value)
        triples: list[tuple[int, int, int]] = []
        for entry in entries:
            if isinstance(entry, str | int):
                parts = [_batch_size(part) for part in str(entry).split(":")]
            elif isinstance(entry, list | tuple):
                parts = [_batch_size(str(part)) for part in entry]
            else:
                return value
            if len(parts) == 1:
                parts = [triples[-1][2] + 1 if triples else 1, parts[0], parts[0]]
            if len(parts) != 3 or not 1 <= parts[0] <= parts[1] <= parts[2]:
                raise ValueError(f"a batch range needs 1 <= min <= opt <= max in ascending order, found {entry!r}")
            triples.append((parts[0], parts[1], parts[2]))
        if not triples:
            raise ValueError("at least one batch size is needed")
        return tuple(triples)

    @field_validator("compute_capabilities")
    @classmethod
    def _capabilities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            major, dot, minor = item.partition(".")
            if not (dot and major.isdigit() and minor.isdigit()):
                raise ValueError(f"a compute capability looks like '8.6', found {item!r}")
        return value


def _batch_size(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"a batch size is a whole number, found {text!r}")
    return int(text)
