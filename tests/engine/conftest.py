"""Models in every precision, for engines to be built from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.suites.model_rows import Row, build, source_of
from tests.support.engine_models import Variants, simplified


@pytest.fixture(scope="session")
def deit(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """DeiT-Tiny with its real weights, in every precision."""
    folder = tmp_path_factory.mktemp("deit")
    source = str(shared / "models" / "deit-tiny-hf")
    return Variants(folder, lambda into: simplified(source, into), shared / "data" / "imagenet-1k-sample" / "calib")


@pytest.fixture(scope="session")
def shallow(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Variants]:
    """A shallow variant of a model row with every parameter perturbed, in every precision."""
    root = tmp_path_factory.mktemp("shallow")
    made: dict[str, Variants] = {}

    def make(row: Row) -> Variants:
        if row.name not in made:
            folder = root / row.name.replace("/", "_")
            build(row, folder / "checkpoint", shallow=True, classes=10)
            source = source_of(row, folder / "checkpoint")
            made[row.name] = Variants(
                folder, lambda into: simplified(source, into, task=row.task, image_size=row.image_size), digits
            )
        return made[row.name]

    return make
