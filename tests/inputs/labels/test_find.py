"""Where labels are found: files of every form, class folders, synsets in file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.labels import PETS, SEVERAL, TEN, found
from vitexport.errors import ImageError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.find import find_labels, labels_fingerprint
from vitexport.inputs.labels.rows import Columns


def test_class_folders_are_matched_by_name_and_not_by_their_order(tmp_path: Path) -> None:
    labels = found(tmp_path, ["Polar_Bear/1.png", "cat/1.png", "dog/1.png", "dog/2.png"])
    assert labels.targets == (2, 0, 1, 1)
    assert labels.rule == "class name apart from case and separators"
    assert [(entry.value, entry.index, entry.images) for entry in labels.mapping] == [
        ("cat", 0, 1),
        ("dog", 1, 2),
        ("Polar_Bear", 2, 1),
    ]
    assert str(labels) == "class folders, matched by class name apart from case and separators"


def test_folders_of_some_classes_are_fine_and_it_is_said(tmp_path: Path) -> None:
    labels = found(tmp_path, ["dog/1.png"])
    assert labels.targets == (1,)
    assert labels.notes == ("1 of the model's 3 classes have images",)


def test_folders_that_are_no_classes_are_an_error_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"class folders of '.*' to be classes .* 'fox', 'wolf'") as caught:
        found(tmp_path, ["cat/1.png", "fox/1.png", "wolf/1.png", "dog/1.png", "polar bear/1.png"])
    assert "--labels none" in caught.value.hint
    with pytest.raises(ImageError, match="one class each: 'Cat' and 'cat'"):
        found(tmp_path, ["cat/1.png", "Cat/2.png"])
    with pytest.raises(ImageError, match="found 1 beside them: 'stray.png'"):
        found(tmp_path, ["cat/1.png", "stray.png"])


def test_images_without_labels_have_none(tmp_path: Path) -> None:
    assert find_labels(tmp_path, [tmp_path / "a.png"], PETS) is None
    assert find_labels(tmp_path, [tmp_path / "monday" / "a.png"], PETS, "none") is None
    assert find_labels(tmp_path, [tmp_path / "cat" / "a.png"], None) is None, "no classifier"
    assert find_labels(tmp_path, [tmp_path / "x" / "monday" / "a.png"], PETS) is None


@pytest.mark.parametrize("names", [["cat/site/1.png", "dog/site/1.png"], ["site/cat/1.png", "site/dog/1.png"]])
def test_of_deeper_trees_the_level_counts_whose_names_are_classes(names: list[str], tmp_path: Path) -> None:
    assert found(tmp_path, names).targets == (0, 1)


IMAGENET = Classes(3, ("tench", "goldfish", "shark"), ("n01440764", "n01443537", "n01484850"))


@pytest.mark.parametrize(
    "names",
    [
        ["n01484850/a.JPEG", "n01440764/b.JPEG"],
        ["n01484850_10.JPEG", "n01440764_shark.JPEG"],
        ["ILSVRC2012_val_00000001_n01484850.JPEG", "ILSVRC2012_val_00000002_n01440764.JPEG"],
    ],
    ids=["folders", "prefixes", "suffixes"],
)
def test_synsets_are_found_in_folders_and_file_names(names: list[str], tmp_path: Path) -> None:
    labels = found(tmp_path, names, IMAGENET)
    assert (labels.targets, labels.rule) == ((2, 0), "synset")
    assert find_labels(tmp_path, [tmp_path / "n01484850_10.JPEG"], PETS) is None, "the model knows no synsets"


COCO = {
    "images": [{"id": 7, "file_name": "1.png"}, {"id": 9, "file_name": "2.png"}],
    "annotations": [{"image_id": 9, "category_id": 3}, *[{"image_id": 7, "category_id": 5}] * 2],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "polar bear"}],
}

FORMS = {
    "table.csv": "file,label\ncat/1.png,polar bear\n2.png,cat\n",
    "semicolons.csv": "\ufefffile_name;Class\r\ncat/1.png;polar bear\r\n2.png;cat\r\n",
    "tabs.tsv": "image\tcategory\ncat/1.png\tpolar bear\n2.png\tcat\n",
    "quoted.csv": 'path,label\n"./cat/1.png","polar bear"\n"C\\2.png",cat\n',
    "indices.csv": "id,target\n1,2\n2,0\n",
    "pandas.csv": ",file,label\n0,1.png,2.0\n1,2.png,0.0\n",
    "one-hot.csv": "image,cat,dog,polar bear\n1.png,0.0,0.0,1.0\n2.png,1.0,0.0,0.0\n",
    "manifest.json": '{"images": [{"file": "x/cat/1.png", "label": 2}, {"file": "x/2.png", "label": "cat"}]}',
    "list.json": '[{"file_name": "1.png", "label": "polar_bear"}, {"file_name": "2.png", "label": "Cat"}]',
    "names.json": '{"1.png": "polar bear", "2.png": "cat"}',
    "numbers.json": '{"cat/1.png": 2, "2.png": 0}',
    "coco.json": json.dumps(COCO),
    "split.csv": "image,split,cat,dog,polar bear\n1.png,val,0,0,1\n2.png,val,1,0,0\n",
    "metadata.jsonl": '{"file_name": "1.png", "label": "polar bear"}\n\n{"file_name": "2.png", "label": "cat"}\n',
}


@pytest.mark.parametrize("name", [name for name in FORMS if name != "manifest.json"])
def test_every_form_of_a_labels_file_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert found(tmp_path / "x", ["cat/1.png", "2.png"], labels_file=tmp_path / name).targets == (2, 0)


def test_a_manifest_of_names_and_indices_at_once_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(FORMS["manifest.json"])
    with pytest.raises(ImageError, match="labels in '.*' to be .*found 2"):
        found(tmp_path / "x", ["cat/1.png", "2.png"], labels_file=tmp_path / "labels.json")


def test_forms_of_manifests_and_synsets_keep_working(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    names = ["cat/n01_a.png", "dog/n02_b.png"]
    file = tmp_path / "labels.json"
    for content, expected in (
        ({"images": [{"file": "cat/n01_a.png", "label": 7}, {"file": "dog/n02_b.png", "label": 3}]}, (7, 3)),
        ({"cat/n01_a.png": 5, "n02_b.png": 6}, (5, 6)),
        ({"n01": {"index": 4, "label": "cat"}, "n02": {"index": 2, "label": "dog"}}, (4, 2)),
        ({"cat": 1, "dog": 0}, (1, 0)),
    ):
        file.write_text(json.dumps(content))
        assert found(folder, names, TEN, labels_file=file).targets == expected


@pytest.mark.parametrize("name", ["manifest.json", "metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("place", [".", "hold"])
def test_a_file_in_or_beside_the_folder_is_found(name: str, place: str, tmp_path: Path) -> None:
    content = {
        "manifest.json": '{"images": [{"file": "hold/a.png", "label": "dog"}]}',
        "metadata.csv": "file_name,label\na.png,dog\n",
        "metadata.jsonl": '{"file_name": "a.png", "label": "dog"}\n',
    }
    (tmp_path / "hold").mkdir()
    (tmp_path / place / name).write_text(content[name])
    labels = found(tmp_path / "hold", ["a.png"])
    assert (labels.targets, labels.origin) == ((1,), name if place == "hold" else f"{name} beside the folder")


def test_metadata_that_holds_no_labels_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,a dog\n")
    assert find_labels(tmp_path, [tmp_path / "a.png"], PETS) is None


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("label,picture,species\n9,a.png,dog\n")
    columns = Columns("picture", "species")
    assert found(tmp_path, ["a.png"], labels_file=file, columns=columns).targets == (1,)
    with pytest.raises(ImageError, match="Expected a column for the file .*'label', 'picture', 'species'") as caught:
        found(tmp_path, ["a.png"], labels_file=file)
    assert "--file-column" in caught.value.hint
    with pytest.raises(ImageError, match="Expected a column 'kind' in"):
        found(tmp_path, ["a.png"], labels_file=file, columns=Columns("picture", "kind"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[", "no JSON at line 1, column 2"),
        ("a.json", '{"a.png": null}', "Expected a label in .*for 'a.png', found nothing"),
        ("a.json", '{"images": [{"file": "a.png"}]}', "Expected a column for the label"),
        ("a.json", '{"images": ["a.png"]}', "entry 1, found 'a.png'"),
        ("a.json", "3", "Expected labels in .*, found int"),
        ("a.json", '{"images": []}', "found none"),
        ("a.jsonl", '{"file": "a.png", "label": 1}\n{"file":\n', "no JSON at line 2, column"),
        ("a.csv", "file,label\na.png,cat,dog\n", "Expected 2 cells in .*line 2, found 3"),
        ("a.csv", 'file,label\n"a.png,cat\n', "Expected a table in .*line 2"),
        ("a.csv", "file,label\na.png,\n", "line 2, found nothing"),
        ("a.csv", "file,label\n,cat\n", "Expected a file name in .*line 2"),
        ("a.csv", "file,label\na.png,cat\na.png,dog\n", "'cat' in line 2 and 'dog' in line 3"),
        ("a.csv", "", "found none"),
        ("a.csv", "file,label\nb.png,cat\n", "Expected a label for 'a.png' in"),
        ("a.csv", "a.png,cat\n", "found none"),
        ("a.csv", "a.png,cat\nb.png,dog\n", "found the columns 'a.png', 'cat'"),
        ("a.xlsx", "PK", "Expected labels as .csv"),
        ("a.csv", b"\xff\xfef\x00", "Expected UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_the_place(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ImageError, match=message):
        found(tmp_path, ["a.png"], labels_file=file)


def test_files_of_one_name_in_several_folders_keep_their_own_labels(tmp_path: Path) -> None:
    entries = [{"file": "hold/cat/1.png", "label": 4}, {"file": "hold/dog/1.png", "label": 9}]
    (tmp_path / "manifest.json").write_text(json.dumps({"images": entries}))
    folder = tmp_path / "hold"
    assert found(folder, ["dog/1.png", "cat/1.png"], TEN).targets == (9, 4)
    with pytest.raises(ImageError, match="Expected a label for 'bird/1.png'"):
        found(folder, ["bird/1.png"], TEN)


@pytest.mark.parametrize("place", ["C:\\data\\val\\", "/home/somebody/val/", "val/"])
def test_entries_of_another_machine_are_found_by_the_ending_they_share(place: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    rows = [f"{place}{name}/1.png,{label}" for name, label in (("a", "cat"), ("b", "dog"))]
    file.write_text("\n".join(["file,label", *rows]))
    assert found(tmp_path, ["b/1.png", "a/1.png"], labels_file=file).targets == (1, 0)
    with pytest.raises(ImageError, match="Expected a label for 'c/1.png'"):
        found(tmp_path, ["c/1.png"], labels_file=file)


@pytest.mark.parametrize("entry", ["1.png", "1", "cat/1.png"])
def test_an_entry_that_names_two_images_is_refused(entry: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({entry: "cat"}))
    with pytest.raises(ImageError, match=f"one image that '{entry}' in '.*' names, found 'cat/1.png' and 'dog/1.png'"):
        found(tmp_path, ["cat/1.png", "dog/1.png"], labels_file=tmp_path / "labels.json")


def test_the_categories_of_an_image_in_coco_are_its_labels(tmp_path: Path) -> None:
    file = tmp_path / "coco.json"
    several = {**COCO, "annotations": [*COCO["annotations"], {"image_id": 7, "category_id": 3}]}
    file.write_text(json.dumps({**several, "images": [*COCO["images"], {"id": 1, "file_name": "3.png"}]}))
    assert found(tmp_path, ["1.png", "2.png", "3.png"], SEVERAL, labels_file=file).targets == ((0, 2), (0,), ())
    with pytest.raises(ImageError, match="Expected one label for '1.png', .* found 'polar bear', 'cat'"):
        found(tmp_path, ["1.png"], labels_file=file)
    file.write_text(json.dumps({**COCO, "annotations": [{"image_id": 8, "category_id": 3}]}))
    with pytest.raises(ImageError, match="annotations as COCO has them in '.*', found an entry without 8"):
        found(tmp_path, ["1.png"], labels_file=file)


def test_labels_for_a_model_that_is_no_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found a model without classes"):
        find_labels(tmp_path, [tmp_path / "a.png"], None, tmp_path / "labels.csv")


def test_what_is_read_beside_the_images_counts_for_resume(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("file,label\na.png,cat\n")
    first = labels_fingerprint(tmp_path, file, Columns())
    assert labels_fingerprint(tmp_path, file, Columns()) == first
    assert labels_fingerprint(tmp_path, file, Columns(label="other")) != first
    assert labels_fingerprint(tmp_path, None, Columns()) != labels_fingerprint(tmp_path, "none", Columns())
    file.write_text("file,label\na.png,dog\n")
    assert labels_fingerprint(tmp_path, file, Columns()) != first
    with pytest.raises(ImageError, match="found no file"):
        labels_fingerprint(tmp_path, tmp_path / "gone.csv", Columns())


def test_a_typo_is_an_error_also_beside_stray_or_nested_images(tmp_path: Path) -> None:
    folders = ["cat/1.png", "dgo/1.png", "polar bear/1.png"]
    for other in ("stray.png", "cat/extra/2.png"):
        with pytest.raises(ImageError, match=r"class folders of '.*' to be classes .* 'dgo'"):
            found(tmp_path, [*folders, other])


def test_names_inside_of_numbered_folders_win_over_their_numbers(tmp_path: Path) -> None:
    labels = found(tmp_path, ["0/cat/1.png", "0/dog/1.png", "1/cat/2.png", "2/polar bear/1.png"])
    assert labels.targets == (0, 1, 0, 2)
    assert labels.rule == "exact class name"


def test_a_column_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a table of labels for the column 'kind'"):
        found(tmp_path, ["cat/1.png"], columns=Columns(label="kind"))
