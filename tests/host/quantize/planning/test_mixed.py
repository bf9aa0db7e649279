"""The mixed-precision search: outliers planted in a real DeiT-Tiny, attention, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from tests.support.engine_models import simplified
from tests.support.outliers import plant_after_gelu
from tests.support.paths import CALIBRATION
from vitexport.cli import main
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.calibration.statistics import StatisticsConfig
from vitexport.host.quantize.calibration.streaming import StreamingStatistics
from vitexport.host.quantize.explanation import outlier_channels
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import Budget, QuantizeSettings

PLANTED = (2, 5, 8)
IMAGES = list_images(CALIBRATION, limit=64)


@pytest.mark.slow
def test_the_search_finds_planted_layers_and_meets_the_budget(shared: Path, tmp_path: Path) -> None:
    model = simplified(str(shared / "models" / "deit-tiny-hf"), tmp_path)
    planted = plant_after_gelu(model, tmp_path / "planted.onnx", PLANTED)
    images = list_images(shared / "data" / "imagenet-1k-sample" / "calib")
    settings = QuantizeSettings(target="portable", preset="fast", keep_float="none", budget=Budget(min_sqnr_db=20))
    result = quantize_onnx(planted, images, settings, tmp_path / "int8.onnx")
    report = result.details["mixed_precision"]
    assert report["before"]["sqnr_db"] < 20
    assert report["after"]["sqnr_db"] >= 20
    groups = {f"{block}.fc2" for block in PLANTED}
    cost = report["cost_db"]
    assert set(sorted(cost, key=lambda group: cost[group])[:3]) == groups
    assert set(report["kept_float"]) & groups
    assert len(result.details["kept_float"]) <= len(result.details["quantized"]) / 3
    assert len(report["kept_float"]) == len(set(report["kept_float"]))


def test_a_budget_ranks_and_demotes_attention_with_the_layers(model: Path, tmp_path: Path) -> None:
    settings = QuantizeSettings(target="portable", preset="fast", attention="int8", budget=Budget(min_sqnr_db=60))
    details = quantize_onnx(model, IMAGES, settings, tmp_path / "int8.onnx").details
    mixed, islands = details["mixed_precision"], details["islands"]["kept_float"]
    attention = {group for group in mixed["cost_db"] if group.endswith(".attention")}
    assert len(attention) > 1
    assert mixed["before"]["sqnr_db"] < 60 <= mixed["after"]["sqnr_db"]
    # Nothing in 8 bits leaves 60 dB, so everything had to go, and the file holds no Q/DQ at all.
    assert attention < set(mixed["kept_float"]) == set(mixed["cost_db"])
    assert islands and not set(islands) & set(mixed["cost_db"])
    assert details["attention"] == details["quantized"] == []
    assert details["weights_bytes"] == 0 and all(entry["kept_float"] for entry in details["ranges"])
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in ir.load(tmp_path / "int8.onnx").graph}


def test_the_command_says_what_a_budget_kept_in_float(model: Path, tmp_path: Path) -> None:
    images = str(IMAGES[0].parent)
    command = ["quantize", str(model), "--images", images, "--limit", "64", "--target", "portable", "--preset", "fast"]
    done = CliRunner().invoke(main, [*command, "--min-sqnr-db", "60", "-o", str(tmp_path / "int8.onnx")])
    assert done.exit_code == 0, done.output
    assert "budget: kept in float: " in done.output and "on 16 calibration images held out" in done.output


def test_outlier_channels_are_found_in_the_statistics_furthest_first() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (4, 16, 32)).astype(np.float32)
    values[2, 3, 20], values[1, 5, 9] = -30, 12
    stream = StreamingStatistics("x", images=4, config=StatisticsConfig())
    for image in values:
        stream.update(image)
    found = outlier_channels(stream.result())
    assert [entry["channel"] for entry in found] == [20, 9]
    assert found[0]["times_median"] == pytest.approx(30, rel=0.05)
