"""Layers that the user names stay float: by module, group, pattern and role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.support.paths import CALIBRATION
from vitexport.errors import QuantizeError
from vitexport.host.graph.layers import find_attention
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.planning.exclude import find_excluded
from vitexport.host.quantize.planning.layers import choose_layers
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import QuantizeSettings

IMAGES = list_images(CALIBRATION, limit=64)


@pytest.fixture(scope="module")
def graph(model: Path) -> ir.Model:
    return ir.load(model)


def excluded(graph: ir.Model, *entries: str, attention: bool = False) -> dict[str, str]:
    names = [one.name for one in find_attention(graph)] if attention else []
    return dict(find_excluded(graph, choose_layers(graph, where="model"), names, entries).reasons)


@pytest.mark.parametrize(
    ("entry", "groups"),
    [
        ("vit.layers.1.mlp.fc2", ["1.fc2"]),
        ("vit.layers.*.mlp.fc2", ["0.fc2", "1.fc2", "2.fc2", "3.fc2"]),
        ("1.fc2", ["1.fc2"]),
        ("fc2", ["0.fc2", "1.fc2", "2.fc2", "3.fc2"]),
        ("*.proj", ["0.proj", "1.proj", "2.proj", "3.proj"]),  # whose modules are called o_proj
        ("3.*", ["3.qkv", "3.proj", "3.fc1", "3.fc2"]),
        ("vit.layers.2.mlp", ["2.fc1", "2.fc2"]),
        ("vit.layers.0.attention.q_proj", ["0.qkv"]),  # merged into one projection
        ("[12].fc1", ["1.fc1", "2.fc1"]),
    ],
)
def test_an_entry_names_modules_groups_patterns_or_roles(graph: ir.Model, entry: str, groups: Sequence[str]) -> None:
    assert excluded(graph, entry) == dict.fromkeys(groups, f"excluded by `{entry}`")


def test_attention_is_named_like_a_layer_and_only_where_it_would_be_quantized(graph: ir.Model) -> None:
    assert excluded(graph, "1.attention", attention=True) == {"1.attention": "excluded by `1.attention`"}
    assert len(excluded(graph, "*.attention", attention=True)) == len(find_attention(graph))
    assert len(excluded(graph, "1.*", attention=True)) == 5
    assert excluded(graph, "attention") == {}
    assert excluded(graph, "classifier") == {}  # stays float anyway


@pytest.mark.parametrize(
    ("entry", "near"),
    [
        ("vit.layers.1.mlp.fc3", "`vit.layers.1.mlp.fc2`"),
        ("*.mlp", "`*.mlp.*`"),
        ("1.pro", "`1.proj`"),
        ("fc", "`fc1`"),
        ("nothing", "a group such as `0.qkv`"),
        ("FC2", "a role (qkv, proj, fc1, fc2, attention)"),
    ],
)
def test_an_entry_that_names_nothing_is_refused_with_names_near_it(graph: ir.Model, entry: str, near: str) -> None:
    with pytest.raises(QuantizeError, match="Expected `quantize.exclude` to name layers") as caught:
        excluded(graph, "fc1", entry)
    assert entry in caught.value.message and near in caught.value.hint


def test_something_must_be_left(graph: ir.Model) -> None:
    with pytest.raises(QuantizeError, match="found every layer excluded by 'qkv', 'proj', 'fc\\*'"):
        excluded(graph, "qkv", "proj", "fc*")


def test_excluded_layers_stay_float_with_their_reason_and_are_no_islands(model: Path, tmp_path: Path) -> None:
    settings = QuantizeSettings(
        target="portable", preset="fast", attention="int8", exclude=("*.fc2", "1.attention", "0.*")
    )
    details = quantize_onnx(model, IMAGES, settings, tmp_path / "q.onnx").details
    reasons = details["kept_float_reasons"]
    assert {group: reasons[group] for group in ("2.fc2", "1.attention", "0.attention", "0.fc2")} == {
        "2.fc2": "excluded by `*.fc2`",
        "1.attention": "excluded by `1.attention`",
        "0.attention": "excluded by `0.*`",
        "0.fc2": "excluded by `*.fc2`",
    }
    assert not {"0.proj", "0.fc2", "3.fc2"} & set(details["islands"]["kept_float"])
    assert not any(group.endswith(".fc2") for entry in details["ranges"] for group in entry["groups"])
    assert len(details["kept_float"]) == len(set(details["kept_float"])) == len(reasons)
    assert "vit.layers.2.mlp.fc2" in details["kept_float"] and "vit.layers.1.attention" in details["kept_float"]
    readers = {node.name: node.inputs[0] for node in ir.load(tmp_path / "q.onnx").graph if node.op_type == "MatMul"}
    floats = [value for name, value in readers.items() if "mlp.fc2" in name]
    assert floats and all(value is None or value.producer().op_type == "Gelu" for value in floats)  # type: ignore[union-attr]


def test_only_what_quantizes_layers_can_exclude_them(model: Path, tmp_path: Path) -> None:
    settings = QuantizeSettings(precision="fp16", target="tensorrt", exclude=("fc2",))
    with pytest.raises(QuantizeError, match="found fp16, which quantizes none"):
        quantize_onnx(model, IMAGES, settings, tmp_path / "q.onnx")


def test_a_statistics_file_serves_runs_that_exclude_other_layers(model: Path, tmp_path: Path) -> None:
    statistics = tmp_path / "statistics.npz"
    made = []
    for entries in (("*.fc2",), (), ("qkv",)):
        settings = QuantizeSettings(target="tensorrt", preset="fast", exclude=entries)
        quantize_onnx(model, IMAGES, settings, tmp_path / "q.onnx", statistics=statistics)
        made.append(statistics.stat().st_mtime_ns)
    assert made[0] == made[1] == made[2]
