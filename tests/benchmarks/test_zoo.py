"""The zoo: rows are found by rule, run end to end, and judged by what was measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suites.processes import environment, module_command
from benchmarks.suites.zoo_rows import ZooRow, huggingface_rows, smallest_with_attention
from benchmarks.suites.zoo_verdict import is_wrong, judge, table_row


def test_a_module_gives_its_smallest_model_with_attention_or_none() -> None:
    assert smallest_with_attention("levit") == "levit_128s"
    assert smallest_with_attention("mlp_mixer") is None


def test_transformers_gives_the_classes_that_take_pixels_alone() -> None:
    models = {row.model for row in huggingface_rows()}
    assert {"ViTForImageClassification", "SegformerForSemanticSegmentation", "Dinov2Backbone", "ViTModel"} <= models
    assert "MllamaVisionModel" not in models, "it needs the ids of aspect ratios"


def test_a_row_runs_end_to_end_and_is_kept(tmp_path: Path) -> None:
    command = module_command(
        "zoo", "--row", "levit_128s", "--resume", "--no-table", "--results", tmp_path, "--work", tmp_path
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "zoo.json").read_text())
    rows = {row["model"]: row for row in content["rows"]}
    assert rows["levit_128s"]["verdict"] == "right"
    assert all(float(figure) <= 1e-5 for figure in rows["levit_128s"]["error at batch 1, 3"].split(", "))
    assert rows["levit_128s"]["int8 SQNR dB"].endswith(" layers)")
    assert list(tmp_path.iterdir()) == [tmp_path / "zoo.json"], "checkpoints are not kept"
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert again.stdout.splitlines() == ["0 of 1 rows are wrong"], "measured rows are not measured again"


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        ({"errors": [1e-6, 2e-6], "from_float64": [1e-6, 1e-6], "float32_from_float64": 1e-6}, "right"),
        (
            {"errors": [1e-3, 1e-3], "from_float64": [1e-3, 9e-4], "float32_from_float64": 5e-5},
            "right: float32 PyTorch is 5.0e-05 from float64, the file 1.0e-03",
        ),
        (
            {"errors": [1e-3, 1e-3], "from_float64": [1e-3, 1e-3], "float32_from_float64": 1e-6},
            "WRONG: float32 PyTorch is 1.0e-06 from float64, the file 1.0e-03",
        ),
        ({"errors": [float("inf")] * 2, "from_float64": [float("inf")] * 2, "float32_from_float64": 1e-6}, "WRONG: "),
        ({"refused": "Expected one image input."}, "refused: Expected one image input."),
        ({"failed": "IndexError: 3"}, "WRONG: IndexError: 3"),
        ({}, "WRONG: not measured"),
    ],
)
def test_a_verdict_is_what_the_figures_say(step: dict[str, Any], verdict: str) -> None:
    assert judge(step).startswith(verdict)


@pytest.mark.parametrize("step", ["export", "int8"])
def test_a_failure_of_the_export_or_the_quantization_is_wrong(step: str) -> None:
    right = {"errors": [1e-6, 1e-6], "from_float64": [1e-6, 1e-6], "float32_from_float64": 1e-6}
    measured: dict[str, Any] = {"build": {"parameters": 1}, "export": right, "plain": {"failed": "ValueError: no"}}
    row = ZooRow("timm", "x", "x_tiny")
    assert not is_wrong(table_row(row, measured))
    assert is_wrong(table_row(row, {**measured, step: {"failed": "IndexError: 3"}}))


def test_what_the_library_cannot_build_is_no_fault_of_the_export() -> None:
    row = table_row(ZooRow("timm", "x", "x_tiny"), {"build": {"failed": "ValueError: no"}})
    assert row["verdict"] == "not built: ValueError: no" and row["int8 SQNR dB"] == ""
