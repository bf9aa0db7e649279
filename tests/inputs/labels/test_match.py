"""Which class a label means: by name, synonym, synset or index, and in that order."""

from __future__ import annotations

import pytest

from vitexport.errors import ImageError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.match import match

ANIMALS = Classes(4, ("tench, Tinca tinca", "hot dog", "crane", "Traffic_Light"))
TWELVE = Classes(12, tuple(str(number) for number in range(12)))
FROM_ONE = Classes(12, tuple(str(number) for number in range(1, 13)))


def indices(classes: Classes, *values: str) -> list[int]:
    return [match(values, classes).require("labels", classes).found[value][0] for value in values]


@pytest.mark.parametrize(
    ("value", "index", "rule"),
    [
        ("hot dog", 1, "exact class name"),
        ("tench, Tinca tinca", 0, "exact class name"),
        ("Hot_Dog", 1, "class name apart from case and separators"),
        ("hotdog", 1, "class name apart from case and separators"),
        ("traffic-light", 3, "class name apart from case and separators"),
        ("Tinca tinca", 0, "synonym of a class name"),
        ("tench", 0, "synonym of a class name"),
        ("2", 2, "index"),
        ("0002", 2, "index"),
    ],
)
def test_a_value_matches_by_the_strictest_rule_that_knows_it(value: str, index: int, rule: str) -> None:
    assert match([value], ANIMALS).found[value] == (index, rule)


def test_twelve_classes_named_by_numbers_are_their_names_whatever_order_text_sorts_them_in() -> None:
    assert indices(TWELVE, "0", "1", "10", "11", "2", "9") == [0, 1, 10, 11, 2, 9]
    assert indices(TWELVE, "00", "01", "11") == [0, 1, 11]


def test_class_names_win_over_indices_and_it_is_said() -> None:
    found = match(["1", "2", "11"], FROM_ONE)
    assert [index for index, _ in found.found.values()] == [0, 1, 10]
    assert found.note == "the labels are class names and were not read as indices"
    assert match(["0", "1", "11"], TWELVE).note == "", "both readings are the same"
    assert indices(FROM_ONE, "01", "12") == [0, 11], "zero-padded names"


def test_all_values_are_read_by_one_kind_of_rule() -> None:
    found = match([str(number) for number in range(12)], FROM_ONE)
    assert [index for index, _ in found.found.values()] == list(range(12))
    assert found.note == "'0' being no class name, the labels were read as indices"


def test_synsets_are_known_where_the_model_is_of_imagenet() -> None:
    classes = Classes(3, ("tench", "goldfish", "shark"), ("n01440764", "n01443537", "n01484850"))
    assert match(["n01484850", "n01440764"], classes).found == {
        "n01484850": (2, "synset"),
        "n01440764": (0, "synset"),
    }
    with pytest.raises(ImageError, match="of other names: 'n01440764'"):
        match(["n01440764"], ANIMALS).require("labels", ANIMALS)


def test_accents_composed_in_another_way_are_the_same_name() -> None:
    assert indices(Classes(2, ("caf\u00e9", "bar")), "cafe\u0301") == [0]


def test_unknown_names_are_listed_with_what_was_probably_meant_and_the_list_is_bounded() -> None:
    with pytest.raises(ImageError, match=r"found 1 of other names: 'trafic light' \(did you mean 'Traffic_Light'\?\)"):
        match(["crane", "trafic light"], ANIMALS).require("folders", ANIMALS)
    many = [f"thing {letter}" for letter in "abcdefghijklmn"]
    with pytest.raises(ImageError, match="found 14 of other names: .*'thing j' and 4 more"):
        match(many, ANIMALS).require("folders", ANIMALS)


def test_labels_out_of_range_are_listed() -> None:
    with pytest.raises(ImageError, match="within the model's 4 classes, 0 to 3, found -1, 4, 9"):
        match(["0", "9", "4", "-1"], Classes(4)).require("labels", Classes(4))


def test_names_for_a_model_without_any_ask_for_them() -> None:
    with pytest.raises(ImageError, match="the model has no class names, found 'cat', 'dog'") as caught:
        match(["cat", "dog"], Classes(2)).require("class folders", Classes(2))
    assert "--class-names" in caught.value.hint


def test_a_name_of_two_classes_is_refused_and_their_indices_are_told() -> None:
    classes = Classes(3, ("crane", "dog", "crane"))
    with pytest.raises(ImageError, match=r"several of that name: 'crane' \(0, 2\)"):
        match(["crane", "dog"], classes).require("labels", classes)
