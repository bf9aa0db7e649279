"""What calibration images and models must be before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from vitexport.errors import CalibrationError, QuantizeError
from vitexport.inputs.images import content_hashes

__all__ = [
    "MINIMUM_IMAGES",
    "RECOMMENDED_IMAGES",
    "CalibrationWarning",
    "check_images",
    "check_model",
    "warn_of_few",
]

MINIMUM_IMAGES = 16
RECOMMENDED_IMAGES = 64

_QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearMatMul",
        "QLinearConv",
        "MatMulInteger",
        "ConvInteger",
    }
)


class CalibrationWarning(UserWarning):
    """Calibration can go on, but its images risk the accuracy of the result."""


def check_images(images: Sequence[Path], hashes: Sequence[str], verification: Sequence[Path] = ()) -> None:
    """Check that calibration images are enough, different, and not those of the verification.

    Args:
        images: Calibration images.
        hashes: :func:`~vitexport.inputs.images.content_hash` of each.
        verification: Images that will judge the result.

    Raises:
        CalibrationError: Fewer than 16 images, one image repeated, or images that verification uses too.
        ImageError: A verification image cannot be read; the message names it.
    """
    if len(images) < MINIMUM_IMAGES:
        raise CalibrationError(
            f"Expected at least {MINIMUM_IMAGES} calibration images, found {len(images)}.",
            f"Give real images of the kind the model will see; {RECOMMENDED_IMAGES} or more are recommended. "
            "Random data is never used in their place.",
        )
    different = len(set(hashes))
    if different < MINIMUM_IMAGES:
        raise CalibrationError(
            f"Expected at least {MINIMUM_IMAGES} different calibration images, found {different} among "
            f"{len(images)} files.",
            "The files are copies of each other; give different images.",
        )
    shared = set(hashes) & set(content_hashes(verification))
    if shared:
        names = [path.name for path, digest in zip(images, hashes, strict=True) if digest in shared]
        raise CalibrationError(
            f"Expected no calibration image in the verification set, found {len(names)}: {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}.",
            "Measuring on calibration images flatters the result; use separate folders.",
        )


def warn_of_few(hashes: Sequence[str]) -> None:
    """Warn where calibration can go on, but with fewer different images than it should.

    Args:
        hashes: :func:`~vitexport.inputs.images.content_hash` of each image.
    """
    different = len(set(hashes))
    if different < RECOMMENDED_IMAGES:
        warnings.warn(
            f"Calibrating on {different} images; below {RECOMMENDED_IMAGES} rare large activations are missed and will "
            "be clipped, which can cost accuracy on images unlike these.",
            CalibrationWarning,
            stacklevel=3,
        )


def check_model(model: ir.Model, where: str) -> None:
    """Check that a model is not quantized yet.

    Raises:
        QuantizeError: It holds quantization operators.
    """
    operators = sorted({node.op_type for node in model.graph if node.op_type in _QUANTIZED})
    if operators:
        raise QuantizeError(
            f"Expected a float model in '{where}', found quantization operators: {', '.join(operators)}.",
            "Quantize the exported or simplified float model instead.",
        )
