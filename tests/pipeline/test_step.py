"""When a stage may be skipped: what its key depends on, and what it does not."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.linear_model import write_bundle
from vitexport.bundle.bundle import Bundle
from vitexport.files import StageResult
from vitexport.pipeline.step import (
    Step,
    images_fingerprint,
    is_current,
    make,
    settings_of,
    source_fingerprint,
    step_key,
    tool_versions,
)
from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings


def step(run: Callable[[], StageResult] | None = None, **changes: Any) -> Step:
    fields: dict[str, Any] = {
        "stage": "export",
        "output": "onnx",
        "kind": "onnx",
        "settings": {"opset": 20, "batch": "dynamic"},
        "parents": ("a", "b"),
        "tools": ("numpy",),
    }
    return Step(**{**fields, **changes}, run=run or (lambda: pytest.fail("it must not run")))


def writing(root: Path, text: str = "graph") -> Callable[[], StageResult]:
    def run() -> StageResult:
        path, data = root / "models" / "onnx.onnx", root / "models" / "onnx.data"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        data.write_text("weights")
        return StageResult(path, "float32", (data,), {"nodes": 3})

    return run


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "simplify"},
        {"settings": {"opset": 21, "batch": "dynamic"}},
        {"settings": {"opset": 20}},
        {"parents": ("b", "a")},
        {"parents": ("a",)},
        {"tools": ()},
    ],
    ids=str,
)
def test_a_key_changes_with_everything_a_result_depends_on(change: dict[str, Any]) -> None:
    assert step_key(step(**change)) != step_key(step())


def test_a_key_does_not_depend_on_the_order_of_settings_or_on_what_runs() -> None:
    other = step(settings={"batch": "dynamic", "opset": 20}, run=lambda: StageResult(Path("x"), ""))
    assert step_key(other) == step_key(step())
    assert len(step_key(other)) == 64


def test_a_key_changes_with_a_tools_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: step_key(step(tools=(name,))) for name in ("numpy", "nothing-of-the-kind")}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "numpy" else real(name))
    assert step_key(step(tools=("numpy",))) != before["numpy"]
    assert step_key(step(tools=("nothing-of-the-kind",))) == before["nothing-of-the-kind"]
    assert tool_versions(("numpy", "nothing-of-the-kind")) == {"numpy": "0.0"}


def test_what_was_made_is_described_and_current_until_something_changes(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    artifact = make(step(writing(root)), root)
    assert artifact.file.path == "models/onnx.onnx"
    assert [record.path for record in artifact.companions] == ["models/onnx.data"]
    assert (artifact.precision, artifact.details) == ("float32", {"nodes": 3})
    assert artifact.provenance.key == step_key(step())
    assert artifact.provenance.parents == ("a", "b")
    assert set(artifact.provenance.tools) == {"vitexport", "numpy"}
    bundle = Bundle.open(root).with_artifact(artifact)
    assert is_current(step(), bundle) == artifact
    assert is_current(step(settings={}), bundle) is None
    assert is_current(step(output="simplified"), bundle) is None, "made by another step"
    assert is_current(step(output="int8"), bundle) is None, "not made yet"


@pytest.mark.parametrize("name", ["models/onnx.onnx", "models/onnx.data"])
@pytest.mark.parametrize("text", [None, "other"], ids=["missing", "altered"])
def test_a_file_that_is_not_what_was_made_is_not_current(name: str, text: str | None, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    bundle = Bundle.open(root).with_artifact(make(step(writing(root)), root))
    (root / name).unlink() if text is None else (root / name).write_text(text)
    assert is_current(step(), bundle) is None


def source(folder: Path, **changes: Any) -> str:
    return source_fingerprint(ModelSettings(source=str(folder), **changes))


def test_a_checkpoint_is_known_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "parts").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "parts" / "weights.bin").write_bytes(b"123")
    first = source(folder)
    (folder / ".cache").write_text("not part of it")
    assert source(folder) == first
    copied = tmp_path / "elsewhere"
    (copied / "parts").mkdir(parents=True)
    (copied / "config.json").write_text("{}")
    (copied / "parts" / "weights.bin").write_bytes(b"123")
    assert source(copied) == first, "where it lies does not matter"
    (copied / "parts" / "weights.bin").write_bytes(b"124")
    assert source(copied) != first
    (folder / "parts" / "weights.bin").rename(folder / "weights.bin")
    assert source(folder) != first


def test_other_settings_of_a_source_are_another_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert source(tmp_path, task="features") != source(tmp_path)


def test_a_hub_id_is_known_by_its_name_and_revision() -> None:
    names = [
        {"source": "owner/model"},
        {"source": "owner/other"},
        {"source": "owner/model", "revision": "abc"},
        {"source": "timm:vit_tiny_patch16_224"},
    ]
    found = [source_fingerprint(ModelSettings.model_validate(name)) for name in names]
    assert len(set(found)) == len(names)
    assert found[0] == source_fingerprint(ModelSettings(source="owner/model"))


def test_images_are_known_by_names_contents_and_order(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    paths = [folder / "a" / "1.png", folder / "2.png"]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]))
    first = images_fingerprint(folder, paths)
    moved = folder.rename(tmp_path / "moved")
    paths = [moved / "a" / "1.png", moved / "2.png"]
    assert images_fingerprint(moved, paths) == first, "where the folder lies does not matter"
    assert images_fingerprint(moved, paths[::-1]) != first
    assert images_fingerprint(moved, paths[:1]) != first
    paths[1].write_bytes(b"other")
    assert images_fingerprint(moved, paths) != first
    paths[1].write_bytes(bytes([1]))
    assert images_fingerprint(moved, [paths[0], paths[1].rename(moved / "3.png")]) != first


def test_settings_are_merged_json_ready_and_later_ones_win() -> None:
    export = ExportSettings(image_size=(32, 48))
    merged = settings_of(export, None, SimplifySettings(onnxsim=False), opset=17, extra=1)
    assert merged == {**export.model_dump(mode="json"), "onnxsim": False, "opset": 17, "extra": 1}
    assert merged["image_size"] == [32, 48]
    assert settings_of(None) == {}
