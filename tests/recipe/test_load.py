from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from vitexport.errors import RecipeError
from vitexport.recipe.load import load_recipe, parse_recipe

MINIMAL = {"name": "x", "model": {"source": "m"}, "data": {"verification": {"images": "v"}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**MINIMAL, "quantise": {}}, r"quantise: unknown key; did you mean 'quantize'\?"),
        ({**MINIMAL, "quantize": {"presett": "fast"}}, r"quantize.presett: unknown key; did you mean 'preset'\?"),
        ({**MINIMAL, "data": {"verification": {"image": "v"}}}, r"data.verification.image: .* 'images'\?"),
        ({**MINIMAL, "zzz": 1}, "zzz: unknown key; known keys here: name, model"),
        ({**MINIMAL, "export": {"opset": 3}}, "export.opset: .*found 3"),
        ({**MINIMAL, "export": {"batch": 0}}, "export.batch"),
        ({"name": "x"}, "(?s)model: Field required.*data: Field required"),
        ([1], "found list"),
    ],
)
def test_a_wrong_recipe_names_the_key_by_path_and_suggests(content: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(content, where="r.yaml")


@pytest.mark.parametrize(
    ("precision", "attention", "fitting"),
    [
        ("fp8", "int8", "float or fp8"),
        ("fp8", "int8-rows", "float or fp8"),
        ("int8", "fp8", "float or int8 or int8-rows"),
        ("fp16", "int8", "float"),
    ],
)
def test_attention_of_another_precision_is_refused_with_what_fits(precision: str, attention: str, fitting: str) -> None:
    content = {**MINIMAL, "quantize": {"precision": precision, "attention": attention}}
    message = f"quantize.attention: .*with precision {precision} attention is {fitting}, found '{attention}'"
    with pytest.raises(RecipeError, match=message):
        parse_recipe(content, where="r")


def test_a_block_size_may_be_a_number_and_names_are_a_list() -> None:
    recipe = parse_recipe({**MINIMAL, "quantize": {"rotate": 16, "exclude": ["fc2"]}}, where="r.yaml")
    assert recipe.quantize is not None
    assert (recipe.quantize.rotate, recipe.quantize.exclude) == ("16", ("fc2",))
    with pytest.raises(RecipeError, match=r"quantize\.exclude: .*found 'fc2'"):
        parse_recipe({**MINIMAL, "quantize": {"exclude": "fc2"}}, where="r.yaml")


def test_a_file_that_is_missing_or_no_yaml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Expected a recipe at"):
        load_recipe(tmp_path / "absent.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(path)


def test_paths_are_relative_to_the_recipe_and_hub_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    for source, expected in (
        ("weights", str(tmp_path / "weights")),
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("timm:local-dir:weights", f"timm:local-dir:{tmp_path / 'weights'}"),
        ("timm:vit_base_patch16_224", "timm:vit_base_patch16_224"),
        ("timm:vit_base_patch16_224@w.bin", f"timm:vit_base_patch16_224@{tmp_path / 'w.bin'}"),
    ):
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, "model": {"source": source}}))
        recipe = load_recipe(path)
        assert recipe.model.source == expected
        assert recipe.data.verification.images == tmp_path / "v"


def test_a_timing_cache_is_relative_to_the_recipe_too(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "engine": {"timing_cache": "cache/t.bin"}}))
    engine = load_recipe(path).engine
    assert engine is not None and engine.timing_cache == tmp_path / "cache" / "t.bin"


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = parse_recipe({**MINIMAL, "gates": {"max_top1_drop": 1}}, where="r")
    again = parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), where="r")
    assert again == recipe


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).name
