from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from tests.support.linear_model import CLASSES, PREPROCESS, random_pixels, write_bundle, write_model
from vitexport.bundle.bundle import Bundle
from vitexport.errors import BundleError, InferenceError, VitexportError
from vitexport.inputs.preprocess import preprocess
from vitexport.predict.predictor import Predictor, softmax


def _logits(model: Path, image: Image.Image) -> np.ndarray:
    """Compute the model by hand from its weights."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    return preprocess(image, PREPROCESS).reshape(-1) @ weights["weight"] + weights["bias"]


def test_scores_are_the_softmax_of_the_models_logits_best_first(model_file: Path) -> None:
    image = Image.fromarray(random_pixels(1))
    logits = _logits(model_file, image).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    with Predictor.open(model_file) as predictor:
        (found,) = predictor.predict([image], top=None)
    order = np.argsort(-expected)
    assert [p.label for p in found] == [CLASSES[i] for i in order]
    np.testing.assert_allclose([p.score for p in found], expected[order], rtol=1e-4)


def test_softmax_survives_logits_that_overflow_exp() -> None:
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4, -1e4])), [0.5, 0.5, 0.0])


def test_fixed_batch_model_answers_any_number_of_images_like_the_dynamic_one(tmp_path: Path) -> None:
    images = [Image.fromarray(random_pixels(seed)) for seed in range(5)]
    with (
        Predictor.open(write_model(tmp_path / "a.onnx")) as dynamic,
        Predictor.open(write_model(tmp_path / "b.onnx", batch=2)) as fixed,
    ):
        rows = [dynamic.prepare(image) for image in images]
        np.testing.assert_allclose(fixed.infer(rows), dynamic.infer(rows), rtol=1e-5)


def test_bundle_opens_its_last_variant_unless_told_otherwise(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", variants=("simplified", "int8"))
    with Predictor.open(root) as last, Predictor.open(root, variant="simplified") as first:
        assert (last.variant, first.variant) == ("int8", "simplified")
        assert last.version == Bundle.open(root).artifact("int8").file.sha256[:12]
    with pytest.raises(BundleError, match=r"named 'fp8'.*found simplified, int8"):
        Predictor.open(root, variant="fp8")


def test_altered_model_file_is_refused(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    model = root / "models" / "simplified.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(BundleError, match="was altered"):
        Predictor.open(root)


def test_features_model_gives_vectors_and_refuses_to_classify(tmp_path: Path) -> None:
    with Predictor.open(write_model(tmp_path / "features.onnx", task="features")) as predictor:
        image = Image.fromarray(random_pixels(0))
        assert predictor.infer([predictor.prepare(image)]).shape == (1, len(CLASSES))
        with pytest.raises(BundleError, match="feature vectors"):
            predictor.predict([image])


def test_nan_answer_is_an_error_not_a_label(tmp_path: Path) -> None:
    path = write_model(tmp_path / "nan.onnx")
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(len(CLASSES), np.nan, dtype=np.float32), "bias"))
    onnx.save(model, path)
    with Predictor.open(path) as predictor, pytest.raises(InferenceError, match="NaN"):
        predictor.predict([Image.fromarray(random_pixels(0))])


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_bytes(b"not onnx")])
def test_what_is_no_model_is_refused(tmp_path: Path, make: object) -> None:
    path = tmp_path / "thing.onnx"
    make(path)  # type: ignore[operator]
    with pytest.raises(VitexportError) as caught:
        Predictor.open(path)
    assert str(path) in str(caught.value)
