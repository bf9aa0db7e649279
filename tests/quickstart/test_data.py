"""The quickstart's images are what ``calib/manifest.json`` says, and its three splits share nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.paths import ROOT
from vitexport.files import sha256_file
from vitexport.inputs.images import content_hashes, list_images, load_image
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.find import find_labels

CALIB = ROOT / "calib"
SPLITS = ("calibration", "holdout")


def files_of(manifest: dict[str, Any], split: str) -> list[Path]:
    return [CALIB / image["file"] for image in manifest["images"] if image["split"] == split]


def without_hashes(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "images": [{**image, "sha256": None} for image in manifest["images"]]}


def test_manifest_lists_exactly_the_files_on_disk_with_their_hashes(manifest: dict[str, Any]) -> None:
    listed = {CALIB / image["file"]: image["sha256"] for image in manifest["images"]}
    assert len(listed) == len(manifest["images"])
    assert listed == {path: sha256_file(path) for path in list_images(CALIB)}


@pytest.mark.parametrize(("split", "total"), [("calibration", 128), ("holdout", 360)])
def test_every_class_has_the_same_share_of_a_split(manifest: dict[str, Any], split: str, total: int) -> None:
    labels = Counter(image["label"] for image in manifest["images"] if image["split"] == split)
    assert sum(labels.values()) == total
    assert set(labels) == set(range(10))
    assert max(labels.values()) - min(labels.values()) <= 1


def test_file_names_say_split_source_and_label(manifest: dict[str, Any]) -> None:
    for image in manifest["images"]:
        label = manifest["labels"][image["label"]]
        assert image["file"] == f"{image['split']}/{image['source_index']:04d}_{label}.png"


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_found_from_the_image_folder_alone(manifest: dict[str, Any], split: str) -> None:
    expected = {CALIB / image["file"]: image["label"] for image in manifest["images"] if image["split"] == split}
    paths = list_images(CALIB / split)
    found = find_labels(CALIB / split, paths, Classes(10, tuple("0123456789")))
    assert found is not None
    assert found.targets == tuple(expected[path] for path in paths)


def test_no_source_index_is_in_two_splits(manifest: dict[str, Any]) -> None:
    training = manifest["training_source_indices"]
    indices = [image["source_index"] for image in manifest["images"]] + training
    assert len(training) == 1309
    assert len(set(indices)) == len(indices)


def test_calibration_and_holdout_share_no_file_and_no_pixels(manifest: dict[str, Any]) -> None:
    paths = files_of(manifest, "calibration") + files_of(manifest, "holdout")
    assert len({sha256_file(path) for path in paths}) == len(paths) == 488
    assert len(set(content_hashes(paths))) == len(paths)


def test_training_shares_no_pixels_with_calibration_and_holdout(
    digits_script: ModuleType, manifest: dict[str, Any], tmp_path: Path
) -> None:
    """Compared as the data set has the pixels, and as PNG files have them."""
    splits = digits_script.load_splits()
    trained = {digit.digest for digit in splits.training}
    assert len(trained) == 1309
    assert not trained & {digit.digest for digit in (*splits.calibration, *splits.holdout)}

    rendered = [tmp_path / f"{digit.index}.png" for digit in splits.training]
    for path, digit in zip(rendered, splits.training, strict=True):
        digits_script.render(digit).save(path)
    on_disk = files_of(manifest, "calibration") + files_of(manifest, "holdout")
    assert not set(content_hashes(rendered)) & set(content_hashes(on_disk))


def test_split_function_gives_the_split_labels_and_pixels_on_disk(
    digits_script: ModuleType, manifest: dict[str, Any]
) -> None:
    splits = digits_script.load_splits()
    assert [digit.index for digit in splits.training] == manifest["training_source_indices"]
    for split in SPLITS:
        part = getattr(splits, split)
        listed = [image for image in manifest["images"] if image["split"] == split]
        assert [(d.index, d.label) for d in part] == [(i["source_index"], i["label"]) for i in listed]
        for digit, image in zip(part, listed, strict=True):
            drawn = np.asarray(digits_script.render(digit).convert("RGB"))
            np.testing.assert_array_equal(np.asarray(load_image(CALIB / image["file"]).convert("RGB")), drawn)


def test_equal_digits_stay_in_one_split(digits_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set has no equal digits today, so the test brings some: every digit a second time."""
    once = digits_script.load_splits()
    data = digits_script.load_digits()
    data.images = np.concatenate([data.images, data.images])
    data.target = np.concatenate([data.target, data.target])
    monkeypatch.setattr(digits_script, "load_digits", lambda: data)
    twice = digits_script.load_splits()
    for name in ("training", *SPLITS):
        assert [digit.index for digit in getattr(twice, name)] == [digit.index for digit in getattr(once, name)]


def test_the_script_writes_the_manifest_again(
    digits_script: ModuleType, manifest: dict[str, Any], tmp_path: Path
) -> None:
    """Only the files' hashes may differ: another zlib compresses the same pixels to other bytes."""
    digits_script.write_images(tmp_path, digits_script.load_splits())
    again = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert without_hashes(again) == without_hashes(manifest)
    assert all(image["sha256"] == sha256_file(tmp_path / image["file"]) for image in again["images"])
