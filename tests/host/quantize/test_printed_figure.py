"""The SQNR that quantizing prints is the written file's: images that nobody held out show the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.suites.quantizer_rows import MODELS
from tests.support.engine_models import simplified
from tests.support.fresh import Fresh
from vitexport.host.quantize import quantize_onnx
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import Budget, QuantizeSettings, Target

_SOURCES = {model.name: model.source for model in MODELS}
_WITHIN_DB = 1.0
_ASKED_DB = 1.0
"""What a budget asks for beyond what the file has without one, so that it has to search."""


@dataclass(frozen=True)
class Real:
    """A real model, photographs for calibration and others, and its statistics once they are known."""

    model: Path
    calibration: tuple[Path, ...]
    fresh: Fresh
    folder: Path

    def figures(self, settings: QuantizeSettings) -> tuple[float, float]:
        """Return the SQNR that quantizing prints and the one on other images, in dB."""
        done = quantize_onnx(
            self.model,
            self.calibration,
            settings,
            self.folder / "int8.onnx",
            statistics=self.folder / f"{settings.preset}.npz",
        )
        printed: float = done.details["quality"]["sqnr_db"]
        fresh = self.fresh.quality(done.path, settings.target).sqnr_db
        budget = "" if settings.budget is None else ", with a budget"
        print(f"{self.folder.name}, {settings.target}{budget}: printed {printed:.2f} dB, fresh {fresh:.2f} dB")
        return printed, fresh


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Real]:
    """Export a real model once."""
    made: dict[str, Real] = {}
    photographs = shared / "data" / "imagenet-1k-sample"

    def make(name: str) -> Real:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = simplified(_SOURCES[name], folder)
            fresh = Fresh(model, list_images(photographs / "dev", limit=96), folder / "fresh")
            made[name] = Real(model, list_images(photographs / "calib"), fresh, folder)
        return made[name]

    return make


@pytest.mark.parametrize("target", ["tensorrt", "ort-x86"])
def test_the_printed_sqnr_is_that_of_other_images(target: Target, real: Callable[[str], Real]) -> None:
    printed, fresh = real("deit-tiny").figures(QuantizeSettings(target=target, preset="fast"))
    assert abs(printed - fresh) <= _WITHIN_DB


@pytest.mark.slow
@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("name", list(_SOURCES))
def test_the_printed_sqnr_is_that_of_other_images_with_and_without_a_budget(
    name: str, target: Target, real: Callable[[str], Real]
) -> None:
    printed, fresh = real(name).figures(QuantizeSettings(target=target))
    budget = Budget(min_sqnr_db=printed + _ASKED_DB)
    bought, fresh_bought = real(name).figures(QuantizeSettings(target=target, budget=budget))
    assert bought >= printed + _ASKED_DB
    assert abs(printed - fresh) <= _WITHIN_DB
    assert abs(bought - fresh_bought) <= _WITHIN_DB
