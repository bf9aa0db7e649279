"""Checks of what surrounds the models: labels numbered as the model numbers them, pixels as it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import PREPROCESSING, REFERENCE, SAMPLES, read_analysis
from vitexport.bundle.metadata import ModelMetadata
from vitexport.bundle.recording import Recording, ReplayInputs
from vitexport.errors import ImageError
from vitexport.inputs.images import load_image
from vitexport.inputs.preprocess import normalize
from vitexport.inputs.preprocess_diff import compare_pixels
from vitexport.verification.accuracy import top1
from vitexport.verification.parity import class_scores
from vitexport.verification.result import Check

__all__ = ["library_check", "metadata_check", "originals_check", "targets_check"]

_ENOUGH = 20
"""Images below which chance explains too much."""


def targets_check(reference: Recording, targets: Sequence[int] | None) -> Check | None:
    """Check that the labels are numbered as PyTorch's outputs are; None without labels or classes.

    Labels counted from 1, or a background class at 0, shift every label by one. Then the reference itself is bad and
    every comparison of accuracies is worthless, however well the variants agree.
    """
    scores = class_scores(reference.outputs)
    if scores is None or targets is None or len(targets) != len(scores):
        return None
    name = "labels fit the model"
    truth, chosen = np.asarray(targets), top1(scores)
    classes = scores.shape[1]
    outside = int(((truth < 0) | (truth >= classes)).sum())
    if outside:
        return Check(name, REFERENCE, False, f"{outside} labels lie outside the model's {classes} classes")
    own = float((chosen == truth).mean())
    if len(truth) < _ENOUGH:
        return Check(name, REFERENCE, None, f"too few images ({len(truth)}) to tell; PyTorch's top-1 is {own:.1%}")
    shifted = {shift: float((chosen == truth + shift).mean()) for shift in (-1, 1)}
    best = max(shifted, key=lambda shift: shifted[shift])
    if shifted[best] > own + 0.2 and shifted[best] > 2 * own:
        direction = "one too high" if best < 0 else "one too low"
        text = f"PyTorch's own top-1 is {own:.1%}, but {shifted[best]:.1%} if every label is {direction}"
        return Check(name, REFERENCE, False, f"{text}: the labels are shifted by one")
    if own <= 1.5 / classes:
        return Check(name, REFERENCE, None, f"PyTorch's own top-1 is {own:.1%}, no better than chance")
    return Check(name, REFERENCE, True, f"PyTorch's own top-1 is {own:.1%} on {len(truth)} images")


def library_check(bundle: Bundle) -> Check | None:
    """Return what the comparison with the source library's preprocessing found; None for bundles without one."""
    content = read_analysis(bundle, PREPROCESSING)
    if content is None:
        return None
    return Check(f"preprocessing as in {content['library']}", REFERENCE, content["passed"], str(content["finding"]))


def originals_check(bundle: Bundle, inputs: ReplayInputs) -> Check | None:
    """Decode and preprocess the original image files in the bundle on this machine, and compare with its inputs."""
    content = read_analysis(bundle, PREPROCESSING)
    if content is None or not content.get(SAMPLES):
        return None
    name = "preprocessing from the image files"
    rows = {image: row for row, image in enumerate(inputs.images)}
    samples = [sample for sample in content[SAMPLES] if sample["image"] in rows]
    folder = bundle.path(bundle.artifact(PREPROCESSING)).parent / SAMPLES
    try:
        images = [load_image(folder / sample["file"]) for sample in samples]
    except ImageError as error:
        return Check(name, REFERENCE, False, error.message)
    expected = [normalize(inputs.pixels[rows[sample["image"]]], bundle.preprocess) for sample in samples]
    parity = compare_pixels(images, expected, bundle.preprocess)
    return Check(name, REFERENCE, parity.passed, parity.finding)


def metadata_check(bundle: Bundle, files: Mapping[str, Mapping[str, str]]) -> Check | None:
    """Compare preprocessing and class names that model files carry with the bundle's; None where none carries any.

    Args:
        bundle: The bundle.
        files: Variant to the metadata of its file.
    """
    # A file of another origin carries no metadata.
    metadata_of = {
        variant: ModelMetadata.from_metadata(metadata, where=variant)
        for variant, metadata in files.items()
        if "vitexport.preprocess" in metadata
    }
    if not metadata_of:
        return None
    name = "preprocessing and class names as in the model files"
    ours = bundle.preprocess.model_dump(mode="json")
    for variant, metadata in metadata_of.items():
        theirs = metadata.preprocess.model_dump(mode="json")
        found = [
            f"{key} is {ours[key]} in the bundle and {theirs[key]} in {variant}"
            for key in ours
            if ours[key] != theirs[key]
        ]
        if metadata.class_names != bundle.class_names:
            found.append(f"the class names of the bundle are not those in {variant}")
        if found:
            return Check(name, variant, False, "; ".join(found))
    return Check(name, REFERENCE, True, f"equal in {', '.join(metadata_of)}")
