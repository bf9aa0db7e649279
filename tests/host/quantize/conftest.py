"""The float model that the quantizer's tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(small_model: Path) -> Path:
    """The quickstart's trained model, exported and simplified."""
    return small_model
