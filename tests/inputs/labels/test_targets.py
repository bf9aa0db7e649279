"""What labels of other heads mean: several labels at once, a single one, values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.labels import SEVERAL, found
from vitexport.errors import ImageError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.targets import Target
from vitexport.scoring import Scoring


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"1.png": ["dog", "cat"], "2.png": [], "3.png": "Polar_Bear"}'),
        ("a.json", '{"1.png": [0, 1], "2.png": [], "3.png": 2}'),
        ("a.csv", "file,labels\n1.png,dog;cat\n2.png,\n3.png,polar bear\n"),
        ("a.csv", "file,labels\n1.png,dog|cat\n2.png,\n3.png,polar bear\n"),
        ("a.csv", 'file,labels\n1.png,"dog,cat"\n2.png,\n3.png,polar bear\n'),
        ("a.csv", "file,labels\n1.png,1 0\n2.png,\n3.png,2\n"),
        ("a.csv", 'file,labels\n1.png,"[""dog"", ""cat""]"\n2.png,[]\n3.png,polar bear\n'),
        ("a.csv", "file,polar bear,cat,dog\n1.png,0,1,1\n2.png,0,0,0\n3.png,1,,\n"),
        (
            "a.jsonl",
            '{"file": "1.png", "cat": true, "dog": 1}\n{"file": "2.png"}\n{"file": "3.png", "polar bear": 1}\n',
        ),
    ],
)
def test_several_labels_of_an_image_are_the_set_of_their_indices(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    labels = found(tmp_path, ["1.png", "2.png", "3.png"], SEVERAL, labels_file=tmp_path / name)
    assert labels.targets == ((0, 1), (), (2,))


def test_rows_of_one_file_add_up_where_several_labels_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label\n1.png,dog\n1.png,cat\n")
    assert found(tmp_path, ["1.png"], SEVERAL, labels_file=tmp_path / "a.csv").targets == ((0, 1),)


def test_several_labels_for_one_class_of_several_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"1.png": ["dog", "cat"]}')
    with pytest.raises(ImageError, match="Expected one label for '1.png', .* found 'dog', 'cat'"):
        found(tmp_path, ["1.png"], labels_file=tmp_path / "a.json")


@pytest.mark.parametrize(
    ("classes", "values", "expected"),
    [
        (Classes(1, scoring="sigmoid"), ["1", "0", "yes", "false"], ((0,), (), (0,), ())),
        (Classes(1, ("cat",), scoring="sigmoid"), ["cat", "not_cat", "Cat", "no cat"], ((0,), (), (0,), ())),
        (Classes(1, scoring="none"), ["1", "2.5", "-3e-1", "0"], (1.0, 2.5, -0.3, 0.0)),
        (Classes(2, scoring="none"), ["1 2", "2.5;1", "0 0", "3 4"], ((1.0, 2.0), (2.5, 1.0), (0.0, 0.0), (3.0, 4.0))),
    ],
)
def test_one_output_takes_presence_and_a_regression_takes_values(
    classes: Classes, values: list[str], expected: tuple[Target, ...], tmp_path: Path
) -> None:
    rows = "\n".join(f"{index}.png,{value}" for index, value in enumerate(values))
    (tmp_path / "a.csv").write_text(f"file,label\n{rows}\n")
    names = [f"{index}.png" for index in range(4)]
    assert found(tmp_path, names, classes, labels_file=tmp_path / "a.csv").targets == expected


@pytest.mark.parametrize(
    ("scoring", "message"),
    [("sigmoid", "whether the model's one label is there, found 'maybe'"), ("none", "Expected a number for 'a.png'")],
)
def test_what_a_single_output_cannot_mean_is_refused(scoring: Scoring, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label\na.png,maybe\n")
    with pytest.raises(ImageError, match=message):
        found(tmp_path, ["a.png"], Classes(1, scoring=scoring), labels_file=tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a.png": [0, 1, 0], "b.png": [1, 0, 1]}, ((1,), (0, 2))),
        ({"a.png": [0.0, 1.0, 0.0], "b.png": [0, 0, 0]}, ((1,), ())),
        ({"a.png": [1, 2], "b.png": [0]}, ((1, 2), (0,))),
    ],
)
def test_a_number_for_every_output_says_which_labels_are_there(
    content: dict[str, list[float]], expected: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = found(tmp_path, ["a.png", "b.png"], SEVERAL, labels_file=tmp_path / "labels.json")
    assert labels.targets == expected


def test_a_vector_in_one_cell_is_a_vector_and_a_label_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,labels\na.png,0 1 1\nb.png,1 0 0\n")
    labels = found(tmp_path, ["a.png", "b.png"], SEVERAL, labels_file=tmp_path / "labels.csv")
    assert labels.targets == ((1, 2), (0,))
    assert {entry.rule for entry in labels.mapping} == {"present or absent"}
    (tmp_path / "labels.csv").write_text("file,labels\na.png,0 1 1\nb.png,2\n")
    with pytest.raises(ImageError, match=r"each label of 'a.png' once, found '1' 2 times"):
        found(tmp_path, ["a.png", "b.png"], SEVERAL, labels_file=tmp_path / "labels.csv")


def test_a_single_label_may_be_called_by_a_word_of_absence(tmp_path: Path) -> None:
    one = Classes(1, ("no",), scoring="sigmoid")
    assert found(tmp_path, ["no/1.png", "not no/1.png"], one).targets == ((0,), ())
    with pytest.raises(ImageError, match="found 'yes'"):
        found(tmp_path, ["no/1.png", "yes/1.png"], one)
