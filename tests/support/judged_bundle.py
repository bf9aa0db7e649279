"""A bundle whose variants were run and judged, some of them rejected."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.linear_model import write_bundle
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Provenance
from vitexport.bundle.recording import Recording

__all__ = ["judged_bundle"]

RECIPE = """
name: linear
model: {source: nowhere}
data: {verification: {images: nowhere}}
gates: {min_agreement: 0.9}
"""


def judged_bundle(root: Path, noise: dict[str, float], *, conv: bool = False) -> Bundle:
    """A bundle whose variants answered like PyTorch plus noise of the given size."""
    bundle = Bundle.open(write_bundle(root, variants=tuple(noise), conv=conv))
    provenance = Provenance(stage="verify", key="k", settings={}, parents=(), tools={}, seconds=0.0)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(32, 7)).astype(np.float32)
    names = tuple(f"{index}.png" for index in range(32))
    hashes = tuple(str(index) for index in range(32))
    (root / "recipe.yaml").write_text(RECIPE)
    bundle = bundle.with_artifact(
        Artifact(name="recipe", kind="recipe", file=FileRecord.of(root / "recipe.yaml", root), provenance=provenance)
    )
    for variant, size in {"pytorch": 0.0, **noise}.items():
        path = root / "recordings" / f"{variant}.npz"
        answers = logits + size * generator.normal(size=logits.shape).astype(np.float32)
        Recording(variant, names, hashes, {"logits": answers}).save(path)
        record = FileRecord.of(path, root)
        bundle = bundle.with_artifact(
            Artifact(name=f"recording/{variant}", kind="recording", file=record, provenance=provenance)
        )
    bundle.save()
    return bundle
