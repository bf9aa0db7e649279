"""Everything the backend uses exists in the real releases, or is guarded.

Our own code runs on the fake, cut down to the API of a real release: an attribute, class, enum or member that the
release lacks raises AttributeError there as it would on the device.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.conftest import Pretend
from tests.engine.fake_machine import Machine
from tests.engine.graphs import floating, save
from tests.engine.surfaces import RELEASES, Unavailable, describe, surface
from vitexport.engine.audit import inspect_layers
from vitexport.engine.build import build_engine
from vitexport.engine.refit import refit_engine
from vitexport.engine_settings import EngineSettings
from vitexport.errors import EngineBuildError
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.runtimes.cuda.probe import GpuInfo
from vitexport.runtimes.tensorrt_api import load_api


@pytest.fixture(scope="module")
def surfaces() -> dict[str, Any]:
    """API of each release that can be had, read once; also of TensorRT-RTX where it is installed."""
    found: dict[str, Any] = {release: _surface_or_reason(release) for release in RELEASES}
    if importlib.util.find_spec("tensorrt_rtx") is None:
        found["rtx"] = "TensorRT-RTX is not installed"
    else:
        import tensorrt_rtx

        found["rtx"] = describe(tensorrt_rtx)
    return found


def _surface_or_reason(release: str) -> dict[str, Any] | str:
    try:
        return surface(release)
    except Unavailable as reason:
        return str(reason)


@pytest.fixture(params=[*RELEASES, "rtx"])
def api(request: pytest.FixtureRequest, surfaces: dict[str, Any]) -> dict[str, Any]:
    found = surfaces[request.param]
    if isinstance(found, str):
        pytest.skip(found)
    assert isinstance(found, dict)
    return found


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


def test_the_fake_offers_nothing_that_no_release_has(surfaces: dict[str, Any]) -> None:
    """A fake with invented methods would prove nothing."""
    real = [found for found in surfaces.values() if isinstance(found, dict)]
    if len(real) < len(surfaces):
        pytest.skip("not every release can be had here")
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
