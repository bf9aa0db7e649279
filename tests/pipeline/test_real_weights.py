"""Real weights on real photographs: the accuracy PyTorch has through Hugging Face's preprocessing is ours too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from vitexport.bundle.layout import REFERENCE, read_recording
from vitexport.pipeline.run import run
from vitexport.recipe.load import parse_recipe


@pytest.mark.parametrize("count", [32, pytest.param(384, marks=pytest.mark.slow)])
def test_deit_tiny_keeps_pytorchs_accuracy_through_our_own_preprocessing(
    count: int, shared: Path, tmp_path: Path
) -> None:
    sample, source = shared / "data" / "imagenet-1k-sample", str(shared / "models" / "deit-tiny-hf")
    verification = {"images": str(sample / "dev"), "labels": str(sample / "synsets.json"), "limit": count}
    recipe = parse_recipe(
        {"name": "deit-tiny", "model": {"source": source}, "data": {"verification": verification}, "quantize": None},
        where="test",
    )
    result = run(recipe, tmp_path / "out", until="verify")
    assert result.verification is not None and result.verification.passed, (
        result.verification and result.verification.failures()
    )
    assert result.bundle is not None
    theirs = _classes_by_hand(
        source, [sample / "dev" / name for name in read_recording(result.bundle, REFERENCE).images]
    )
    targets = result.bundle.artifact("recording/pytorch").details["targets"]
    expected = float(np.mean([found == target for found, target in zip(theirs, targets, strict=True)]))
    for variant in result.verification.variants:
        assert variant.accuracy is not None and variant.accuracy.images == count
        # One image in 384 may be on the edge between two classes, and resizing is done by other libraries.
        assert variant.accuracy.top1 == pytest.approx(expected, abs=1.01 / 384), variant.name
    if count == 384:
        assert 100 * expected == pytest.approx(80.21, abs=0.3)


def _classes_by_hand(source: str, paths: list[Path]) -> list[int]:
    """Classify as the model's card says: image processor and model of Hugging Face, image by image."""
    processor = AutoImageProcessor.from_pretrained(source)
    model = AutoModelForImageClassification.from_pretrained(source).eval()
    found = []
    for path in paths:
        with Image.open(path) as image, torch.no_grad():
            pixels = processor(images=image.convert("RGB"), return_tensors="pt")
            found.append(int(model(**pixels).logits.argmax()))
    return found
