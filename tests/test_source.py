"""A source is parsed in one place, written as it was, and known by the content of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitexport.pipeline.step import source_fingerprint
from vitexport.recipe.settings import ModelSettings
from vitexport.source import ModelSource


@pytest.mark.parametrize(
    ("text", "library", "name", "path", "title"),
    [
        ("google/vit-base-patch16-224", "huggingface", "google/vit-base-patch16-224", None, "vit-base-patch16-224"),
        ("timm:deit_tiny_patch16_224.fb_in1k", "timm", "deit_tiny_patch16_224.fb_in1k", None, None),
        ("timm:deit_tiny_patch16_224@a@b.safetensors", "timm", "deit_tiny_patch16_224", "a@b.safetensors", None),
        ("timm:local-dir:some/folder", "timm", "", "some/folder", "folder"),
    ],
)
def test_every_form_is_parsed_and_written_again(
    text: str, library: str, name: str, path: str | None, title: str | None
) -> None:
    source = ModelSource.parse(text)
    assert (source.library, source.name, source.path) == (library, name, None if path is None else Path(path))
    assert str(source) == text
    assert source.title == (title or name)


def test_plain_text_is_a_directory_only_where_there_is_one(tmp_path: Path) -> None:
    assert ModelSource.parse("owner/name", tmp_path) == ModelSource("huggingface", name="owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert ModelSource.parse("owner/name", tmp_path) == ModelSource("huggingface", path=tmp_path / "owner" / "name")


@pytest.mark.parametrize("form", ["timm:vit_tiny_patch16_224@{}/w.safetensors", "timm:local-dir:{}", "{}"])
def test_other_weights_are_another_source(form: str, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    settings = ModelSettings(source=form.format(tmp_path))
    before = source_fingerprint(settings)
    assert source_fingerprint(settings) == before
    weights.write_bytes(b"two")
    assert source_fingerprint(settings) != before


def test_the_same_files_elsewhere_are_the_same_source(tmp_path: Path) -> None:
    keys = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "w.safetensors").write_bytes(b"one")
        keys.add(source_fingerprint(ModelSettings(source=f"timm:vit_tiny_patch16_224@{folder / 'w.safetensors'}")))
    assert len(keys) == 1


def test_architecture_task_and_revision_belong_to_the_key(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"one")
    settings = [
        ModelSettings(source=f"timm:a@{tmp_path / 'w.bin'}"),
        ModelSettings(source=f"timm:b@{tmp_path / 'w.bin'}"),
        ModelSettings(source=f"timm:a@{tmp_path / 'w.bin'}", task="features"),
        ModelSettings(source=f"timm:a@{tmp_path / 'w.bin'}", revision="main"),
    ]
    assert len({source_fingerprint(entry) for entry in settings}) == 4
