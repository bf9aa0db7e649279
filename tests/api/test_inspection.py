"""inspect: bundles, ONNX files, engines, activation ranges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_gpu import Pretend
from tests.support.linear_model import CLASSES, write_bundle
from tests.support.onnx_graphs import linear, save
from vitexport.api.engine import build_engine
from vitexport.api.inspection import inspect
from vitexport.bundle.bundle import Bundle
from vitexport.errors import BundleError
from vitexport.runtimes.tensorrt.api import load_api

RANGES = [
    {
        "layers": ["blocks.0.mlp.fc1"],
        "kept_float": True,
        "seen": [-1.25, 40.0],
        "scale": 0.1618,
        "zero_point": 8,
        "layer_sqnr_db": 17.25,
        "outliers": [{"channel": 3, "times_median": 21.5}],
    },
    {
        "layers": ["blocks.0.mlp.fc2"],
        "kept_float": False,
        "seen": [-0.17, 12.0],
        "transformed": [-2.5, 3.25],
        "rotation": 64,
        "scale": 0.02,
        "zero_point": 0,
        "layer_sqnr_db": 37.5,
        "outliers": [],
    },
]

DETAILS = {
    "ranges": RANGES,
    "kept_float_reasons": {"0.fc1": "excluded by `fc1`"},
    "quality": None,
    "not_measured": "no kernel",
}


def test_a_bundle_by_path_and_opened_is_the_same(bundle_dir: Path) -> None:
    found = inspect(bundle_dir)
    assert found.content["name"] == "linear" and found.content["class_names"] == len(CLASSES)
    assert [artifact["name"] for artifact in found.content["artifacts"]] == ["simplified"]
    assert inspect(Bundle.open(bundle_dir)) == found
    document = found.to_dict()
    assert json.loads(json.dumps(document)) == document
    facts, preprocess, artifacts = found.tables()
    assert dict(facts.rows)["inputs"] == "pixel_values: float32[batch, 3, 16, 16]"
    assert (preprocess.title, artifacts.title) == ("preprocess", "artifacts")


def test_a_file_shows_its_operators_and_what_it_carries(model_file: Path) -> None:
    content = inspect(str(model_file)).content
    assert content["operators"] == {"Flatten": 1, "Gemm": 1}
    assert content["nodes"] == 2 and content["parameters"] == 3 * 16 * 16 * len(CLASSES) + len(CLASSES)
    assert content["model"] == "tests/linear (vit, classify, sha256:0)"


def test_ranges_are_those_that_the_quantizer_recorded(tmp_path: Path, model_file: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle"))
    with pytest.raises(BundleError, match="Expected a quantized model"):
        inspect(bundle, ranges=True)
    with pytest.raises(BundleError, match="Expected a bundle, found the file"):
        inspect(model_file, ranges=True)
    bundle.with_artifact(bundle.models[0].model_copy(update={"details": DETAILS})).save()
    content = inspect(bundle.root, ranges=True).content
    row, rotated = content["simplified: activation ranges"]
    assert row["layers"] == "blocks.0.mlp.fc1 (kept float)"
    assert row["seen"] == "-1.25 to 40" and row["layer SQNR dB"] == "17.2"
    assert row["outlier channels (times the median)"] == "3 (21.5x)"
    assert (row["as quantized"], row["rotated by"]) == ("", "")
    assert (rotated["as quantized"], rotated["rotated by"]) == ("-2.5 to 3.25", 64)
    assert content["simplified: kept in float"] == "0.fc1 (excluded by `fc1`)"
    assert content["simplified: measured"] == "not here: no kernel"


def test_an_engines_facts_become_a_page(pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend()
    model = save(linear(), tmp_path / "model.onnx")
    build_engine(model, tmp_path / "m.engine", audit=False, timing_cache=tmp_path / "timing.cache")
    load_api.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = inspect(tmp_path / "m.engine")
    assert found.engine is not None and str(found.content["audit"]).startswith("not made: ")
    page = found.write_html(tmp_path / "page.html")
    assert "Not run on this machine" in page.read_text()
    with pytest.raises(BundleError, match="Expected an engine to audit"):
        inspect(model).write_html(tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_a_machine_without_onnx_is_told_what_to_install(model_file: Path) -> None:
    program = (
        "import sys\nsys.modules['onnx'] = None\nfrom vitexport.cli import main\n"
        f"main(['inspect', {str(model_file)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'vitexport[host]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["deploy", "predict", "machine", "inspection"])
def test_importing_the_api_imports_nothing_heavy(name: str) -> None:
    program = f"import sys, vitexport.api.{name}\nprint(*{{module.split('.')[0] for module in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "onnx", "onnxruntime", "starlette", "uvicorn", "ray", "pyarrow", "tensorrt", "rich", "click"}
    assert not heavy & set(done.stdout.split())
