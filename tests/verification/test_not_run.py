"""A variant that no runtime here can execute: named with its reason, never failed, never passed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.support.linear_model import CLASSES, save_image, write_bfloat16, write_recorded_bundle
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Provenance
from vitexport.bundle.layout import read_recipe, recording_name, recording_path
from vitexport.bundle.recording import Recording
from vitexport.bundle.target import resolve_target
from vitexport.cli import main
from vitexport.errors import NoKernelError
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import Tolerance
from vitexport.verification.evaluate import evaluate_models
from vitexport.verification.replay import replay
from vitexport.verification.select import choose_variant
from vitexport.verification.summary import headline, remarks
from vitexport.verification.variants import VariantInput, evaluate_variants

PROVENANCE = Provenance(stage="quantize", key="k", settings={}, parents=(), tools={}, seconds=0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A float variant that runs here, and one in bfloat16 that does not."""
    made = write_recorded_bundle(tmp_path / "bundle")
    path = write_bfloat16(made.root / "models" / "simplified.onnx", made.root / "models" / "bf16.onnx")
    record = FileRecord.of(path, made.root)
    variant = Artifact(name="bf16", kind="quantized", file=record, precision="bfloat16", provenance=PROVENANCE)
    made = made.with_artifact(variant)
    made.save()
    return made


def recorded(bundle: Bundle, variant: str, recording: Recording) -> Bundle:
    path = recording_path(bundle.root, variant)
    recording.save(path)
    record = FileRecord.of(path, bundle.root)
    return bundle.with_artifact(
        Artifact(name=recording_name(variant), kind="recording", file=record, provenance=PROVENANCE)
    )


def test_replay_names_the_variant_and_judges_the_others(bundle: Bundle) -> None:
    found = replay(bundle, read_recipe(bundle))
    assert [(one.name, one.passed, bool(one.not_run)) for one in found.variants] == [
        ("pytorch", True, False),
        ("simplified", True, False),
        ("bf16", False, True),
    ]
    assert found.variants[1].parity is not None and found.variants[2].parity is None
    assert found.passed is False
    (line,) = found.failures()
    assert found.not_run() == (line,)
    assert line.startswith("bf16: not run here: The CPUExecutionProvider of ONNX Runtime")
    assert found.suspect() is None  # bisecting would find nothing
    assert found.tables()[0].rows[-1][-1] == "not run here"
    assert headline(found) == "bf16 was not run: nothing here can execute it, so nothing is known of its answers."
    assert not any("accuracy" in remark for remark in remarks(found))


def test_verify_exits_with_3_and_calls_nothing_of_it_a_failure(bundle: Bundle) -> None:
    done = CliRunner().invoke(main, ["verify", str(bundle.root)])
    assert done.exit_code == 3, done.output
    assert "not run here" in done.stdout and "FAILED" not in done.stdout
    as_json = CliRunner().invoke(main, ["verify", str(bundle.root), "--json"])
    assert as_json.exit_code == 3
    assert "NOT_IMPLEMENTED" in json.loads(as_json.stdout)["variants"][-1]["not_run"]


def test_the_variant_after_is_held_against_the_last_that_ran() -> None:
    names, logits = ("a", "b"), np.eye(2, dtype=np.float32)
    ran = Recording("onnxruntime", names, names, {"logits": logits})
    inputs = [
        VariantInput("pytorch", "float32", ran, Tolerance()),
        VariantInput("simplified", "float32", ran, Tolerance()),
        VariantInput("bf16", "bfloat16", Recording.of_nothing("no kernel"), Tolerance()),
        VariantInput("int8", "int8", ran, Tolerance()),
    ]
    last = evaluate_variants(inputs[0], inputs[1:]).variants[-1]
    assert last.passed and last.step is not None and last.step.reference == "simplified"


def test_why_nothing_was_run_is_kept_in_the_recording(tmp_path: Path) -> None:
    Recording.of_nothing("no kernel").save(tmp_path / "r.npz")
    found = Recording.load(tmp_path / "r.npz")
    assert (found.not_run, found.images, found.outputs) == ("no kernel", (), {})
    assert found.select(["a"]).not_run == "no kernel"


def test_it_does_not_serve_unless_it_is_named(bundle: Bundle) -> None:
    simplified = Recording.load(bundle.path(bundle.artifact(recording_name("pytorch"))))
    made = recorded(recorded(bundle, "simplified", simplified), "bf16", Recording.of_nothing("no kernel"))
    choice = choose_variant(made)
    assert choice.variant == "simplified"
    assert choice.notes == ("passed over, as its checks did not pass: bf16: not run here: no kernel",)
    assert choose_variant(made, "bf16").variant == "bf16"


def test_evaluate_scores_what_runs_and_names_what_does_not(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    labels = {save_image(folder / f"{seed}.png", seed).name: seed % len(CLASSES) for seed in range(6)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    paths = list_images(folder)
    found = evaluate_models(resolve_target(bundle.root), folder, paths, labels=tmp_path / "labels.json")
    assert [(one.name, one.accuracy is None) for one in found.models] == [("simplified", False), ("bf16", True)]
    scores, others = found.tables()
    assert [row[0] for row in scores.rows] == ["simplified"] and "6 images" in scores.title
    assert [row[0] for row in others.rows] == ["bf16"]
    assert "NOT_IMPLEMENTED" in found.to_dict()["results"][1]["not_run"]
    alone = resolve_target(bundle.root / "models" / "bf16.onnx")
    with pytest.raises(NoKernelError, match="lacks a kernel"):
        evaluate_models(alone, folder, paths, labels=tmp_path / "labels.json")
