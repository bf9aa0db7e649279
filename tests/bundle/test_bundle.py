from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Provenance
from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import BundleError
from vitexport.files import atomic_path, sha256_file, write_atomic
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.tensors import TensorSpec

PROVENANCE = Provenance(stage="export", key="k", settings={}, parents=(), tools={}, seconds=0.5)


def make_artifact(root: Path, name: str, content: str = "weights") -> Artifact:
    path = root / f"{name}.onnx"
    path.write_text(content)
    return Artifact(name=name, kind="onnx", file=FileRecord.of(path, root), provenance=PROVENANCE)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    spec = ModelSpec(
        source="huggingface",
        id="tiny",
        revision="sha256:0",
        family="vit",
        task="classify",
        inputs=(TensorSpec("pixel_values", ("batch", 3, 8, 8), "float32"),),
        outputs=(TensorSpec("logits", ("batch", 2), "float32"),),
    )
    size = Resize(mode="squash", size=(8, 8))
    preprocess = PreprocessSpec(image_size=(8, 8), resize=size, mean=(0, 0, 0), std=(1, 1, 1))
    made = Bundle(tmp_path, name="x", metadata=ModelMetadata(spec, preprocess, ("cat", "dog")))
    made = made.with_artifact(make_artifact(tmp_path, "onnx")).with_artifact(make_artifact(tmp_path, "int8"))
    made.save()
    return made


def test_a_saved_bundle_opens_as_it_was(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.root)
    assert opened.model == bundle.model
    assert opened.preprocess == bundle.preprocess
    assert opened.class_names == ("cat", "dog")
    assert opened.artifacts == bundle.artifacts


def test_an_altered_file_is_found_by_its_hash(bundle: Bundle) -> None:
    (bundle.root / "int8.onnx").write_text("WEIGHTS")
    with pytest.raises(BundleError, match=r"'int8.onnx' .* was altered: expected sha256 \w+"):
        Bundle.open(bundle.root)


def test_a_missing_file_is_named(bundle: Bundle) -> None:
    (bundle.root / "onnx.onnx").unlink()
    with pytest.raises(BundleError, match="Expected 'onnx.onnx'"):
        Bundle.open(bundle.root)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "a/../../b", "a\\b"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Bundle, path: str) -> None:
    file = bundle.root / "bundle.json"
    data = json.loads(file.read_text())
    data["artifacts"][0]["file"]["path"] = path
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="must stay inside the bundle"):
        Bundle.open(bundle.root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"schema": 1}', "Expected bundle schema 3 in .*, found 1"),
        ("[]", "found None"),
        ('{"schema": 3}', "not a valid bundle"),
    ],
)
def test_a_broken_bundle_file_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path)


def test_a_directory_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no bundle.json"):
        Bundle.open(tmp_path)


def test_an_artifact_is_replaced_in_its_place(bundle: Bundle) -> None:
    changed = bundle.with_artifact(make_artifact(bundle.root, "onnx", "other"))
    assert [artifact.name for artifact in changed.artifacts] == ["onnx", "int8"]
    assert changed.artifact("onnx").file.sha256 != bundle.artifact("onnx").file.sha256
    assert [artifact.name for artifact in changed.without({"onnx"}).artifacts] == ["int8"]
    with pytest.raises(BundleError, match="Expected 'fp8' .* found onnx, int8"):
        bundle.artifact("fp8")


def test_an_interrupted_write_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    final = tmp_path / "model.onnx"
    with pytest.raises(KeyboardInterrupt), atomic_path(final) as temporary:
        temporary.write_text("half")
        (temporary.parent / "model.data").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_companions_are_in_place_with_the_file(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "model.onnx"
    with atomic_path(final) as temporary:
        temporary.write_text("graph")
        (temporary.parent / "model.data").write_text("weights")
        assert not final.exists()
    assert sorted(path.name for path in final.parent.iterdir()) == ["model.data", "model.onnx"]


def test_write_atomic_replaces_and_hash_follows(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, "abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    write_atomic(path, b"abd")
    assert path.read_bytes() == b"abd"
