from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.linear_model import write_bundle
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Provenance
from vitexport.bundle.recording import Recording
from vitexport.errors import BundleError
from vitexport.verification.select import choose_variant

RECIPE = """
name: linear
model: {source: nowhere}
data: {verification: {images: nowhere}}
gates: {min_agreement: 0.9}
"""


def judged_bundle(root: Path, noise: dict[str, float]) -> Bundle:
    """A bundle whose variants answered like PyTorch plus noise of the given size."""
    bundle = Bundle.open(write_bundle(root, variants=tuple(noise)))
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
    return bundle


def test_last_accepted_variant_serves(tmp_path: Path) -> None:
    choice = choose_variant(judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 1e-6}))
    assert (choice.artifact.name, choice.rejected) == ("simplified", ())


def test_rejected_variant_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 3.0})
    choice = choose_variant(bundle)
    assert choice.artifact.name == "onnx"
    (reason,) = choice.rejected
    assert reason.startswith("simplified: ")
    assert "agreement" in reason
    assert choose_variant(bundle, "simplified").artifact.name == "simplified"


def test_no_accepted_variant_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No model .* passed its checks") as caught:
        choose_variant(judged_bundle(tmp_path, {"onnx": 2.0, "simplified": 3.0}))
    assert "--variant" in str(caught.value)
