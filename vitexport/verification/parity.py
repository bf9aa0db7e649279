"""Comparing recordings: metrics, tolerances and a verdict. Knows no runtime.

A comparison that cannot be made is a failure with its reason, never a pass: an output that is missing, renamed or of
another shape, a NaN, other inputs, zero images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.bundle.recording import Recording
from vitexport.recipe.settings import Tolerance
from vitexport.scoring import Head
from vitexport.tensors import Array
from vitexport.verification.accuracy import smallest_correlation

__all__ = ["OutputParity", "ParityReport", "class_scores", "compare", "measure"]


@dataclass(frozen=True)
class OutputParity:
    """How far one output is from the reference.

    Attributes:
        name: Output name.
        max_abs: Largest absolute difference.
        max_rel: ``max_abs`` over the largest reference magnitude.
        rms_rel: RMS of the difference over RMS of the reference.
        min_cosine: Smallest cosine similarity of an image's output with its reference; None where an image has one
            number, which has no direction.
        sqnr_db: ``10 log10(sum(reference^2) / sum(difference^2))`` in dB; infinite when equal.
        agreement: Fraction of equal decisions, see :meth:`vitexport.scoring.Head.decisions`: of images with the same
            class, of labels that are there in both or in neither, of places with the same class; None for outputs that
            decide nothing.
        agreement_top5: Fraction of the reference's five first classes that are among the candidate's five first,
            averaged over images; None for outputs that are not the logits of more than five classes.
        mean_abs: Mean absolute difference.
        mean_abs_standard_error: Its standard error, from image to image; None for a single image.
        correlation: Of the values of a regression, over images: the smallest Pearson correlation of any of them; None
            for other outputs, for fewer than three images, and where the reference is constant.
        worst_image: Row with the largest relative error.
    """

    name: str
    max_abs: float
    max_rel: float
    rms_rel: float
    min_cosine: float | None
    sqnr_db: float
    agreement: float | None
    agreement_top5: float | None
    worst_image: int
    mean_abs: float
    mean_abs_standard_error: float | None
    correlation: float | None


@dataclass(frozen=True)
class ParityReport:
    """The verdict over all outputs.

    Attributes:
        reference: Name of the reference variant.
        candidate: Name of the variant under test.
        images: Number of images compared.
        outputs: One entry per reference output that could be compared.
        failures: What was expected and found, one line per breach; empty means passed.
        unchecked: Tolerances that were not set, or that no output can be held to.
    """

    reference: str
    candidate: str
    images: int
    outputs: tuple[OutputParity, ...]
    failures: tuple[str, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything that was asked for held, on at least one image."""
        return not self.failures and self.images > 0

    @property
    def main(self) -> OutputParity | None:
        """The output that the summary table shows: ``logits`` where there is one, else the first."""
        return next((output for output in self.outputs if output.name == "logits"), next(iter(self.outputs), None))


def class_scores(outputs: Mapping[str, Array]) -> Array | None:
    """Return the output that one class of several is read from: ``logits``, or the only one when it is ``[N, C]``."""
    return Head().main_output(outputs)


def measure(name: str, reference: Array, candidate: Array, head: Head | None = None) -> OutputParity:
    """Measure one output, in float64.

    Args:
        name: Its name.
        reference: ``[N, ...]``.
        candidate: Of the same shape.
        head: How it is read; None for an output that decides nothing.
    """
    count = len(reference)
    expected = np.asarray(reference, dtype=np.float64).reshape(count, -1)
    found = np.asarray(candidate, dtype=np.float64).reshape(count, -1)
    difference = found - expected
    by_image = np.abs(difference).mean(axis=1)
    signal, noise = (expected**2).sum(axis=1), (difference**2).sum(axis=1)
    norms = np.sqrt(signal) * np.linalg.norm(found, axis=1)
    # Two all-zero rows are equal; a zero row against a non-zero one has no direction in common.
    cosine = np.where(norms > 0, (expected * found).sum(axis=1) / np.where(norms > 0, norms, 1), noise == 0)
    largest = float(np.abs(expected).max())
    max_abs = float(np.abs(difference).max())
    total_signal, total_noise = float(signal.sum()), float(noise.sum())
    values = head is not None and head.task == "classify" and head.scoring == "none"
    ranked = head is not None and head.task == "classify" and head.scoring == "softmax" and expected.shape[1] > 5
    return OutputParity(
        name=name,
        max_abs=max_abs,
        max_rel=_ratio(max_abs, largest),
        rms_rel=_ratio(total_noise**0.5, total_signal**0.5),
        min_cosine=float(cosine.min()) if expected.shape[1] > 1 else None,
        sqnr_db=_decibel(total_signal, total_noise),
        agreement=None if head is None else head.agreement(reference, candidate),
        agreement_top5=_top5_overlap(expected, found) if ranked else None,
        worst_image=int(np.argmax(noise / np.where(signal > 0, signal, 1))),
        mean_abs=float(by_image.mean()),
        mean_abs_standard_error=float(by_image.std(ddof=1) / count**0.5) if count > 1 else None,
        correlation=smallest_correlation(expected, found) if values else None,
    )


def _top5_overlap(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    first, second = (np.argsort(-scores, axis=1, kind="stable")[:, :5] for scores in (expected, found))
    return float((first[:, :, None] == second[:, None, :]).any(axis=2).mean())


def _ratio(value: float, base: float) -> float:
    if base > 0:
        return value / base
    return 0.0 if value == 0 else float("inf")


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def compare(
    reference: Recording,
    candidate: Recording,
    tolerance: Tolerance,
    *,
    names: tuple[str, str] | None = None,
    same_inputs: bool = True,
    head: Head = Head(),  # noqa: B008  # frozen
) -> ParityReport:
    """Compare two recordings of the same images.

    Args:
        reference: What is right.
        candidate: What is judged.
        tolerance: What must hold; unset fields are listed as unchecked.
        names: Variant names for the report; the runtimes' names otherwise.
        same_inputs: Require byte-equal input tensors. False only where the candidate takes another form of the same
            images (uint8 pixels instead of normalized planes); image names must then be equal.
        head: How the outputs are read.
    """
    main = head.main_output(reference.outputs)
    failures = list(_identity_failures(reference, candidate, same_inputs))
    extra = [name for name in candidate.outputs if name not in reference.outputs]
    measured: list[OutputParity] = []
    for name, expected in reference.outputs.items():
        found = candidate.outputs.get(name)
        if found is None:
            hint = f"; found {', '.join(extra)} instead" if extra else ""
            failures.append(f"output '{name}' is missing{hint}")
        elif found.shape != expected.shape:
            failures.append(f"output '{name}' has shape {list(found.shape)}, expected {list(expected.shape)}")
        elif not np.isfinite(expected).all():
            failures.append(f"reference output '{name}' holds NaN or infinity on {_bad_rows(expected)} images")
        elif not np.isfinite(found).all():
            failures.append(f"output '{name}' holds NaN or infinity on {_bad_rows(found)} of {len(found)} images")
        elif expected.size == 0:
            failures.append(f"output '{name}' is empty")
        else:
            parity = measure(name, expected, found, head if expected is main else None)
            measured.append(parity)
            failures.extend(_breaches(parity, tolerance))
    failures.extend(f"unexpected output '{name}'" for name in extra)
    reference_name, candidate_name = names or (reference.runtime, candidate.runtime)
    unchecked = [key for key, value in tolerance.model_dump().items() if value is None]
    for limit, values in (
        ("min_agreement", [parity.agreement for parity in measured]),
        ("min_cosine", [parity.min_cosine for parity in measured]),
        ("min_correlation", [parity.correlation for parity in measured]),
    ):
        if limit not in unchecked and all(value is None for value in values):
            unchecked.append(limit)  # features decide nothing, and one number has no direction
    return ParityReport(
        reference_name, candidate_name, len(candidate.images), tuple(measured), tuple(failures), tuple(unchecked)
    )


def _identity_failures(reference: Recording, candidate: Recording, same_inputs: bool) -> list[str]:
    if not reference.images or not candidate.images:
        return ["no images were compared"]
    if not reference.outputs:
        return ["the reference has no outputs"]
    if reference.images != candidate.images:
        return [f"other images: {len(reference.images)} in the reference, {len(candidate.images)} in the candidate"]
    if same_inputs and reference.input_sha256 != candidate.input_sha256:
        pairs = zip(reference.input_sha256, candidate.input_sha256, strict=True)
        rows = [index for index, (a, b) in enumerate(pairs) if a != b]
        return [
            f"other input tensors on {len(rows)} of {len(reference.images)} images, "
            f"first '{reference.images[rows[0]]}': the preprocessing differs"
        ]
    return []


def _bad_rows(array: Array) -> int:
    return int((~np.isfinite(array.reshape(len(array), -1))).any(axis=1).sum())


def _breaches(parity: OutputParity, tolerance: Tolerance) -> list[str]:
    upper: Mapping[str, tuple[float, float | None]] = {
        "max abs error": (parity.max_abs, tolerance.max_abs),
        "max relative error": (parity.max_rel, tolerance.max_rel),
    }
    lower: Mapping[str, tuple[float | None, float | None]] = {
        "cosine": (parity.min_cosine, tolerance.min_cosine),
        "SQNR (dB)": (parity.sqnr_db, tolerance.min_sqnr_db),
        "agreement": (parity.agreement, tolerance.min_agreement),
        "correlation": (parity.correlation, tolerance.min_correlation),
    }
    lines = [
        f"output '{parity.name}': {what} {value:.3g} is above {limit:g}"
        for what, (value, limit) in upper.items()
        if limit is not None and value > limit
    ]
    lines += [
        f"output '{parity.name}': {what} {found:.4g} is below {limit:g}"
        for what, (found, limit) in lower.items()
        if limit is not None and found is not None and found < limit
    ]
    return lines
