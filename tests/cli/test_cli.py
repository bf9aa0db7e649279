"""The command line as a person meets it: help, speed, messages and exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from tests.support.checkpoints import save_vit
from tests.support.paths import CALIBRATION, HOLDOUT, ROOT
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord
from vitexport.cli import COMMANDS, main
from vitexport.pipeline.run import run
from vitexport.recipe.load import load_recipe, parse_recipe


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_warning_is_one_line_in_words(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.gif").touch()
    command = [sys.executable, "-m", "vitexport.cli", "labels", str(tmp_path), "--model", str(tmp_path / "none")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stderr.startswith("warning: Of the images in ") and "1 .gif" in found.stderr.splitlines()[0]
    assert "Error: " in found.stderr.splitlines()[1]


@pytest.mark.parametrize("given", ["", "classifier,"])
def test_blocks_without_a_name_are_refused(given: str, tmp_path: Path) -> None:
    source = save_vit(tmp_path / "model", num_labels=2)
    found = call("export", source, "--features", given, "-o", tmp_path / "m.onnx")
    assert found.exit_code == 1 and "found '', which is none of its modules" in found.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float bundle of the quickstart model."""
    content = load_recipe(ROOT / "recipes" / "quickstart.yaml").model_dump(mode="json")
    content |= {"quantize": None, "benchmark": {"seconds": 0.05}, "gates": {}}
    root = tmp_path_factory.mktemp("made")
    run(parse_recipe(content, where="test"), root)
    return root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_sentence_an_example_and_shows_defaults(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None and command.help
    sentence = command.help.strip().partition("\n\n")[0]
    assert sentence.endswith("."), sentence
    assert f"Example: vitexport {name}" in f"{command.help}\n{command.epilog}"
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{name} {parameter.name} has no help"
    shown = call(name, "--help")
    assert shown.exit_code == 0 and "Example:" in shown.output


def test_help_imports_nothing_heavy() -> None:
    program = "import sys\nfrom vitexport.cli import main\n"
    program += "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
    program += "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.partition("LOADED")[2].split()
    assert not {"torch", "numpy", "PIL", "pydantic", "onnx", "rich", "yaml"} & set(loaded)


def test_an_unknown_command_is_a_usage_error_with_a_suggestion() -> None:
    result = call("exprot")
    assert result.exit_code == 2 and "Did you mean 'export'?" in result.stderr


def test_a_wrong_recipe_key_exits_2_with_path_and_suggestion(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    content["quantize"]["presett"] = "fast"
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    result = call("run", path, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "quantize.presett: unknown key; did you mean 'preset'?" in result.stderr
    assert "Traceback" not in result.output and not (tmp_path / "out").exists()


def test_a_truncated_verification_image_exits_1_and_names_it(tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(ROOT / "calib" / "holdout", images)
    cut = sorted(images.glob("*.png"))[5]
    cut.write_bytes(cut.read_bytes()[:60])
    source = ROOT / "recipes" / "quickstart" / "model"
    result = call("run", source, "-o", tmp_path / "out", "--images", images, "--until", "load")
    assert result.exit_code == 1
    assert cut.name in result.stderr and "damaged or truncated" in result.stderr
    assert not (tmp_path / "out" / "bundle.json").exists()


def test_a_missing_checkpoint_exits_1(tmp_path: Path) -> None:
    result = call("export", tmp_path / "nowhere", "-o", tmp_path / "m.onnx")
    assert result.exit_code == 1 and "nowhere" in result.stderr and not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("command", [("inspect",), ("bench",), ("simplify", "-o", "out.onnx")])
def test_a_file_that_is_no_onnx_model_exits_1(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "page.onnx"
    path.write_text("<html>not a model</html>")
    output = [str(tmp_path / part) if part.endswith(".onnx") else part for part in command[1:]]
    result = call(command[0], path, *output)
    assert result.exit_code == 1, result.output
    assert "page.onnx" in result.stderr and not (tmp_path / "out.onnx").exists()


def test_an_altered_bundle_exits_1_with_the_file_and_hashes(bundle: Path) -> None:
    path = bundle / "models" / "simplified.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    for command in ("verify", "bench", "inspect", "predict"):
        arguments = [bundle, next((ROOT / "calib" / "holdout").glob("*.png"))] if command == "predict" else [bundle]
        result = call(command, *arguments)
        assert result.exit_code == 1, command
        assert "models/simplified.onnx" in result.stderr and "was altered: expected sha256" in result.stderr


def test_verify_passes_and_prints_one_json_document(bundle: Path) -> None:
    assert call("verify", bundle).exit_code == 0
    result = call("verify", bundle, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["passed"] is True


def tamper(bundle: Path, change: str) -> None:
    """Break the last variant in a way its file hash does not show: the bundle lists the broken file as its own."""
    import onnx

    path = bundle / "models" / "simplified.onnx"
    model = onnx.load(str(path))
    output = model.graph.output[0]
    if change == "renamed":
        node = next(node for node in model.graph.node if output.name in node.output)
        node.output[list(node.output).index(output.name)] = "scores"
        output.name = "scores"
    elif change == "dropped":
        extra = onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None)
        model.graph.node.append(onnx.helper.make_node("Identity", [output.name], ["other"]))
        del model.graph.output[:]
        model.graph.output.append(extra)
    else:
        bias = next(t for t in model.graph.initializer if list(t.dims) == [10])
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] = np.nan
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(path))
    opened = Bundle.open(bundle, check_files=False)
    old = opened.artifact("simplified")
    fields = {**old.model_dump(), "file": FileRecord.of(path, bundle).model_dump()}
    opened.with_artifact(Artifact.model_validate(fields)).save()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("renamed", "output 'logits' is missing; found scores instead"),
        ("dropped", "output 'logits' is missing; found other instead"),
        ("nan", "output 'logits' holds NaN or infinity on 64 of 64 images"),
    ],
)
def test_a_broken_output_makes_verify_exit_3_and_name_the_variant(bundle: Path, change: str, message: str) -> None:
    tamper(bundle, change)
    result = call("verify", bundle)
    assert result.exit_code == 3, result.output
    assert f"FAILED simplified: {message}" in result.stdout
    assert call("verify", bundle, "--json").exit_code == 3


def test_a_failed_gate_exits_3_and_says_by_how_much(bundle: Path) -> None:
    recipe = ROOT / "recipes" / "quickstart.yaml"
    overrides = ("quantize=null", "benchmark.seconds=0.05", "gates.max_size_ratio=0.5")
    result = call("run", recipe, "-o", bundle, *(part for override in overrides for part in ("--set", override)))
    assert result.exit_code == 3, result.output
    assert "FAILED gate max_size_ratio: limit 0.5, is 1" in result.stdout
    assert "try 1: A float32 model gains nothing (max_size_ratio): quantize it" in result.stderr
    document = json.loads((bundle / "report.json").read_text())
    for text in ((bundle / "report.html").read_text(), (bundle / "report.md").read_text()):
        assert "What to try, the most promising first" in text and document["advice"][0] in text


def test_single_stages_work_on_single_files(tmp_path: Path) -> None:
    source = ROOT / "recipes" / "quickstart" / "model"
    exported, simplified, int8 = (tmp_path / f"{name}.onnx" for name in ("exported", "simplified", "int8"))
    assert call("export", source, "-o", exported).exit_code == 0
    assert call("simplify", exported, "-o", simplified).exit_code == 0
    images = ROOT / "calib" / "calibration"
    quantized = call("quantize", simplified, "--images", images, "--preset", "fast", "-o", int8, "--json")
    assert quantized.exit_code == 0, quantized.output
    assert json.loads(quantized.stdout)["precision"] == "int8"
    assert int8.stat().st_size < simplified.stat().st_size
    shown = call("inspect", int8, "--json")
    assert shown.exit_code == 0
    content = json.loads(shown.stdout)
    assert content["class_names"] == 10 and content["operators"]["DequantizeLinear"] > 0
    timed = call("bench", simplified, int8, "--seconds", "0.05", "--batch", "1,2", "--json")
    assert timed.exit_code == 0, timed.output
    assert len(json.loads(timed.stdout)["results"]) == 4


@pytest.mark.filterwarnings("ignore:Calibrating on 16 images")
def test_quantize_names_what_stays_float32_and_why(small_model: Path, tmp_path: Path) -> None:
    images = ("--images", CALIBRATION, "--limit", "16")
    done = call("quantize", small_model, *images, "--precision", "bf16", "-o", tmp_path / "bf16.onnx")
    assert done.exit_code == 0, done.output
    assert re.search(r"kept_float32: \S+/Conv \(ONNX permits bfloat16 for Conv from opset 22 on", done.stdout)


def test_quantize_refuses_to_overwrite_its_input(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    result = call("quantize", path, "--images", tmp_path, "-o", path)
    assert result.exit_code == 2 and "is also the input" in result.stderr


def test_doctor_reports_this_machine_as_json() -> None:
    result = call("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert {package["name"] for package in found["packages"]} >= {"numpy", "torch", "onnxruntime", "pycuda"}
    assert {r["name"]: r["usable"] for r in found["runtimes"]}["onnxruntime"] is True
    missing = [package for package in found["packages"] if package["version"] is None]
    assert all(package["install"].startswith("pip install 'vitexport[") for package in missing)


def test_a_dry_run_and_a_stopped_run_print_one_json_document(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "quickstart.yaml"
    options = ("run", recipe, "-o", tmp_path / "out", "--until", "export", "--json")
    planned = call(*options, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout) == {"would_run": ["load", "export"], "current": []}
    done = call(*options)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["executed"], found["skipped"]) == (["load", "recipe", "export"], [])
    assert [artifact["name"] for artifact in found["bundle"]["artifacts"] if artifact["kind"] == "onnx"] == ["onnx"]
    assert json.loads(call(*options, "--dry-run").stdout) == {"would_run": [], "current": ["load", "export"]}


def test_images_beside_a_recipe_take_the_place_of_its_own(tmp_path: Path) -> None:
    images = tmp_path / "mine"
    for path in sorted(HOLDOUT.glob("*.png"))[:5]:
        images.mkdir(exist_ok=True)
        shutil.copy(path, images)
    (tmp_path / "mine.json").write_text(json.dumps({path.name: 3 for path in images.iterdir()}))
    recipe = ROOT / "recipes" / "quickstart.yaml"
    options = ("--images", images, "--labels", tmp_path / "mine.json", "--set", "quantize=null", "--json")
    result = call("run", recipe, "-o", tmp_path / "out", *options, "--set", "benchmark.seconds=0.05")
    found = json.loads(result.stdout)
    assert found["variants"][1]["parity"]["images"] == 5
    truth = Bundle.open(tmp_path / "out").artifact("recording/pytorch").details["targets"]
    assert truth == [3] * 5


def test_a_source_without_calibration_images_is_never_quietly_left_in_float(tmp_path: Path) -> None:
    source = ROOT / "recipes" / "quickstart" / "model"
    result = call("run", source, "-o", tmp_path / "out", "--images", HOLDOUT)
    assert result.exit_code == 2
    assert "--calibration DIR" in result.stderr and "--set quantize=null" in result.stderr
    assert not (tmp_path / "out").exists()
    stopped = call("run", source, "-o", tmp_path / "out", "--images", HOLDOUT, "--until", "load", "--dry-run")
    assert stopped.exit_code == 0, stopped.output


def test_numbers_without_a_name_in_json_are_null(bundle: Path) -> None:
    document = call("verify", bundle, "--json").stdout
    assert "Infinity" not in document and "NaN" not in document
    assert json.loads(document)["passed"] is True


def test_a_model_source_without_images_says_what_to_add(tmp_path: Path) -> None:
    result = call("run", ROOT / "recipes" / "quickstart" / "model", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "--images" in result.stderr
