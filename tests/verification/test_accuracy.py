from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vitexport.errors import ImageError
from vitexport.inputs.labels import find_targets
from vitexport.verification.accuracy import accuracy, compare_top1


def one_hot(classes: list[int], count: int = 10) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[classes]


def test_top1_and_top5() -> None:
    logits = np.array([[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6]], np.float32)
    found = accuracy(logits, [4, 5])
    assert (found.images, found.top1, found.top5) == (2, 0.5, 1.0)
    assert accuracy(logits, [5, 0]).top5 == 0.0


def test_mcnemar_counts_only_disagreements() -> None:
    truth = [0] * 20
    reference = one_hot([0] * 19 + [1])
    candidate = one_hot([1] * 8 + [0] * 12)
    found = compare_top1(reference, candidate, truth)
    assert (found.only_reference, found.only_candidate) == (8, 1)
    assert found.drop_points == pytest.approx(35)
    # Two-sided binomial: 2 * (C(9,0) + C(9,1)) / 2^9
    assert found.p_value == pytest.approx(2 * 10 / 512)
    low, high = found.interval_points
    assert low < 35 < high


def test_no_disagreement_is_no_evidence() -> None:
    same = one_hot([0, 1, 2])
    found = compare_top1(same, same, [0, 1, 1])
    assert found.drop_points == 0 and found.p_value == 1
    low, high = found.interval_points
    assert -60 < low < -50 and 50 < high < 60  # three images tell next to nothing


def test_labels_come_from_manifest_name_synset_or_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    paths = [folder / "cat" / "n01_a.png", folder / "dog" / "n02_b.png"]
    assert find_targets(folder, paths) == (0, 1)
    file = tmp_path / "labels.json"
    for content, expected in (
        ({"images": [{"file": "cat/n01_a.png", "label": 7}, {"file": "dog/n02_b.png", "label": 3}]}, (7, 3)),
        ({"cat/n01_a.png": 5, "n02_b.png": 6}, (5, 6)),
        ({"n01": {"index": 4, "label": "cat"}, "n02": {"index": 2, "label": "dog"}}, (4, 2)),
        ({"cat": 1, "dog": 0}, (1, 0)),
    ):
        file.write_text(json.dumps(content))
        assert find_targets(folder, paths, file) == expected
    flat = [tmp_path / "a.png"]
    assert find_targets(tmp_path, flat) is None


def test_a_manifest_beside_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"images": [{"file": "hold/a.png", "label": 2}]}))
    assert find_targets(tmp_path / "hold", [tmp_path / "hold" / "a.png"]) == (2,)


def test_labels_that_miss_an_image_or_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text('{"other.png": 1}')
    with pytest.raises(ImageError, match="Expected a label for 'a.png'"):
        find_targets(tmp_path, [tmp_path / "a.png"], file)
    for content in ("[", '{"a.png": "cat"}', '{"images": [{"file": "a.png"}]}'):
        file.write_text(content)
        with pytest.raises(ImageError, match="Expected labels in"):
            find_targets(tmp_path, [tmp_path / "a.png"], file)


def test_files_of_one_name_in_several_folders_keep_their_own_labels(tmp_path: Path) -> None:
    entries = [{"file": "hold/cat/1.png", "label": 4}, {"file": "hold/dog/1.png", "label": 9}]
    (tmp_path / "manifest.json").write_text(json.dumps({"images": entries}))
    folder = tmp_path / "hold"
    assert find_targets(folder, [folder / "dog" / "1.png", folder / "cat" / "1.png"]) == (9, 4)
    with pytest.raises(ImageError, match="Expected a label for 'bird/1.png'"):
        find_targets(folder, [folder / "bird" / "1.png"])
