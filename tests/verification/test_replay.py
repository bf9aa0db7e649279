"""On another machine every variant is asked for the answers it gave where the bundle was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

from tests.support.linear_model import PREPROCESS, random_pixels, write_bundle
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Kind
from vitexport.bundle.layout import read_recipe
from vitexport.bundle.recording import Recording, ReplayInputs, input_hashes
from vitexport.cli import main
from vitexport.inputs.preprocess import normalize, pixels
from vitexport.recipe.settings import Gates
from vitexport.runtimes import open_runtime
from vitexport.verification.judge import judge
from vitexport.verification.replay import replay
from vitexport.verification.result import VerificationResult

IMAGES, SAMPLE = 200, 20
"""Images judged where the bundle was made, and how many of them travel: here the worst ones."""

RECIPE = """
name: linear
model: {source: nowhere}
data: {verification: {images: nowhere}}
gates: {min_agreement: 0.9, max_top1_drop: 5, min_cosine: 0.5}
"""


def change_weights(path: Path, noise: float) -> None:
    """Add noise to the weights of a linear model."""
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    value = numpy_helper.to_array(weight)
    changed = value + np.random.default_rng(5).normal(0, noise, value.shape).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(changed, "weight"))
    onnx.save(model, path)


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    """A bundle of a float model and a quantized one, judged on 200 images, of which the 20 worst travel."""
    root = write_bundle(tmp_path, variants=("simplified", "int8"))
    bundle = Bundle.open(root)
    (root / "models" / "int8.onnx").write_bytes((root / "models" / "simplified.onnx").read_bytes())
    change_weights(root / "models" / "int8.onnx", 0.006)
    stack = np.stack([pixels(Image.fromarray(random_pixels(seed)), PREPROCESS) for seed in range(IMAGES)])
    feed = np.stack([normalize(row, PREPROCESS) for row in stack])
    answers = {}
    for variant in ("simplified", "int8"):
        with open_runtime(root / "models" / f"{variant}.onnx") as runtime:
            answers[variant] = runtime.run({"pixel_values": feed})["logits"]
    agree = answers["int8"].argmax(axis=1) == answers["simplified"].argmax(axis=1)
    assert 0.93 < agree.mean() < 1
    targets = [int(label) for label in answers["simplified"].argmax(axis=1)]
    names = tuple(f"{index}.png" for index in range(IMAGES))
    folder = root / "recordings"
    folder.mkdir()
    worst = np.argsort(agree, kind="stable")[:SAMPLE]
    ReplayInputs(tuple(names[row] for row in worst), stack[worst], tuple(targets[row] for row in worst)).save(
        folder / "inputs.npz"
    )
    (root / "recipe.yaml").write_text(RECIPE)
    provenance = bundle.artifacts[0].provenance

    def artifact(name: str, kind: Kind, path: Path, **more: object) -> Artifact:
        record = FileRecord.of(path, root)
        return Artifact.model_validate({"name": name, "kind": kind, "file": record, "provenance": provenance, **more})

    bundle = bundle.with_artifact(artifact("recipe", "recipe", root / "recipe.yaml"))
    for name, outputs in (("pytorch", answers["simplified"]), *answers.items()):
        Recording(name, names, tuple(input_hashes(feed)), {"logits": outputs}).save(folder / f"{name}.npz")
        carried = (FileRecord.of(folder / "inputs.npz", root),) if name == "pytorch" else ()
        details = {"targets": targets} if name == "pytorch" else {}
        recording = artifact(f"recording/{name}", "recording", folder / f"{name}.npz")
        bundle = bundle.with_artifact(recording.model_copy(update={"companions": carried, "details": details}))
    int8 = artifact("int8", "quantized", root / "models" / "int8.onnx", precision="int8")
    bundle = bundle.with_artifact(int8)
    bundle.save()
    return bundle


def replayed(bundle: Bundle) -> VerificationResult:
    return replay(bundle, read_recipe(bundle))


def test_a_sound_bundle_passes_where_a_sample_of_its_images_alone_would_miss_a_gate(made: Bundle) -> None:
    there, here = judge(made, read_recipe(made)), replayed(made)
    assert there.passed, there.failures()
    assert here.passed, here.failures()
    agreement = next(gate for gate in here.gates if gate.gate == "min_agreement")
    assert agreement.value is not None and agreement.value < agreement.limit
    assert agreement.passed and not agreement.undecided
    assert "0.65 of these images where the bundle was made" in agreement.note
    for variant in here.variants[1:]:
        assert variant.recorded is not None
        assert variant.recorded.main is not None and variant.recorded.main.max_abs < 1e-5


def test_what_is_not_judged_again_is_shown_as_it_was_and_not_as_unset(made: Bundle) -> None:
    here = replayed(made)
    assert "max_top1_drop" not in here.unchecked
    (drop,) = [gate for gate in here.judged_before if gate.gate == "max_top1_drop"]
    assert drop.passed and f"{IMAGES} images" in drop.note
    done = CliRunner().invoke(main, ["verify", str(made.root)])
    assert done.exit_code == 0, done.output
    assert "ok, judged where the bundle was made" in done.stdout
    unset = next(line for line in done.stdout.splitlines() if line.startswith("not checked (no limit set)"))
    assert "max_top1_drop" not in unset


@pytest.mark.parametrize("variant", ["simplified", "int8"])
def test_a_machine_that_answers_otherwise_fails_by_the_variants_name(made: Bundle, variant: str) -> None:
    change_weights(made.root / "models" / f"{variant}.onnx", 0.02)
    here = replay(Bundle.open(made.root, check_files=False), read_recipe(made))
    assert not here.passed
    assert [entry.name for entry in here.variants if not entry.passed] == [variant]
    assert here.failures()[0].startswith(f"{variant}: output 'logits'")
    assert here.failures()[0].endswith("against its own recorded answers")


def test_a_quantized_model_may_change_by_less_than_quantizing_changed_it(made: Bundle) -> None:
    change_weights(made.root / "models" / "int8.onnx", 0.001)  # 0.006 was the change of quantizing
    here = replay(Bundle.open(made.root, check_files=False), read_recipe(made))
    assert here.passed, here.failures()
    recorded = here.variants[-1].recorded
    assert recorded is not None and recorded.main is not None
    assert recorded.main.sqnr_db < 60


def test_a_float_model_may_change_by_the_order_of_its_sums_alone(made: Bundle) -> None:
    change_weights(made.root / "models" / "simplified.onnx", 0.001)
    here = replay(Bundle.open(made.root, check_files=False), read_recipe(made))
    assert "simplified: output 'logits': max relative error" in here.failures()[0]


def test_without_its_own_recording_a_variant_is_held_to_pytorch(made: Bundle) -> None:
    change_weights(made.root / "models" / "int8.onnx", 0.2)
    here = replay(made.without({"recording/int8"}), read_recipe(made))
    assert here.variants[-1].recorded is None
    assert any(line.startswith("int8: output 'logits': ") for line in here.failures())
    assert not any("recorded answers" in line for line in here.failures())


@pytest.mark.parametrize(("gate", "limit"), [("max_top1_drop", 0.5), ("min_agreement", 0.99)])
def test_answers_that_were_rejected_are_rejected_here_too(made: Bundle, gate: str, limit: float) -> None:
    recipe = read_recipe(made)
    recipe = recipe.model_copy(update={"gates": Gates.model_validate({gate: limit})})
    assert not judge(made, recipe).passed
    here = replay(made, recipe)
    assert all(variant.passed for variant in here.variants), "it answers as it did"
    assert not here.passed
    assert f"gate {gate}" in here.failures()[0] and "rejected where the bundle was made" in here.failures()[0]
