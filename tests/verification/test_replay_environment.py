"""Verifying a bundle made elsewhere needs the base install and one runtime: no PyTorch, no checkpoint, no onnx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ABSENT = ("torch", "torchvision", "timm", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxsim", "ml_dtypes")

# Blocks what a device does not have, then runs the command line as a user would.
BLOCKED = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from vitexport.cli import main
main()
"""


@pytest.fixture
def bundle(coloured_bundle: Path, tmp_path: Path) -> Path:
    """The bundle at another place: nothing may depend on where it was made."""
    return Path(shutil.copytree(coloured_bundle, tmp_path / "moved"))


def verify(command: list[str], bundle: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [*command, "verify", str(bundle), "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
        timeout=300,
    )


def test_verify_runs_where_the_host_packages_cannot_be_imported(bundle: Path, tmp_path: Path) -> None:
    done = verify([sys.executable, "-c", BLOCKED], bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [variant["name"] for variant in result["variants"]] == ["pytorch", "onnx", "simplified", "int8"]
    assert all(variant["parity"]["images"] == 64 for variant in result["variants"][1:])
    assert {check["passed"] for check in result["checks"]} == {True}


def test_the_block_really_blocks() -> None:
    for name in ABSENT:
        done = subprocess.run(
            [sys.executable, "-c", BLOCKED.replace("from vitexport.cli import main\nmain()", f"import {name}")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"No module named '{name}'" in done.stderr


@pytest.mark.slow
def test_verify_runs_in_an_environment_of_base_install_and_one_runtime(bundle: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "vitexport", source / "vitexport", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", str(source), "onnxruntime"],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode != 0 and "Could not find a version" in installed.stderr:
        pytest.skip(f"packages cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not {line.split()[0].lower() for line in listed.splitlines()} & {"torch", "timm", "transformers", "onnx"}
    done = verify([str(environment / "bin" / "vitexport")], bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True
