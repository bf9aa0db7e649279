"""Wrong arguments are refused in words, before any work; bundles and results pass as paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitexport as vx
from tests.support.paths import HOLDOUT, QUICKSTART
from vitexport.bundle.bundle import BUNDLE_FILE
from vitexport.errors import ExportError

MODEL = QUICKSTART.parent / "quickstart" / "model"
VERIFY: Any = vx.verify
Call = Callable[[Path], object]

WRONG: dict[str, tuple[Call, str]] = {
    "stage": (lambda f: vx.run(QUICKSTART, f / "b", until="foo"), "Expected a stage of load, .*, found 'foo'"),
    "no out": (lambda f: vx.run(QUICKSTART), "Expected a directory for the bundle"),
    "settings": (lambda f: vx.run(QUICKSTART, f, settings=["a=b"]), "Expected settings by dotted name"),  # type: ignore[arg-type]
    "both": (lambda f: vx.run(QUICKSTART, f, source="x"), "found both"),
    "images": (lambda f: vx.run(QUICKSTART, f / "b", images=f / "none"), "at .*none.*, found nothing"),
    "labels": (lambda f: vx.run(QUICKSTART, f / "b", labels=f / "none.json"), "none.json"),
    "calibration": (lambda f: vx.run(QUICKSTART, f / "b", calibration=f / "none"), "at .*none.*, found nothing"),
    "no calibration": (lambda f: vx.run(source=MODEL, images=HOLDOUT, out=f / "b"), "Expected calibration images"),
    "nothing to calibrate": (
        lambda f: vx.run(QUICKSTART, f / "b", calibration=f, settings={"quantize": None}),
        "Expected a recipe that quantizes",
    ),
    "progress": (lambda f: vx.export(MODEL, f / "m.onnx", progress=5), "Expected progress to be"),  # type: ignore[arg-type]
    "opset": (lambda f: vx.export(MODEL, f / "m.onnx", opset=3), "opset: .*17, found 3"),
    "batch": (lambda f: vx.export(MODEL, f / "m.onnx", batch=0), "batch"),
    "ending": (lambda f: vx.export(MODEL, f / "m"), "ends with .onnx"),
    "names": (lambda f: vx.export(MODEL, f / "m.onnx", class_names=["a"]), "for a live module only"),
    "module": (lambda f: vx.export(5, f / "m.onnx"), "Expected a module, a path or a hub id, found 5"),  # type: ignore[arg-type]
    "target": (lambda f: vx.quantize("m.onnx", f, f / "q.onnx", target="foo"), "target: .*found 'foo'"),  # type: ignore[arg-type]
    "path": (lambda f: VERIFY(None), "Expected a bundle as a path, found None"),
    "models": (lambda f: vx.bench(None), "Expected a model or bundle as a path, found None"),  # type: ignore[arg-type]
    "sizes": (lambda f: vx.bench(f, batch=()), "at least one batch size"),
    "seconds": (lambda f: vx.bench(f, seconds=float("nan")), "seconds to be a number above zero"),
    "limit": (lambda f: vx.diagnose(f, limit=0), "limit to be a number above zero"),
    "device": (lambda f: vx.lint("m.onnx", device="foo"), "foo"),
    "threads": (lambda f: vx.bench("m.onnx", tune_threads=True, threads=2), "Expected no number of threads"),
    "cluster": (lambda f: vx.predict_files("m.onnx", "a.png", ray_address="auto"), "Expected engine='ray'"),
    "audit": (lambda f: vx.build_engine("m.onnx", f / "e", audit=False, min_fraction=0.5), "Expected no fraction"),
    "provider": (lambda f: vx.triton(f, f, kind="cpu", tensorrt=True), "Expected kind 'gpu' with the TensorRT"),
    "jetpack": (lambda f: vx.kit(f, "arm-cpu", jetpack="6.2"), "Expected no JetPack release for"),
    "network": (lambda f: vx.serve(f, url_private_network=True), "Expected hosts that image URLs may name"),
    "queue": (lambda f: vx.serve(f, max_queue=8), "Expected a queue of at least one request's 64 images, found 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_refused_in_words(case: str, tmp_path: Path) -> None:
    call, message = WRONG[case]
    with pytest.raises(vx.VitexportError, match=message):
        call(tmp_path)
    assert not list(tmp_path.glob("*.onnx"))


def test_no_images_are_a_wrong_limit(furnished: Path) -> None:
    with pytest.raises(vx.VitexportError, match="limit of at least 1 image"):
        vx.evaluate(furnished / "out" / "vit", furnished / "calib" / "holdout", limit=0)


def test_a_bundle_and_a_result_pass_as_paths(furnished: Path, tmp_path: Path) -> None:
    bundle = vx.Bundle.open(furnished / "out" / "vit")
    assert vx.lint(bundle, "onnxruntime").passed
    assert vx.inspect(bundle).to_dict()
    assert vx.verify(bundle).passed
    assert len(vx.bench(bundle, batch=1, seconds=0.01).rows) == len(bundle.models)
    simplified = vx.simplify(furnished / "vit.onnx", tmp_path / "s.onnx")
    with vx.Predictor.open(bundle) as one, vx.Predictor.open(simplified) as other:
        assert one.tensor == other.tensor and "simplified" not in repr(one)


def test_results_are_plain_values_for_json(furnished: Path) -> None:
    for result in (vx.bisect(furnished / "out" / "vit", "int8", images=2), vx.inspect(furnished / "out" / "vit")):
        assert json.dumps(result.to_dict(), allow_nan=False)
        assert result._repr_html_().startswith("<table>") and "(" not in repr(result)[:1]


def test_a_stopped_run_has_no_verdict(workplace: Path, tmp_path: Path) -> None:
    done = vx.run(workplace / "recipes" / "quickstart.yaml", tmp_path / "b", until="load")
    assert done.passed is None and done.verification is None
    assert "quickstart" in repr(done)


def test_force_replaces_a_bundle_of_another_schema(tmp_path: Path) -> None:
    root = tmp_path / "b"
    root.mkdir()
    (root / BUNDLE_FILE).write_text('{"schema": 1}')
    with pytest.raises(vx.VitexportError, match="Expected bundle schema 3 .* found 1"):
        vx.run(QUICKSTART, root, until="load")
    assert vx.run(QUICKSTART, root, until="load", force=True).executed == ("load", "recipe")


def test_a_closed_predictor_says_so(furnished: Path) -> None:
    with vx.Predictor.open(furnished / "vit.onnx") as predictor:
        assert predictor.predict(furnished / "photo.jpg", top=1).best.label
        for wrong in ({"top": 0}, {"batch": 0}):
            with pytest.raises(vx.VitexportError, match="at least 1"):
                predictor.predict(furnished / "photo.jpg", **wrong)
    with pytest.raises(vx.VitexportError, match="closed"):
        predictor.predict(furnished / "photo.jpg")


def test_a_model_that_mixes_its_batch_is_refused(tmp_path: Path) -> None:
    class Mixing(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return (pixels - pixels.mean()).mean((2, 3)) + pixels.amax(dim=(0, 2, 3))

    preprocess = {"image_size": (8, 8), "resize": {"mode": "squash", "size": (8, 8)}, "mean": (0,) * 3, "std": (1,) * 3}
    with pytest.raises(ExportError, match="others are in its batch"):
        vx.export(Mixing(), tmp_path / "m.onnx", preprocess=preprocess)
    assert not (tmp_path / "m.onnx").exists()
