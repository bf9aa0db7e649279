"""The plot of massive activations and rotation."""

from __future__ import annotations

from typing import Any

from vitexport.report.activations_plot import activations


def entry(block: int, *, reach: float, rotation: int | None = None, kept: bool = False) -> dict[str, Any]:
    ranges = {"seen": [-0.17, reach], "transformed": [-1.5, reach / 8], "median_channel": 2.1}
    return {"groups": [f"{block}.fc2"], "rotation": rotation, "kept_float": kept, **ranges}


def document(*entries: dict[str, Any]) -> dict[str, Any]:
    other = {"groups": ["0.qkv"], "rotation": None, "kept_float": False}
    return {"quantization": {"int8": {"ranges": [*entries, other]}}}


def test_it_says_in_words_what_it_shows() -> None:
    made = document(entry(1, reach=8, rotation=16), entry(0, reach=16, rotation=64), entry(7, reach=217.5, kept=True))
    (figure,) = activations(made)
    said = (
        "Block 7 reaches furthest: 218, where its median channel reaches 2.1. 2 of 3 blocks are rotated. In float: 7."
    )
    assert said in figure.summary and said in figure.svg
    for label in ("median channel", "largest, seen", "rotated", "stays float"):
        assert f">{label}<" in figure.svg
    assert len(figure.svg) < 15_000


def test_a_block_that_stays_float_is_not_rotated_though_it_was_planned() -> None:
    (figure,) = activations(document(entry(0, reach=4), entry(1, reach=9, rotation=16, kept=True)))
    assert "No block is rotated. In float: 1." in figure.summary and ">rotated<" not in figure.svg


def test_nothing_is_drawn_where_there_is_nothing_to_explain() -> None:
    assert activations(document(entry(0, reach=4), entry(1, reach=5))) == []
    assert activations(document(entry(0, reach=4, rotation=16))) == []
    assert activations({"quantization": {"int8": {"ranges": [{"layers": ["an older bundle's"]}]}}}) == []
