"""``vitexport bench``: what is measured, in which form it is given, and never how fast this machine is."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

import vitexport as vx
from tests.support.linear_model import write_bfloat16, write_model
from vitexport.benchmark import compare
from vitexport.benchmark.compare import Measured, find_models, open_subject, ranked, thread_counts
from vitexport.benchmark.latency import summarize
from vitexport.cli import main
from vitexport.cli.bench import parse_cores
from vitexport.errors import InferenceError
from vitexport.runtimes import RuntimeOptions
from vitexport.runtimes.onnxruntime import OnnxRuntime
from vitexport.tensors import Array


def _model(path: Path, batch: str | int = "N") -> Path:
    """Write a 1 x 1 convolution over 3 x 8 x 8 images."""
    shape = [batch, 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], np.arange(9, dtype=np.float32))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments), "--seconds", "0.02", "--warmup", "1"])


def test_two_models_are_compared_at_every_batch_size(tmp_path: Path) -> None:
    result = bench(_model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx"), "--batch", "1,4", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert [(Path(row["model"]).stem, row["batch"]) for row in content["results"]] == [
        ("a", 1),
        ("b", 1),
        ("a", 4),
        ("b", 4),
    ]
    assert {row["speedup"] for row in content["results"] if row["model"].endswith("a.onnx")} == {1.0}
    assert all(row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] for row in content["results"])
    assert all(row["memory_bytes"] >= 0 and "power" not in row for row in content["results"])
    assert content["machine"]["cores"] and isinstance(content["warnings"], list)


def test_a_model_named_twice_is_measured_twice_and_shows_the_noise(tmp_path: Path) -> None:
    model = _model(tmp_path / "a.onnx")
    result = bench(model, model, "--json")
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in json.loads(result.stdout)["results"]] == [str(model), f"{model} #2"]


def test_every_asked_runtime_opens_the_model(tmp_path: Path) -> None:
    model = _model(tmp_path / "a.onnx")
    result = bench(model, "--runtime", "onnxruntime", "--runtime", "pytorch")
    assert result.exit_code == 1 and "a.onnx" in result.stderr, "PyTorch opens no ONNX file, and says so"
    alone = bench(model, "--runtime", "onnxruntime", "--json")
    assert json.loads(alone.stdout)["results"][0]["runtime"] == "onnxruntime"


def test_a_model_of_another_batch_is_named_and_left_out(tmp_path: Path) -> None:
    fixed, free = _model(tmp_path / "fixed.onnx", 2), _model(tmp_path / "free.onnx")
    result = bench(fixed, free, "--batch", "1", "--json")
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in json.loads(result.stdout)["results"]] == [str(free)]
    assert "fixed.onnx: made for another batch than 1" in result.stderr
    alone = bench(fixed, "--batch", "1")
    assert alone.exit_code == 1 and "No model here takes a batch of 1" in alone.stderr


def test_a_model_that_nothing_here_can_run_is_named_and_left_out(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.onnx")
    unknown = write_bfloat16(model, tmp_path / "bf16.onnx")
    result = bench(unknown, model, "--json")
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in json.loads(result.stdout)["results"]] == [str(model)]
    assert "bf16.onnx: not run here: The CPUExecutionProvider of ONNX Runtime" in result.stderr
    alone = bench(unknown)
    assert alone.exit_code == 1 and "lacks a kernel that 'bf16.onnx' needs" in alone.stderr


def test_tuning_tries_every_number_of_threads(tmp_path: Path) -> None:
    result = bench(_model(tmp_path / "a.onnx"), "--tune", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["results"]
    assert sorted(row["threads"] for row in rows) == list(thread_counts())
    refused = bench(_model(tmp_path / "a.onnx"), "--tune", "--threads", "1")
    assert refused.exit_code == 2 and "leave out --threads" in refused.stderr


def test_thread_counts_are_powers_of_two_and_all_cores() -> None:
    assert thread_counts(1) == (1,)
    assert thread_counts(6) == (1, 2, 4, 6)
    assert thread_counts(8) == (1, 2, 4, 8)


def test_the_best_number_of_threads_is_the_smallest_of_the_fastest() -> None:
    def row(threads: int, milliseconds: float) -> Measured:
        return Measured("m", "onnxruntime", summarize(np.full(5, milliseconds / 1e3), 1), 1.0, None, threads)

    found = ranked([row(1, 9.0), row(2, 5.1), row(4, 5.0), row(8, 7.0)])
    assert [entry.threads for entry in found] == [2, 4, 8, 1]
    assert ranked([]) == ()


def test_tuning_for_a_batch_the_model_was_not_made_for_is_refused(tmp_path: Path) -> None:
    refused = bench(_model(tmp_path / "a.onnx", batch=1), "--tune", "--batch", "4")
    assert refused.exit_code == 1 and "No model here takes a batch of 4" in refused.stderr


def test_a_plot_is_an_svg_that_names_every_model(tmp_path: Path) -> None:
    plot = tmp_path / "bench.svg"
    result = bench(_model(tmp_path / "first.onnx"), _model(tmp_path / "second.onnx"), "--batch", "1,2", "--plot", plot)
    assert result.exit_code == 0, result.output
    assert ET.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    comments = plot.read_text()
    assert "first.onnx" in comments and "second.onnx" in comments and "images per second" in comments
    refused = bench(_model(tmp_path / "first.onnx"), "--plot", tmp_path / "bench.png")
    assert refused.exit_code == 2 and "ends with .svg" in refused.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes")
def test_pinning_uses_as_many_threads_as_cores(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        result = bench(_model(tmp_path / "a.onnx"), "--cpus", str(min(before)), "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["threads"] == 1
    finally:
        os.sched_setaffinity(0, before)
    refused = bench(_model(tmp_path / "a.onnx"), "--cpus", "100000")
    assert refused.exit_code == 1 and "Expected cores of" in refused.stderr


def test_cores_are_given_as_numbers_and_ranges() -> None:
    assert parse_cores("0,2-4") == {0, 2, 3, 4}
    with pytest.raises(click.BadParameter, match="found 'two'"):
        parse_cores("two")


def test_power_is_measured_where_there_is_tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\nwhile true; do echo 'RAM 1/2MB VDD_IN 5000mW/5000mW'; sleep 0.01; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    model = _model(tmp_path / "a.onnx")
    result = CliRunner().invoke(main, ["bench", str(model), "--seconds", "1", "--json"])
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)["results"][0]
    assert row["power"]["watts"] == 5.0 and row["power"]["of"] == "VDD_IN"
    assert row["power"]["joules_per_image"] == pytest.approx(5.0 / row["images_per_second"])


def test_a_subject_runs_the_asked_batch(tmp_path: Path) -> None:
    (model,) = find_models([_model(tmp_path / "a.onnx")])
    subject = open_subject(model, None, RuntimeOptions(threads=1), batch=2)
    outputs = subject.call(3)()
    subject.runtime.close()
    assert isinstance(outputs, dict) and outputs["y"].shape == (3, 3, 8, 8)


@pytest.mark.parametrize("tuned", [False, True])
def test_models_are_closed_also_when_one_of_them_fails_at_its_first_run(
    tuned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    closed: list[str] = []

    class Fails(OnnxRuntime):
        @classmethod
        def open(cls, model: Path, options: RuntimeOptions) -> Fails:
            opened.append(model.stem)
            return super().open(model, options)

        def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            if len(opened) == 2:
                raise InferenceError("the second model does not run", "")
            return super()._execute(feeds)

        def close(self) -> None:
            closed.append(self._model.stem)
            super().close()

    monkeypatch.setattr(compare, "open_runtime", lambda path, runtime, options: Fails.open(path, options))
    monkeypatch.setattr(compare, "thread_counts", lambda: (1, 2))
    models = [_model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx")]
    with pytest.raises(InferenceError, match="second"):
        vx.bench(models, seconds=0.01, tune_threads=tuned)
    assert len(opened) == 2 and closed == opened[::-1]
