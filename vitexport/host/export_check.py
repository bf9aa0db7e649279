"""The first proof of an exported file: the same pixels through it and through the PyTorch model it came from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitexport.errors import ExportError
from vitexport.host.sources.loaded import LoadedModel
from vitexport.inputs.preprocess import PreprocessSpec, from_pixels, normalize
from vitexport.runtimes import open_runtime
from vitexport.tensors import batch_limit

__all__ = ["MAX_DIFFERENCE", "compare_with_pytorch"]

MAX_DIFFERENCE = 5e-3
"""Float32 sums in another order have moved deep models by up to 1e-3; a wrong graph is off by far more."""


def compare_with_pytorch(loaded: LoadedModel, path: Path) -> float:
    """Run an exported file and the model it came from on the same pixels.

    The pixels are noise over a gradient, from a fixed seed: enough to show a wrong graph, no replacement for
    `vitexport run`, which judges on real images.

    Args:
        loaded: The model.
        path: The file, as :func:`~vitexport.host.export.export_onnx` wrote it.

    Returns:
        The largest difference of any output element over the largest magnitude of that output.

    Raises:
        ExportError: The difference is above :data:`MAX_DIFFERENCE`, an output is not finite, or images of a batch are
            mixed. The file is removed, so that nobody takes it for a good one.
    """
    spec = loaded.metadata.preprocess
    with open_runtime(path) as runtime:
        tensor = runtime.inputs[0]
        worst = 0.0
        alone: tuple[torch.Tensor, ...] = ()
        for size in [batch_limit(tensor)] if batch_limit(tensor) else (1, 3):
            shown = _pixels(int(size or 1), spec)
            with torch.no_grad():
                planes = torch.from_numpy(np.stack([normalize(image, spec) for image in shown]))
                expected = loaded.module(planes)
            _require_rows_of_their_own(alone, expected, path, loaded)
            alone = expected
            found = runtime.run({tensor.name: from_pixels(shown, spec, tensor)})
            for output, reference in zip(runtime.outputs, expected, strict=True):
                wanted = reference.numpy().astype(np.float64)
                scale = max(float(np.abs(wanted).max()), np.finfo(np.float32).tiny)
                difference = float(np.abs(found[output.name] - wanted).max()) / scale
                worst = max(worst, difference if math.isfinite(difference) else math.inf)
    if worst > MAX_DIFFERENCE:
        path.unlink()
        raise ExportError(
            f"The exported '{loaded.metadata.model.id}' does not answer as PyTorch does: the largest difference is "
            f"{worst:.2g} of the largest output (limit {MAX_DIFFERENCE:g}). The file was removed.",
            "Report the model with this message; a fixed batch (`--batch 1`) or another opset may work.",
        )
    return worst


def _require_rows_of_their_own(
    alone: tuple[torch.Tensor, ...], together: tuple[torch.Tensor, ...], path: Path, loaded: LoadedModel
) -> None:
    """Refuse a model whose answer for an image depends on the others in its batch: serving would change results."""
    for one, several in zip(alone, together, strict=False):
        scale = max(float(one.abs().max()), np.finfo(np.float32).tiny)
        if float((several[:1] - one).abs().max()) > MAX_DIFFERENCE * scale:
            path.unlink()
            raise ExportError(
                f"'{loaded.metadata.model.id}' answers otherwise for an image when others are in its batch.",
                "Export it for one image at a time (`--batch 1`), or take out what mixes the batch, such as a mean "
                "over it.",
            )


def _pixels(count: int, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return ``count`` images, uint8 ``[N, H, W, C]``: noise over a gradient, from a fixed seed."""
    height, width = spec.image_size
    ramp = np.linspace(0, 160, height)[:, None, None] + np.linspace(0, 40, width)[None, :, None]
    noise = np.random.default_rng(0).uniform(0, 55, (count, height, width, spec.channels))
    pixels: NDArray[np.uint8] = (ramp + noise).astype(np.uint8)
    return pixels
