"""The photo that the serving tests send."""

from __future__ import annotations

import pytest

from tests.support.linear_model import save_image


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_image(tmp_path_factory.mktemp("photo") / "a.png", 0).read_bytes()
