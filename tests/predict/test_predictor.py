from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import ExifTags, Image

from tests.support.deep_images import png16
from tests.support.linear_model import CLASSES, PREPROCESS, random_pixels, save_image, write_bundle, write_model
from vitexport.bundle.bundle import Bundle
from vitexport.errors import BundleError, ImageError, InferenceError, VitexportError
from vitexport.inputs.preprocess import preprocess
from vitexport.predict.predictor import ImageResult, Prediction, Predictor
from vitexport.predict.sources import ImageInput
from vitexport.scoring import softmax


def _logits(model: Path, image: Image.Image) -> np.ndarray:
    """Compute the model by hand from its weights."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    return preprocess(image, PREPROCESS).reshape(-1) @ weights["weight"] + weights["bias"]


def test_scores_are_the_softmax_of_the_models_logits_best_first(model_file: Path) -> None:
    image = Image.fromarray(random_pixels(1))
    logits = _logits(model_file, image).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    with Predictor.open(model_file) as predictor:
        found = predictor.predict(image, top=None).predictions
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


def _encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_every_form_of_an_image_gives_the_same_result(model_file: Path, image_file: Path) -> None:
    image = Image.open(image_file)
    pixels = np.asarray(image)
    forms = [image_file, str(image_file), image_file.read_bytes(), image, pixels, np.asfortranarray(pixels)]
    with Predictor.open(str(model_file)) as predictor:
        expected = predictor.predict(image_file)
        assert isinstance(expected, ImageResult)
        for form in forms:
            assert predictor.predict(form) == expected
            assert predictor.predict([form]) == [expected]


def test_several_images_give_a_list_in_their_order_however_they_are_batched(model_file: Path, tmp_path: Path) -> None:
    paths = [save_image(tmp_path / f"{seed}.png", seed) for seed in range(5)]
    with Predictor.open(model_file) as predictor:
        one_by_one = [predictor.predict(path, top=1).best for path in paths]
        assert len({prediction.score for prediction in one_by_one}) == 5
        forms: list[Iterable[ImageInput]] = [paths, tuple(paths), iter(paths), [random_pixels(s) for s in range(5)]]
        for images in forms:
            results = predictor.predict(images, top=1, batch=2)
            assert [result.best.label for result in results] == [prediction.label for prediction in one_by_one]
            scores = [result.best.score for result in results]
            np.testing.assert_allclose(scores, [prediction.score for prediction in one_by_one], rtol=1e-5)
        assert predictor.predict([]) == []


def test_grey_and_transparent_images_are_seen_in_rgb(model_file: Path) -> None:
    image = Image.fromarray(random_pixels(4))
    with Predictor.open(model_file) as predictor:
        grey = image.convert("L")
        assert predictor.predict(grey) == predictor.predict(grey.convert("RGB"))
        assert predictor.predict(image.convert("RGBA")) == predictor.predict(image)
        assert predictor.predict(_encoded(grey)) == predictor.predict(grey)
        pixels = np.asarray(image.convert("RGBA"))
        assert predictor.predict(np.asarray(grey)) == predictor.predict(np.asarray(grey)[..., None])
        assert predictor.predict(np.asarray(grey)) == predictor.predict(grey)
        assert predictor.predict(pixels) == predictor.predict(image)


def test_16_bits_and_8_give_the_same_result(model_file: Path) -> None:
    image = Image.fromarray(random_pixels(4))
    deep = np.asarray(image).astype(np.uint16) * np.uint16(257)
    with Predictor.open(model_file) as predictor:
        expected = predictor.predict(image)
        for form in (deep, deep.astype(">u2"), png16(deep)):
            assert predictor.predict(form) == expected
        grey = np.asarray(image.convert("L"))
        for form in (deep_grey := grey.astype(np.uint16) * np.uint16(257), Image.fromarray(deep_grey)):
            assert predictor.predict(form) == predictor.predict(grey)


def test_a_photo_is_seen_upright_in_every_form(model_file: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(random_pixels(4)[:9]).save(path, exif=exif)
    stored = np.asarray(Image.open(path))
    upright = Image.fromarray(np.rot90(stored, k=-1))
    with Predictor.open(model_file) as predictor:
        expected = predictor.predict(upright)
        for form in (path, path.read_bytes(), Image.open(path), Image.open(path).convert("RGB")):
            assert predictor.predict(form) == expected
        np.testing.assert_array_equal(predictor.prepare(Image.open(path)), predictor.prepare(upright))


@pytest.mark.parametrize(
    ("image", "found", "advice"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32[8, 8, 3]", "(255 * array)"),
        (np.zeros((3, 8, 8), np.float32), "float32[3, 8, 8]", "array.transpose(1, 2, 0)"),
        (np.zeros((3, 8, 8), np.uint8), "uint8[3, 8, 8]", "array.transpose(1, 2, 0)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "uint8[2, 8, 8, 3]", "list(array)"),
        (np.zeros((1, 8, 8), np.uint16), "uint16[1, 8, 8]", "array.transpose(1, 2, 0)"),
        (np.zeros((8, 8), np.float64), "float64[8, 8]", "(255 * array)"),
        (np.zeros((8, 8), np.int32), "int32[8, 8]", "(255 * array)"),
        (np.zeros((8, 8, 5), np.uint8), "uint8[8, 8, 5]", "[r, g, b]"),
        (Image.new("F", (8, 8)), "floats (Pillow's mode F)", "0 to 255"),
        (np.zeros((0, 8, 3), np.uint8), "uint8[0, 8, 3]", "no pixels"),
        (7, "found int", "a list of them"),
        (b"no image", "8 bytes of something else", "JPEG"),
        (Image.open(io.BytesIO(_encoded(Image.fromarray(random_pixels(1)))[:900])), "truncated", "whole file"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_do(model_file: Path, image: Any, found: str, advice: str) -> None:
    with Predictor.open(model_file) as predictor:
        for given, name in ((image, "image"), ([random_pixels(0), image], "image 1")):
            with pytest.raises(ImageError) as caught:
                predictor.predict(given)
            assert f"'{name}'" in caught.value.message
            assert found in caught.value.message
            assert advice in caught.value.hint


def test_missing_image_file_is_named(model_file: Path, tmp_path: Path) -> None:
    with Predictor.open(model_file) as predictor, pytest.raises(ImageError, match=r"absent\.png"):
        predictor.predict([tmp_path / "absent.png"])


def test_results_are_ready_for_json_and_readable() -> None:
    result = ImageResult(predictions=(Prediction("ant", 0.75), Prediction("bee", 0.25)))
    assert json.loads(json.dumps(result.to_dict())) == {
        "predictions": [{"label": "ant", "score": 0.75}, {"label": "bee", "score": 0.25}]
    }
    assert repr(result) == "ImageResult('ant' 0.7500, 'bee' 0.2500)"
    assert repr(ImageResult(tuple(Prediction(str(i), 0.1) for i in range(10)))).endswith("'4' 0.1000, 5 more)")
    vector = ImageResult(features=(0.5, 1.5))
    assert vector.to_dict() == {"features": [0.5, 1.5]}
    assert repr(vector) == "ImageResult(2 features)"
    with pytest.raises(BundleError, match="found a feature vector of 2 numbers"):
        _ = vector.best


def test_features_model_gives_vectors(tmp_path: Path) -> None:
    with Predictor.open(write_model(tmp_path / "features.onnx", task="features")) as predictor:
        image = Image.fromarray(random_pixels(0))
        vectors = predictor.infer([predictor.prepare(image)])
        assert vectors.shape == (1, len(CLASSES))
        result = predictor.predict(image)
        assert result.predictions == ()
        assert result.features == tuple(vectors[0].tolist())
        with pytest.raises(BundleError, match="feature vectors"):
            predictor.require_classes()


def test_nan_in_the_outputs_is_an_error_not_a_class(tmp_path: Path) -> None:
    path = write_model(tmp_path / "nan.onnx")
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(len(CLASSES), np.nan, dtype=np.float32), "bias"))
    onnx.save(model, path)
    with Predictor.open(path) as predictor, pytest.raises(InferenceError, match="NaN"):
        predictor.predict(random_pixels(0))


def test_variant_of_a_file_is_refused(model_file: Path) -> None:
    with pytest.raises(BundleError, match="Expected a bundle to choose the variant 'int8' from"):
        Predictor.open(model_file, variant="int8")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"not onnx")])
def test_what_is_no_model_is_refused(tmp_path: Path, make: object) -> None:
    path = tmp_path / "thing.onnx"
    make(path)  # type: ignore[operator]
    with pytest.raises(VitexportError) as caught:
        Predictor.open(path)
    assert str(path) in str(caught.value)
