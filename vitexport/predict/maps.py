"""What segmentation and depth models say about an image: a map of the image's own size, from one row of their outputs.

The steps are those of transformers' ``post_process_semantic_segmentation`` and ``post_process_depth_estimation``: class
scores are brought to the image's size by bilinear interpolation and the highest one is taken; depth is brought to it by
bicubic interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vitexport.bundle.metadata import ModelSpec
from vitexport.errors import BundleError
from vitexport.predict.resample import Resampling, resample
from vitexport.scoring import sigmoid, softmax
from vitexport.tensors import Array

__all__ = ["class_map", "depth_map"]

_STRIP_BYTES = 64 << 20
"""Upsampled class scores that exist at one time."""

_MASK2FORMER_SIZE = (384, 384)
"""What transformers brings Mask2Former's masks to first, whatever the image size."""


def class_map(model: ModelSpec, outputs: Mapping[str, Array], size: tuple[int, int]) -> NDArray[np.uint16]:
    """Return the class of every pixel, as ``post_process_semantic_segmentation`` does.

    Args:
        model: Of the task ``segment``.
        outputs: Its outputs for one image, without the batch axis.
        size: (height, width) of the image, in pixels.

    Returns:
        Class indices ``[height, width]``.

    Raises:
        BundleError: The outputs are no class scores by pixel.
    """
    scores = _class_scores(model, outputs)
    rows = max(1, _STRIP_BYTES // (4 * len(scores) * size[1]))
    larger = Resampling(scores, size, "bilinear")
    strips = [larger.strip(start, min(start + rows, size[0])).argmax(axis=0) for start in range(0, size[0], rows)]
    return np.concatenate(strips).astype(np.uint16)


def depth_map(model: ModelSpec, outputs: Mapping[str, Array], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the depth of every pixel, as ``post_process_depth_estimation`` does.

    Args:
        model: Of the task ``depth``.
        outputs: Its outputs for one image, without the batch axis.
        size: (height, width) of the image, in pixels.

    Returns:
        float32 ``[height, width]``, in the model's own unit.

    Raises:
        BundleError: The outputs are no depth by pixel.
    """
    depth = next(iter(outputs.values()))
    if len(outputs) != 1 or depth.squeeze().ndim != 2:
        raise _no_map(model, "one depth map")
    result: NDArray[np.float32] = resample(depth.reshape(1, *depth.shape[-2:]), size, "bicubic")[0]
    return result


def _class_scores(model: ModelSpec, outputs: Mapping[str, Array]) -> Array:
    """Return ``[classes, h, w]``."""
    if "masks_queries_logits" in outputs and "class_queries_logits" in outputs:
        return _of_queries(model, outputs["class_queries_logits"], outputs["masks_queries_logits"])
    scores = outputs.get("logits", next(iter(outputs.values())))
    if scores.ndim != 3:
        raise _no_map(model, "a map of scores for every class")
    return scores


def _of_queries(model: ModelSpec, classes: Array, masks: Array) -> Array:
    """Return the scores that masks with a class each add up to; the last class means none."""
    if model.family == "mask2former":
        masks = resample(masks, _MASK2FORMER_SIZE, "bilinear")
    elif model.family != "maskformer":
        raise _no_map(model, "class scores, or the masks of MaskFormer and Mask2Former")
    weights = softmax(classes)[:, :-1].astype(np.float32)
    scores: Array = np.einsum("qc,qhw->chw", weights, sigmoid(masks).astype(np.float32), optimize=True)
    return scores


def _no_map(model: ModelSpec, expected: str) -> BundleError:
    found = ", ".join(output.describe() for output in model.outputs)
    return BundleError(
        f"Expected '{model.id}' to give {expected}, found {found}.",
        "Its outputs can be had as tensors: through /v2 of `vitexport serve`, or with a runtime of your own.",
    )
