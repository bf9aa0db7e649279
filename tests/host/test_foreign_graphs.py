"""ONNX files of other tools: external tensors, dynamic axes, 16-bit weights, and files that are none."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from tests.support.foreign_graphs import SIZE, export_plainly, foreign_model, outside
from vitexport.api.bench import bench
from vitexport.api.inspection import inspect
from vitexport.api.stages import simplify
from vitexport.errors import BundleError, RecipeError, SimplifyError
from vitexport.runtimes import open_runtime


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its own exporter
        found = {
            "batch": export_plainly(folder / "batch.onnx"),
            "axes": export_plainly(folder / "axes.onnx", dynamic=(0, 1, 2, 3)),
            "half": export_plainly(folder / "half.onnx", dtype=torch.float16),
        }
    found["outside"] = outside(found["batch"], folder / "outside.onnx")
    return found


def answer(path: Path, images: NDArray[np.floating]) -> NDArray[np.floating]:
    with open_runtime(path) as runtime:
        return runtime.run({"input": images})["output"]


def images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def expected(count: int) -> NDArray[np.float32]:
    with torch.no_grad():
        return foreign_model()(torch.from_numpy(images(count))).numpy()


@pytest.mark.parametrize("name", ["batch", "outside"])
@pytest.mark.parametrize("onnxsim", [True, False])
def test_simplify_takes_tensors_from_wherever_they_are(
    name: str, onnxsim: bool, files: dict[str, Path], tmp_path: Path
) -> None:
    done = simplify(files[name], tmp_path / "s.onnx", onnxsim=onnxsim)
    assert done.precision == "float32" and done.details["nodes"] < done.details["nodes_before"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.onnx"], "small weights are in the file itself"
    for count in (1, 3):
        np.testing.assert_allclose(answer(done.path, images(count)), expected(count), atol=2e-5)


def test_a_size_that_the_file_does_not_say_is_asked_for(files: dict[str, Path], tmp_path: Path) -> None:
    hint = r"(?s)input: float32\[n, c, h, w\].*--shape input=-1x3x224x224"
    with pytest.raises(RecipeError, match=hint):
        simplify(files["axes"], tmp_path / "s.onnx")
    with pytest.raises(RecipeError, match=hint):
        bench(files["axes"], seconds=0.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("batch", "axis"), [(-1, "n"), (3, 3)])
def test_shapes_fix_the_axes_of_the_written_file(
    batch: int, axis: object, files: dict[str, Path], tmp_path: Path
) -> None:
    done = simplify(files["axes"], tmp_path / "s.onnx", shapes={"input": (batch, 3, SIZE, SIZE)})
    with open_runtime(done.path) as runtime:
        assert runtime.inputs[0].shape == (axis, 3, SIZE, SIZE) and runtime.outputs[0].shape == (axis, 10)
    np.testing.assert_allclose(answer(done.path, images(3)), expected(3), atol=2e-5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"pixels": (1, 3, SIZE, SIZE)}, "one of the inputs input, found one for 'pixels'"),
        ({"input": (1, 3, SIZE)}, r"fits input: float32\[n, 3, 32, 32\], found 1x3x32"),
        ({"input": (1, 3, 64, SIZE)}, "found 1x3x64x32"),
        ({"input": (0, 3, SIZE, SIZE)}, "found 0x3x32x32"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(
    shapes: dict[str, tuple[int, ...]], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        simplify(files["batch"], tmp_path / "s.onnx", shapes=shapes)


def test_bench_feeds_what_the_shape_says(files: dict[str, Path]) -> None:
    shape = {"input": (-1, 3, SIZE, SIZE)}
    rows = bench([files["axes"], files["batch"]], batch=(1, 2), shapes=shape, seconds=0.01, warmup=0).rows
    assert [row.latency.batch for row in rows] == [1, 1, 2, 2]
    with pytest.raises(RecipeError, match="first axis of 'input' to be -1, found 8 beside a batch of 1"):
        bench(files["axes"], shapes={"input": (8, 3, SIZE, SIZE)}, seconds=0.01)
    with pytest.raises(RecipeError, match="inputs input, found one for 'x'"):
        bench(files["batch"], shapes={"x": (1, 3, SIZE, SIZE)}, seconds=0.01)


def test_the_precision_is_that_of_the_weights(files: dict[str, Path], tmp_path: Path) -> None:
    done = simplify(files["half"], tmp_path / "half.onnx")
    assert done.precision == "float16"
    found = inspect(files["half"]).content
    weights = sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in onnx.load(files["half"]).graph.initializer)
    assert weights and found["weights"][0].endswith(" float16")
    answers = answer(done.path, images(3).astype(np.float16)).astype(np.float32)
    np.testing.assert_allclose(answers, expected(3), atol=0.02 * float(np.abs(expected(3)).max()))


@pytest.mark.parametrize("name", ["report.json", "model.onnx", "model.textproto", "notes.md"])
def test_what_is_no_model_is_refused_in_words(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"passed": true, "variants": [1, 2]}')
    with pytest.raises(BundleError, match=f"(?s)Expected an ONNX model at '.*{name}'.*a bundle's directory"):
        inspect(tmp_path / name)
    with pytest.raises(SimplifyError, match=f"Cannot read '.*{name}'"):
        simplify(tmp_path / name, tmp_path / "s.onnx")
