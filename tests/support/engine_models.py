"""Models for engine tests, made by the real stages: export, simplify, quantize."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from vitexport.host.export import export_onnx
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.explanation import QuantizationWarning
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import load_model
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import ExportSettings, ModelSettings, QuantizeSettings, SimplifySettings, Task

__all__ = ["PRECISIONS", "Variants", "simplified"]

# What a variant calls its precision, and what the engine reports for it.
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "fp8"}

# Enough for calibration to be meaningful; more only costs time here.
_IMAGES = 64


def simplified(
    source: str, folder: Path, *, task: Task | None = None, image_size: tuple[int, int] | None = None
) -> Path:
    """Export and simplify a checkpoint."""
    loaded = load_model(ModelSettings(source=source, task=task), image_size=image_size)
    export_onnx(loaded, ExportSettings(image_size=image_size), folder / "exported.onnx")
    return simplify_onnx(folder / "exported.onnx", SimplifySettings(), folder / "fp32.onnx").path


class Variants:
    """One model in every precision, each made when it is first asked for."""

    def __init__(self, folder: Path, make: Callable[[Path], Path], images: Path) -> None:
        self._folder = folder
        self._make = make
        self._images = images

    def __getitem__(self, precision: str) -> Path:
        path = self._folder / f"{precision}.onnx"
        if path.is_file():
            return path
        if precision == "fp32":
            return self._make(self._folder)
        settings = QuantizeSettings.model_validate({"precision": precision, "target": "tensorrt", "preset": "fast"})
        images = list_images(self._images, limit=_IMAGES)
        statistics = self._folder / "statistics.npz"
        with warnings.catch_warnings():
            # Engines are built from it, whatever its accuracy: fp8 without a search is below 20 dB on DeiT-Tiny.
            warnings.simplefilter("ignore", QuantizationWarning)
            return quantize_onnx(self["fp32"], images, settings, path, statistics=statistics).path
