"""A run whose last variant nothing here can execute: everything else is done, and the reason is told everywhere."""

from __future__ import annotations

import json
from pathlib import Path

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import ERRORS, read_analysis, read_recording
from vitexport.pipeline.run import run
from vitexport.recipe.load import parse_recipe
from vitexport.recipe.settings import Recipe

CONV = "vit.embeddings.patch_embeddings.projection/Conv"


def test_a_variant_without_kernels_here_is_reported_and_never_passes(coloured_recipe: Recipe, tmp_path: Path) -> None:
    content = coloured_recipe.model_dump(mode="json")
    content["quantize"] |= {"precision": "bf16", "target": "tensorrt"}
    content["gates"] = {"min_agreement": 0.9}
    recipe = parse_recipe(content, where="test")
    done = run(recipe, tmp_path / "out")
    assert done.verification is not None and not done.verification.passed
    assert [(one.name, one.passed) for one in done.verification.variants] == [
        ("pytorch", True),
        ("onnx", True),
        ("simplified", True),
        ("bf16", False),
    ]
    reason, gate = done.verification.failures()
    assert reason.startswith("bf16: not run here: The CPUExecutionProvider") and "NOT_IMPLEMENTED" in reason
    assert gate.startswith("gate min_agreement: limit 0.9, was not measured ('bf16' was not run here)")
    bundle = Bundle.open(tmp_path / "out")
    assert read_recording(bundle, "bf16").not_run in reason
    errors = read_analysis(bundle, ERRORS)
    assert errors is not None and "bf16" not in errors["variants"] and "simplified" in errors["variants"]
    assert "bf16" not in json.loads((bundle.root / "benchmark.json").read_text())["variants"]
    for page in ("report.md", "report.html"):
        text = (bundle.root / page).read_text(encoding="utf-8")
        assert "not run here" in text
        assert "Kept in float32" in text and CONV in text
    document = json.loads((bundle.root / "report.json").read_text(encoding="utf-8"))
    assert document["passed"] is False and document["variants"][-1]["not_run"] in reason
    assert run(recipe, tmp_path / "out").executed == ()
