"""How near a quantized graph is to float32: measured on calibration images that nothing was fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.errors import CalibrationError
from vitexport.host.graph.intermediate import exposed_file, open_exposed
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, run_images
from vitexport.intervals import Z95, proportion
from vitexport.recipe.settings import Budget
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.scoring import Head
from vitexport.tensors import Array

__all__ = ["LOWEST_SQNR_DB", "Judge", "Quality", "float_outputs", "judged_output"]

LOWEST_SQNR_DB = 20.0
"""Signal-to-noise ratio of the first output below which classes change: a whole file gets a warning, and a layer that
alone leaves less stays float."""

Outputs = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """How near a quantized model's first output is to float32's.

    Attributes:
        images: How many images.
        sqnr_db: Signal-to-quantization-noise ratio over all of them, in dB.
        sqnr_interval_db: 95 % confidence interval of that over images like these (linearised ratio estimator, Cochran,
            Sampling Techniques, 1977, section 6.3).
        agreement: Fraction of equal decisions, 0 to 1, see :meth:`vitexport.scoring.Head.decisions`; None for outputs
            that decide nothing.
        agreement_interval: 95 % confidence interval of that over as many independent images (Wilson, 1927); None with
            it.
    """

    images: int
    sqnr_db: float
    sqnr_interval_db: tuple[float, float]
    agreement: float | None
    agreement_interval: tuple[float, float] | None

    def meets(self, budget: Budget) -> bool:
        """Return whether a budget holds; without labels a top-1 drop is bounded by disagreement."""
        agreement = -math.inf if self.agreement is None else self.agreement
        return (
            (budget.min_sqnr_db is None or self.sqnr_db >= budget.min_sqnr_db)
            and (budget.min_agreement is None or agreement >= budget.min_agreement)
            and (budget.max_top1_drop is None or (1 - agreement) * 100 <= budget.max_top1_drop)
        )


class Judge:
    """Compares graphs with the float model on the same images.

    Args:
        feeds: Calibration images.
        images: Those of them that judge.
        reference: The float model's judged output, one row per judging image.
        head: How that output is read.
        optimize: Run graphs with the runtime's integer kernels, as their target does; without, as they are written.

    Raises:
        CalibrationError: The output is 0 throughout, so that no error is small or large beside it.
    """

    def __init__(
        self, feeds: ImageFeeds, images: Sequence[int], reference: Sequence[Array], head: Head, *, optimize: bool
    ) -> None:
        self._feeds = feeds
        self.images = tuple(images)
        self._reference = np.concatenate(list(reference)).astype(np.float64)
        if not self._reference.any():
            raise CalibrationError(
                f"Expected the float model to answer the calibration images, found an output of 0 for all "
                f"{len(self._reference)} that judge.",
                "Check its weights and preprocessing: an answer that no image changes cannot be quantized.",
            )
        self._head = head
        self._optimize = optimize

    @property
    def classifies(self) -> bool:
        """Whether the output decides something, so that agreement means something."""
        return self._head.decisions(self._reference) is not None

    def measure(self, model: ir.Model) -> Quality:
        """Run a graph on every judging image; see :meth:`measure_file`."""
        with exposed_file(model, ()) as path:
            return self.measure_file(path)

    def measure_file(self, path: Path) -> Quality:
        """Run an ONNX file on every judging image.

        Raises:
            RuntimeBackendError: The runtime cannot run it.
        """
        options = RuntimeOptions(threads=1, in_order=True, optimize=self._optimize)
        with open_runtime(path, "onnxruntime", options) as runtime:
            name = _judged([spec.name for spec in runtime.outputs])
            rows = [row[name].astype(np.float64) for row in run_images(runtime, self._feeds, self.images)]
        return _quality(self._reference, np.concatenate(rows), self._head)


def float_outputs(model: ir.Model, feeds: ImageFeeds, images: Sequence[int]) -> list[Array]:
    """Return the judged output of a float model, one array for each of some images."""
    name = judged_output(model)
    with open_exposed(model, ()) as runtime:
        return [outputs[name] for outputs in run_images(runtime, feeds, images)]


def judged_output(model: ir.Model) -> str:
    """Return the name of the output that is judged: ``logits`` where there is one, else the first."""
    return _judged([str(value.name) for value in model.graph.outputs])


def _judged(names: Sequence[str]) -> str:
    return "logits" if "logits" in names else names[0]


def _quality(reference: Outputs, found: Outputs, head: Head) -> Quality:
    count = len(reference)
    signal = np.square(reference.reshape(count, -1)).sum(axis=1)
    noise = np.square((found - reference).reshape(count, -1)).sum(axis=1)
    ratio = max(float(noise.sum()), 1e-30) / max(float(signal.sum()), 1e-30)
    spread = float(np.sqrt(np.square(noise - ratio * signal).sum())) / max(float(noise.sum()), 1e-30)
    sqnr = -10 * math.log10(ratio)
    half = Z95 * spread * 10 / math.log(10)
    agreement = head.agreement(reference, found)
    if agreement is None:
        return Quality(count, sqnr, (sqnr - half, sqnr + half), None, None)
    return Quality(count, sqnr, (sqnr - half, sqnr + half), agreement, proportion(agreement, count))
