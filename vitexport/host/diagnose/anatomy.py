"""What the tensors of a float model hold on real images: the numbers every later difficulty comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import BundleError
from vitexport.host.diagnose.cuts import find_cuts
from vitexport.host.diagnose.probe import Probe
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.layers import find_attention
from vitexport.host.graph.scopes import block_path

__all__ = ["Anatomy", "AttentionShape", "TensorFacts", "measure_anatomy"]

OUTLIER_RATIO = 20.0
"""A channel whose largest magnitude is this many times the median channel's counts as an outlier; LLM.int8()
(arXiv:2208.07339) reports outlier features up to 20 times the others, SmoothQuant (arXiv:2211.10438) far more."""


@dataclass(frozen=True)
class TensorFacts:
    """One tensor over all images.

    Attributes:
        tensor: Its name.
        layer: PyTorch module that made it.
        role: Kind of tensor; see :class:`~vitexport.host.diagnose.cuts.Cut`; ``scores`` is what softmax reads.
        block: Transformer block, or None.
        low: Smallest value.
        high: Largest value.
        rms: Root mean square.
        p999: Magnitude that 99.9 % of the values stay below, averaged over images.
        outliers: Channels (last axis) above :data:`OUTLIER_RATIO` times the median channel's largest magnitude.
        worst_ratio: The largest channel's maximum over the median channel's.
    """

    tensor: str
    layer: str
    role: str
    block: str | None
    low: float
    high: float
    rms: float
    p999: float
    outliers: tuple[int, ...]
    worst_ratio: float

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class AttentionShape:
    """Sizes that decide whether an attention can be fused.

    Attributes:
        layer: PyTorch module.
        heads: Number of heads.
        head_size: Channels of one head.
        sequence: Number of tokens.
    """

    layer: str
    heads: int
    head_size: int
    sequence: int


@dataclass(frozen=True)
class Anatomy:
    """All that was found.

    Attributes:
        images: Number of images used.
        tensors: In execution order.
        attentions: In execution order.
    """

    images: int
    tensors: tuple[TensorFacts, ...]
    attentions: tuple[AttentionShape, ...]


class _Statistics:
    """Extremes, energy and channel maxima of one tensor, accumulated over images."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.energy, self.count = 0.0, 0
        self.p999: list[float] = []
        self.channels: NDArray[np.float64] = np.zeros(1)

    def add(self, value: NDArray[np.generic]) -> None:
        flat = value.astype(np.float64).reshape(-1, value.shape[-1])
        magnitude = np.abs(flat)
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        self.energy += float((flat**2).sum())
        self.count += flat.size
        self.p999.append(float(np.quantile(magnitude, 0.999)))
        self.channels = np.maximum(self.channels, magnitude.max(axis=0))


def measure_anatomy(model: Path, feeds: Sequence[NDArray[np.generic]]) -> Anatomy:
    """Run images through a float model and measure every tensor that matters.

    Args:
        model: ONNX file.
        feeds: One batch per image.

    Raises:
        BundleError: The model is quantized already.
        InferenceError: The model does not run.
    """
    graph = read_onnx(model)
    quantized = sum(node.op_type == "QuantizeLinear" for node in graph.graph)
    if quantized:
        raise BundleError(
            f"Expected a float model, found '{model}' with {quantized} quantized tensors.",
            "Diagnose the model it was made from; `vitexport bisect` examines a quantized one.",
        )
    cuts = {cut.tensor: (cut.layer, cut.role) for cut in find_cuts(graph)}
    attentions = find_attention(graph)
    for attention in attentions:
        scores = attention.softmax.inputs[0]
        if scores is not None and scores.name is not None:
            cuts[scores.name] = (attention.name, "scores")
    queries = {str(a.scores.inputs[0].name): a.name for a in attentions if a.scores.inputs[0] is not None}
    shapes: dict[str, AttentionShape] = {}
    statistics = {name: _Statistics() for name in cuts}
    with Probe(model, [*cuts, *(name for name in queries if name not in cuts)]) as probe:
        for feed in feeds:
            outputs = probe.run(feed)
            for name, gathered in statistics.items():
                gathered.add(outputs[name])
            for name, layer in queries.items():
                shape = outputs[name].shape
                if len(shape) == 4:
                    shapes[layer] = AttentionShape(layer, int(shape[1]), int(shape[3]), int(shape[2]))
    order = {str(value.name): index for index, node in enumerate(graph.graph) for value in node.outputs}
    facts = [_facts(name, *cuts[name], gathered) for name, gathered in statistics.items()]
    facts.sort(key=lambda entry: order.get(entry.tensor, 0))
    return Anatomy(len(feeds), tuple(facts), tuple(shapes.values()))


def _facts(name: str, layer: str, role: str, gathered: _Statistics) -> TensorFacts:
    median = float(np.median(gathered.channels))
    ratios = gathered.channels / median if median > 0 else np.ones_like(gathered.channels)
    order = np.argsort(-ratios)
    return TensorFacts(
        tensor=name,
        layer=layer,
        role=role,
        block=block_path(layer),
        low=gathered.low,
        high=gathered.high,
        rms=float(np.sqrt(gathered.energy / max(1, gathered.count))),
        p999=float(np.mean(gathered.p999)),
        outliers=tuple(int(index) for index in order if ratios[index] > OUTLIER_RATIO),
        worst_ratio=float(ratios.max()),
    )
