"""The bundle that the report's tests are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.report_case import Case, make_case
from vitexport.recipe.settings import Gates


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A bundle that passes two gates."""
    return make_case(tmp_path / "bundle", gates=Gates(min_agreement=0.9, min_speedup=1.1))
