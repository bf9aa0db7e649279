"""Every kind of head, from a saved checkpoint to each place where its scores come out, against the source library."""

from __future__ import annotations

import base64
import configparser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import pipeline

import vitexport as vx
from tests.support.checkpoints import save_vit
from tests.support.http_server import running
from tests.support.linear_model import CLASSES, PREPROCESS, random_pixels, save_image, write_bundle
from vitexport.bundle.bundle import Bundle
from vitexport.deploy.deepstream import write_deepstream
from vitexport.deploy.triton import TritonSettings, write_repository
from vitexport.errors import RecipeError
from vitexport.host.graph.passes.deepstream import write_pixel_planes
from vitexport.host.sources import load_model
from vitexport.inputs.preprocess import pixels
from vitexport.predict.predictor import Predictor
from vitexport.recipe.settings import ModelSettings
from vitexport.runtimes import open_runtime
from vitexport.scoring import Scoring, sigmoid
from vitexport.verification.select import choose_variant

NAMES = {0: "cat", 1: "dog", 2: "car"}
HEADS: dict[str, tuple[dict[str, Any], Scoring]] = {
    "one class of several": ({"id2label": NAMES}, "softmax"),
    "several labels": ({"id2label": NAMES, "problem_type": "multi_label_classification"}, "sigmoid"),
    "one logit": ({"num_labels": 1}, "sigmoid"),
    "one value": ({"num_labels": 1, "problem_type": "regression"}, "none"),
    "several values": ({"id2label": NAMES, "problem_type": "regression"}, "none"),
}

LABELS = ";".join(f"label_{index}" for index in range(len(CLASSES)))


@dataclass(frozen=True)
class Saved:
    """A checkpoint, what was exported of it, and an image with the answer of the source library."""

    folder: Path
    model: Path
    scoring: Scoring
    image: Path
    answer: dict[str, float]


@pytest.fixture(scope="module", params=HEADS, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    root = tmp_path_factory.mktemp("head")
    config, scoring = HEADS[request.param]
    folder = save_vit(root / "model", **config)
    image = save_image(root / "a.png", 5, height=32, width=32)
    answer = pipeline("image-classification", model=str(folder), device="cpu")(str(image), top_k=None)
    model = Path(vx.export(folder, root / "a.onnx").path)
    return Saved(folder, model, scoring, image, {entry["label"]: entry["score"] for entry in answer})


def _same(found: list[tuple[str, float]], saved: Saved) -> None:
    names = dict(zip(map(str, range(3)), saved.answer, strict=False)) if "LABEL_0" in saved.answer else {}
    scores = {names.get(label, label): score for label, score in found}
    assert scores.keys() == saved.answer.keys()
    for label, score in saved.answer.items():
        assert scores[label] == pytest.approx(score, abs=2e-5), label
    ordered = [score for _, score in found]
    assert ordered == sorted(ordered, reverse=True)


def test_predict_answers_as_the_librarys_pipeline(saved: Saved) -> None:
    with Predictor.open(saved.model) as predictor:
        assert predictor.metadata.scoring == saved.scoring
        result = predictor.predict(saved.image, top=None)
    _same([(entry.label, entry.score) for entry in result.predictions], saved)


def test_a_bundle_and_a_file_keep_the_kind_of_head(saved: Saved, tmp_path: Path) -> None:
    loaded = load_model(ModelSettings(source=str(saved.folder)))
    Bundle(tmp_path, name="x", metadata=loaded.metadata).save()
    assert Bundle.open(tmp_path).metadata.scoring == saved.scoring


def test_a_server_answers_so_in_both_of_azures_forms_and_to_plain_images(saved: Saved) -> None:
    data = saved.image.read_bytes()
    text = base64.b64encode(data).decode()
    with running(saved.model) as server:
        forms = ({"input_data": [text]}, {"input_data": {"columns": ["image"], "index": [0], "data": [[text]]}})
        answers = [server.ask("POST", "/score?top=9", form).json()[0] for form in forms]
        answers.append(server.ask("POST", "/predict?top=9", data).json()["results"][0])
    for answer in answers:
        _same([(entry["label"], entry["score"]) for entry in answer], saved)


def test_what_deepstream_reads_are_the_same_scores(saved: Saved, tmp_path: Path) -> None:
    loaded = load_model(ModelSettings(source=str(saved.folder)))
    write_pixel_planes(saved.model, loaded.metadata, tmp_path / "planes.onnx")
    image = pixels(Image.open(saved.image), loaded.metadata.preprocess)
    with open_runtime(tmp_path / "planes.onnx") as runtime:
        planes = image.transpose(2, 0, 1).astype(np.float32)[None]
        outputs = runtime.run({runtime.inputs[0].name: planes})
    assert (
        list(outputs)
        == {
            "softmax": ["probabilities"],
            "sigmoid": [f"label_{index}" for index in range(len(saved.answer))],
            "none": ["values"],
        }[saved.scoring]
    )
    scores = np.concatenate(list(outputs.values()), axis=1)[0]
    np.testing.assert_allclose(sorted(scores), sorted(saved.answer.values()), atol=2e-5)


@pytest.mark.parametrize(
    ("scoring", "expected"),
    [
        ("softmax", {"network-type": "1", "output-blob-names": "probabilities", "classifier-threshold": "0.0"}),
        (
            "sigmoid",
            {"network-type": "1", "output-blob-names": LABELS, "classifier-threshold": "0.5"},
        ),
        ("none", {"network-type": "100", "output-tensor-meta": "1", "output-blob-names": "values"}),
    ],
)
def test_configurations_of_other_servers_say_what_the_outputs_are(
    scoring: Scoring, expected: dict[str, str], tmp_path: Path
) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", conv=True, scoring=scoring))
    config = configparser.ConfigParser(delimiters=("=",))
    config.read(write_deepstream(bundle, choose_variant(bundle), tmp_path / "deepstream"))
    assert expected.items() <= dict(config["property"]).items()
    measured = vx.deepstream(
        bundle, tmp_path / "again", images=[save_image(tmp_path / "a.png", 1, height=50, width=70)]
    )
    assert measured.passed
    labels = (tmp_path / "deepstream" / "labels.txt").read_text()
    assert labels.count("\n") == (1 if scoring == "softmax" else len(bundle.class_names))
    folder = write_repository(bundle, choose_variant(bundle), tmp_path / "triton", TritonSettings())
    text = (folder / "config.pbtxt").read_text()
    assert f'parameters {{ key: "scoring" value {{ string_value: "{scoring}" }} }}' in text


def test_a_recipe_says_what_a_checkpoint_cannot(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    source = f"timm:vit_tiny_patch16_224@{tmp_path / 'a.pth'}"
    for asked, expected in ((None, "softmax"), ("sigmoid", "sigmoid")):
        settings = ModelSettings(source=source, allow_pickle=True, scoring=asked)
        assert load_model(settings, image_size=(32, 32)).metadata.scoring == expected


def test_a_live_module_takes_the_scoring_it_is_told(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    image = Image.fromarray(random_pixels(2))
    vx.export(module, tmp_path / "a.onnx", preprocess=PREPROCESS, class_names=["a", "b"], scoring="sigmoid")
    with Predictor.open(tmp_path / "a.onnx") as predictor:
        row = predictor.prepare(image)
        result = predictor.predict(image, top=None)
    with torch.no_grad():
        logits = module(torch.from_numpy(row[None]))[0].numpy()
    found = {entry.label: entry.score for entry in result.predictions}
    assert found == pytest.approx(dict(zip("ab", sigmoid(logits), strict=True)), abs=1e-5)


def test_a_scoring_that_means_nothing_is_refused(tmp_path: Path) -> None:
    one = save_vit(tmp_path / "one", num_labels=1)
    with pytest.raises(RecipeError, match="several outputs for a softmax"):
        vx.export(one, tmp_path / "a.onnx", scoring="softmax")
    with pytest.raises(RecipeError, match="Expected a classifier for the scoring sigmoid"):
        vx.export(one, tmp_path / "a.onnx", task="features", scoring="sigmoid")
    vx.export(one, tmp_path / "a.onnx")
    with pytest.raises(RecipeError, match="several outputs for a softmax"):
        Predictor.open(tmp_path / "a.onnx", scoring="softmax")
    vx.export(one, tmp_path / "b.onnx", task="features")
    with pytest.raises(RecipeError, match="with classes for the class names"):
        Predictor.open(tmp_path / "b.onnx", class_names=["a"])
