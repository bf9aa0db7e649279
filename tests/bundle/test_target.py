from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.linear_model import CLASSES, model_metadata, write_bundle, write_model
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.target import ModelFile, resolve_target
from vitexport.errors import BundleError


def with_kinds(root: Path) -> Path:
    """Write a bundle of a float graph, a quantized one and an engine."""
    bundle = Bundle.open(write_bundle(root, variants=("simplified", "int8", "engine")), check_files=False)
    changes = {"int8": {"kind": "quantized", "precision": "int8"}, "engine": {"kind": "engine"}}
    for name, change in changes.items():
        bundle = bundle.with_artifact(bundle.artifact(name).model_copy(update=change))
    engine = bundle.artifact("engine")
    path = bundle.path(engine).rename(root / "models" / "vit.engine")
    record = engine.file.model_copy(update={"path": path.relative_to(root).as_posix()})
    bundle.with_artifact(engine.model_copy(update={"file": record})).save()
    return root


@pytest.mark.parametrize("form", [str, Path])
def test_a_file_is_its_own_only_model(model_file: Path, form: type) -> None:
    target = resolve_target(form(model_file))
    assert target.bundle is None
    assert target.models == (ModelFile(str(model_file), model_file),)
    assert target.float_model() == target.onnx_file() == target.models[0]
    assert target.metadata(model_metadata().to_metadata()).class_names == CLASSES
    with pytest.raises(BundleError, match="to carry its preprocessing"):
        target.metadata({})


@pytest.mark.parametrize("form", [str, Path])
def test_a_bundle_gives_its_variants_and_its_own_metadata(tmp_path: Path, form: type) -> None:
    root = with_kinds(tmp_path / "bundle")
    target = resolve_target(form(root))
    assert target.bundle is not None
    assert [model.name for model in target.models] == ["simplified", "int8", "engine"]
    assert [model.artifact for model in target.models] == list(target.bundle.models)
    assert target.metadata({}) == target.bundle.metadata
    assert target.model("engine").path == root / "models" / "vit.engine"


def test_float_graphs_are_told_from_quantized_ones(tmp_path: Path) -> None:
    target = resolve_target(with_kinds(tmp_path / "bundle"))
    assert target.float_model().name == "simplified"
    with pytest.raises(BundleError, match="a model named 'fp8'.*found simplified, int8, engine"):
        target.model("fp8")


def test_a_bundle_without_such_a_model_says_what_to_run(tmp_path: Path) -> None:
    root = with_kinds(tmp_path / "bundle")
    bundle = Bundle.open(root)
    bundle.without(["simplified"]).save()
    with pytest.raises(BundleError, match="Expected a float model"):
        resolve_target(root).float_model()


def test_a_file_has_no_variants_and_may_be_no_graph(tmp_path: Path) -> None:
    target = resolve_target(write_model(tmp_path / "a.onnx"))
    with pytest.raises(BundleError, match="Expected a bundle to choose the variant 'int8' from"):
        target.model("int8")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BundleError, match="Expected an ONNX model or a bundle, found"):
        resolve_target(tmp_path / "notes.txt").float_model()


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found nothing at"):
        resolve_target(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"found a directory without bundle\.json"):
        resolve_target(tmp_path)


def test_an_altered_file_is_noticed_where_files_are_checked(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    (root / "models" / "simplified.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was altered"):
        resolve_target(root)
    assert resolve_target(root, check_files=False).models[0].name == "simplified"
