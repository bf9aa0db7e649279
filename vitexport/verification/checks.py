"""Checks of what surrounds the models: labels numbered as the model numbers them, pixels as it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import PREPROCESSING, REFERENCE, SAMPLES, read_analysis
from vitexport.bundle.metadata import ModelMetadata
from vitexport.bundle.recording import Recording, ReplayInputs
from vitexport.errors import ImageError
from vitexport.inputs.images import load_image
from vitexport.inputs.labels.targets import class_targets
from vitexport.inputs.labels.wording import listed
from vitexport.inputs.preprocess import normalize
from vitexport.inputs.preprocess_diff import compare_pixels
from vitexport.verification.accuracy import top1
from vitexport.verification.numbering import SLIGHT, SURE, chance_of, find_exchange, shift_of
from vitexport.verification.parity import class_scores
from vitexport.verification.result import LABELS_CHECK, Check

__all__ = ["library_check", "metadata_check", "originals_check", "targets_check"]

_SHOWN = 5
"""Pairs of classes that a finding names."""


def targets_check(
    reference: Recording, targets: Sequence[object] | None, *, class_names: Sequence[str] = (), matched: str = ""
) -> Check | None:
    """Check that the labels are numbered as PyTorch's outputs are; None without classes, or without one for each image.

    Labels counted from 1, a background class at 0, or folders in another order than the model's classes: then the
    reference itself is bad and every comparison of accuracies is worthless, however well the variants agree. The tests
    and their thresholds are those of :mod:`vitexport.verification.numbering`.

    Args:
        reference: PyTorch's answers.
        targets: What is true of each image.
        class_names: Class names by index; empty for none.
        matched: How the labels were matched to the classes, for the finding.
    """
    scores, known = class_scores(reference.outputs), class_targets(targets)
    if scores is None or not known or len(known) != len(scores):
        return None
    passed, finding = _judge_labels(np.asarray(known), top1(scores), scores.shape[1], class_names)
    return Check(LABELS_CHECK, REFERENCE, passed, f"{finding} (labels: {matched})" if matched else finding)


def _judge_labels(
    truth: NDArray[np.int64], chosen: NDArray[np.int64], classes: int, class_names: Sequence[str]
) -> tuple[bool | None, str]:
    outside = int(((truth < 0) | (truth >= classes)).sum())
    if outside:
        return False, f"{outside} labels lie outside the model's {classes} classes"
    chance = chance_of(truth, chosen, classes)
    own = f"PyTorch's own top-1 is {chance.accuracy:.1%}"
    exchange = find_exchange(truth, chosen)
    shift = shift_of(truth, chosen, exchange)
    if shift is not None:
        direction = "one too high" if shift[0] < 0 else "one too low"
        return False, f"{own}, but {shift[1]:.1%} if every label is {direction}: the labels are shifted by one"
    if exchange is not None:
        pairs = [
            f"{_name(class_names, label)} is answered {_name(class_names, answer)} on {images} images"
            for label, answer, images in exchange.pairs
        ]
        return False, (
            f"{own}, but {exchange.explained:.1%} if {len(exchange.classes)} classes are exchanged: "
            f"{listed(pairs, _SHOWN)}; the labels are in another order than the model's classes"
        )
    if chance.p_value >= SURE:
        return None, f"{own} on {len(truth)} images, no better than chance ({chance.expected:.1%} is expected)"
    if chance.kappa <= SLIGHT:
        return None, f"{own} on {len(truth)} images: better than chance, but too little to say that the labels fit"
    return True, f"{own} on {len(truth)} images"


def _name(class_names: Sequence[str], index: int) -> str:
    return f"'{class_names[index]}'" if index < len(class_names) else f"class {index}"


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
