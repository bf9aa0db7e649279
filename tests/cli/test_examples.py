"""The example that each command's help shows runs as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vitexport.cli import COMMANDS, main

# What an example needs that is not here; each of these has tests of its own.
NEEDS = {
    "export": "the Hugging Face hub",
    "build-engine": "TensorRT",
    "refit": "a GPU",
    "serve": "somebody to stop it",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_runs(name: str, furnished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS:
        pytest.skip(f"needs {NEEDS[name]}")
    command = main.get_command(click.Context(main), name)
    assert command is not None
    found = re.search(r"Example: vitexport (.+)", f"{command.help}\n{command.epilog}")
    assert found is not None
    monkeypatch.chdir(furnished)
    words = shlex.split(found[1])
    done = CliRunner().invoke(main, [*words, "--set", "benchmark.seconds=0.1"] if name == "run" else words)
    assert done.exit_code == 0, done.output
