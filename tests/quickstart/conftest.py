"""The quickstart's scripts, manifest and model, as the tests of this folder use them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="session")
def quickstart() -> Path:
    """Folder of the scripts and of ``model/``."""
    return ROOT / "recipes" / "quickstart"


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "calib" / "manifest.json").read_text(encoding="utf-8"))
    return data


@pytest.fixture(scope="session")
def digits_script(quickstart: Path) -> Iterator[ModuleType]:
    """The script that made the images, imported the way ``train.py`` imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(quickstart)
        yield importlib.import_module("digits")


@pytest.fixture(scope="session")
def train_script(digits_script: ModuleType) -> ModuleType:
    """The script that trained the model."""
    return importlib.import_module("train")
