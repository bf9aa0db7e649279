"""The first proof of an exported file: the same pixels through it and through the PyTorch model it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitexport.errors import ExportError
from vitexport.host.sources.loaded import LoadedModel
from vitexport.inputs.preprocess import PreprocessSpec, from_pixels, normalize
from vitexport.runtimes import open_runtime
from vitexport.tensors import Array, batch_limit

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
        ExportError: The difference is above :data:`MAX_DIFFERENCE`, an output is not finite, images of a batch are
            mixed, or an answer changes from run to run. The file is removed, so that nobody takes it for a good one.
    """
    spec = loaded.metadata.preprocess
    try:
        with open_runtime(path) as runtime:
            tensor = runtime.inputs[0]
            fixed = batch_limit(tensor)
            worst = 0.0
            alone: tuple[torch.Tensor, ...] = ()
            for size in [fixed] if fixed else (1, 3):
                shown = _pixels(size, spec)
                expected = _answers(loaded, torch.from_numpy(np.stack([normalize(image, spec) for image in shown])))
                _require_rows_of_their_own(alone, expected, loaded)
                alone = expected
                feeds = {tensor.name: from_pixels(shown, spec, tensor)}
                found = runtime.run(feeds)
                _require_the_same(found, runtime.run(feeds), loaded, "the exported graph", "when it is asked twice")
                for output, reference in zip(runtime.outputs, expected, strict=True):
                    worst = max(worst, _relative(reference.numpy(), found[output.name]))
    except ExportError:
        path.unlink()
        raise
    if worst > MAX_DIFFERENCE:
        path.unlink()
        raise ExportError(
            f"The exported '{loaded.metadata.model.id}' does not answer as PyTorch does: the largest difference is "
            f"{worst:.2g} of the largest output (limit {MAX_DIFFERENCE:g}). The file was removed.",
            "Report the model with this message; a fixed batch (`--batch 1`) or another opset may work.",
        )
    return worst


def _answers(loaded: LoadedModel, planes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run the PyTorch model twice, each time from another seed, and return what it answers.

    Raises:
        ExportError: It answers otherwise the second time, or for the same image at another place of the batch.
    """
    runs: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            runs.append(loaded.module(planes))
    names = [output.name for output in loaded.metadata.model.outputs]
    first, second = ({n: v.numpy() for n, v in zip(names, run, strict=True)} for run in runs)
    _require_the_same(first, second, loaded, "PyTorch", "when it is asked twice")
    if len(planes) > 1:
        ends = ({name: value[row : row + 1] for name, value in first.items()} for row in (0, len(planes) - 1))
        _require_the_same(next(ends), next(ends), loaded, "PyTorch", "at another place of the batch")
    return runs[0]


def _require_the_same(
    one: Mapping[str, Array], other: Mapping[str, Array], loaded: LoadedModel, who: str, when: str
) -> None:
    """Refuse a model that is not a function of its image."""
    changed = [name for name, value in one.items() if _relative(value, other[name]) > MAX_DIFFERENCE]
    if changed:
        raise ExportError(
            f"Expected '{loaded.metadata.model.id}' to answer the same for the same image, but {who} gives another "
            f"'{changed[0]}' {when}.",
            "Take the random step out of the model's forward, such as masking or dropout that does not look at "
            "`self.training`; a masked autoencoder has an encoder without it (`--task features`).",
        )


def _relative(reference: Array, found: Array) -> float:
    """Return max |difference| / max |reference|; infinite where it is no number."""
    wanted = reference.astype(np.float64)
    scale = max(float(np.abs(wanted).max()), np.finfo(np.float32).tiny)
    difference = float(np.abs(found.astype(np.float64) - wanted).max()) / scale
    return difference if math.isfinite(difference) else math.inf


def _require_rows_of_their_own(
    alone: tuple[torch.Tensor, ...], together: tuple[torch.Tensor, ...], loaded: LoadedModel
) -> None:
    """Refuse a model whose answer for an image depends on the others in its batch: serving would change results."""
    for one, several in zip(alone, together, strict=False):
        if _relative(one.numpy(), several[:1].numpy()) > MAX_DIFFERENCE:
            raise ExportError(
                f"'{loaded.metadata.model.id}' answers otherwise for an image when others are in its batch.",
                "Export it for one image at a time (`--batch 1`), or take out what mixes the batch, such as a mean "
                "over it.",
            )


def _pixels(count: int, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return ``count`` images, uint8 ``[N, H, W, C]``: noise over a gradient, from a fixed seed; the last is
    the first."""
    height, width = spec.image_size
    ramp = np.linspace(0, 160, height)[:, None, None] + np.linspace(0, 40, width)[None, :, None]
    noise = np.random.default_rng(0).uniform(0, 55, (count, height, width, spec.channels))
    pixels: NDArray[np.uint8] = (ramp + noise).astype(np.uint8)
    pixels[-1] = pixels[0]
    return pixels
