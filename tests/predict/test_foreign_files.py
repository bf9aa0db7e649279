"""Files of other tools: images become what timm's own forward says, once somebody says how they are prepared."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.support.foreign_graphs import SIZE, export_plainly, foreign_model
from tests.support.http_server import running
from vitexport.cli import main
from vitexport.errors import BundleError, RecipeError
from vitexport.inputs.preprocess import PreprocessSpec, preprocess
from vitexport.predict.predictor import Predictor

SETTINGS: dict[str, Any] = {
    "image_size": [SIZE, SIZE],
    "resize": {"mode": "squash", "size": [SIZE, SIZE]},
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}
NAMES = tuple(f"class {index}" for index in range(10))


class Head(torch.nn.Module):
    """The foreign model behind an input or before an output of another form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.model = foreign_model()
        self.form = form

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.form == "pixels":
            mean, std = (torch.tensor(SETTINGS[name]).view(3, 1, 1) for name in ("mean", "std"))
            return self.model((images.permute(0, 3, 1, 2).float() / 255 - mean) / std)
        if self.form == "channels last":
            return self.model(images.permute(0, 3, 1, 2))
        found = self.model(images)
        return found.softmax(dim=-1) if self.form == "probabilities" else found[:, :1]


def write(path: Path, form: str) -> Path:
    shape = (1, SIZE, SIZE, 3) if form in ("pixels", "channels last") else (1, 3, SIZE, SIZE)
    example = torch.zeros(shape, dtype=torch.uint8 if form == "pixels" else torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "planes":
            return export_plainly(path)
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["scores"]}
        axes = {"images": {0: "n"}, "scores": {0: "n"}}
        torch.onnx.export(Head(form).eval(), (example,), str(path), dynamo=False, dynamic_axes=axes, **names)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    for form in ("planes", "pixels", "channels last", "probabilities", "one"):
        write(root / f"{form}.onnx", form)
    (root / "preprocess.json").write_text(json.dumps(SETTINGS))
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


def logits(photo: Image.Image) -> torch.Tensor:
    rows = preprocess(photo, PreprocessSpec.model_validate(SETTINGS))[None]
    with torch.no_grad():
        found: torch.Tensor = foreign_model()(torch.from_numpy(rows))[0]
    return found


@pytest.mark.parametrize("form", ["planes", "pixels", "channels last", "probabilities"])
def test_every_layout_and_a_softmax_of_its_own_give_the_librarys_scores(
    form: str, folder: Path, photo: Image.Image
) -> None:
    expected = logits(photo).softmax(dim=-1).numpy()
    with Predictor.open(folder / f"{form}.onnx", preprocess=SETTINGS, class_names=NAMES) as predictor:
        found = {entry.label: entry.score for entry in predictor.predict(photo, top=None).predictions}
        assert ("probabilities" in " ".join(predictor.notes)) == (form == "probabilities")
    np.testing.assert_allclose([found[name] for name in NAMES], expected, atol=1e-5)


@pytest.mark.parametrize(("scoring", "expected"), [(None, torch.sigmoid), ("none", lambda value: value)])
def test_one_output_is_a_sigmoid_unless_it_is_said_to_be_a_value(
    scoring: Any, expected: Any, folder: Path, photo: Image.Image
) -> None:
    with Predictor.open(folder / "one.onnx", preprocess=SETTINGS, scoring=scoring) as predictor:
        score = predictor.predict(photo).best.score
    assert score == pytest.approx(float(expected(logits(photo)[0])), abs=1e-5)


def test_a_preprocessor_config_of_transformers_is_read_by_that_library(
    folder: Path, tmp_path: Path, photo: Image.Image
) -> None:
    from transformers import ViTImageProcessor

    size = {"height": SIZE, "width": SIZE}
    ViTImageProcessor(size=size, image_mean=SETTINGS["mean"], image_std=SETTINGS["std"]).save_pretrained(tmp_path)
    with Predictor.open(folder / "planes.onnx", preprocess=tmp_path / "preprocessor_config.json") as predictor:
        best = predictor.predict(photo).best
    assert best.label == str(int(logits(photo).argmax()))
    assert best.score == pytest.approx(float(logits(photo).softmax(dim=-1).max()), abs=1e-5)


def test_the_command_line_says_what_is_missing_and_takes_it(folder: Path, photo: Image.Image) -> None:
    photo.save(folder / "photo.png")
    command = ["predict", str(folder / "planes.onnx"), str(folder / "photo.png")]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1 and "`serve` take --preprocess, --class-names and --scoring" in refused.output
    given = ["--preprocess", str(folder / "preprocess.json"), "--class-names", str(folder / "names.txt"), "--json"]
    done = CliRunner().invoke(main, [*command, *given])
    assert done.exit_code == 0, done.output
    best = json.loads(done.stdout)["results"][0]["predictions"][0]
    assert best["label"] == NAMES[int(logits(photo).argmax())]


@pytest.mark.parametrize("form", ["planes", "probabilities"])
def test_evaluate_takes_the_same(form: str, folder: Path, tmp_path: Path, photo: Image.Image) -> None:
    turned = [photo.rotate(angle) for angle in (0, 90, 180)]
    right = [NAMES[int(logits(image).argmax())] for image in turned]
    for index, image in enumerate(turned):
        image.save(tmp_path / f"{index}.png")
    wrong = next(name for name in NAMES if name != right[2])
    labels = {"0.png": right[0], "1.png": right[1], "2.png": wrong}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    command = ["evaluate", str(folder / f"{form}.onnx"), "--images", str(tmp_path), "--json"]
    given = [f"--preprocess={folder / 'preprocess.json'}", f"--class-names={folder / 'names.txt'}"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1 and "found no 'vitexport.model'" in refused.output
    done = CliRunner().invoke(main, [*command, *given, f"--labels={tmp_path / 'labels.json'}"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["results"][0]["top1"] == pytest.approx(2 / 3)


def test_serve_takes_the_same(folder: Path, photo: Image.Image) -> None:
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    given = [f"--preprocess={folder / 'preprocess.json'}", f"--class-names={folder / 'names.txt'}"]
    with running(folder / "planes.onnx", *given) as server:
        answer = server.ask("POST", "/predict?top=1", stream.getvalue(), {"Content-Type": "image/png"}).json()
    assert NAMES[int(logits(photo).argmax())] in json.dumps(answer)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"preprocess": {**SETTINGS, "image_size": [64, 64], "crop": True}},
            RecipeError,
            r"found image_size \[64, 64\]",
        ),
        ({"preprocess": {"image_size": [SIZE, SIZE]}}, RecipeError, "(?s)resize: Field required.*mean: Field required"),
        ({"preprocess": SETTINGS, "class_names": ["cat", "dog"]}, RecipeError, "Expected 10 class names .* found 2"),
        ({"preprocess": "absent.json"}, RecipeError, "Expected a preprocessing in 'absent.json'"),
        ({"class_names": NAMES}, BundleError, "(?s)found no 'vitexport.model'.*--preprocess"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], error: Any, message: str, folder: Path) -> None:
    with pytest.raises(error, match=message):
        Predictor.open(folder / "planes.onnx", **options)


def test_a_file_that_carries_its_own_keeps_it(model_file: Path, photo: Image.Image) -> None:
    with pytest.raises(RecipeError, match="for a file that carries none"):
        Predictor.open(model_file, preprocess=SETTINGS)
    with Predictor.open(model_file) as predictor:
        own = [entry.label for entry in predictor.predict(photo, top=None).predictions]
    with Predictor.open(model_file, class_names=[f"new {label}" for label in sorted(own)], scoring="none") as predictor:
        assert all(entry.label.startswith("new ") for entry in predictor.predict(photo, top=None).predictions)
