"""What a quantization says of itself: why layers stayed float, massive activations, ranges that others leave."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import CALIBRATION
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.calibration.statistics import StatisticsConfig, TensorStatistics
from vitexport.host.quantize.calibration.streaming import StreamingStatistics
from vitexport.host.quantize.explanation import QuantizationWarning, massive_activation, warn_of_clipping
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import QuantizeSettings

IMAGES = list_images(CALIBRATION, limit=64)


def statistics_of(largest: float) -> TensorStatistics:
    values = np.random.default_rng(0).uniform(-2, 2, (4, 64, 32)).astype(np.float32)
    values[2, 3, 20] = largest
    stream = StreamingStatistics("x", images=4, config=StatisticsConfig())
    for image in values:
        stream.update(image)
    return stream.result()


def test_a_massive_activation_is_told_in_numbers_and_a_usual_one_is_not() -> None:
    assert massive_activation(statistics_of(-217.4)) == (
        "massive activation: one channel reaches 217, the median channel 2"
    )
    assert massive_activation(statistics_of(30.0)) == ""


def test_what_computes_one_token_is_said_to(model: Path, tmp_path: Path) -> None:
    details = quantize_onnx(model, IMAGES, QuantizeSettings(preset="fast"), tmp_path / "q.onnx").details
    assert details["kept_float_reasons"]["3.proj"] == "computes one token"
    assert set(details["islands"]) == {"kept_float", "reasons", "work"}
    assert details["clipped"] == []


@pytest.mark.parametrize("keep_float", ["auto", "none"])
def test_images_that_reach_further_than_those_of_calibration_are_noticed(
    model: Path, tmp_path: Path, keep_float: str
) -> None:
    """Every fourth image is held out: those keep their contrast, the others lose it."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, path in enumerate(IMAGES):
        copy = folder / f"{index:03d}.png"
        shutil.copy(path, copy)
        if index % 4 != 2:
            grey = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)
            Image.fromarray((124 + 0.06 * (grey - 124)).astype(np.uint8)).save(copy)
    settings = QuantizeSettings.model_validate({"preset": "fast", "keep_float": keep_float})
    with pytest.warns(QuantizationWarning) as caught:
        details = quantize_onnx(model, list_images(folder), settings, tmp_path / "q.onnx").details
    assert any("reach further" in str(one.message) for one in caught)
    times = [entry["times"] for entry in details["clipped"]]
    assert times and times == sorted(times, reverse=True) and min(times) > 4


def test_the_warning_says_what_to_do() -> None:
    entries = [{"layers": [f"blocks.{index}.mlp.fc2"], "times": 9.5 - index} for index in range(7)]
    with pytest.warns(
        QuantizationWarning, match=r"blocks\.0\.mlp\.fc2 \(9\.5 times\).*More|more calibration.*margin: 0\.2"
    ):
        warn_of_clipping({"clipped": entries})
    warn_of_clipping({"clipped": []})
    warn_of_clipping({})
