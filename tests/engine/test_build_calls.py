"""Call order, lifetimes and cleanup of a build, on the recording fake."""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.support.fake_gpu import ORIN, Pretend
from tests.support.onnx_graphs import floating, save
from vitexport.engine.build import build_engine
from vitexport.engine.refit import refit_engine
from vitexport.errors import EngineBuildError, RecipeError, RuntimeBackendError
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.runtimes.cuda.probe import GpuInfo
from vitexport.runtimes.tensorrt.sidecar import read_sidecar, sidecar_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = save(floating(), tmp_path / "model.onnx")
    proto = onnx.load(str(path))
    proto.metadata_props.append(onnx.StringStringEntryProto(key="vitexport.class_names", value='["Ünïcode"]'))
    return save(proto, path)


def _settings(tmp_path: Path, **values: Any) -> EngineSettings:
    return EngineSettings.model_validate({"timing_cache": tmp_path / "timing.cache", **values})


def test_build_calls_come_in_order_and_everything_is_released(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    machine = pretend()
    result = build_engine(model, _settings(tmp_path, batch="1,8"), tmp_path / "model.engine")
    gc.collect()
    steps = machine.order("create builder", "create network", "create parser", "parse", "create config", "build")
    assert steps == sorted(steps)
    released = machine.order("build", "delete parser", "delete network", "delete builder")
    assert released == sorted(released)
    assert "delete config" in machine.events
    assert result.path.read_bytes() == b"plan bytes"


def test_the_network_is_strongly_typed_whatever_number_the_flag_has(
    pretend: Pretend, model: Path, tmp_path: Path
) -> None:
    machine = pretend()
    build_engine(model, _settings(tmp_path), tmp_path / "model.engine")
    # STRONGLY_TYPED is member 1 of the fake's enum, and a flag is 1 << member.
    assert "flags 2" in machine.events


def test_settings_reach_the_builder(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    machine = pretend()
    settings = _settings(
        tmp_path,
        device="orin-nano",
        batch="1,8,9:16:32",
        version_compatible=True,
        strip_weights=True,
        weight_streaming=True,
        optimization_level=5,
    )
    build_engine(model, settings, tmp_path / "model.engine")
    events = machine.events
    assert f"pool WORKSPACE {2048 << 20}" in events
    assert {"clear TF32", "set VERSION_COMPATIBLE", "set STRIP_PLAN", "set WEIGHT_STREAMING"} <= set(events)
    assert [event for event in events if event.startswith("profile x")] == [
        "profile x (1, 4) (1, 4) (1, 4)",
        "profile x (2, 4) (8, 4) (8, 4)",
        "profile x (9, 4) (16, 4) (32, 4)",
    ]
    sidecar = read_sidecar(tmp_path / "model.engine")
    assert sidecar is not None
    assert sidecar.needs_refit
    assert sidecar.version_compatible
    assert sidecar.gpu == "Orin"
    assert sidecar.compute_capabilities == ("8.7",)


def test_the_sidecar_describes_the_plan(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    pretend()
    build_engine(model, _settings(tmp_path, batch="1,8"), tmp_path / "model.engine")
    sidecar = read_sidecar(tmp_path / "model.engine")
    assert sidecar is not None
    assert sidecar.onnx_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert sidecar.engine_sha256 == hashlib.sha256(b"plan bytes").hexdigest()
    assert [item.spec.describe() for item in sidecar.inputs] == ["x: float32[batch, 4]"]
    assert sidecar.profiles[1]["x"].max == (8, 4)
    assert sidecar.metadata == {"vitexport.class_names": '["Ünïcode"]'}
    assert sidecar.requested[0].name == "fc"
    assert sidecar.requested[0].flops == 2 * 4 * 2
    assert sidecar.precision == "float32"


def test_the_timing_cache_is_kept_and_reused(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    machine = pretend()
    build_engine(model, _settings(tmp_path), tmp_path / "a.engine")
    assert (tmp_path / "timing.cache").read_bytes() == b"timings"
    build_engine(model, _settings(tmp_path), tmp_path / "b.engine")
    assert [event for event in machine.events if event.startswith("timing cache")] == [
        "timing cache 0",
        "timing cache 7",
    ]


def test_a_timing_cache_the_builder_refuses_is_started_afresh(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(b"another version")
    machine = pretend(stale_cache=True)
    build_engine(model, _settings(tmp_path), tmp_path / "a.engine")
    assert "timing cache 15" in machine.events
    assert "timing cache 0" in machine.events


def test_parser_errors_name_the_node_and_leave_nothing(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    machine = pretend(parse=False)
    with pytest.raises(EngineBuildError, match=r"node DQ7 \(DequantizeLinear\): Assertion failed: zero point"):
        build_engine(model, _settings(tmp_path), tmp_path / "model.engine")
    _assert_clean(machine, tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"plan": None}, "no tactic found"),
        ({"bad_profile": True}, "refuses the range"),
        ({"no_builder": True}, "no builder"),
    ],
)
def test_every_failure_is_ours_and_leaves_nothing(
    script: dict[str, Any], message: str, pretend: Pretend, model: Path, tmp_path: Path
) -> None:
    machine = pretend(**script)
    with pytest.raises(EngineBuildError, match=message):
        build_engine(model, _settings(tmp_path), tmp_path / "model.engine")
    _assert_clean(machine, tmp_path)


def _assert_clean(machine: Any, tmp_path: Path) -> None:
    """Everything created is deleted, and no file lies under a final name."""
    gc.collect()
    for kind in ("builder", "network", "parser", "config"):
        assert machine.count(f"create {kind}") == machine.count(f"delete {kind}")
    assert not (tmp_path / "model.engine").exists()
    assert not sidecar_path(tmp_path / "model.engine").exists()


def test_progress_is_passed_on_and_can_cancel(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    class Watch:
        def __init__(self, answer: bool) -> None:
            self.seen: list[tuple[Any, ...]] = []
            self.answer = answer

        def start(self, phase: str, parent: str | None, steps: int) -> None:
            self.seen.append(("start", phase, parent, steps))

        def step(self, phase: str, step: int) -> bool:
            self.seen.append(("step", phase, step))
            return self.answer

        def finish(self, phase: str) -> None:
            self.seen.append(("finish", phase))

    pretend()
    watch = Watch(answer=True)
    build_engine(model, _settings(tmp_path), tmp_path / "model.engine", progress=watch)
    assert watch.seen == [
        ("start", "Building", None, 2),
        ("start", "Timing", "Building", 1),
        ("step", "Timing", 0),
        ("finish", "Timing"),
        ("finish", "Building"),
    ]
    with pytest.raises(EngineBuildError, match="cannot build"):
        build_engine(model, _settings(tmp_path), tmp_path / "other.engine", progress=Watch(answer=False))
    assert not (tmp_path / "other.engine").exists()


def test_an_interrupt_inside_the_builder_stays_an_interrupt(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    class Interrupted:
        def start(self, phase: str, parent: str | None, steps: int) -> None: ...

        def step(self, phase: str, step: int) -> bool:
            raise KeyboardInterrupt

        def finish(self, phase: str) -> None: ...

    pretend()
    with pytest.raises(KeyboardInterrupt):
        build_engine(model, _settings(tmp_path), tmp_path / "model.engine", progress=Interrupted())
    assert not (tmp_path / "model.engine").exists()


def test_without_a_gpu_tensorrt_is_not_called(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    machine = pretend(gpu=None)
    with pytest.raises(RuntimeBackendError, match="needs an NVIDIA GPU, but no NVIDIA driver"):
        build_engine(model, _settings(tmp_path), tmp_path / "model.engine")
    assert machine.count("create") == 0


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"batch": "1,8", "shapes": {"z": ((1,), (1,), (1,))}}, EngineBuildError, "no input"),
        ({"device": "orin-nanoo"}, RecipeError, "did you mean 'orin-nano'"),
        ({"device": "thor"}, EngineBuildError, "built on the device that runs it"),
        ({"device": "x86-cpu"}, EngineBuildError, "no NVIDIA GPU"),
        ({"compute_capabilities": ("8.6",)}, EngineBuildError, "takes no list of compute capabilities"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    values: dict[str, Any], error: type[Exception], message: str, pretend: Pretend, model: Path, tmp_path: Path
) -> None:
    pretend()
    with pytest.raises(error, match=message):
        build_engine(model, _settings(tmp_path, **values), tmp_path / "model.engine")


def test_a_missing_model_is_named(pretend: Pretend, tmp_path: Path) -> None:
    pretend()
    with pytest.raises(EngineBuildError, match="found none"):
        build_engine(tmp_path / "absent.onnx", _settings(tmp_path), tmp_path / "model.engine")


def _stripped(pretend: Pretend, model: Path, tmp_path: Path, **script: Any) -> Any:
    machine = pretend(**script)
    build_engine(model, _settings(tmp_path, strip_weights=True), tmp_path / "stripped.engine")
    machine.events.clear()
    return machine


def test_refit_puts_the_weights_in_and_keeps_them_in_the_plan(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    machine = _stripped(pretend, model, tmp_path)
    refit_engine(tmp_path / "stripped.engine", model, tmp_path / "full.engine")
    steps = machine.order("create engine", "create refitter", "refit from file", "refit", "serialize without")
    assert steps == sorted(steps)
    assert "serialize without EXCLUDE_WEIGHTS" in machine.events
    sidecar = read_sidecar(tmp_path / "full.engine")
    assert sidecar is not None
    assert not sidecar.needs_refit
    assert sidecar.refittable


@pytest.mark.parametrize("script", [{"missing_weights": ["blocks.0.bias"]}, {"refuse_weights": True}])
def test_refit_that_misses_a_weight_fails(
    script: dict[str, Any], pretend: Pretend, model: Path, tmp_path: Path
) -> None:
    _stripped(pretend, model, tmp_path, **script)
    with pytest.raises(EngineBuildError, match="cannot put the weights"):
        refit_engine(tmp_path / "stripped.engine", model, tmp_path / "full.engine")
    assert not (tmp_path / "full.engine").exists()


def test_refit_takes_only_the_file_the_stripped_engine_came_from(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    _stripped(pretend, model, tmp_path)
    other = save(floating(), tmp_path / "other.onnx")
    with pytest.raises(EngineBuildError, match="was made from an ONNX file with sha256"):
        refit_engine(tmp_path / "stripped.engine", other, tmp_path / "full.engine")


def test_refit_refuses_another_gpu_and_a_plain_engine(pretend: Pretend, model: Path, tmp_path: Path) -> None:
    _stripped(pretend, model, tmp_path)
    build_engine(model, _settings(tmp_path), tmp_path / "plain.engine")
    with pytest.raises(EngineBuildError, match="not built to take weights"):
        refit_engine(tmp_path / "plain.engine", model, tmp_path / "full.engine")
    pretend(gpu=GpuInfo(0, "L4", "8.9", 24 << 30, False))
    with pytest.raises(EngineBuildError, match="L4 has 8.9"):
        refit_engine(tmp_path / "stripped.engine", model, tmp_path / "full.engine")
    assert not (tmp_path / "full.engine").exists()
    pretend(gpu=ORIN)
    refit_engine(tmp_path / "stripped.engine", model, tmp_path / "full.engine")
    assert (tmp_path / "full.engine").exists()
