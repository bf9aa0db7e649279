"""The quickstart, end to end: what comes out, what a second run redoes, and what a killed run leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import vitexport.inputs.images
from tests.support.paths import ROOT
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_recipe
from vitexport.cli import main
from vitexport.errors import CalibrationError, ImageError, ModelSourceError, RecipeError
from vitexport.pipeline.run import RunResult, run
from vitexport.recipe.load import load_recipe, parse_recipe
from vitexport.recipe.settings import Recipe
from vitexport.verification.judge import judge
from vitexport.verification.replay import replay

QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


def with_settings(recipe: Recipe, **stages: object) -> Recipe:
    content = recipe.model_dump(mode="json")
    for name, settings in stages.items():
        content[name] = {**(content[name] or {}), **settings} if isinstance(settings, dict) else settings
    return parse_recipe(content, where="test")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return with_settings(load_recipe(QUICKSTART), benchmark={"seconds": 0.1})


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(recipe, tmp_path_factory.mktemp("quickstart"))


@pytest.fixture
def bundle(finished: RunResult, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    assert finished.bundle is not None
    return Path(shutil.copytree(finished.bundle.root, tmp_path / "bundle"))


def test_the_quickstart_passes_with_exact_floats_and_a_close_int8(finished: RunResult) -> None:
    assert finished.verification is not None and finished.verification.passed, (
        finished.verification and finished.verification.failures()
    )
    variants = {variant.name: variant for variant in finished.verification.variants}
    assert list(variants) == ["pytorch", "onnx", "simplified", "int8"]
    for name in ("onnx", "simplified"):
        parity = variants[name].parity
        assert parity is not None and parity.main is not None
        assert parity.main.max_abs <= 1e-4 and parity.main.agreement == 1.0
    reference, int8 = variants["pytorch"].accuracy, variants["int8"].accuracy
    assert reference is not None and int8 is not None and reference.images >= 300
    assert reference.top1 >= 0.97
    assert int8.top1 >= reference.top1 - 0.01


def test_the_bundle_holds_everything_and_opens_again(finished: RunResult, recipe: Recipe) -> None:
    assert finished.bundle is not None
    root = finished.bundle.root
    for name in ("bundle.json", "recipe.yaml", "report.json", "report.html", "report.md", "benchmark.json"):
        assert (root / name).stat().st_size > 0, name
    for name in ("onnx", "simplified", "int8"):
        assert (root / "models" / f"{name}.onnx").stat().st_size > 10_000
        assert (root / "recordings" / f"{name}.npz").stat().st_size > 1_000
    opened = Bundle.open(root)
    assert len(opened.class_names) == 10
    assert read_recipe(opened) == recipe
    assert judge(opened, recipe).passed
    assert opened.artifact("int8").total_bytes < 0.5 * opened.artifact("simplified").total_bytes
    leftovers = [path for path in root.rglob(".*") if path.is_file()]
    assert not leftovers
    report = json.loads((root / "report.json").read_text())
    assert report["passed"] is True


def test_nothing_changed_means_nothing_is_redone(recipe: Recipe, bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.is_file()}
    again = run(recipe, bundle)
    assert again.executed == ()
    assert again.verification is not None and again.verification.passed
    assert before == {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.is_file()}


def test_a_changed_setting_redoes_only_what_depends_on_it(recipe: Recipe, bundle: Path) -> None:
    assert run(with_settings(recipe, gates={"max_top1_drop": 2.0}), bundle).executed == ("recipe", "report")
    changed = with_settings(recipe, quantize={"preset": "fast"}, gates={"max_top1_drop": 2.0})
    result = run(changed, bundle)
    assert "quantize" in result.executed
    assert not {"export", "simplify"} & set(result.executed)


def test_another_name_is_written_and_no_model_runs_again(recipe: Recipe, bundle: Path) -> None:
    renamed = recipe.model_copy(update={"name": "another"})
    assert run(renamed, bundle).executed == ("recipe", "report")
    opened = Bundle.open(bundle)
    assert (opened.name, read_recipe(opened).name) == ("another", "another")
    assert json.loads((bundle / "report.json").read_text())["name"] == "another"
    assert run(renamed, bundle).executed == ()


def test_a_dry_run_writes_nothing(recipe: Recipe, bundle: Path, tmp_path: Path) -> None:
    fresh = run(recipe, tmp_path / "fresh", dry_run=True)
    assert fresh.executed[0] == "load" and "report" in fresh.executed
    assert not (tmp_path / "fresh").exists()
    assert run(recipe, bundle, dry_run=True).executed == ()
    changed = with_settings(recipe, benchmark={"seconds": 0.2})
    found = run(changed, bundle, dry_run=True)
    assert "export" not in found.executed and "benchmark" in found.executed


def test_a_damaged_artifact_is_made_again(recipe: Recipe, bundle: Path) -> None:
    path = bundle / "models" / "int8.onnx"
    original = path.read_bytes()
    path.write_bytes(original[:1000])
    result = run(recipe, bundle)
    assert "quantize" in result.executed and "export" not in result.executed
    assert path.read_bytes() == original  # quantizing is deterministic


def test_a_recipe_without_quantization_drops_the_old_variant(recipe: Recipe, bundle: Path) -> None:
    result = run(with_settings(recipe, quantize=None), bundle)
    assert result.verification is not None
    assert [variant.name for variant in result.verification.variants] == ["pytorch", "onnx", "simplified"]
    assert not (bundle / "models" / "int8.onnx").exists()
    assert Bundle.open(bundle).find("int8") is None


def test_replay_judges_a_bundle_without_its_checkpoint(finished: RunResult) -> None:
    assert finished.bundle is not None
    bundle = Bundle.open(finished.bundle.root)
    verification = replay(bundle, read_recipe(bundle))
    assert verification.passed
    assert verification.variants[1].parity is not None and verification.variants[1].parity.images == 64


@pytest.mark.parametrize(
    "moments",
    [
        ("models/onnx.onnx",),
        pytest.param(
            ("recordings/pytorch.npz", "models/onnx.onnx", "models/simplified.onnx", "models/int8.onnx", "report.json"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["once", "five times"],
)
def test_a_killed_run_leaves_no_half_file_and_continues(moments: tuple[str, ...], tmp_path: Path) -> None:
    """Kill the process when a file appears; whatever is under a final name must be whole, and the next run completes.

    Few images do: what may break is between the stages.
    """
    root = tmp_path / "killed"
    command = [sys.executable, "-m", "vitexport.cli", "run", str(QUICKSTART), "-o", str(root)]
    for setting in ("benchmark.seconds=0.01", "quantize.preset=fast", "data.verification.limit=32"):
        command += ["--set", setting]
    for target in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (root / target).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (root / "bundle.json").exists():
            Bundle.open(root)  # everything it lists is there and whole
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "load" in done.stderr and "current" in done.stderr
    Bundle.open(root)


def test_wrong_inputs_fail_before_the_first_expensive_stage(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageError, match="found none"):
        run(with_settings(recipe, data={"verification": {"images": str(empty)}}), out)
    with pytest.raises(ImageError, match="found nothing"):
        run(with_settings(recipe, data={"calibration": {"images": str(tmp_path / "absent")}}), out)
    with pytest.raises(RecipeError, match="Expected calibration images") as without:
        run(with_settings(recipe, data={"calibration": None}), out)
    assert "--calibration DIR" in without.value.hint and "--set quantize=null" in without.value.hint
    assert not out.exists()
    with pytest.raises(ModelSourceError):
        run(with_settings(recipe, model={"source": str(tmp_path / "no-such-checkpoint")}), out)
    assert not out.exists() or not any(out.iterdir())


def test_verification_images_must_not_be_calibration_images(recipe: Recipe, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration"
    shutil.copytree(ROOT / "calib" / "calibration", calibration)
    held_out = sorted((ROOT / "calib" / "holdout").glob("*.png"))[3]
    shutil.copy(held_out, calibration / "renamed.png")
    with pytest.raises(CalibrationError, match=r"found 1: renamed\.png"):
        run(with_settings(recipe, data={"calibration": {"images": str(calibration)}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing was loaded, recorded or exported before


def test_images_that_a_quantized_model_was_made_from_are_not_decoded_again(
    recipe: Recipe, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(paths: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(vitexport.inputs.images, "content_hashes", refuse)
    assert run(recipe, bundle).executed == ()
    changed = with_settings(recipe, data={"calibration": {**recipe.data.calibration.model_dump(), "limit": 100}})
    with pytest.raises(AssertionError, match="decoded"):
        run(changed, bundle)


def test_inspect_shows_the_ranges_of_every_quantized_layer_worst_first(finished: RunResult) -> None:
    assert finished.bundle is not None
    result = CliRunner().invoke(main, ["inspect", str(finished.bundle.root), "--ranges", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["int8: activation ranges"]
    errors = [float(row["layer SQNR dB"]) for row in rows]
    assert errors == sorted(errors) and len(rows) == 16  # 4 blocks x qkv, proj, fc1, fc2
    assert CliRunner().invoke(main, ["inspect", __file__, "--ranges"]).exit_code == 1
