"""One channel a hundred times as large, in three blocks, costs a quantized model next to nothing by default.

``make quantizer-sweep`` prints what every case leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.suites.model_rows import build, row_named, source_of
from tests.support.engine_models import simplified
from tests.support.fresh import Fresh
from tests.support.outliers import plant_after_gelu, plant_in_absorbed
from vitexport.files import StageResult
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.layers import find_attention
from vitexport.host.quantize import quantize_onnx
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import QuantizeSettings, Target

_WITHIN_DB = 3.0
_TARGETS: tuple[Target, ...] = ("tensorrt", "ort-x86")
_IMAGES = 24
_HOURS = 3 * 3600


def _in_inputs(model: Path, out: Path, blocks: tuple[int, int, int]) -> Path:
    early, middle, late = blocks
    return plant_in_absorbed(model, out, (f"{early}.fc1", f"{middle}.qkv", f"{late}.proj"))


_PLANTINGS = {"inputs": _in_inputs, "gelu": plant_after_gelu}


@dataclass(frozen=True)
class Subject:
    """A float model, photographs that calibrate it, others that judge, and what its own quantization leaves."""

    model: Path
    calibration: tuple[Path, ...]
    images: tuple[Path, ...]
    plain: dict[Target, float]

    def blocks(self) -> tuple[int, int, int]:
        """Return three blocks of the model."""
        depth = len(find_attention(read_onnx(self.model)))
        return depth // 4, depth // 2, 3 * depth // 4

    def planted(self, planting: str) -> Path:
        """Return the model with massive activations."""
        return _PLANTINGS[planting](self.model, self.model.with_name(f"{planting}.onnx"), self.blocks())

    def quantized(self, model: Path, settings: QuantizeSettings) -> tuple[float, StageResult]:
        """Quantize; return the SQNR in dB on images not seen before, against the very model, and the result."""
        done = quantize_onnx(model, self.calibration, settings, model.with_name("int8.onnx"))
        fresh = Fresh(model, self.images, model.with_name("fresh")).quality(done.path, settings.target)
        print(f"{model.parent.name} {model.stem}, {settings.target}: {fresh.sqnr_db:.1f} dB")
        return fresh.sqnr_db, done

    def loses(self, planting: str, target: Target) -> float:
        """Return what a planting costs with default settings, in dB."""
        settings = QuantizeSettings(target=target)
        if target not in self.plain:
            self.plain[target], _ = self.quantized(self.model, settings)
        return self.plain[target] - self.quantized(self.planted(planting), settings)[0]


@pytest.fixture(scope="module")
def subject(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Subject]:
    """Export a model once; with no source, the row of that name."""
    made: dict[str, Subject] = {}
    photographs = shared / "data" / "imagenet-1k-sample"

    def make(name: str, source: str, images: int) -> Subject:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if not source:
                build(row_named(name), folder / "checkpoint", shallow=False)
                source = source_of(row_named(name), folder / "checkpoint")
            calibration = list_images(photographs / "calib", limit=images)
            judging = list_images(photographs / "dev", limit=_IMAGES)
            made[name] = Subject(simplified(source, folder), calibration, judging, {})
        return made[name]

    return make


@pytest.fixture
def deit(shared: Path, subject: Callable[[str, str, int], Subject]) -> Subject:
    """A trained model of 12 blocks."""
    return subject("deit-tiny", str(shared / "models" / "deit-tiny-hf"), 64)


@pytest.mark.parametrize(
    ("target", "planting"),
    [
        ("tensorrt", "gelu"),
        ("ort-x86", "inputs"),
        pytest.param("tensorrt", "inputs", marks=pytest.mark.slow),
        pytest.param("ort-x86", "gelu", marks=pytest.mark.slow),
    ],
)
def test_a_trained_model_bears_massive_activations(target: Target, planting: str, deit: Subject) -> None:
    assert deit.loses(planting, target) <= _WITHIN_DB


def test_layers_that_nothing_tames_stay_float_whatever_work_they_do(deit: Subject) -> None:
    settings = QuantizeSettings(target="tensorrt", preset="fast")  # which searches for no transform
    _, done = deit.quantized(deit.planted("gelu"), settings)
    islands = done.details["islands"]
    destroyed = {f"{block}.fc2" for block in deit.blocks()}
    assert destroyed <= set(islands["kept_float"])
    assert islands["work"] > 0.08  # more than may stay float for its gain
    assert any("quantized alone it leaves" in islands["reasons"][group] for group in destroyed)


@pytest.mark.slow
@pytest.mark.timeout(_HOURS)
# Few images, enough to compare.
@pytest.mark.filterwarnings("ignore:Calibrating on 24 images", "ignore:On calibration images held out, rounding")
@pytest.mark.parametrize("planting", list(_PLANTINGS))
@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("name", ["vit-b16-timm", "vit-l16-timm", "vit-h14-timm"])
def test_a_full_size_model_bears_massive_activations(
    name: str, target: Target, planting: str, subject: Callable[[str, str, int], Subject]
) -> None:
    assert subject(name, "", _IMAGES).loses(planting, target) <= _WITHIN_DB
