"""Class names from files of every form, and from the folders of the training images."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitexport.errors import ModelSourceError
from vitexport.inputs.labels.class_names import read_class_names
from vitexport.inputs.labels.classes import Classes

FORMS = {
    "names.txt": "\ufeffzebra\r\npolar bear\r\nant\r\n",
    "names.json": '["zebra", "polar bear", "ant"]',
    "id2label.json": '{"2": "ant", "0": "zebra", "1": "polar bear"}',
    "class_to_idx.json": '{"ant": 2, "polar bear": 1, "zebra": 0}',
    "config.json": '{"model_type": "vit", "id2label": {"0": "zebra", "1": "polar bear", "2": "ant"}}',
    "names.csv": "name\nzebra\npolar bear\nant\n",
    "numbered.csv": "index,name\n2,ant\n0,zebra\n1,polar bear\n",
    "tabs.tsv": "id\tlabel\n0\tzebra\n1\tpolar bear\n2\tant\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_names_by_index(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert read_class_names(tmp_path / name) == ("zebra", "polar bear", "ant")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"1": "cat", "2": "dog"}', "the indices 0 to 1 for the 2 classes .*found 1, 2"),
        ("a.csv", "index,name\n0,cat\n0,dog\n", "found 0, 0"),
        ("a.csv", "index,name\nx,cat\n", "line 2: 'x'"),
        ("a.csv", "number,word\n0,cat\n", "Expected a column 'name'"),
        ("a.json", "[1, 2]", "a list of something else"),
        ("a.json", "{", "no JSON"),
        ("a.txt", "\n", "found none"),
    ],
)
def test_what_is_no_list_of_names_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelSourceError, match=message):
        read_class_names(tmp_path / name)
    with pytest.raises(ModelSourceError, match=r"Expected a file at .*gone.txt"):
        read_class_names(tmp_path / "gone.txt")


def test_folders_of_training_images_are_numbered_as_torchvision_does_it(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "polar bear", ".cache"):
        (tmp_path / name).mkdir()
    assert read_class_names(tmp_path) == ("ant", "polar bear", "zebra")


@pytest.mark.parametrize("names", [("1", "2", "10"), ("Zebra", "ant")])
def test_folders_that_timm_numbers_in_another_order_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(ModelSourceError, match="have two orders: class"):
        read_class_names(tmp_path)


def test_another_number_of_names_than_outputs_is_an_error_that_names_both() -> None:
    with pytest.raises(ModelSourceError, match="Expected 3 class names in 'names.txt', .* found 2"):
        Classes(3).with_names(("a", "b"), where="names.txt")


def test_a_models_own_names_in_another_order_are_refused(tmp_path: Path) -> None:
    own = Classes(3, ("cat", "dog", "car"))
    with pytest.raises(ModelSourceError, match="found 'car' for output 0, which the model calls 'cat'"):
        own.with_names(("car", "cat", "dog"), where="names.txt")
    assert own.with_names(own.names, where="names.txt").names == own.names
    assert own.with_names(("Katze", "Hund", "Auto"), where="names.txt").names == ("Katze", "Hund", "Auto")
