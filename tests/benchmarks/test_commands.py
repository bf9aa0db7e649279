"""Every benchmark command starts: ``python -m benchmarks.NAME --help``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

COMMANDS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", [*COMMANDS, "peers.install"])
def test_a_command_explains_itself_under_its_own_name(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m benchmarks.{name} ")


def test_every_command_of_the_documents_exists() -> None:
    assert {"engine_inference", "engines", "export", "inference", "models", "overhead", "quantizers"} <= set(COMMANDS)
