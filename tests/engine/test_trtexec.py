"""The trtexec line says what our settings say, and ONNX metadata is read without onnx."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.support.onnx_graphs import floating, linear, save
from vitexport.device.profiles import device_profile
from vitexport.engine.onnx_file import read_metadata
from vitexport.engine.trtexec import trtexec_command
from vitexport.errors import EngineBuildError
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.tensors import TensorSpec

PIXELS = TensorSpec("pixel_values", ("batch", 3, 224, 224), "float32")


def _words(settings: dict[str, Any], **more: Any) -> list[str]:
    command = trtexec_command(Path("my model.onnx"), EngineSettings.model_validate(settings), [PIXELS], **more)
    return shlex.split(command)


def test_defaults_are_typed_without_tf32_and_can_be_inspected() -> None:
    words = _words({}, engine=Path("out.engine"))
    assert words == [
        "trtexec",
        "--onnx=my model.onnx",
        "--stronglyTyped",
        "--saveEngine=out.engine",
        "--minShapes=pixel_values:1x3x224x224",
        "--optShapes=pixel_values:1x3x224x224",
        "--maxShapes=pixel_values:1x3x224x224",
        "--noTF32",
        "--profilingVerbosity=detailed",
    ]


def test_no_precision_flag_is_ever_printed() -> None:
    words = _words({"device": "orin-nano"}, device=device_profile("orin-nano"))
    assert not {"--fp16", "--int8", "--bf16", "--fp8", "--best"} & set(words)
    assert "--memPoolSize=workspace:2048M" in words


def test_several_batches_are_several_profiles() -> None:
    words = _words({"batch": "1,8"})
    first, second = words.index("--profile=0"), words.index("--profile=1")
    assert words[first + 3] == "--maxShapes=pixel_values:1x3x224x224"
    assert words[second + 1] == "--minShapes=pixel_values:2x3x224x224"
    assert words[second + 2] == "--optShapes=pixel_values:8x3x224x224"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"version_compatible": True}, "--versionCompatible"),
        ({"strip_weights": True}, "--stripWeights"),
        ({"refit": True}, "--refit"),
        ({"weight_streaming": True}, "--allowWeightStreaming"),
        ({"hardware_compatibility": "ampere_plus"}, "--hardwareCompatibilityLevel=ampere+"),
        ({"hardware_compatibility": "same_compute_capability"}, "--hardwareCompatibilityLevel=sameComputeCapability"),
        ({"optimization_level": 5}, "--builderOptimizationLevel=5"),
        ({"workspace_mib": 512}, "--memPoolSize=workspace:512M"),
        ({"timing_cache": "cache.bin"}, "--timingCacheFile=cache.bin"),
        ({"product": "tensorrt-rtx", "compute_capabilities": ["8.6", "12.0"]}, "--computeCapabilities=86,120"),
    ],
)
def test_settings_have_their_option(settings: dict[str, Any], word: str) -> None:
    assert word in _words(settings)


def test_tf32_and_fixed_shapes_leave_their_options_out() -> None:
    fixed = TensorSpec("x", (1, 3, 224, 224), "float32")
    words = trtexec_command(Path("m.onnx"), EngineSettings(tf32=True), [fixed]).split()
    assert words == ["trtexec", "--onnx=m.onnx", "--stronglyTyped", "--profilingVerbosity=detailed"]


def test_rtx_has_its_own_tool_and_is_typed_anyway() -> None:
    words = _words({"product": "tensorrt-rtx"})
    assert words[0] == "tensorrt_rtx"
    assert "--stronglyTyped" not in words


def test_given_shapes_are_used() -> None:
    shapes = {"pixel_values": ((1, 3, 224, 224), (4, 3, 224, 224), (4, 3, 384, 384))}
    assert "--maxShapes=pixel_values:4x3x384x384" in _words({"shapes": shapes})


def test_metadata_is_read_as_onnx_reads_it(tmp_path: Path) -> None:
    model = linear()
    wanted = {"vitexport.class_names": '["Köln", "東京"]', "empty": "", "long": "x" * 100_000}
    for key, value in wanted.items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    assert read_metadata(save(model, tmp_path / "model.onnx")) == wanted
    assert read_metadata(save(floating(), tmp_path / "plain.onnx")) == {}


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_an_incomplete_file_is_refused(cut: int, tmp_path: Path) -> None:
    path = save(linear(), tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(EngineBuildError, match="not a complete ONNX file"):
        read_metadata(path)
