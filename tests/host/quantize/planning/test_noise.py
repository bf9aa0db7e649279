"""The noise that layers add: what several measurements say together, and which layers are worth their work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import CALIBRATION
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.planning.islands import _worth_their_work
from vitexport.host.quantize.planning.noise import GroupNoise
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import QuantizeSettings


def noise(total: float, of: dict[str, float], **rounding: float) -> GroupNoise:
    return GroupNoise(1000.0, total, of, {name: (times,) for name, times in rounding.items()})


def test_a_group_that_more_images_did_not_measure_keeps_its_part() -> None:
    joined = noise(10.0, {"a": 4.0, "b": 1.0}).joined(noise(30.0, {"a": 6.0}))
    assert joined.signal == 2000
    assert joined.total == 40
    assert joined.of == {"a": 10.0, "b": pytest.approx(4.0)}


def test_clipped_is_what_half_of_the_images_show() -> None:
    found = noise(1.0, {}, x=9.0, y=1.0).joined(noise(1.0, {}, x=7.0, y=100.0)).joined(noise(1.0, {}, x=1.0, y=1.0))
    assert found.clipped == {"x": 7.0}


def test_the_row_ends_where_gains_less_prices_are_largest() -> None:
    # 20 % and then 5 % of the noise: 0.97 and 0.28 dB.
    of, work = {"a": 20.0, "b": 5.0, "c": 1.0}, {"a": 0.03, "b": 0.01, "c": 0.01}
    assert [group for group, _ in _worth_their_work(noise(100.0, of), list(of), work, 0.25)] == ["a", "b"]
    assert [group for group, _ in _worth_their_work(noise(100.0, of), list(of), work, 0.31)] == ["a"]
    assert _worth_their_work(noise(100.0, of), list(of), work, 0.4) == []


def test_a_group_below_its_price_is_kept_for_what_follows_it() -> None:
    """Alone neither pays; the second is worth more once the first is gone."""
    of, work = {"a": 60.0, "b": 38.0}, {"a": 0.02, "b": 0.02}
    chosen = _worth_their_work(noise(100.0, of), list(of), work, 2.5)
    assert [group for group, _ in chosen] == ["a", "b"]
    assert dict(chosen) == {"a": pytest.approx(0.6), "b": pytest.approx(0.95)}


def test_a_layer_may_read_what_another_makes_as_it_is(model: Path, tmp_path: Path) -> None:
    graph = read_onnx(model)
    gelu = next(node for node in graph.graph if node.op_type == "Gelu")
    gelu.outputs[0].replace_all_uses_with(gelu.inputs[0])
    graph.graph.remove(gelu)
    write_onnx(graph, tmp_path / "linear.onnx")
    images = list_images(CALIBRATION, limit=64)
    done = quantize_onnx(tmp_path / "linear.onnx", images, QuantizeSettings(target="portable"), tmp_path / "q.onnx")
    assert {"vit.layers.0.mlp.fc1", "vit.layers.0.mlp.fc2"} <= set(done.details["quantized"])
    assert done.details["quality"]["sqnr_db"] > 20
