"""A quantized file against its float model on images that calibration never saw, measured as the quantizer does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitexport.bundle.metadata import ModelMetadata
from vitexport.host.graph.file import read_onnx
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, run_images
from vitexport.host.quantize.planning.quality import Judge, Quality, judged_output
from vitexport.recipe.settings import Target
from vitexport.runtimes import RuntimeOptions, open_runtime

__all__ = ["Fresh"]


class Fresh:
    """Images no calibration has seen, and what a float model makes of them.

    Args:
        model: The float model.
        images: Image files.
        folder: Where preprocessed images are kept.
    """

    def __init__(self, model: Path, images: Sequence[Path], folder: Path) -> None:
        source = read_onnx(model)
        metadata = ModelMetadata.from_metadata(source.metadata_props, where=str(model))
        output = judged_output(source)
        self._head = metadata.head
        self._feeds = ImageFeeds(images, metadata.preprocess, metadata.model.inputs[0], folder)
        self._images = range(len(images))
        with open_runtime(model, "onnxruntime", RuntimeOptions(threads=1, in_order=True)) as runtime:
            self._reference = [row[output] for row in run_images(runtime, self._feeds, self._images)]

    def quality(self, file: Path, target: Target) -> Quality:
        """Measure a file with the kernels that its target's figure was measured with."""
        on_cpu = target != "tensorrt"
        return Judge(self._feeds, self._images, self._reference, self._head, optimize=on_cpu).measure_file(file)
