from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.judged_bundle import judged_bundle
from tests.support.linear_model import write_model
from vitexport.bundle.bundle import FileRecord
from vitexport.bundle.target import resolve_target
from vitexport.errors import BundleError
from vitexport.files import sha256_file
from vitexport.verification.select import Choice, choose_model, choose_variant


def test_last_accepted_variant_serves(tmp_path: Path) -> None:
    choice = choose_variant(judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 1e-6}))
    assert (choice.variant, choice.notes) == ("simplified", ())


def test_rejected_variant_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 3.0})
    choice = choose_variant(bundle)
    assert choice.variant == "onnx"
    (note,) = choice.notes
    assert note.startswith("passed over, as its checks did not pass: simplified: ")
    assert "agreement" in note


def test_a_rejected_variant_is_used_when_it_is_named_and_says_what_was_found(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 3.0})
    choice = choose_variant(bundle, "simplified")
    assert (choice.variant, choice.sha256) == ("simplified", bundle.artifact("simplified").file.sha256)
    (note,) = choice.notes
    assert note.startswith("simplified was asked for, although its checks did not pass: ")
    assert choose_variant(bundle, "onnx").notes == ()


def test_a_variant_that_nobody_verified_is_not_taken_for_accepted(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 0.0}).without({"recording/simplified"})
    choice = choose_variant(bundle)
    assert choice.variant == "onnx"
    assert choice.notes == ("passed over, as its checks did not pass: simplified: it was not verified",)


def test_a_bundle_without_recordings_is_taken_at_its_word_and_says_so(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 3.0}).without(
        {"recording/onnx", "recording/simplified"}
    )
    choice = choose_variant(bundle)
    assert choice.variant == "simplified"
    assert choice.notes == ("simplified was taken without a verdict: the bundle holds no recordings to judge it by",)


def test_only_onnx_files_are_built_checked_and_written_for_deepstream(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0, "simplified": 0.0})
    engine = bundle.artifact("simplified")
    path = bundle.path(engine).rename(tmp_path / "models" / "vit.engine")
    record = FileRecord.of(path, tmp_path)
    bundle = bundle.with_artifact(engine.model_copy(update={"kind": "engine", "file": record}))
    assert choose_variant(bundle).variant == "simplified"
    assert choose_variant(bundle, onnx=True).variant == "onnx"
    with pytest.raises(BundleError, match=r"an ONNX model named 'simplified' .* found onnx\."):
        choose_variant(bundle, "simplified", onnx=True)
    with pytest.raises(BundleError, match=r"an ONNX model in .* found none"):
        choose_variant(bundle.without({"onnx"}), onnx=True)


def test_a_file_is_chosen_as_it_is_and_named_by_its_hash(tmp_path: Path) -> None:
    path = write_model(tmp_path / "vit.onnx")
    choice = choose_model(resolve_target(path), onnx=True)
    assert choice == Choice(path, "vit", sha256_file(path))
    with pytest.raises(BundleError, match="Expected a bundle to choose the variant 'int8' from"):
        choose_model(resolve_target(path), "int8")


def test_weights_beside_a_graph_are_part_of_its_hash(tmp_path: Path) -> None:
    bundle = judged_bundle(tmp_path, {"onnx": 0.0})
    (tmp_path / "models" / "weights.bin").write_bytes(b"1")
    hashes = {bundle.artifact("onnx").sha256}
    for weights in (b"1", b"2"):
        (tmp_path / "models" / "weights.bin").write_bytes(weights)
        record = FileRecord.of(tmp_path / "models" / "weights.bin", tmp_path)
        hashes.add(bundle.artifact("onnx").model_copy(update={"companions": (record,)}).sha256)
    assert len(hashes) == 3


def test_no_accepted_variant_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No model .* passed its checks") as caught:
        choose_variant(judged_bundle(tmp_path, {"onnx": 2.0, "simplified": 3.0}))
    assert "--variant" in str(caught.value)
