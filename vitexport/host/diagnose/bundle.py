"""Bisecting the variants of a bundle on the images it carries."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import read_replay_inputs
from vitexport.errors import BundleError, NoKernelError
from vitexport.files import finite, write_atomic
from vitexport.runtimes import open_runtime
from vitexport.tensors import Array, batch_limit, tile_rows

if TYPE_CHECKING:
    from vitexport.host.diagnose import BisectReport

__all__ = ["bisect_variant", "write_errors"]


def bisect_variant(bundle: Bundle, variant: str, *, against: str | None = None, images: int = 8) -> BisectReport:
    """Find the layers where a variant departs from the one it was made from.

    Args:
        bundle: With its replay inputs.
        variant: The variant to examine.
        against: The variant that is right; None takes the last float variant before it.
        images: How many of the replay images to use.

    Raises:
        BundleError: There is no such variant, none before it, or it is no ONNX graph.
    """
    from vitexport.host.diagnose import bisect

    candidate = _model(bundle, variant)
    reference = _reference(bundle, candidate) if against is None else _model(bundle, against)
    for artifact in (reference, candidate):
        if artifact not in bundle.models or not artifact.file.path.endswith(".onnx"):
            raise BundleError(
                f"Expected an ONNX variant, found '{artifact.name}' ({artifact.kind}).",
                "Only ONNX graphs show their intermediate tensors; bisect the ONNX variant it was built from.",
            )
    pairs = list(zip(_feeds(bundle, reference, images), _feeds(bundle, candidate, images), strict=True))
    names = reference.name, candidate.name
    return bisect(bundle.path(reference), bundle.path(candidate), pairs, names=names)


def write_errors(bundle: Bundle, path: Path, *, images: int = 4) -> None:
    """Examine every variant that was made from another one, and write blocks, layers and ranges for the report.

    A variant that shares no named tensors with its parent is left out: its error is known as a whole only. So is one
    that no runtime here can execute.
    """
    from vitexport.host.diagnose import measure_ranges

    variants: dict[str, Any] = {}
    for artifact in bundle.models[1:]:
        if not artifact.file.path.endswith(".onnx"):
            continue
        try:
            report = bisect_variant(bundle, artifact.name, images=images)
        except (BundleError, NoKernelError):
            continue
        ranges = measure_ranges(bundle.path(artifact), _feeds(bundle, artifact, images))
        variants[artifact.name] = {
            **report.to_dict(),
            "ranges": [asdict(entry) for entry in ranges],
        }
    write_atomic(path, json.dumps({"variants": finite(variants)}, indent=1, allow_nan=False) + "\n")


def _feeds(bundle: Bundle, artifact: Artifact, images: int) -> list[Array]:
    """Return one batch of one replay image each, as the model takes it."""
    inputs = read_replay_inputs(bundle)
    with open_runtime(bundle.path(artifact)) as runtime:
        tensor = runtime.inputs[0]
    rows = range(min(images, len(inputs.images)))
    return [
        tile_rows(inputs.feed(tensor, bundle.preprocess, slice(row, row + 1)), batch_limit(tensor) or 1) for row in rows
    ]


def _model(bundle: Bundle, name: str) -> Artifact:
    artifact = next((one for one in bundle.models if one.name == name), None)
    if artifact is None:
        names = ", ".join(one.name for one in bundle.models) or "none"
        raise BundleError(f"'{name}' is no variant of '{bundle.root}'; it has {names}.", "Choose one of those.")
    return artifact


def _reference(bundle: Bundle, candidate: Artifact) -> Artifact:
    names = [artifact.name for artifact in bundle.models]
    before = [artifact for artifact in bundle.models[: names.index(candidate.name)] if artifact.precision == "float32"]
    if not before:
        raise BundleError(
            f"'{candidate.name}' is the first variant: there is no graph before it to compare with.",
            "Bisect a later variant, or name the graph that is right with --against.",
        )
    return before[-1]
