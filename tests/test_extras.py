"""A package that is not installed is named by every command that needs it, with the line that installs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.linear_model import write_bundle, write_model
from tests.support.paths import ROOT
from vitexport.errors import MissingDependencyError
from vitexport.extras import PACKAGES, names_missing_extras

DEVICE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Hidden())
from vitexport.cli import main
main({arguments})
"""
HOST = [*(name for name, (_, extra) in PACKAGES.items() if extra == "host"), "torchvision", "matplotlib"]

COMMANDS = {
    "export": ["export", "timm:vit_tiny_patch16_224", "-o", "x.onnx"],
    "simplify": ["simplify", "MODEL", "-o", "x.onnx"],
    "quantize": ["quantize", "MODEL", "--images", str(ROOT / "calib" / "calibration"), "-o", "x.onnx"],
    "inspect": ["inspect", "MODEL"],
    "lint": ["lint", "MODEL"],
    "deepstream": ["deepstream", "BUNDLE", "-o", "ds"],
    "bisect": ["bisect", "BUNDLE", "--variant", "simplified"],
    "diagnose": ["diagnose", "BUNDLE"],
    "run": ["run", str(ROOT / "recipes" / "quickstart.yaml"), "-o", "out"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("device")
    return {"MODEL": str(write_model(folder / "m.onnx")), "BUNDLE": str(write_bundle(folder / "bundle"))}


def on_a_device(arguments: list[str], hidden: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    program = DEVICE.format(hidden=set(hidden), arguments=arguments)
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_with_ort_alone_says_what_a_command_needs(
    command: str, places: dict[str, str], tmp_path: Path
) -> None:
    arguments = [places.get(argument, argument) for argument in COMMANDS[command]]
    done = on_a_device(arguments, HOST, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "which is not installed" in done.stderr and "pip install 'vitexport[host]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_imported_late_is_named_too(places: dict[str, str], tmp_path: Path) -> None:
    done = on_a_device(["simplify", places["MODEL"], "-o", "x.onnx"], ["onnxsim"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Simplifying a model needs the package 'onnxsim'"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_of_someone_else_passes_as_it_is() -> None:
    @names_missing_extras("Exporting a model")
    def theirs(package: str) -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    with pytest.raises(ModuleNotFoundError, match="their_own") as unknown:
        theirs("their_own.package")
    assert not isinstance(unknown.value, MissingDependencyError)
    with pytest.raises(MissingDependencyError, match=r"(?s)'onnx-ir'.*vitexport\[host\]"):
        theirs("onnx_ir.passes")


def test_every_package_of_the_table_is_in_the_extra_it_names() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    brought = {"protobuf": "onnx"}
    for distribution, extra in PACKAGES.values():
        declared = re.search(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        assert declared is not None
        assert f'"{brought.get(distribution, distribution)}>=' in declared[1], distribution
