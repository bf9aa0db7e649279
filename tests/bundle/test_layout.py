"""What a bundle holds is found under its name, and what it lacks is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.linear_model import write_bundle
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Kind, Provenance
from vitexport.bundle.layout import (
    BENCHMARK,
    DISAGREEMENTS,
    ERRORS,
    RECIPE,
    REFERENCE,
    SIMPLIFIED,
    analysis_path,
    benchmark_path,
    is_bundle,
    model_path,
    read_analysis,
    read_disagreements,
    read_recipe,
    read_recording,
    read_replay_inputs,
    recipe_path,
    recording_name,
    recording_path,
    replay_inputs_path,
)
from vitexport.bundle.recording import Recording, ReplayInputs
from vitexport.errors import BundleError, RecipeError

RECORDING = Recording("pytorch", ("a", "b"), ("ha", "hb"), {"logits": np.eye(2, dtype=np.float32)})
INPUTS = ReplayInputs(("a", "b"), np.zeros((2, 4, 4, 3), np.uint8), None)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_bundle(tmp_path / "bundle"))


def keep(bundle: Bundle, name: str, kind: Kind, path: Path, *companions: Path) -> Bundle:
    """Return the bundle with an artifact of files that are there."""
    return bundle.with_artifact(
        Artifact(
            name=name,
            kind=kind,
            file=FileRecord.of(path, bundle.root),
            companions=tuple(FileRecord.of(companion, bundle.root) for companion in companions),
            provenance=Provenance(stage="test", key="k", settings={}, parents=(), tools={}, seconds=0.0),
        )
    )


def test_a_bundle_is_told_from_other_directories(bundle: Bundle, tmp_path: Path) -> None:
    assert is_bundle(bundle.root)
    assert not is_bundle(tmp_path)
    assert not is_bundle(bundle.root / "bundle.json")


def test_paths_lie_inside_the_bundle_and_differ(bundle: Bundle) -> None:
    root = bundle.root
    assert model_path(root, SIMPLIFIED) == bundle.path(bundle.artifact(SIMPLIFIED))
    paths = [
        model_path(root, SIMPLIFIED),
        recording_path(root, REFERENCE),
        recording_path(root, SIMPLIFIED),
        replay_inputs_path(root),
        recipe_path(root),
        benchmark_path(root),
        analysis_path(root, ERRORS),
        analysis_path(root, DISAGREEMENTS, ".npz"),
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(root) for path in paths)


def test_recordings_and_the_inputs_that_travel_with_the_reference_are_read_back(bundle: Bundle) -> None:
    path, inputs = recording_path(bundle.root, REFERENCE), replay_inputs_path(bundle.root)
    RECORDING.save(path)
    INPUTS.save(inputs)
    kept = keep(bundle, recording_name(REFERENCE), "recording", path, inputs)
    assert read_recording(kept, REFERENCE).images == ("a", "b")
    assert read_replay_inputs(kept).images == ("a", "b")
    with pytest.raises(BundleError, match="Expected 'recording/int8' in the bundle"):
        read_recording(kept, "int8")


def test_a_bundle_without_a_reference_says_so(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="Expected 'recording/pytorch' in the bundle .* found simplified"):
        read_replay_inputs(bundle)


def test_disagreements_are_optional_but_not_unreadable(bundle: Bundle) -> None:
    assert read_disagreements(bundle) is None
    path = analysis_path(bundle.root, DISAGREEMENTS, ".npz")
    INPUTS.save(path)
    kept = keep(bundle, DISAGREEMENTS, "analysis", path)
    found = read_disagreements(kept)
    assert found is not None
    assert found.images == ("a", "b")
    path.write_bytes(b"cut off")
    with pytest.raises(BundleError, match="Expected a recording"):
        read_disagreements(kept)


def test_an_analysis_is_a_mapping_and_optional(bundle: Bundle) -> None:
    assert read_analysis(bundle, BENCHMARK) is None
    path = benchmark_path(bundle.root)
    path.write_text(json.dumps({"variants": {}}))
    assert read_analysis(keep(bundle, BENCHMARK, "benchmark", path), BENCHMARK) == {"variants": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[1]", "Expected a mapping in .*, found list"), (None, "cannot be read")],
    ids=["cut off", "no mapping", "missing"],
)
def test_an_analysis_that_cannot_be_used_is_an_error(bundle: Bundle, content: str | None, message: str) -> None:
    path = benchmark_path(bundle.root)
    path.write_text(content or "")
    kept = keep(bundle, BENCHMARK, "benchmark", path)
    if content is None:
        path.unlink()
    with pytest.raises(BundleError, match=message):
        read_analysis(kept, BENCHMARK)


def test_the_recipe_is_read_back_and_a_wrong_one_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="Expected 'recipe' in the bundle"):
        read_recipe(bundle)
    path = recipe_path(bundle.root)
    content = {"name": "x", "model": {"source": "."}, "data": {"verification": {"images": "."}}}
    path.write_text(yaml.safe_dump(content))
    kept = keep(bundle, RECIPE, "recipe", path)
    assert read_recipe(kept).name == "x"
    path.write_text(yaml.safe_dump({**content, "colour": "red"}))
    with pytest.raises(RecipeError, match="colour"):
        read_recipe(kept)


@pytest.mark.parametrize("text", ["a: [1", "\xff"])
def test_a_recipe_that_is_no_yaml_is_an_error_in_words(text: str, bundle: Bundle) -> None:
    path = recipe_path(bundle.root)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match="Expected a recipe at"):
        read_recipe(keep(bundle, RECIPE, "recipe", path))


def test_a_recording_without_its_inputs_is_an_error_in_words(bundle: Bundle) -> None:
    path = recording_path(bundle.root, REFERENCE)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(BundleError, match="Expected the inputs of 'recording/pytorch'"):
        read_replay_inputs(keep(bundle, recording_name(REFERENCE), "recording", path))


@pytest.mark.parametrize("header", ["[1]", "null", '{"images": 3}'])
def test_a_recording_with_another_header_is_an_error_in_words(header: str, tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    with path.open("wb") as stream:
        np.savez_compressed(stream, header=np.array(header), pixels=np.zeros((1, 2, 2, 3), np.uint8))
    for kind in (Recording, ReplayInputs):
        with pytest.raises(BundleError, match="Expected a recording at"):
            kind.load(path)
