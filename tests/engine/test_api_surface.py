"""Everything the backend uses exists in the real releases, or is guarded.

Our own code runs on the fake, cut down to the API of a real release: an attribute, class, enum or member that the
release lacks raises AttributeError there as it would on the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_gpu import Pretend
from tests.support.fake_tensorrt.machine import Machine
from tests.support.onnx_graphs import floating, save
from tests.support.tensorrt_surfaces import PARSED, RELEASES, Unavailable, describe, recorded, surface, used
from vitexport.engine.build import build_engine
from vitexport.engine.refit import refit_engine
from vitexport.errors import EngineBuildError
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.runtimes.cuda.probe import GpuInfo
from vitexport.runtimes.tensorrt.api import load_api
from vitexport.runtimes.tensorrt.audit import inspect_layers


@pytest.fixture(params=[*RELEASES, "rtx"])
def api(request: pytest.FixtureRequest) -> dict[str, Any]:
    """API of a release: as it was recorded, and for TensorRT-RTX as it is installed."""
    if request.param != "rtx":
        return recorded(request.param)
    return describe(pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed"))


@pytest.mark.parametrize("release", RELEASES)
def test_the_record_is_what_the_real_bindings_offer(release: str) -> None:
    try:
        found = surface(release)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert used(found) == recorded(release), "write the record again with `python -m tests.support.tensorrt_surfaces`"


def _machine(pretend: Pretend, api: dict[str, Any]) -> Machine:
    blackwell = GpuInfo(0, "RTX 5090", "12.0", 32 << 30, False)
    return pretend(gpu=blackwell, surface=api, version=api["version"], ahead_of_time=True)


def _settings(tmp_path: Path, **values: Any) -> EngineSettings:
    return EngineSettings.model_validate({"timing_cache": tmp_path / "timing", **values})


def test_build_run_audit_and_refit_use_only_what_the_release_has(
    pretend: Pretend, api: dict[str, Any], tmp_path: Path
) -> None:
    machine = _machine(pretend, api)
    machine.script["streamable"] = 1
    model = save(floating(), tmp_path / "model.onnx")
    engine = tmp_path / "model.engine"

    class Watch:
        def start(self, phase: str, parent: str | None, steps: int) -> None: ...

        def step(self, phase: str, step: int) -> bool:
            return True

        def finish(self, phase: str) -> None: ...

    ahead_of_time = load_api("tensorrt").builds_without_gpu
    settings = _settings(
        tmp_path,
        batch="1,8",
        workspace_mib=512,
        optimization_level=3,
        tf32=True,
        refit=True,
        weight_streaming=True,
        version_compatible=not ahead_of_time,
        hardware_compatibility="none" if ahead_of_time else "ampere_plus",
        compute_capabilities=("7.5", "12.0") if ahead_of_time else (),
    )
    build_engine(model, settings, engine, progress=Watch())
    for graph in (False, True):
        with open_runtime(engine, options=RuntimeOptions(cuda_graph=graph)) as runtime:
            feeds = {"x": np.ones((4, 4), np.float32)}
            for _ in range(2):
                np.testing.assert_array_equal(runtime.run(feeds)["y"], [[4, 1]] * 4)
    assert inspect_layers(engine) == ()
    refit_engine(engine, model, tmp_path / "refitted.engine")
    assert machine.count("set TF32") == 1


def test_flags_are_looked_up_and_never_numbered(pretend: Pretend, api: dict[str, Any], tmp_path: Path) -> None:
    machine = _machine(pretend, api)
    build_engine(save(floating(), tmp_path / "model.onnx"), _settings(tmp_path), tmp_path / "model.engine")
    expected = 1 << api["enums"]["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"]
    assert f"flags {expected}" in machine.events
    assert not {"set FP16", "set INT8", "set BF16", "set FP8"} & set(machine.events)


def test_keyword_arguments_have_the_names_the_bindings_document(api: dict[str, Any]) -> None:
    assert "ignore_mismatch" in api["documents"]["IBuilderConfig.set_timing_cache"]


def test_what_the_parser_makes_has_what_is_read_from_it(api: dict[str, Any]) -> None:
    attention = "ATTENTION_INPUT" in api["enums"]["LayerType"]  # the guard of everything about IAttention
    for name, attributes in PARSED.items():
        if attention or not name.startswith("IAttention"):
            assert set(attributes) <= set(api["classes"].get(name, ())), name
    layers = {"MATRIX_MULTIPLY", "CONVOLUTION", "QUANTIZE", "DEQUANTIZE", "CAST", "CONSTANT", "SHUFFLE", "IDENTITY"}
    assert layers <= set(api["enums"]["LayerType"])


def test_a_setting_the_release_lacks_is_refused_by_name(pretend: Pretend, api: dict[str, Any], tmp_path: Path) -> None:
    _machine(pretend, api)
    settings = _settings(tmp_path, hardware_compatibility="same_compute_capability")
    model = save(floating(), tmp_path / "model.onnx")
    has = "SAME_COMPUTE_CAPABILITY" in api["enums"]["HardwareCompatibilityLevel"]
    if has and not load_api("tensorrt").builds_without_gpu:
        build_engine(model, settings, tmp_path / "model.engine")
        return
    with pytest.raises(EngineBuildError, match="has no hardware compatibility 'same_compute_capability'"):
        build_engine(model, settings, tmp_path / "model.engine")


def test_only_tensorrt_rtx_builds_without_a_gpu(pretend: Pretend, api: dict[str, Any]) -> None:
    _machine(pretend, api)
    is_rtx = "get_engine_validity" in api["classes"]["Runtime"]
    loaded = load_api("tensorrt")
    assert loaded.builds_without_gpu == is_rtx
    assert bool(loaded.target_capabilities) == is_rtx


def test_the_fake_offers_nothing_that_no_release_has() -> None:
    """A fake with invented methods would prove nothing."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    real = [*map(recorded, RELEASES), describe(rtx)]
    module = Machine(ahead_of_time=True).tensorrt
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, type) and hasattr(value, "__members__"):
            members = set().union(*(found["enums"].get(name, {}) for found in real))
            assert set(value.__members__) <= members, name
        elif isinstance(value, type) and name not in ("ILogger", "IMatrixMultiplyLayer", "IConvolutionLayer"):
            offered = {attribute for attribute in vars(value) if not attribute.startswith("_")}
            assert offered <= set().union(*(found["classes"].get(name, ()) for found in real)), name
