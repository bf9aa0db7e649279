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
            alone: dict[str, Array] = {}
            for size in [fixed] if fixed else (1, 3):
                shown = _pixels(size, spec)
                planes = torch.from_numpy(np.stack([normalize(image, spec) for image in shown]))
                feeds = {tensor.name: from_pixels(shown, spec, tensor)}
                expected, found = _answers(loaded, planes), runtime.run(feeds)
                if not alone:
                    _require_no_chance(expected, _answers(loaded, planes, seed=1), "PyTorch")
                    _require_no_chance(found, runtime.run(feeds), "the exported graph")
                _require_no_order(expected)
                _require_rows_of_their_own(alone, expected)
                alone = expected
                worst = max(
                    worst, *(_relative(expected[output.name], found[output.name]) for output in runtime.outputs)
                )
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


def _answers(loaded: LoadedModel, planes: torch.Tensor, seed: int = 0) -> dict[str, Array]:
    """Return what the PyTorch model answers, by name of the output, with its random numbers from a seed."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answers = loaded.module(planes)
    return {spec.name: value.numpy() for spec, value in zip(loaded.metadata.model.outputs, answers, strict=True)}


def _require_no_chance(one: Mapping[str, Array], other: Mapping[str, Array], who: str) -> None:
    """Refuse a model that is not a function of its image."""
    changed = _changed(one, other)
    if changed:
        raise ExportError(
            f"Expected the same answer for the same image, but {who} gives another '{changed[0]}' when it is asked "
            "twice.",
            "Take the random step out of the model's forward, such as masking or dropout that does not look at "
            "`self.training`; a masked autoencoder has an encoder without it (`--task features`).",
        )


def _require_no_order(answers: Mapping[str, Array]) -> None:
    """Refuse a model that answers otherwise for the last image of a batch than for the first, which is the same."""
    first = {name: value[:1] for name, value in answers.items()}
    last = {name: value[-1:] for name, value in answers.items()}
    changed = _changed(first, last)
    if changed:
        raise ExportError(
            f"Expected the same answer for the same image, but PyTorch gives another '{changed[0]}' for it at another "
            "place of the batch.",
            "Export it for one image at a time (`--batch 1`), or take out of its forward what draws random numbers or "
            "counts the images of the batch.",
        )


def _require_rows_of_their_own(alone: Mapping[str, Array], together: Mapping[str, Array]) -> None:
    """Refuse a model whose answer for an image depends on the others in its batch: serving would change results."""
    mixed = _changed(alone, {name: value[:1] for name, value in together.items()})
    if mixed:
        raise ExportError(
            f"Expected the same answer for an image whatever its batch, but '{mixed[0]}' answers otherwise for an "
            "image when others are in its batch.",
            "Export it for one image at a time (`--batch 1`), or take out what mixes the batch, such as a mean "
            "over it.",
        )


def _changed(one: Mapping[str, Array], other: Mapping[str, Array]) -> list[str]:
    """Return the names of the outputs that differ; a NaN that stays one does not."""
    differing = (name for name, value in one.items() if not np.array_equal(value, other[name], equal_nan=True))
    return [name for name in differing if _relative(one[name], other[name]) > MAX_DIFFERENCE]


def _relative(reference: Array, found: Array) -> float:
    """Return max |difference| / max |reference|; infinite where it is no number."""
    wanted = reference.astype(np.float64)
    scale = max(float(np.abs(wanted).max()), np.finfo(np.float32).tiny)
    difference = float(np.abs(found.astype(np.float64) - wanted).max()) / scale
    return difference if math.isfinite(difference) else math.inf


def _pixels(count: int, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return ``count`` images, uint8 ``[N, H, W, C]``: noise over a gradient, from a fixed seed; the last is
    the first."""
    height, width = spec.image_size
    ramp = np.linspace(0, 160, height)[:, None, None] + np.linspace(0, 40, width)[None, :, None]
    noise = np.random.default_rng(0).uniform(0, 55, (count, height, width, spec.channels))
    pixels: NDArray[np.uint8] = (ramp + noise).astype(np.uint8)
    pixels[-1] = pixels[0]
    return pixels
