"""Models of 1 (grey) and 4 (RGBA) channels, from a saved checkpoint to each place an image goes in, against the source
library's own transform and forward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import vitexport as vx
from tests.support.checkpoints import save_timm, save_vit
from tests.support.http_server import running
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import PREPROCESSING, read_analysis, read_replay_inputs
from vitexport.deploy.deepstream import NvinferConfig, measure_parity, write_deepstream
from vitexport.errors import BundleError
from vitexport.inputs.images import list_images, load_image
from vitexport.predict.predictor import Predictor
from vitexport.scoring import softmax
from vitexport.verification.select import choose_variant

MEAN, STD = (0.4, 0.5, 0.45, 0.6), (0.2, 0.25, 0.3, 0.35)
MODES = {1: "L", 4: "RGBA"}

pytestmark = [  # few images, for speed; what is asked here is that they go in right
    pytest.mark.filterwarnings("ignore:Calibrating on 24 images"),
    pytest.mark.filterwarnings("ignore:On 6 calibration images held out"),
]


@dataclass(frozen=True)
class Saved:
    """A checkpoint, what was exported of it, images of its channels, and the logits of the source library."""

    source: str
    channels: int
    model: Path
    images: Path
    logits: NDArray[np.float32]

    @property
    def paths(self) -> Sequence[Path]:
        return list_images(self.images)


@pytest.fixture(scope="module", params=[("transformers", 1), ("transformers", 4), ("timm", 1), ("timm", 4)], ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    library, channels = request.param
    root = tmp_path_factory.mktemp("channels")
    images = _save_images(root / "images", channels, count=24)
    mean, std = MEAN[:channels], STD[:channels]
    if library == "transformers":
        processor = {"image_mean": mean, "image_std": std}
        source = str(save_vit(root / "model", processor, num_channels=channels, num_labels=5))
    else:
        source = f"timm:local-dir:{save_timm(root / 'model', channels, mean=mean, std=std)}"
    pictures = [Image.open(path) for path in list_images(images)]
    assert {picture.mode for picture in pictures} == {MODES[channels]}
    answer = _of_transformers if library == "transformers" else _of_timm
    logits = answer(root / "model", pictures)
    return Saved(source, channels, Path(vx.export(source, root / "a.onnx").path), images, logits)


def _save_images(folder: Path, channels: int, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(channels)
    for index in range(count):
        small = generator.integers(0, 256, (5, 6, channels), dtype=np.uint8)
        image = Image.fromarray(small.squeeze())
        image.resize((48, 40), Image.Resampling.NEAREST).save(folder / f"{index:02d}.png")
    return folder


def _of_transformers(folder: Path, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        planes = [processor(image, return_tensors="pt")["pixel_values"] for image in images]
        return np.asarray(model(torch.cat(planes)).logits.numpy())


def _of_timm(folder: Path, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        return np.asarray(model(torch.stack([transform(image) for image in images])).numpy())


def _close(found: NDArray[np.float32], saved: Saved) -> None:
    np.testing.assert_allclose(found, saved.logits, atol=1e-4 * float(np.abs(saved.logits).max()))


def test_predict_answers_as_the_library(saved: Saved) -> None:
    with Predictor.open(saved.model) as predictor:
        assert predictor.tensor.shape == ("batch", saved.channels, 32, 32)
        _close(predictor.infer([predictor.prepare(load_image(path)) for path in saved.paths]), saved)
        result = predictor.predict(saved.paths[0], top=None)
        np.testing.assert_allclose([p.score for p in result.predictions], sorted(softmax(saved.logits[0]))[::-1], 1e-3)
        assert predictor.predict(np.asarray(Image.open(saved.paths[0])), top=None) == result


def test_a_graph_of_pixels_answers_so_too(saved: Saved, tmp_path: Path) -> None:
    exported = vx.export(saved.source, tmp_path / "pixels.onnx", input="uint8")
    with Predictor.open(exported.path) as predictor:
        assert predictor.tensor.shape == ("batch", 32, 32, saved.channels) and predictor.tensor.dtype == "uint8"
        _close(predictor.infer([predictor.prepare(load_image(path)) for path in saved.paths]), saved)


def test_calibrated_on_images_of_its_channels_it_is_close_in_int8(saved: Saved, tmp_path: Path) -> None:
    simplified = vx.simplify(saved.model, tmp_path / "s.onnx").path
    quantized = vx.quantize(simplified, saved.images, tmp_path / "q.onnx", preset="fast")
    with Predictor.open(quantized.path) as predictor:
        found = predictor.infer([predictor.prepare(load_image(path)) for path in saved.paths])
    error = np.sum((found - saved.logits) ** 2) / np.sum((saved.logits - saved.logits.mean()) ** 2)
    assert 0 < error < 0.05


def test_served_tensors_and_images_have_its_channels(saved: Saved) -> None:
    with Predictor.open(saved.model) as predictor:
        name = predictor.name
        feed = np.stack([predictor.prepare(load_image(path)) for path in saved.paths[:2]])
    tensor = {"name": "pixel_values", "shape": [2, saved.channels, 32, 32], "datatype": "FP32"}
    with running(saved.model) as server:
        described = server.ask("GET", f"/v2/models/{name}").json()
        answer = server.ask("POST", f"/v2/models/{name}/infer", {"inputs": [{**tensor, "data": feed.tolist()}]}).json()
        scored = server.ask("POST", "/predict?top=1", saved.paths[0].read_bytes()).json()["results"][0]
    assert described["inputs"] == [{**tensor, "shape": [-1, saved.channels, 32, 32]}]
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (2, 5)), saved.logits[:2], rtol=1e-3, atol=1e-3)
    assert scored[0]["score"] == pytest.approx(float(softmax(saved.logits[0]).max()), abs=1e-3)


@pytest.fixture(scope="module")
def bundle(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("run")
    calibration = root / "calibration"
    calibration.mkdir()
    for path in saved.paths:
        Image.open(path).rotate(180).save(calibration / path.name)
    settings = {"quantize.preset": "fast", "benchmark.seconds": 0.02}
    done = vx.run(
        out=root / "out", source=saved.source, images=saved.images, calibration=calibration, settings=settings
    )
    assert done.passed
    return Bundle.open(root / "out")


def test_a_run_records_and_compares_its_channels(saved: Saved, bundle: Bundle) -> None:
    assert read_replay_inputs(bundle).pixels.shape[1:] == (32, 32, saved.channels)
    checked = read_analysis(bundle, PREPROCESSING)
    assert checked is not None and checked["passed"] and checked["finding"].startswith("equal on ")
    assert vx.verify(bundle.root).passed
    said = {1: "greyscale", 4: "RGBA"}[saved.channels]
    assert re.search(rf"<dt>Preprocessing</dt><dd>[^<]*; {said}</dd>", (bundle.root / "report.html").read_text())


def test_a_file_alone_is_measured_on_images_of_its_channels(saved: Saved, tmp_path: Path) -> None:
    pixels = vx.export(saved.source, tmp_path / "pixels.onnx", input="uint8").path
    assert len(vx.bench([saved.model, pixels], seconds=0.01).rows) == 2


def test_deepstream_takes_grey_frames_and_no_alpha(saved: Saved, bundle: Bundle, tmp_path: Path) -> None:
    if saved.channels == 4:
        with pytest.raises(BundleError, match="found one of 4 .RGBA."):
            write_deepstream(bundle, choose_variant(bundle), tmp_path)
        return
    choice = choose_variant(bundle, "simplified")
    config = write_deepstream(bundle, choice, tmp_path)
    nvinfer = NvinferConfig.read(config)
    assert (nvinfer.colour, nvinfer.offsets, nvinfer.size) == ("gray", (0.0,), (32, 32))
    assert "infer-dims=1;32;32" in config.read_text()
    images = [load_image(path) for path in saved.paths[:4]]
    assert measure_parity(bundle, choice, config, images).same_pixels < 1e-4
