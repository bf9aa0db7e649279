"""Labels of people's own models: the accuracy of a run is that of the source library's own pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from transformers import pipeline

import vitexport as vx
from tests.support.checkpoints import save_vit
from vitexport.cli import main
from vitexport.errors import ImageError, ModelSourceError
from vitexport.host.sources import describe_classes, load_model
from vitexport.inputs.images import list_images
from vitexport.inputs.labels.find import find_labels
from vitexport.recipe.settings import ModelSettings

FLOAT = {"quantize": None}


def named(names: list[str]) -> dict[str, object]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def photographs(folder: Path, source: Path, count: int = 50, wrong: int = 4) -> None:
    """Save images in folders named as the library's pipeline answers, except for some."""
    random = np.random.default_rng(0)
    classify = pipeline("image-classification", str(source))
    names = list(classify.model.config.id2label.values())
    for index in range(count):
        image = Image.fromarray(random.integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize((32, 32), 0)
        answer = classify(image, top_k=1)[0]["label"]
        other = next(name for name in names if name != answer)
        place = folder / (other if index < wrong else answer)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index}.png")


@pytest.mark.filterwarnings("ignore:.*load average.*")
def test_a_hundred_classes_in_another_order_than_the_alphabet_have_the_librarys_accuracy(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", **named([f"kind {index * 37 % 100:02d}" for index in range(100)]))
    photographs(tmp_path / "images", source)
    bundle = vx.run(
        source=str(source), out=tmp_path / "out", images=tmp_path / "images", until="verify", settings=FLOAT
    )
    assert bundle.verification is not None
    for variant in bundle.verification.variants:
        assert variant.accuracy is not None
        assert variant.accuracy.top1 == pytest.approx(46 / 50), variant.name
    (check,) = [check for check in bundle.verification.checks if check.name == "labels fit the model"]
    assert check.passed is True
    assert "class folders, matched by exact class name" in check.finding
    assert any(remark.startswith("Labels: PyTorch's own top-1 is 92.0%") for remark in bundle.remarks)
    assert "matched by exact class name" in json.dumps(bundle.to_dict())
    scored = vx.evaluate(bundle.root, tmp_path / "images")
    assert [model.accuracy.top1 for model in scored.models if model.accuracy] == pytest.approx([46 / 50] * 2)
    assert scored.to_dict()["labels"].startswith("class folders, matched by exact class name")
    again = vx.run(source=str(source), out=tmp_path / "out", images=tmp_path / "images", until="verify", settings=FLOAT)
    assert again.executed == (), "labels are read again only when they or the model have changed"


@pytest.mark.filterwarnings("ignore:.*load average.*")
def test_twelve_classes_called_by_numbers_are_matched_by_name(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", **named([str(index) for index in range(12)]))
    photographs(tmp_path / "images", source, wrong=0)
    bundle = vx.run(
        source=str(source), out=tmp_path / "out", images=tmp_path / "images", until="verify", settings=FLOAT
    )
    assert bundle.verification is not None and bundle.passed
    assert {v.accuracy and v.accuracy.top1 for v in bundle.verification.variants} == {1.0}


@pytest.mark.filterwarnings("ignore:.*load average.*")
def test_two_class_names_in_each_others_place_fail_and_are_named(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", **named(["ant", "bee", "cat", "dog"]))
    photographs(tmp_path / "images", source, wrong=0)
    counts = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "images").iterdir()}
    one, other = sorted(counts, key=lambda name: counts[name])[-2:]
    config = json.loads((source / "config.json").read_text())
    exchange = {one: other, other: one}
    config["id2label"] = {index: exchange.get(name, name) for index, name in config["id2label"].items()}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    (source / "config.json").write_text(json.dumps(config))
    command = ["run", str(source), "-o", str(tmp_path / "out"), "--images", str(tmp_path / "images")]
    done = CliRunner().invoke(main, [*command, "--until", "verify", "--set", "quantize=null"])
    assert done.exit_code == 3, done.output
    assert "classes are exchanged" in " ".join(done.output.split())
    assert f"'{one}' is answered '{other}'" in " ".join(done.output.split())


def test_folders_of_no_class_stop_a_run_and_the_preview_alike(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", **named(["cat", "dog", "car"]))
    for name in ("cat", "fox"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / "1.png")
    with pytest.raises(ImageError, match="of other names: 'fox'") as preview:
        vx.labels(tmp_path / "images", source)
    with pytest.raises(ImageError) as stopped:
        vx.run(source=str(source), out=tmp_path / "out", images=tmp_path / "images", until="load")
    assert str(stopped.value) == str(preview.value)
    vx.run(source=str(source), out=tmp_path / "out", images=tmp_path / "images", labels="none", until="load")


def test_the_preview_shows_which_class_each_folder_is_for_every_kind_of_model(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", **named(["cat", "dog", "polar bear"]))
    for name in ("Polar_Bear", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / "1.png")
    exported = vx.export(source, tmp_path / "model.onnx").path
    for model in (source, exported):
        done = CliRunner().invoke(main, ["labels", str(tmp_path / "images"), "--model", str(model), "--json"])
        assert done.exit_code == 0, done.output
        content = json.loads(done.stdout)
        assert content["rule"] == "class name apart from case and separators"
        assert [(row["value"], row["index"], row["name"], row["images"]) for row in content["mapping"]] == [
            ("cat", 0, "cat", 1),
            ("Polar_Bear", 2, "polar bear", 1),
        ]
        assert content["notes"] == ["2 of the model's 3 classes have images"]
    shown = CliRunner().invoke(main, ["labels", str(tmp_path / "images"), "--model", str(source)])
    assert "polar bear" in shown.output and "exact class name" in shown.output


def test_the_preview_lists_values_by_size(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", num_labels=1, problem_type="regression")
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "metadata.csv").write_text("file_name,value\n0.png,10\n1.png,9.5\n2.png,-1\n")
    assert vx.labels(tmp_path / "images", source).tables()[0].rows == (("-1", "1"), ("9.5", "1"), ("10", "1"))


def test_class_names_come_from_a_file_where_the_model_has_none(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", num_labels=3)
    (tmp_path / "images" / "dog").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "dog" / "1.png")
    with pytest.raises(ImageError, match="the model has no class names, found 'dog'"):
        vx.labels(tmp_path / "images", source)
    names = tmp_path / "names.txt"
    names.write_text("zebra\ndog\nant\n")
    assert vx.labels(tmp_path / "images", source, class_names=names).labels.targets == (1,)
    exported = vx.export(source, tmp_path / "model.onnx", class_names=names).path
    assert vx.labels(tmp_path / "images", exported).labels.targets == (1,)
    names.write_text("zebra\ndog\n")
    with pytest.raises(ModelSourceError, match="Expected 3 class names in .*, found 2"):
        load_model(ModelSettings(source=str(source), class_names=names))
    with pytest.raises(ModelSourceError, match="Expected 3 class names in .*, found 2"):
        vx.labels(tmp_path / "images", exported, class_names=names)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 2), (0, 5, 9)], ids=["from 1", "a gap", "gaps"])
def test_an_id2label_of_other_numbers_than_the_outputs_names_nothing(
    numbers: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = save_vit(
        tmp_path / "model",
        id2label={number: f"kind {number}" for number in numbers},
        label2id={f"kind {number}": number for number in numbers},
    )
    settings = ModelSettings(source=str(source))
    metadata = load_model(settings).metadata
    assert metadata.class_names == ()
    assert metadata.classes == describe_classes(settings)
    assert metadata.classes is not None and metadata.classes.count == len(numbers)
    assert f"numbers its classes {', '.join(map(str, numbers))}" in caplog.text


@pytest.mark.parametrize("count", [2, 4], ids=["shorter", "longer"])
def test_an_id2label_of_another_length_than_the_head_is_refused_with_both_counts(count: int, tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", num_labels=3)
    config = json.loads((source / "config.json").read_text())
    config |= {"id2label": {str(i): f"kind {i}" for i in range(count)}, "label2id": {}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match=f"to name the 3 outputs of its head, found {count} names"):
        load_model(ModelSettings(source=str(source)))


def test_a_classifier_of_no_classes_is_refused(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", num_labels=3)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"id2label": {}, "label2id": {}}))
    with pytest.raises(ModelSourceError, match="found an empty id2label"):
        load_model(ModelSettings(source=str(source)))


@pytest.mark.parametrize("model", ["deit-tiny-hf", "timm:local-dir:deit-tiny-timm"])
def test_real_imagenet_models_know_their_synsets(model: str, shared: Path) -> None:
    prefix, _, name = model.rpartition(":")
    source = f"{prefix}:{shared / 'models' / name}" if prefix else str(shared / "models" / name)
    classes = describe_classes(ModelSettings(source=source))
    listed = json.loads((shared / "data" / "imagenet-1k-sample" / "synsets.json").read_text())
    assert {synset: classes.synsets.index(synset) for synset in listed} == {
        synset: entry["index"] for synset, entry in listed.items()
    }


@pytest.mark.parametrize("form", ["folders", "file names"])
def test_one_folder_per_synset_has_the_accuracy_of_the_labels_file(form: str, shared: Path, tmp_path: Path) -> None:
    sample = shared / "data" / "imagenet-1k-sample"
    paths = list_images(sample / "dev", limit=48)
    for path in paths:
        place = tmp_path / "images" / (path.name.partition("_")[0] if form == "folders" else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).symlink_to(path)
    classes = describe_classes(ModelSettings(source=str(shared / "models" / "deit-tiny-hf")))
    found = find_labels(tmp_path / "images", list_images(tmp_path / "images"), classes)
    expected = find_labels(sample / "dev", paths, classes, sample / "synsets.json")
    assert found is not None and expected is not None
    assert found.rule == "synset"
    by_name = dict(zip((path.name for path in paths), expected.targets, strict=True))
    assert found.targets == tuple(by_name[path.name] for path in list_images(tmp_path / "images"))
