"""Graphs that draw numbers are found wherever the operator hides, and only those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.ir_graphs import graph
from vitexport.errors import SimplifyError
from vitexport.host.graph.randomness import describe_random, random_nodes
from vitexport.host.graph.scopes import MODULE_KEY
from vitexport.host.simplify import simplify_onnx
from vitexport.recipe.settings import SimplifySettings

IN, OUT = "g (float[2, 4] x", "=> (float[2, 4] y)"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{IN}) {OUT} {{ n = RandomUniformLike(x) y = Add(x, n) }}", ["RandomUniformLike"]),
        (f"{IN}) {OUT} {{ n = RandomNormalLike(x) y = Add(x, n) }}", ["RandomNormalLike"]),
        (f"{IN}) {OUT} {{ n = RandomNormal <shape = [2, 4]> () y = Add(x, n) }}", ["RandomNormal"]),
        (f"{IN}) {OUT} {{ n = RandomUniform <shape = [2, 4]> () y = Add(x, n) }}", ["RandomUniform"]),
        (f"{IN}) {OUT} {{ y = Bernoulli(x) }}", ["Bernoulli"]),
        (
            f"{IN}) {OUT} {{ n = Multinomial <sample_size = 4> (x) m = Cast <to = 1> (n) y = Add(x, m) }}",
            ["Multinomial"],
        ),
        (f"{IN}, float half, bool train) {OUT} {{ y = Dropout(x, half, train) }}", ["Dropout"]),
        (f"{IN}, float half, bool no) {OUT} {{ y = Dropout(x, half, no) }}", []),
        (f"{IN}) {OUT} {{ y = Dropout(x) }}", []),
        (f"{IN}) {OUT} {{ y = Relu(x) }}", []),
        (
            f"{IN}, bool train) {OUT} {{ y = If(train) "
            "<then_branch = a () => (float[2, 4] p) { p = RandomUniformLike(x) },"
            " else_branch = b () => (float[2, 4] q) { q = Identity(x) }> }",
            ["RandomUniformLike"],
        ),
    ],
)
def test_random_operators_are_found(text: str, found: list[str]) -> None:
    weights = {"half": np.float32(0.5), "train": np.array(True), "no": np.array(False)}
    given = {name: np.asarray(array) for name, array in weights.items() if f" {name}" in text.split("=>")[0]}
    assert [node.op_type for node in random_nodes(graph(text, given))] == found


def test_a_dropout_whose_mode_is_an_input_counts_as_random() -> None:
    model = graph(
        f"{IN}, float half, bool train) {OUT} {{ y = Dropout(x, half, train) }}", {"half": np.asarray(np.float32(0.5))}
    )
    assert len(random_nodes(model)) == 1


def test_functions_are_looked_into() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        g (float[2, 4] x) => (float[2, 4] y) { y = mine.Noise(x) }
        <domain: "mine", opset_import: ["" : 20]> Noise (a) => (b) { b = RandomNormalLike(a) }"""
    )
    assert [node.op_type for node in random_nodes(model)] == ["RandomNormalLike"]


def test_the_description_names_the_modules_and_is_bounded() -> None:
    nodes = [ir.node("Bernoulli", [], metadata_props={MODULE_KEY: f"blocks.{i}.drop"}) for i in range(5)]
    assert describe_random(tuple(nodes)) == (
        "Bernoulli in blocks.0.drop, Bernoulli in blocks.1.drop, Bernoulli in blocks.2.drop and 2 more"
    )
    assert describe_random((ir.node("Bernoulli", []),)) == "Bernoulli"


def test_simplify_refuses_a_random_graph(tmp_path: Path) -> None:
    ir.save(graph(f"{IN}) {OUT} {{ n = RandomUniformLike(x) y = Add(x, n) }}"), tmp_path / "m.onnx")
    with pytest.raises(SimplifyError, match="draws random numbers: RandomUniformLike"):
        simplify_onnx(tmp_path / "m.onnx", SimplifySettings(), tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()
