"""Outputs of named blocks are what a forward hook on them sees, in every library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import vitexport as vx
from tests.support.dense_models import perturbed, pixels, save
from vitexport.errors import ModelSourceError
from vitexport.host.sources import load_model
from vitexport.host.sources.blocks import output_name
from vitexport.host.sources.live import wrap_module
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.recipe.settings import ModelSettings
from vitexport.runtimes import open_runtime

SPEC = PreprocessSpec(
    image_size=(64, 64), resize=Resize(mode="squash", size=(64, 64)), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def small_timm() -> Any:
    torch.manual_seed(0)
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    return perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=5, **shape))


class Pyramid(torch.nn.Module):
    """Maps ``[N, C, H, W]``, a module that gives a tuple, one that runs twice, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 8, stride=8)
        self.pair = Pair()
        self.twice = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.never = torch.nn.Linear(2, 2)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        first, second = self.pair(self.stem(planes))
        return self.head(self.twice(self.twice(first + second)).mean(dim=(2, 3)))


class Pair(torch.nn.Module):
    def forward(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return planes.relu(), planes.tanh()


def hooked(model: torch.nn.Module, names: list[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what plain forward hooks see."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, given, result: seen.__setitem__(name, result[0] if isinstance(result, tuple) else result)

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


def check(path: Path, expected: dict[str, torch.Tensor], images: torch.Tensor) -> None:
    with open_runtime(path) as runtime:
        found = runtime.run({"pixel_values": images.numpy()})
    assert list(found) == [output_name(name) for name in expected]
    for name, value in expected.items():
        scale = float(value.abs().max())
        np.testing.assert_allclose(found[output_name(name)], value.numpy(), rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (small_timm(), ["blocks.0", "blocks.2", "norm"]),
        (small_timm(), ["blocks.1.attn.qkv", "blocks.1.attn.q_norm", "blocks.1.mlp.fc1"]),
        (perturbed(Pyramid()), ["stem", "pair"]),
    ],
    ids=["blocks", "inside a block", "maps"],
)
def test_named_blocks_of_a_live_model_are_what_hooks_see(model: Any, names: list[str], tmp_path: Path) -> None:
    exported = vx.export(model, tmp_path / "m.onnx", preprocess=SPEC, features=names)
    vx.simplify(exported.path, tmp_path / "s.onnx")
    expected = hooked(model, names, pixels(3))
    for path in (tmp_path / "m.onnx", tmp_path / "s.onnx"):
        check(path, expected, pixels(3))
        check(path, hooked(model, names, pixels(1)), pixels(1))


def test_named_blocks_of_checkpoints_are_those_of_the_librarys_class(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model = small_timm()
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    save_for_hf(model, tmp_path / "timm", model_args=shape, safe_serialization=True)
    vit = perturbed(ViTForImageClassification(ViTConfig(**VIT, image_size=64, patch_size=8)))
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "vit")
    name = next(name for name, _ in vit.named_modules() if name.startswith("vit.") and name.endswith(".1"))
    for source, library, names in (
        (f"timm:local-dir:{tmp_path / 'timm'}", model, ["blocks.1", "norm"]),
        (str(tmp_path / "vit"), vit, [name, "vit.layernorm"]),
    ):
        loaded = load_model(ModelSettings(source=source, features=tuple(names)))
        assert loaded.metadata.model.task == "features" and loaded.metadata.class_names == ()
        assert [spec.name for spec in loaded.metadata.model.outputs] == [output_name(n) for n in names]
        for block, value in hooked(library, names, pixels(2)).items():
            torch.testing.assert_close(loaded.module.named(pixels(2))[output_name(block)].detach(), value)


def test_blocks_of_a_live_transformers_model_are_named_in_the_class_that_was_given() -> None:
    vit = perturbed(ViTForImageClassification(ViTConfig(**VIT, image_size=64, patch_size=8)))
    name = next(name for name, _ in vit.named_modules() if name.startswith("vit.") and name.endswith(".1"))
    loaded = wrap_module(vit, SPEC, features=[name, "classifier"])
    for block, value in hooked(vit, [name, "classifier"], pixels(2)).items():
        torch.testing.assert_close(loaded.module.named(pixels(2))[output_name(block)].detach(), value)


def test_a_recipe_names_blocks(tmp_path: Path) -> None:
    from vitexport.recipe.load import load_recipe

    recipe = tmp_path / "r.yaml"
    text = "name: r\nmodel:\n  source: timm:x\n  features: [blocks.5, norm]\ndata:\n  verification:\n    images: d\n"
    recipe.write_text(text)
    assert load_recipe(recipe).model.features == ("blocks.5", "norm")


def test_blocks_of_a_dense_model_are_named_in_its_own_class(tmp_path: Path) -> None:
    model = save("depth-anything", tmp_path / "model")
    inner = next(name for name, _ in model.named_modules() if re.fullmatch(r"backbone.*\.1", name))
    names = [inner, "neck.fusion_stage.layers.3"]
    exported = vx.export(tmp_path / "model", tmp_path / "m.onnx", features=names)
    check(exported.path, hooked(model, names, pixels(2)), pixels(2))


def test_the_first_of_several_tensors_is_taken_and_said() -> None:
    loaded = wrap_module(Pyramid(), SPEC, features=["pair"])
    assert loaded.notes == ("'pair' gives several tensors; the first is taken.",)


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["blocks.7"], "found 'blocks.7', which is none of its modules", "blocks.2"),
        (["nothing like it"], "found 'nothing like it'", "It has .*patch_embed.* more"),
        (["norm", "norm"], "blocks of different names, found norm, norm", "once"),
        ([""], "found ''", "It has"),
    ],
)
def test_unknown_names_list_those_there_are(names: list[str], message: str, hint: str) -> None:
    with pytest.raises(ModelSourceError, match=message) as caught:
        wrap_module(small_timm(), SPEC, features=names)
    assert re.search(hint, caught.value.hint) and len(caught.value.hint) < 400


@pytest.mark.parametrize(
    ("name", "message"), [("twice", "runs 2 times"), ("never", "runs 0 times"), ("pair.missing", "none of its modules")]
)
def test_a_block_that_gives_no_one_output_is_refused(name: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        wrap_module(Pyramid(), SPEC, features=[name])


def test_blocks_of_another_task_are_a_contradiction(tmp_path: Path) -> None:
    save("segformer", tmp_path / "model")
    with pytest.raises(ModelSourceError, match="with the task features, found the task segment"):
        load_model(ModelSettings(source=str(tmp_path / "model"), task="segment", features=("segformer",)))


def test_the_module_that_was_given_gets_no_hooks() -> None:
    model = small_timm()
    wrap_module(model, SPEC, features=["norm"])
    assert not any(module._forward_hooks for module in model.modules())


def test_the_command_line_takes_blocks_separated_by_commas(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from vitexport.cli import main

    save("simmim", tmp_path / "model")
    run = CliRunner().invoke(
        main, ["export", str(tmp_path / "model"), "-o", str(tmp_path / "m.onnx"), "--features", "x,y"]
    )
    assert run.exit_code == 1 and "found 'x', which is none of its modules" in run.output
