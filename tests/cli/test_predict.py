from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.linear_model import CLASSES, save_image, write_model
from vitexport.cli.predict import predict
from vitexport.errors import ImageError, VitexportError
from vitexport.predict.predictor import Predictor


def run(*arguments: object, error: type[VitexportError] | None = None) -> Result:
    result = CliRunner().invoke(predict, [str(argument) for argument in arguments])
    if error is None:
        assert result.exit_code == 0, result.output
    else:
        assert isinstance(result.exception, error)
    return result


def test_table_names_the_image_and_its_best_classes(bundle_dir: Path, image_file: Path) -> None:
    lines = run(bundle_dir, image_file, "--top", "2").stdout.splitlines()
    assert lines[0].split() == ["image", "label", "score"]
    assert lines[1].split()[0] == str(image_file)
    assert {line.split()[-2] for line in lines[1:3]} <= set(CLASSES)
    assert len(lines) == 3


def test_json_is_one_document_with_the_predictors_answer(bundle_dir: Path, image_file: Path) -> None:
    document = json.loads(run(bundle_dir, image_file, "--json", "--top", "3").stdout)
    with Predictor.open(bundle_dir) as predictor:
        expected = predictor.predict(image_file, top=3).predictions
    found = document["results"][0]["predictions"]
    assert [entry["label"] for entry in found] == [prediction.label for prediction in expected]
    assert found[0]["score"] == pytest.approx(expected[0].score, rel=1e-5)


def test_bad_image_is_an_error_after_the_good_ones_are_printed(bundle_dir: Path, image_file: Path) -> None:
    bad = image_file.with_name("bad.png")
    bad.write_bytes(image_file.read_bytes()[:200])
    result = run(bundle_dir, image_file, bad, error=ImageError)
    assert str(image_file) in result.stdout
    assert "1 of 2 images" in str(result.exception)
    assert "bad.png" in str(result.exception)


def test_features_go_to_json_but_not_to_the_table(tmp_path: Path, image_file: Path) -> None:
    model = write_model(tmp_path / "features.onnx", task="features")
    run(model, image_file, error=VitexportError)
    document = json.loads(run(model, image_file, "--json").stdout)
    assert len(document["results"][0]["features"]) == len(CLASSES)


def test_folder_list_and_pattern_name_the_same_images(bundle_dir: Path, tmp_path: Path) -> None:
    names = [save_image(tmp_path / "photos" / f"{index}.png", index).name for index in range(3)]
    (tmp_path / "list.txt").write_text("# three\n\n" + "\n".join(f"photos/{name}" for name in names) + "\n")
    documents = [
        json.loads(run(bundle_dir, source, "--json").stdout)["results"]
        for source in (tmp_path / "photos", tmp_path / "list.txt", tmp_path / "photos" / "*.png")
    ]
    assert len(documents[0]) == 3
    assert documents[0] == documents[1] == documents[2]


@pytest.mark.parametrize("source", ["nothing/*.jpg", "missing.txt", "empty"])
def test_source_without_images_is_refused(bundle_dir: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    run(bundle_dir, tmp_path / source, error=ImageError)
