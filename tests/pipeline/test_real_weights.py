"""Real weights on real photographs: the accuracy PyTorch has through Hugging Face's preprocessing is ours too."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitexport.pipeline.run import run
from vitexport.recipe.load import parse_recipe


def test_deit_tiny_keeps_pytorchs_accuracy_through_our_own_preprocessing(shared: Path, tmp_path: Path) -> None:
    sample = shared / "data" / "imagenet-1k-sample"
    recipe = parse_recipe(
        {
            "name": "deit-tiny",
            "model": {"source": str(shared / "models" / "deit-tiny-hf")},
            "data": {"verification": {"images": str(sample / "dev"), "labels": str(sample / "synsets.json")}},
            "quantize": None,
        },
        where="test",
    )
    result = run(recipe, tmp_path / "out", until="verify")
    assert result.verification is not None and result.verification.passed, (
        result.verification and result.verification.failures()
    )
    for variant in result.verification.variants:
        assert variant.accuracy is not None and variant.accuracy.images == 384
        assert 100 * variant.accuracy.top1 == pytest.approx(80.21, abs=0.3), variant.name
