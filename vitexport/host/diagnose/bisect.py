"""Where the error of a variant enters: every layer on its own, fed exactly what the reference feeds it.

Comparing intermediate tensors as they are shows where an error is large, not where it comes from: everything after
the faulty layer is wrong too. Here the candidate's graph is cut at every tensor it shares with the reference, and each
piece is given the reference's values. What a piece then gets wrong is its own doing, so one fault stands out alone and
an error that is spread over many layers is seen as what it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.errors import BundleError
from vitexport.files import finite
from vitexport.host.diagnose.coordinates import Affine
from vitexport.host.diagnose.cuts import Cut, computed_in_float, find_cuts
from vitexport.host.diagnose.difference import Difference
from vitexport.host.diagnose.probe import Probe
from vitexport.host.diagnose.rows import common_shapes, first_rows
from vitexport.host.diagnose.transforms import find_transforms
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.layers import find_linears
from vitexport.host.graph.scopes import block_path
from vitexport.tables import Table, Tabular

__all__ = ["BisectReport", "BlockError", "LayerError", "bisect"]

LINEAR = frozenset({"qkv", "proj", "fc1", "fc2", "patch", "head", "other"})

OUTLIER = 10.0
"""A layer this many times worse than its kind in the other blocks is a fault, not a trait: within one sound int8
DeiT-Tiny the same kind of layer varies by up to 5 on eight images and 8.8 on two."""

CERTAIN = 30.0
"""A layer this many times worse than its kind is at fault however small its error is beside that of quantization: a
norm that computes in float and still differs. In a sound int8 DeiT-Tiny no layer exceeds 5, and no float layer 0.1."""

_NEGLIGIBLE = 2e-4
"""Relative error below which float arithmetic in another order explains everything."""


@dataclass(frozen=True)
class LayerError:
    """Error of one piece of the graph.

    Attributes:
        layer: Dotted path of its PyTorch module.
        role: Kind of layer; see :class:`~vitexport.host.diagnose.cuts.Cut`.
        tensor: Name of its output in the graph.
        local: RMS of the error it makes on exact inputs, over the RMS of its output.
        peak: The same for its worst channel, over the RMS of the whole output.
        accumulated: RMS of the error of its output in the running model, over the RMS of its output.
        sqnr_db: ``-20 log10(local)`` in dB; infinite when exact.
        score: How many times worse than other layers of its kind: as a whole, in the worst channel against the whole
            output, or in the worst channel against itself.
        not_finite: Elements that became NaN or infinite although all inputs were finite.
    """

    layer: str
    role: str
    tensor: str
    local: float
    peak: float
    accumulated: float
    sqnr_db: float
    score: float
    not_finite: int


@dataclass(frozen=True)
class BlockError:
    """Error of one transformer block.

    Attributes:
        name: Dotted path of the block.
        local: Relative RMS error of its output when its input is exact.
        accumulated: Relative RMS error of its output in the running model.
    """

    name: str
    local: float
    accumulated: float


@dataclass(frozen=True, repr=False)
class BisectReport(Tabular):
    """Where an error enters.

    Attributes:
        reference: Name of the variant that is right.
        candidate: Name of the variant that was examined.
        images: Number of images used.
        finding: ``exact``, ``overflow``, ``single`` or ``spread``.
        culprits: Layers to blame, worst first: one for ``single``, the largest contributions for ``spread``.
        blocks: In execution order.
        layers: In execution order.
    """

    reference: str
    candidate: str
    images: int
    finding: str
    culprits: tuple[LayerError, ...]
    blocks: tuple[BlockError, ...]
    layers: tuple[LayerError, ...]

    def describe(self) -> str:
        """Say in one sentence where the error enters."""
        if self.finding == "exact":
            return f"{self.candidate} computes what {self.reference} computes, in every layer."
        worst = self.culprits[0]
        if self.finding == "overflow":
            return f"{worst.layer} is the first to overflow: {worst.not_finite} values became infinite or NaN."
        if self.finding == "single":
            return (
                f"The error enters at {worst.layer}: {worst.local:.2g} relative error on exact inputs, "
                f"{worst.score:.3g} times that of its kind elsewhere."
            )
        names = ", ".join(f"{layer.layer} ({layer.local:.2g})" for layer in self.culprits[:3])
        return f"No single layer is to blame: the error is spread. Largest contributions: {names}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the finding as a sentence; numbers that are not finite become None."""
        content: dict[str, Any] = finite({"description": self.describe(), **asdict(self)})
        return content

    def tables(self) -> tuple[Table, ...]:
        """Return the layers at fault, or those that add most, under the finding."""
        blamed = {layer.tensor for layer in self.culprits}
        others = sorted((x for x in self.layers if x.tensor not in blamed), key=lambda layer: -layer.local)
        rows = tuple(
            (layer.layer, layer.role, f"{layer.local:.2g}", f"{layer.peak:.2g}", f"{layer.sqnr_db:.1f}")
            for layer in [*self.culprits, *others][:12]
        )
        columns = ("layer", "role", "own error", "worst channel", "SQNR dB")
        return (Table(self.describe(), columns, rows, text=("role",)),)


def bisect(
    reference: Path,
    candidate: Path,
    feeds: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]],
    *,
    names: tuple[str, str] = ("reference", "candidate"),
) -> BisectReport:
    """Find the layers where a candidate departs from its reference.

    Args:
        reference: ONNX file that is right.
        candidate: ONNX file made from it.
        feeds: One pair (for the reference, for the candidate) per image, batch of one each.
        names: What to call the two in the report.

    Raises:
        BundleError: The two have no tensors in common, so nothing can be compared.
        InferenceError: One of them does not run.
    """
    graphs = read_onnx(reference), read_onnx(candidate)
    shared = _shared(*graphs)
    if len(shared) < 2:
        raise BundleError(
            f"Expected '{candidate.name}' to share named tensors with '{reference.name}', found {len(shared)}.",
            "Bisect compares a variant with the one it was made from; export both with this package.",
        )
    shapes = common_shapes((reference, candidate), [cut.tensor for cut in shared], feeds[0])
    shared = [cut for cut in shared if cut.tensor in shapes]
    tensors = [cut.tensor for cut in shared]
    outputs = _block_outputs(shared)
    transforms = find_transforms(*graphs, shared, (reference, candidate), feeds[:4], shapes)
    local = {name: Difference() for name in tensors}
    running = {name: Difference() for name in tensors}
    block = {name: Difference() for name in outputs.values()}
    with (
        Probe(reference, tensors) as exact,
        Probe(candidate, tensors, tensors) as pieces,
        Probe(candidate, tensors) as free,
        Probe(candidate, list(outputs.values()), list(outputs.values())) as blocks,
    ):
        for feed, own in feeds:
            expected = first_rows(exact.run(feed), shapes)
            given = {name: _apply(transforms.get(name), value) for name, value in expected.items()}
            outputs_of_pieces = pieces.run(own, given)
            drifted = free.run(own)
            for name in tensors:
                local[name].add(expected[name], _undo(transforms.get(name), outputs_of_pieces[name]))
                running[name].add(expected[name], _undo(transforms.get(name), drifted[name]))
            per_block = blocks.run(own, given)
            for name in outputs.values():
                block[name].add(expected[name], per_block[name])
    untouched = {
        str(layer.output.name)
        for layer in find_linears(graphs[1])
        # One whose input was transformed, for a quantized attention's sake, errs as far as the fit of that transform.
        if computed_in_float(layer) and (source := layer.matmul.inputs[0]) and source.name not in transforms
    }
    layers = _score(shared, local, running, untouched)
    finding, culprits = _blame(layers)
    return BisectReport(
        reference=names[0],
        candidate=names[1],
        images=len(feeds),
        finding=finding,
        culprits=culprits,
        blocks=tuple(
            BlockError(name, block[tensor].relative, running[tensor].relative) for name, tensor in outputs.items()
        ),
        layers=layers,
    )


def _shared(reference: ir.Model, candidate: ir.Model) -> list[Cut]:
    """Return the cuts of the reference that the candidate has too, in the candidate's execution order."""
    present = {cut.tensor: cut for cut in find_cuts(candidate)}
    mine = [cut for cut in find_cuts(reference) if cut.tensor in present and cut.role == present[cut.tensor].role]
    return sorted(mine, key=lambda cut: present[cut.tensor].position)


def _block_outputs(cuts: Sequence[Cut]) -> dict[str, str]:
    """Return block name to the tensor of its last residual addition."""
    outputs: dict[str, str] = {}
    for cut in cuts:
        block = block_path(cut.layer)
        if cut.role == "residual" and block is not None:
            outputs[block] = cut.tensor
    return outputs


def _apply(transform: Affine | None, value: NDArray[np.generic]) -> NDArray[np.generic]:
    return value if transform is None else transform.apply(value)


def _undo(transform: Affine | None, value: NDArray[np.generic]) -> NDArray[np.generic]:
    return value if transform is None else transform.undo(value)


def _score(
    cuts: Sequence[Cut], local: dict[str, Difference], running: dict[str, Difference], untouched: Collection[str]
) -> tuple[LayerError, ...]:
    """Compare every layer with its kind in the other blocks; one that computes in float should make no error.

    Those in float are no measure for the others: a quantized layer errs, whatever a few islands of its kind do.
    """
    touched = [cut for cut in cuts if cut.tensor not in untouched]
    everything = [local[cut.tensor] for cut in touched if cut.role in LINEAR]
    errors = []
    for cut in cuts:
        own = local[cut.tensor]
        peers = [local[other.tensor] for other in touched if other.role == cut.role and other.tensor != cut.tensor]
        kind = [] if cut.tensor in untouched else peers if len(peers) >= 3 else everything
        score = max(
            getattr(own, what) / max(_median([getattr(other, what) for other in kind]), _NEGLIGIBLE)
            for what in ("relative", "peak", "channel")
        )
        errors.append(
            LayerError(
                layer=cut.layer,
                role=cut.role,
                tensor=cut.tensor,
                local=own.relative,
                peak=own.peak,
                accumulated=running[cut.tensor].relative,
                sqnr_db=own.sqnr_db,
                score=score if own.not_finite == 0 else float("inf"),
                not_finite=own.not_finite,
            )
        )
    return tuple(errors)


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else 0.0


def _blame(layers: Sequence[LayerError]) -> tuple[str, tuple[LayerError, ...]]:
    overflowing = [layer for layer in layers if layer.not_finite]
    if overflowing:
        return "overflow", tuple(overflowing)
    noticed = [layer for layer in layers if max(layer.local, layer.peak) > _NEGLIGIBLE]
    if not noticed:
        return "exact", ()
    # A tiny error in a kind of layer that usually makes hardly any is not what costs accuracy.
    usual = _median([layer.local for layer in noticed if layer.role in LINEAR])
    outliers = [
        layer
        for layer in noticed
        if layer.score >= CERTAIN
        or (layer.score >= OUTLIER and (layer.local >= 0.5 * usual or layer.peak >= OUTLIER * usual))
    ]
    if outliers:
        # Neither the largest error (some kinds always err more) nor the largest ratio (some never err at all) alone.
        return "single", tuple(sorted(outliers, key=lambda layer: -layer.score * max(layer.local, layer.peak)))
    linear = [layer for layer in noticed if layer.role in LINEAR] or noticed
    return "spread", tuple(sorted(linear, key=lambda layer: -layer.local)[:8])
