"""The commands of docs/own-model.md, run as they stand there on a checkpoint that was really trained."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.fine_tuned import CLASSES, write_fine_tuned
from tests.support.paths import ROOT
from vitexport.cli import main

PAGE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    assert write_fine_tuned(root).name == "checkpoint-60"
    return root


def invoke(command: str, *more: str) -> str:
    program, *words = shlex.split(command)
    assert program == "vitexport"
    done = CliRunner().invoke(main, [*words, *more])
    assert done.exit_code == 0, f"{command}\n{done.output}"
    return done.stdout


def test_the_page_leads_from_the_checkpoint_to_a_verified_bundle(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    said = {command.split()[1]: invoke(command, *_quick(command)) for command in COMMANDS}
    assert set(said) == {"labels", "run", "predict", "evaluate", "verify"}
    document = json.loads((place / "out" / "mine" / "report.json").read_text(encoding="utf-8"))
    assert document["passed"] is True
    # Numbered by the alphabet, as folders come, the labels would agree with a quarter of the answers.
    assert document["variants"][0]["accuracy"]["top1"] > 0.9
    assert {variant["name"] for variant in document["variants"]} == {"pytorch", "onnx", "simplified", "int8"}
    assert "rings" in said["predict"].splitlines()[1]


def _quick(command: str) -> tuple[str, ...]:
    return ("--set", "benchmark.seconds=0.1") if command.split()[1] == "run" else ()


def test_each_folder_is_taken_for_the_output_of_its_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shown = json.loads(invoke(COMMANDS[0], "--json"))
    found = {entry["value"]: (entry["index"], entry["rule"], entry["images"]) for entry in shown["mapping"]}
    assert {name: found[name][0] for name in CLASSES} == {name: index for index, name in enumerate(CLASSES)}
    assert {images for _, _, images in found.values()} == {12}
