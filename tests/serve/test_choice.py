from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.serve.linear_model import write_bundle
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Provenance
from vitexport.bundle.recording import Recording
from vitexport.errors import BundleError
from vitexport.verify.select import choose_rung

RECIPE = """
name: linear
model: {source: nowhere}
data: {verification: {images: nowhere}}
gates: {min_agreement: 0.9}
"""


def judged_bundle(root: Path, noise: dict[str, float]) -> Bundle:
    """A bundle whose rungs answered like PyTorch plus noise of the given size."""
    bundle = Bundle.open(write_bundle(root, rungs=tuple(noise)))
    provenance = Provenance(stage="verify", key="k", settings={}, parents=(), tools={}, seconds=0.0)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(32, 7)).astype(np.float32)
    names = tuple(f"{index}.png" for index in range(32))
    hashes = tuple(str(index) for index in range(32))
    (root / "recipe.yaml").write_text(RECIPE)
    bundle = bundle.with_artifact(
        Artifact(name="recipe", kind="recipe", file=FileRecord.of(root / "recipe.yaml", root), provenance=provenance)
    )
    for rung, size in {"pytorch": 0.0, **noise}.items():
        path = root / "recordings" / f"{rung}.npz"
        answers = logits + size * generator.normal(size=logits.shape).astype(np.float32)
        Recording(rung, names, hashes, {"logits": answers}).save(path)
        record = FileRecord.of(path, root)
        bundle = bundle.with_artifact(
            Artifact(name=f"recording/{rung}", kind="recording", file=record, provenance=provenance)
        )
    return bundle


def test_last_accepted_rung_serves(tmp_path: Path) -> None:
    choice = choose_rung(judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 1e-6}))
    assert (choice.artifact.name, choice.rejected) == ("simplified", ())


def test_rejected_rung_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 3.0})
    choice = choose_rung(bundle)
    assert choice.artifact.name == "onnx"
    (reason,) = choice.rejected
    assert reason.startswith("simplified: ")
    assert "agreement" in reason
    assert choose_rung(bundle, "simplified").artifact.name == "simplified"


def test_no_accepted_rung_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No model .* passed its checks") as caught:
        choose_rung(judged_bundle(tmp_path, {"onnx": 2.0, "simplified": 3.0}))
    assert "--rung" in str(caught.value)
