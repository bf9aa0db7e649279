"""Scales of a quantized attention: where probabilities are clipped, and how values make up for what that loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.intermediate import open_exposed
from vitexport.host.graph.layers import find_attention
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, evenly_spread, run_images
from vitexport.host.quantize.calibration.statistics import CLASS_TOKEN_IMPORTANCE, TensorStatistics
from vitexport.host.quantize.calibration.streaming import sample_positions
from vitexport.host.quantize.numerics.qparams import QuantParams, asymmetric_qparams, symmetric_qparams
from vitexport.host.quantize.scheme import QdqScheme

__all__ = ["AttentionScales", "Moments", "centred", "centred_at_means", "fit_attention_scales", "probability_qparams"]

Floats = NDArray[np.float32]

_THRESHOLDS = (1.0, 0.85, 0.72, 0.6, 0.5, 0.42, 0.35, 0.29, 0.24, 0.2, 0.16, 0.12)
_FITTED_IMAGES = 128
_FITTED_ROWS = 64


@dataclass(frozen=True)
class AttentionScales:
    """How one attention's probabilities and values go together.

    Attributes:
        clipping_threshold: The largest probability that is not clipped.
        centre: What each channel of the value is shifted by, ``[C]``.
        gain: What each channel of the shifted value is multiplied by once attention is quantized, ``[C]``; within a few
            percent of 1.
    """

    clipping_threshold: float
    centre: Floats
    gain: Floats


def centred_at_means(
    tensors: Mapping[str, tuple[str, str, str]], statistics: Mapping[str, TensorStatistics]
) -> dict[str, AttentionScales]:
    """Return scales that clip no probability and shift values by their means; arguments as for the fit.

    Enough where rounding keeps small probabilities, as floating point and rows divided by their maxima do: what a row's
    sum loses is small there, and least squares gains 0.1 to 0.3 dB at the output for another pass over the images.
    """
    means = {name: statistics[value].mean.astype(np.float32) for name, (_, _, value) in tensors.items()}
    return {name: AttentionScales(1.0, mean, np.ones_like(mean)) for name, mean in means.items()}


def fit_attention_scales(
    model: ir.Model,
    tensors: Mapping[str, tuple[str, str, str]],
    statistics: Mapping[str, TensorStatistics],
    importance: Mapping[str, Floats],
    feeds: ImageFeeds,
    images: Sequence[int],
    scheme: QdqScheme,
    class_token: bool,
) -> dict[str, AttentionScales]:
    """Choose the clipping threshold of probabilities and where values are centred, by the error of what they make.

    Rounding changes a probability by ``e`` and attention's output by ``sum(e * v)``. Shifting every value by ``c``,
    which the next bias makes up for, changes that to ``sum(e * v) - c * sum(e)``: least squares over rows gives the
    ``c`` that leaves least. It takes away what small probabilities lose together by being rounded to zero, and what a
    few tokens that every row attends to lose by being clipped, so that the scale can be finer for the others. The gain
    is the slope, head by head, of the exact output over the one that is left.

    Args:
        model: The float graph before any transform.
        tensors: Query, key and value by attention name.
        statistics: Of those tensors.
        importance: What the squared error of each channel of attention's output counts for, ``[C]``, by attention name.
        feeds: Calibration images.
        images: Which of them calibrate.
        scheme: What the target computes.
        class_token: Whether the error in row 0 counts for more.
    """
    scales = centred_at_means(tensors, statistics)
    attentions = {one.name: one for one in find_attention(model) if one.name in tensors}
    names = {name: [str(value.name) for value in one.context.inputs if value] for name, one in attentions.items()}
    moments = {name: [Moments() for _ in _THRESHOLDS] for name in attentions}
    candidates = [probability_qparams(scheme, clipping_threshold) for clipping_threshold in _THRESHOLDS]
    images = [images[index] for index in evenly_spread(len(images), _FITTED_IMAGES)]
    with open_exposed(model, [name for pair in names.values() for name in pair]) as runtime:
        for image, outputs in enumerate(run_images(runtime, feeds, images)):
            for name, (probabilities, value) in names.items():
                p, v = outputs[probabilities][0].astype(np.float32), outputs[value][0].astype(np.float32)
                rows = sample_positions(image, p.shape[1], _FITTED_ROWS)
                weights = np.full(len(rows), (p.shape[1] - 1) / max(len(rows) - 1, 1))
                weights[0] = CLASS_TOKEN_IMPORTANCE if class_token else 1.0
                exact = p[:, rows]
                output = exact @ v
                for sums, qparams in zip(moments[name], candidates, strict=True):
                    sums.add(qparams.fake_quantize(exact) - exact, output, v, weights)
    for name, tried in moments.items():
        best = int(np.argmin([sums.residual_error(importance.get(name)) for sums in tried]))
        centre = tried[best].centre(scales[name].centre)
        scales[name] = AttentionScales(_THRESHOLDS[best], centre, tried[best].gain(centre, importance.get(name)))
    return scales


class Moments:
    """Second moments, over rows, of attention's output and of what rounding its probabilities changes.

    Per channel of the output four numbers of each row: 1, the change of the row's sum of probabilities, the exact
    output, and the change of the output.
    """

    def __init__(self) -> None:
        self._sums: NDArray[np.float64] = np.zeros((0, 0, 4, 4))

    def add(self, change: Floats, output: Floats, value: Floats, weights: NDArray[np.float64]) -> None:
        """Add an image.

        Args:
            change: What rounding adds to each probability, ``[heads, rows, tokens]``.
            output: Attention's exact output, ``[heads, rows, D]``.
            value: ``[heads, tokens, D]``.
            weights: What each row counts for, ``[rows]``.
        """
        root = np.sqrt(weights).astype(np.float32)[:, None]
        change, output = change * root, output * root
        moved = change @ value
        rows = np.stack([np.broadcast_to(root[:, 0], change.shape[:2]), change.sum(axis=2)], axis=1)
        sums = np.empty((*output.shape[::2], 4, 4))
        sums[..., :2, :2] = (rows @ rows.swapaxes(1, 2))[:, None]
        for column, one in ((2, output), (3, moved)):
            sums[..., :2, column] = sums[..., column, :2] = (rows @ one).swapaxes(1, 2)
            sums[..., column, 3] = sums[..., 3, column] = np.einsum("hrd,hrd->hd", one, moved)
        sums[..., 2, 2] = np.einsum("hrd,hrd->hd", output, output)
        self._sums = self._sums + sums if self._sums.size else sums

    def residual_error(self, importance: Floats | None = None) -> float:
        """Return the squared error of the output that the best centre leaves."""
        square, cross, lost = self._sums[..., 3, 3], self._sums[..., 1, 3], self._sums[..., 1, 1]
        error = square - np.square(cross) / np.maximum(lost, 1e-30)
        return float((error * _by_head(importance, error)).sum())

    def centre(self, mean: Floats) -> Floats:
        """Return the best centre, ``[C]``; the mean of the value where no row's sum of probabilities changed."""
        cross, lost = self._sums[..., 1, 3], self._sums[..., 1, 1]
        best = np.where(lost > 1e-12, cross / np.maximum(lost, 1e-30), mean.reshape(lost.shape))
        return best.reshape(-1).astype(np.float32)

    def gain(self, centre: Floats, importance: Floats | None = None) -> Floats:
        """Return the slope of the exact output over the rounded one around ``centre``, ``[C]``, one per head."""
        c = centre.reshape(self._sums.shape[:2]).astype(np.float64)
        one, zero = np.ones_like(c), np.zeros_like(c)
        exact = np.stack([-c, zero, one, zero], axis=2)
        rounded = np.stack([-c, -c, one, one], axis=2)
        forms = [np.einsum("hdi,hdij,hdj->hd", vector, self._sums, rounded) for vector in (exact, rounded)]
        above, below = ((form * _by_head(importance, c)).sum(axis=1) for form in forms)
        slope = np.where(below > 0, above / np.maximum(below, 1e-30), 1.0)
        return np.repeat(slope, self._sums.shape[1]).astype(np.float32)


def _by_head(importance: Floats | None, like: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones_like(like) if importance is None else importance.reshape(like.shape).astype(np.float64)


def centred(statistics: TensorStatistics, centre: Floats) -> TensorStatistics:
    """Return statistics of attention's output whose extremes are equally far from ``centre``, channel by channel."""
    half_range = np.maximum(statistics.fold_maximum - centre, centre - statistics.fold_minimum)
    return replace(statistics, fold_minimum=centre - half_range, fold_maximum=centre + half_range)


def probability_qparams(scheme: QdqScheme, clipping_threshold: float) -> QuantParams:
    """Return parameters up to ``clipping_threshold``; TensorRT's own end at 1 (scale 1/127 in int8, 1/448 in fp8)."""
    if scheme.activation == "uint8":
        return asymmetric_qparams(0.0, clipping_threshold, float16_scale=scheme.float16_scales)
    return symmetric_qparams(clipping_threshold, scheme.activation, float16_scale=scheme.float16_scales)
