"""The stages on single files, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.paths import CALIBRATION
from vitexport.api.stages import quantize
from vitexport.cli import main
from vitexport.errors import RecipeError


def test_a_quantized_model_ends_with_what_was_measured(small_model: Path, tmp_path: Path) -> None:
    done = quantize(
        small_model, CALIBRATION, tmp_path / "q.onnx", preset="fast", limit=64, exclude=["2.fc2"], keep_float="none"
    )
    assert done.details["kept_in_float"] == "2.fc2 (excluded by `2.fc2`)"
    assert done.details["kept_float_reasons"] == {"2.fc2": "excluded by `2.fc2`"}
    assert done.details["measured"].endswith("on 16 calibration images held out")
    assert list(done.details)[-1] == "measured"
    with pytest.raises(RecipeError, match="exclude"):
        quantize(small_model, CALIBRATION, tmp_path / "q.onnx", exclude="2.fc2")


def test_the_command_takes_the_same_and_prints_one_line_each(small_model: Path, tmp_path: Path) -> None:
    command = ["quantize", str(small_model), "--images", str(CALIBRATION), "--limit", "64", "--preset", "fast"]
    options = ["--exclude", "*.fc1", "--exclude", "2.proj", "--rotate", "16", "--keep-float", "none"]
    done = CliRunner().invoke(main, [*command, *options, "-o", str(tmp_path / "q.onnx")])
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.output.splitlines()]
    said = "kept in float: 2.proj (excluded by `2.proj`), 0.fc1, 1.fc1, 2.fc1, 3.fc1 (excluded by `*.fc1`)"
    assert sorted(said) == sorted(next(line for line in lines if line.startswith("kept in float: ")))
    assert lines[-1].startswith("measured: SQNR ") and "agreement" in lines[-1]


def test_a_file_that_nothing_here_executes_says_so(small_model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main,
        ["quantize", str(small_model), "--images", str(CALIBRATION), "--limit", "64", "--precision", "bf16"]
        + ["--target", "tensorrt", "-o", str(tmp_path / "q.onnx")],
    )
    assert done.exit_code == 0, done.output
    last = done.output.splitlines()[-1]
    assert last.startswith("  measured: not here: ") and "not_measured" not in done.output
