from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.support.linear_model import CLASSES, PREPROCESS, SIZE, random_pixels, save_image, write_bundle
from vitexport.bundle.bundle import Bundle, FileRecord
from vitexport.cli.deepstream import deepstream
from vitexport.deploy.deepstream import NvinferConfig, measure_parity, write_deepstream
from vitexport.errors import VitexportError
from vitexport.inputs.preprocess import pixels
from vitexport.predict.predictor import Predictor
from vitexport.runtimes import open_runtime
from vitexport.scoring import softmax
from vitexport.verification.select import choose_variant


@pytest.fixture(scope="module")
def conv_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("conv"), conv=True)


def test_file_read_back_reproduces_the_models_preprocessing(conv_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(conv_bundle)
    config = write_deepstream(bundle, choose_variant(bundle), tmp_path)
    nvinfer = NvinferConfig.read(config)
    with open_runtime(tmp_path / "model.onnx") as runtime, Predictor.open(conv_bundle) as predictor:
        assert [spec.describe() for spec in runtime.inputs] == ["pixel_values: float32[batch, 3, 16, 16]"]
        for seed in range(5):
            image = Image.fromarray(random_pixels(seed))
            planes = nvinfer.tensor(pixels(image, PREPROCESS))[None]
            found = runtime.run({"pixel_values": planes})["probabilities"][0]
            expected = softmax(predictor.infer([predictor.prepare(image)])[0])
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert found.sum() == pytest.approx(1, abs=1e-5)


def test_configuration_says_what_nvinfer_needs(conv_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(conv_bundle)
    text = write_deepstream(bundle, choose_variant(bundle), tmp_path, batch=4).read_text()
    lines = set(text.splitlines())
    assert {
        "[property]",
        "network-type=1",
        "batch-size=4",
        "infer-dims=3;16;16",
        "onnx-file=model.onnx",
        "net-scale-factor=1.0",
        "output-blob-names=probabilities",
    } <= lines
    assert (tmp_path / "labels.txt").read_text() == ";".join(CLASSES) + "\n"


def test_tensor_applies_scale_and_offsets_as_documented() -> None:
    config = NvinferConfig(0.5, (1.0, 2.0, 3.0), (1, 1), colour="bgr")
    found = config.tensor(np.array([[[10, 20, 30]]], dtype=np.uint8))
    np.testing.assert_array_equal(found.reshape(-1), [0.5 * (30 - 1), 0.5 * (20 - 2), 0.5 * (10 - 3)])


def test_stretch_is_bilinear_with_aligned_centres() -> None:
    config = NvinferConfig(1.0, (0.0, 0.0, 0.0), (2, 2), colour="rgb")
    frame = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2) * 10
    np.testing.assert_array_equal(config.stretch(frame)[:, :, 0], [[25, 45], [105, 125]])
    np.testing.assert_array_equal(config.stretch(frame[:2, :2]), frame[:2, :2])


def test_command_reports_what_the_resize_changes(conv_bundle: Path, tmp_path: Path) -> None:
    for seed in range(4):
        save_image(tmp_path / "images" / f"{seed}.png", seed, height=50, width=70)
    arguments = [str(conv_bundle), "-o", str(tmp_path / "out"), "--images", str(tmp_path / "images"), "--json"]
    result = CliRunner().invoke(deepstream, arguments)
    assert result.exit_code == 0, result.output
    parity = json.loads(result.stdout)["parity"]
    assert parity["images"] == 4
    assert parity["same_pixels"] < 1e-5
    assert parity["own_resize"] > 1e-3  # noise shrunk without antialiasing cannot agree
    assert "antialiasing" in parity["notes"][0]


def test_altered_configuration_is_noticed(conv_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(conv_bundle)
    config = write_deepstream(bundle, choose_variant(bundle), str(tmp_path))
    config.write_text(config.read_text().replace("net-scale-factor=1.0", "net-scale-factor=0.5"))
    images = [Image.fromarray(random_pixels(0, SIZE, SIZE))]
    assert measure_parity(bundle, choose_variant(bundle), str(config), images).same_pixels > 1e-3
    config.write_text("[property]\n")
    with pytest.raises(VitexportError, match="no nvinfer configuration"):
        NvinferConfig.read(config)


def test_quantized_model_answers_bit_for_bit_the_same(tmp_path: Path) -> None:
    """A step function of the input shows every last bit that differs."""
    import onnx
    from onnx import helper, numpy_helper

    root = write_bundle(tmp_path / "bundle", conv=True)
    path = root / "models" / "simplified.onnx"
    model = onnx.load(path)
    model.graph.node[0].input[0] = "rounded"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, dtype=np.float32), "step"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.int8), "zero"))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["pixel_values", "step", "zero"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["rounded"]))
    onnx.save(model, path)
    bundle = Bundle.open(root, check_files=False)
    artifact = bundle.models[0]
    bundle = bundle.with_artifact(artifact.model_copy(update={"file": FileRecord.of(path, root)}))
    bundle.save()
    config = write_deepstream(bundle, choose_variant(bundle), tmp_path / "out")
    images = [Image.fromarray(random_pixels(seed)) for seed in range(8)]
    assert measure_parity(bundle, choose_variant(bundle), str(config), images).same_pixels < 1e-6


def test_features_model_is_refused(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    bundle = Bundle.open(root)
    metadata = replace(bundle.metadata, model=replace(bundle.model, task="features"))
    features = Bundle(root, name="f", metadata=metadata, artifacts=bundle.artifacts)
    with pytest.raises(VitexportError, match="Expected a classifier"):
        write_deepstream(features, choose_variant(features), tmp_path / "out")
    assert not (tmp_path / "out").exists()
