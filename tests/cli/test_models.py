"""``vitexport models``, the recipes of the model rows, and models of families nobody listed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.suites.head_rows import ALL_ROWS
from benchmarks.suites.model_rows import ROWS
from tests.support.paths import ROOT
from vitexport.cli import main
from vitexport.host.export import export_onnx
from vitexport.host.sources import load_model
from vitexport.host.sources.families import FAMILIES, family_of
from vitexport.recipe.load import load_recipe
from vitexport.recipe.settings import ExportSettings, ModelSettings
from vitexport.runtimes import open_runtime

_RECIPES = ROOT / "recipes" / "models"


def test_models_lists_every_family_as_table_and_as_json() -> None:
    table = CliRunner().invoke(main, ["models"])
    assert table.exit_code == 0 and all(family.name in table.output for family in FAMILIES)
    assert "attempted generically" in table.output
    document = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert [family["name"] for family in document["families"]] == [family.name for family in FAMILIES]


def test_every_row_is_of_a_listed_family() -> None:
    import transformers

    for row in ALL_ROWS:
        if row.library == "timm":
            assert family_of(row.model, source="timm"), row.name
        else:
            kind = getattr(transformers, row.model).config_class.model_type
            assert family_of(kind, source="huggingface"), row.name


@pytest.mark.parametrize("path", sorted(_RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_is_valid_and_its_weights_are_published_under_that_name(path: Path) -> None:
    import timm

    recipe = load_recipe(path)
    assert recipe.name == path.stem
    source = recipe.model.source
    if source.startswith("timm:"):
        assert timm.models.get_pretrained_cfg(source.removeprefix("timm:")).hf_hub_id
        assert family_of(source.removeprefix("timm:"), source="timm")
    else:
        assert source.count("/") == 1


def test_every_row_has_a_recipe() -> None:
    stems = {path.stem for path in _RECIPES.glob("*.yaml")}
    for row in ROWS:
        base = row.name.replace("/", "-").replace("beit_base_patch16_224.in22k_ft_in22k_in1k", "beit-timm")
        for variant in ("-features", "-384", "-378"):
            base = base.replace(variant, "")
        assert base in stems, row.name


def test_an_unlisted_family_is_exported_generically_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import timm
    import torch
    from timm.models import save_for_hf

    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    save_for_hf(model, tmp_path / "mobile", model_args={"num_classes": 5}, safe_serialization=True)
    with caplog.at_level(logging.WARNING, logger="vitexport"):
        loaded = load_model(ModelSettings(source=f"timm:local-dir:{tmp_path / 'mobile'}"))
    assert "exported generically" in caplog.text
    result = export_onnx(loaded, ExportSettings(), tmp_path / "m.onnx")
    assert "exported generically" in result.details["note"]
    pixels = torch.randn(3, 3, 224, 224)
    with torch.no_grad(), open_runtime(result.path) as runtime:
        found = torch.from_numpy(runtime.run({"pixel_values": pixels.numpy()})["logits"])
        torch.testing.assert_close(found, loaded.module(pixels)[0], rtol=0, atol=1e-4)
