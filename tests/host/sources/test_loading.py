"""What loads, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.suites.model_rows import Row, row_named, source_of
from vitexport.errors import ModelSourceError
from vitexport.host.sources import load_model
from vitexport.recipe.settings import ModelSettings

Checkpoint = Callable[[Row], Path]


@pytest.fixture
def vit(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A Hugging Face directory that a test may change."""
    return Path(shutil.copytree(checkpoint(row_named("vit-b16-hf")), tmp_path / "vit"))


@pytest.fixture
def timm_vit(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A timm directory that a test may change."""
    return Path(shutil.copytree(checkpoint(row_named("vit-b16-timm")), tmp_path / "timm-vit"))


def _to_pickle(folder: Path, name: str) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()


def test_a_directory_gives_name_hash_labels_and_outputs(vit: Path) -> None:
    loaded = load_model(ModelSettings(source=str(vit)))
    assert (
        loaded.metadata.model.source,
        loaded.metadata.model.id,
        loaded.metadata.model.family,
        loaded.metadata.model.task,
    ) == (
        "huggingface",
        "vit",
        "vit",
        "classify",
    )
    assert loaded.metadata.model.revision.startswith("sha256:") and len(loaded.metadata.model.revision) == 71
    assert loaded.metadata.class_names[3] == "class 3" and len(loaded.metadata.class_names) == 10
    assert [spec.describe() for spec in loaded.metadata.model.outputs] == ["logits: float32[batch, 10]"]
    assert not loaded.module.training


def test_another_weight_gives_another_revision(vit: Path) -> None:
    before = load_model(ModelSettings(source=str(vit))).metadata.model.revision
    tensors = load_file(vit / "model.safetensors")
    tensors["classifier.bias"] += 1
    save_file(tensors, vit / "model.safetensors", metadata={"format": "pt"})
    assert load_model(ModelSettings(source=str(vit))).metadata.model.revision != before


def test_features_of_a_classifier_do_not_include_a_made_up_pooler(vit: Path) -> None:
    loaded = load_model(ModelSettings(source=str(vit), task="features"))
    assert [spec.name for spec in loaded.metadata.model.outputs] == ["last_hidden_state"]
    assert loaded.metadata.class_names == ()


def test_classifying_with_a_backbone_is_refused(checkpoint: Checkpoint) -> None:
    folder = checkpoint(row_named("vit-b16-features-hf"))
    with pytest.raises(ModelSourceError, match=r"has no classification head.*\n.*task: features"):
        load_model(ModelSettings(source=str(folder), task="classify"))
    folder = checkpoint(row_named("dinov2-timm"))
    with pytest.raises(ModelSourceError, match=r"has no classification head.*\n.*task: features"):
        load_model(ModelSettings(source=f"timm:local-dir:{folder}", task="classify"))


def test_missing_weights_are_refused_not_made_up(vit: Path) -> None:
    tensors = load_file(vit / "model.safetensors")
    dropped = next(name for name in tensors if "layers.1" in name or "layer.1" in name)
    del tensors[dropped]
    save_file(tensors, vit / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match="is incomplete: the weights .* are missing"):
        load_model(ModelSettings(source=str(vit)))


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damaged_weights_are_refused(vit: Path, timm_vit: Path, damage: str) -> None:
    for folder, source in ((vit, str(vit)), (timm_vit, f"timm:local-dir:{timm_vit}")):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:5000] if damage == "truncated" else b"\x00" * 100)
        with pytest.raises(ModelSourceError, match="cannot load"):
            load_model(ModelSettings(source=source))


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_is_loaded_only_when_asked_for(vit: Path, timm_vit: Path, allowed: bool) -> None:
    reference = load_model(ModelSettings(source=str(vit))).module
    _to_pickle(vit, "pytorch_model.bin")
    _to_pickle(timm_vit, "pytorch_model.bin")
    for source in (str(vit), f"timm:local-dir:{timm_vit}"):
        settings = ModelSettings(source=source, allow_pickle=allowed)
        if not allowed:
            with pytest.raises(ModelSourceError, match=r"a pickle, which can run code.*\n.*allow_pickle"):
                load_model(settings)
        elif not source.startswith("timm:"):
            image = torch.rand(1, 3, 224, 224)
            torch.testing.assert_close(load_model(settings).module(image), reference(image))
        else:
            assert load_model(settings).metadata.model.family == "vit"


class _Bomb:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (_explode, ("unpickled",))


def _explode(message: str) -> None:
    raise AssertionError(message)


def test_a_pickle_that_runs_code_is_refused_even_when_pickles_are_allowed(timm_vit: Path) -> None:
    tensors = load_file(timm_vit / "model.safetensors")
    torch.save({**tensors, "bomb": _Bomb()}, timm_vit / "pytorch_model.bin")
    (timm_vit / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="cannot load"):
        load_model(ModelSettings(source=f"timm:local-dir:{timm_vit}", allow_pickle=True))


def test_code_in_a_checkpoint_is_never_run(vit: Path) -> None:
    config = json.loads((vit / "config.json").read_text())
    config.update({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}})
    (vit / "config.json").write_text(json.dumps(config))
    (vit / "code.py").write_text("raise SystemExit('code of the checkpoint was run')")
    with pytest.raises(ModelSourceError, match=r"(?s)describes no model.*Code from a checkpoint is never run"):
        load_model(ModelSettings(source=str(vit)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "neither"),
        ("/nowhere/model", "neither"),
        ("nowhere", "neither"),
        ("timm:local-dir:/nowhere", r"Expected a timm directory"),
        ("timm:vit_bse_patch16_224", r"(?s)has no model.*Did you mean.*vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.nonsense", r"(?s)has no weights.*augreg"),
        ("timm:vit_base_patch16_224@/nowhere.safetensors", "Expected a checkpoint at"),
    ],
)
def test_what_cannot_be_found_says_what_to_do(source: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message) as caught:
        load_model(ModelSettings(source=source))
    assert caught.value.hint


@pytest.mark.parametrize("source", ["nobody/no-such-vit", "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k"])
def test_offline_and_not_cached_says_how_to_fetch(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelSourceError, match=r"(?s)neither in the local cache.*hf download (nobody|timm)/"):
        load_model(ModelSettings(source=source))


def test_a_cached_hub_checkpoint_loads_offline_with_its_commit(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--owner--vit"
    shutil.copytree(vit, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    loaded = load_model(ModelSettings(source="owner/vit"))
    assert (loaded.metadata.model.id, loaded.metadata.model.revision) == ("owner/vit", commit)


def test_a_single_checkpoint_file_gets_its_number_of_classes_from_its_weights(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    loaded = load_model(ModelSettings(source=f"timm:vit_tiny_patch16_224@{tmp_path / 'mine.safetensors'}"))
    assert [spec.describe() for spec in loaded.metadata.model.outputs] == ["logits: float32[batch, 7]"]
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(image)[0], model(image))


def test_no_preprocessor_configuration_is_an_error_not_a_guess(vit: Path) -> None:
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(ModelSourceError, match=r"(?s)preprocessor_config.json.*cannot be guessed"):
        load_model(ModelSettings(source=str(vit)))


def test_the_vision_tower_of_a_two_tower_checkpoint_is_found(tmp_path: Path) -> None:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    for config_class, model_class, processor, outputs in (
        (transformers.CLIPConfig, transformers.CLIPModel, transformers.CLIPImageProcessor, "image_embeds"),
        (transformers.SiglipConfig, transformers.SiglipModel, transformers.SiglipImageProcessor, "pooler_output"),
    ):
        text = {**small, "vocab_size": 99, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
        vision = {**small, "image_size": 224, "patch_size": 32}
        folder = tmp_path / model_class.__name__
        model_class(config_class(text_config=text, vision_config=vision)).save_pretrained(folder)
        processor().save_pretrained(folder)
        loaded = load_model(ModelSettings(source=str(folder)))
        assert outputs in [spec.name for spec in loaded.metadata.model.outputs]


def test_a_model_that_needs_more_than_images_is_refused(tmp_path: Path) -> None:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**small)).save_pretrained(tmp_path)
    transformers.SiglipImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ModelSourceError, match="to take pixel_values alone"):
        load_model(ModelSettings(source=str(tmp_path)))


def test_an_image_size_the_architecture_cannot_take_is_an_error(checkpoint: Checkpoint) -> None:
    for name in ("vit-b16-timm", "swin-timm"):
        row = row_named(name)
        with pytest.raises(ModelSourceError):
            load_model(ModelSettings(source=source_of(row, checkpoint(row))), image_size=(100, 3))
