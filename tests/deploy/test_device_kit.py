from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import vitexport as vx
from tests.support.linear_model import save_image, write_recorded_bundle
from vitexport.bundle.bundle import Bundle
from vitexport.cli.kit import kit
from vitexport.deploy.device_kit import build_wheel, write_kit
from vitexport.device.profiles import device_profile
from vitexport.errors import BundleError, EngineBuildError, RecipeError
from vitexport.verification.select import choose_variant


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_recorded_bundle(tmp_path_factory.mktemp("kit") / "bundle")


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        # Python 3.10 and 3.11 have the filter only in their later releases.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(folder)
    (root,) = folder.iterdir()
    return root


def test_kit_is_a_complete_bundle_with_readme_and_wheel(bundle: Bundle, tmp_path: Path) -> None:
    archive = tmp_path / "kit.tar.gz"
    result = CliRunner().invoke(kit, [str(bundle.root), "--device", "arm-cpu", "-o", str(archive)])
    assert result.exit_code == 0, result.output
    root = unpack(archive, tmp_path / "device")
    packed = Bundle.open(root / "bundle")
    assert [artifact.name for artifact in packed.models] == ["simplified"]
    assert (packed.class_names, packed.preprocess) == (bundle.class_names, bundle.preprocess)
    readme = (root / "README.md").read_text()
    assert "vitexport verify bundle" in readme
    assert "vitexport bench bundle" in readme
    (wheel,) = root.glob("*.whl")
    assert f"pip install ./{wheel.name} onnxruntime" in readme


def test_kit_for_a_jetson_builds_the_engine_there(bundle: Bundle, tmp_path: Path) -> None:
    write_kit(bundle, choose_variant(bundle), device_profile("orin-nano"), str(tmp_path / "kit.tar.gz"), jetpack="6.2")
    readme = (unpack(tmp_path / "kit.tar.gz", tmp_path / "device") / "README.md").read_text()
    assert "JetPack 6.2: TensorRT 10.3.0, CUDA 12.6, Python 3.10" in readme
    assert "vitexport build-engine bundle/models/simplified.onnx -o vit.engine --device orin-nano" in readme
    assert "vitexport predict vit.engine photo.jpg" in readme


def test_equal_content_gives_equal_bytes(bundle: Bundle, tmp_path: Path) -> None:
    with_wheel = [build_wheel(path).read_bytes() for path in (tmp_path, tmp_path)]
    assert with_wheel[0] == with_wheel[1]


def test_what_cannot_work_on_the_device_is_refused_before_anything_is_written(bundle: Bundle, tmp_path: Path) -> None:
    archive = tmp_path / "kit.tar.gz"
    model = bundle.models[0]
    fp8 = bundle.with_artifact(model.model_copy(update={"precision": "fp8"}))
    with pytest.raises(EngineBuildError, match="Orin Nano.*has no FP8"):
        write_kit(fp8, choose_variant(fp8), device_profile("orin-nano"), archive)
    with pytest.raises(EngineBuildError, match="ARM processor does not compute fp8"):
        write_kit(fp8, choose_variant(fp8), device_profile("arm-cpu"), archive)
    with pytest.raises(EngineBuildError, match="TensorRT 8.5.2 and Python 3.8"):
        write_kit(bundle, choose_variant(bundle), device_profile("xavier-nx"), archive)
    with pytest.raises(EngineBuildError, match=r"JetPack 7.0 does not run"):
        write_kit(bundle, choose_variant(bundle), device_profile("orin-nano"), archive, jetpack="7.0")
    with pytest.raises(RecipeError, match="did you mean 'orin-nano'"):
        device_profile("orin_nano")
    without = bundle.without({"recording/pytorch"})
    with pytest.raises(BundleError, match="no recorded reference"):
        write_kit(without, choose_variant(without), device_profile("arm-cpu"), archive)
    assert not archive.exists()


def test_a_kit_says_nothing_of_gates_that_it_cannot_measure(bundle: Bundle, tmp_path: Path) -> None:
    write_kit(bundle, choose_variant(bundle), device_profile("arm-cpu"), tmp_path / "kit.tar.gz")
    found = vx.verify(unpack(tmp_path / "kit.tar.gz", tmp_path / "device") / "bundle")
    assert found.passed, found.failures()
    assert found.judged_before == ()  # the recipe asks for a top-1 drop, and nothing here is labelled


# Runs the command line with everything blocked that a device does not have.
_DEVICE = """
import sys
blocked = {"torch", "timm", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxsim", "scipy", "sklearn",
           "matplotlib", "starlette", "uvicorn", "pyarrow", "ray", "tensorrt", "jinja2"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv.pop(1))
import vitexport
assert vitexport.__file__.startswith(sys.path[0]), vitexport.__file__
from vitexport.cli import main
main()
"""


def test_unpacked_kit_verifies_and_predicts_with_a_devices_packages(bundle: Bundle, tmp_path: Path) -> None:
    write_kit(bundle, choose_variant(bundle), device_profile("arm-cpu"), tmp_path / "kit.tar.gz")
    root = unpack(tmp_path / "kit.tar.gz", tmp_path / "device")
    with zipfile.ZipFile(next(root.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    photo = save_image(tmp_path / "photo.png", 1)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _DEVICE, str(tmp_path / "installed"), *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    verified = run("verify", "bundle")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    predicted = run("predict", "bundle", str(photo))
    assert predicted.returncode == 0, predicted.stderr
    assert len(predicted.stdout.splitlines()) == 6
    model = root / "bundle" / "models" / "simplified.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    altered = run("verify", "bundle")
    assert altered.returncode == 1
    assert "was altered" in altered.stderr


@pytest.mark.slow
def test_unpacked_kit_works_in_a_fresh_environment(bundle: Bundle, tmp_path: Path) -> None:
    """Installs the wheel from the archive and onnxruntime, and nothing else, as the README says."""
    write_kit(bundle, choose_variant(bundle), device_profile("arm-cpu"), tmp_path / "kit.tar.gz")
    root = unpack(tmp_path / "kit.tar.gz", tmp_path / "device")
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    wheel = next(root.glob("*.whl"))
    subprocess.run([binaries / "pip", "install", "-q", wheel, "onnxruntime"], check=True, cwd=root)
    photo = save_image(tmp_path / "photo.png", 1)
    for arguments in (["verify", "bundle"], ["predict", "bundle", str(photo)], ["bench", "bundle"], ["doctor"]):
        done = subprocess.run(
            [binaries / "vitexport", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    packages = subprocess.run([binaries / "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in packages
    assert "\nonnx " not in packages
