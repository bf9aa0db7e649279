"""Weights that do not load say what they are and what to do, each kind its own way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import YolosConfig

from benchmarks.suites.model_rows import Row, row_named
from tests.support.dense_models import perturbed, pixels, save
from vitexport.errors import ModelSourceError
from vitexport.host.sources import load_model
from vitexport.host.sources.unreadable import brief, prefix_hint
from vitexport.recipe.settings import ModelSettings

NAME = "vit_tiny_patch16_224"
Write = Callable[[Path, Any], None]


@pytest.fixture(scope="module")
def vit() -> Any:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=3)


def _truncated(path: Path, model: Any) -> None:
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "write", "hint"),
    [
        (
            "light.ckpt",
            lambda path, model: torch.save(
                {"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, path
            ),
            r"Every weight has the prefix 'model\.'.*Lightning.*removeprefix\('model\.'\)",
        ),
        (
            "light.safetensors",
            lambda path, model: save_file({f"net.0.{n}": v for n, v in model.state_dict().items()}, path),
            r"Every weight has the prefix 'net\.0\.'",
        ),
        (
            "best.pth.tar",
            lambda path, model: torch.save({"state_dict": model.state_dict(), "best": np.float64(81.3)}, path),
            r"holds NumPy values beside its weights.*\['state_dict'\]",
        ),
        ("whole.pth", lambda path, model: torch.save(model, path), r"whole Python objects \(.*vitexport\.export\(\)"),
        ("cut.pth", _truncated, r"cut off or damaged: '.*cut\.pth' \([\d,]+ bytes\)"),
        ("empty.pth", lambda path, model: path.write_bytes(b""), r"cut off or damaged: '.*empty\.pth' \(0 bytes\)"),
        ("junk.pth", lambda path, model: path.write_bytes(b"<html>not found</html>"), "cut off or damaged"),
        (
            "cut.safetensors",
            lambda path, model: path.write_bytes((64).to_bytes(8, "little") + b"{}" * 32 + b"\0" * 9),
            "cut off or damaged",
        ),
        (
            "pointer.safetensors",
            lambda path, model: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
            "a pointer of Git LFS, not the weights; get them with `git lfs pull`",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and "\\" not in value else "",
)
def test_each_kind_of_timm_checkpoint_file_has_its_hint(
    file: str, write: Write, hint: str, vit: Any, tmp_path: Path
) -> None:
    write(tmp_path / file, vit)
    with pytest.raises(ModelSourceError, match="timm cannot load") as caught:
        load_model(ModelSettings(source=f"timm:{NAME}@{tmp_path / file}", allow_pickle=True))
    assert re.search(hint, caught.value.hint, re.DOTALL), caught.value.hint
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("write", "hint"),
    [
        (lambda path, tensors: torch.save({**tensors, "best": np.float64(1.0)}, path), "NumPy values"),
        (lambda path, tensors: torch.save({"model": torch.nn.Linear(2, 2)}, path), "whole Python objects"),
        (lambda path, tensors: path.write_bytes(b""), "cut off or damaged"),
    ],
    ids=["numpy", "module", "empty"],
)
def test_a_hugging_face_pickle_has_the_same_hints(write: Write, hint: str, tmp_path: Path) -> None:
    save("simmim", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path / "pytorch_model.bin", tensors)
    with pytest.raises(ModelSourceError, match="transformers cannot load") as caught:
        load_model(ModelSettings(source=str(tmp_path), task="features", allow_pickle=True))
    assert hint in caught.value.hint


def test_a_task_that_a_type_of_model_has_no_head_for_is_said(tmp_path: Path) -> None:
    YolosConfig(architectures=["YolosForObjectDetection"]).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ModelSourceError) as caught:
        load_model(ModelSettings(source=str(tmp_path), task="classify"))
    assert "transformers has no such head for this type of model" in caught.value.hint


def test_a_prefix_in_a_hugging_face_checkpoint_is_named(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({f"model.{n}": v for n, v in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match="have other names than those of Segformer") as caught:
        load_model(ModelSettings(source=str(tmp_path)))
    assert "the prefix 'model.'" in caught.value.hint


def test_a_prefix_is_seen_only_where_it_is_in_front_of_most_weights() -> None:
    assert prefix_hint(["module.a.w", "module.b.w"], ["a.w", "b.w"]).startswith("Every weight has the prefix 'module.'")
    assert prefix_hint(["a.w", "b.w"], ["a.w", "b.w"]) == ""
    assert prefix_hint(["model.a.w", "x", "y"], ["a.w", "b.w", "c.w"]) == ""
    assert prefix_hint([], ["a.w"]) == "" == prefix_hint(["a.w"], [])


def test_an_error_that_lists_every_weight_is_shortened() -> None:
    assert brief(RuntimeError("Missing\n\tkeys " + "blocks " * 500)).startswith("Missing keys blocks")
    assert len(brief(RuntimeError("blocks " * 500))) < 450
    assert brief(EOFError()) == "EOFError"


def test_a_distilled_timm_model_of_seven_classes_loads_from_one_file(tmp_path: Path) -> None:
    shape = {"img_size": 32, "patch_size": 16}
    model = perturbed(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7, **shape))
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    source = f"timm:deit_tiny_distilled_patch16_224@{tmp_path / 'mine.safetensors'}"
    loaded = load_model(ModelSettings(source=source), image_size=(32, 32))
    assert [spec.describe() for spec in loaded.metadata.model.outputs] == ["logits: float32[batch, 7]"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(pixels(2, 32))[0], model(pixels(2, 32)))


def test_a_pickles_hint_names_the_flag_of_the_command_line(vit: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": vit.state_dict(), "epoch": 3}, tmp_path / "model_best.pth.tar")
    source = f"timm:{NAME}@{tmp_path / 'model_best.pth.tar'}"
    with pytest.raises(ModelSourceError, match="are a pickle") as caught:
        load_model(ModelSettings(source=source))
    assert "`--allow-pickle`" in caught.value.hint and "`model.allow_pickle: true`" in caught.value.hint
    loaded = load_model(ModelSettings(source=source, allow_pickle=True))
    assert loaded.metadata.model.outputs[0].shape == ("batch", 3)


def test_a_file_of_weights_alone_is_told_how_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "model_best.pth.tar").write_bytes(b"x")
    with pytest.raises(ModelSourceError, match="weights alone do not say what model") as caught:
        load_model(ModelSettings(source=str(tmp_path / "model_best.pth.tar")))
    assert f"timm:NAME@{tmp_path / 'model_best.pth.tar'}" in caught.value.hint


def test_a_timm_directory_is_told_how_to_be_named(checkpoint: Callable[[Row], Path]) -> None:
    folder = checkpoint(row_named("vit-b16-timm"))
    with pytest.raises(ModelSourceError, match=r"found one of timm \(vit_base_patch16_224\)") as caught:
        load_model(ModelSettings(source=str(folder)))
    assert caught.value.hint == f"Name it as one: timm:local-dir:{folder}"


def test_a_class_that_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["MineForSemanticSegmentation"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match="found 'MineForSemanticSegmentation'"):
        load_model(ModelSettings(source=str(tmp_path)))


def test_a_part_of_a_model_is_no_prefix_of_a_trainer() -> None:
    body = [f"encoder.block.{index}.weight" for index in range(20)]
    head = ["decode_head.classifier.weight", "decode_head.classifier.bias"]
    assert prefix_hint([*body, *head], ["classifier.weight", "classifier.bias"]) == ""
    assert "'net.'" in prefix_hint([f"net.{name}" for name in body], body)
