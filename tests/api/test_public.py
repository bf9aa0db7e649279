"""What ``import vitexport`` gives: complete, documented, and with examples that run."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import vitexport as vx
from vitexport.cli import COMMANDS

FUNCTIONS = [name for name in vx.__all__ if inspect.isfunction(getattr(vx, name))]
CLASSES = [name for name in vx.__all__ if inspect.isclass(getattr(vx, name))]
# command -> what it is in Python
NAMES = {"predict": "predict_files"}


def example_of(name: str) -> str:
    """Return the code under ``Example::`` in a docstring."""
    doc = inspect.getdoc(getattr(vx, name)) or ""
    found = re.search(r"^Example::\n\n((?:    .*\n|\n)+)", doc + "\n", re.MULTILINE)
    return textwrap.dedent(found[1]) if found else ""


def test_every_command_is_a_public_name() -> None:
    public = {NAMES.get(command, command.replace("-", "_")) for command in COMMANDS}
    assert public <= set(vx.__all__)


def test_names_are_functions_and_classes_and_nothing_else() -> None:
    assert sorted(vx.__all__) == sorted(FUNCTIONS + CLASSES)
    assert set(vx.__all__) <= set(dir(vx))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = vx.quantise


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_returns_and_raises(name: str) -> None:
    function = getattr(vx, name)
    doc = inspect.getdoc(function) or ""
    parameters = inspect.signature(function).parameters
    missing = [key for key in parameters if not re.search(rf"^ +(\*\*)?{key}: ", doc, re.MULTILINE)]
    assert not missing, f"{name} does not describe {missing}"
    untyped = [key for key, value in parameters.items() if value.annotation is inspect.Parameter.empty]
    assert not untyped and inspect.signature(function).return_annotation is not inspect.Signature.empty
    if parameters:
        assert "Raises:" in doc
        assert example_of(name) or "Example (" in doc, f"{name} has no example"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_documented(name: str) -> None:
    cls = getattr(vx, name)
    assert (cls.__doc__ or "").strip()
    silent = [
        key
        for key, value in vars(cls).items()
        if not key.startswith("_") and inspect.isfunction(value) and not (value.__doc__ or "").strip()
    ]
    assert not silent


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if example_of(name) and name != "serve"])
def test_the_example_runs(name: str, furnished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but that of ``serve``, which blocks until it is stopped; tests/server start it as a process."""
    code = example_of(name)
    if "tensorrt-rtx" in code and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("builds with TensorRT-RTX, which is not installed")
    monkeypatch.chdir(furnished)
    exec(compile(code, f"example of {name}", "exec"), {"vx": vx, **_given(name)})


def _given(name: str) -> dict[str, object]:
    """Return what the example of a function supposes to be there."""
    if name != "export":
        return {}
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    size = {"mode": "squash", "size": (32, 32)}
    preprocess = vx.PreprocessSpec.model_validate(
        {"image_size": (32, 32), "resize": size, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    )
    return {"module": module, "preprocess": preprocess}


def test_help_reads_like_documentation() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import vitexport; help(vitexport)"], capture_output=True, text=True, check=True
    )
    for name in vx.__all__:
        assert re.search(rf"\b{name}\b", done.stdout), name
    assert "bundle = vx.run(" in done.stdout
