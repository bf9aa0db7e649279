"""Device profiles say what the vendor's tables say, and preflight refuses what cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from vitexport.device.preflight import check_build, check_engine, preflight
from vitexport.device.profiles import DEVICES, JETPACKS, RTX_CAPABILITIES, device_profile, precisions_of
from vitexport.errors import EngineBuildError, RecipeError
from vitexport.runtimes.cuda.probe import GpuInfo
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar

ORIN = GpuInfo(0, "Orin", "8.7", 8 << 30, True)
L4 = GpuInfo(0, "L4", "8.9", 24 << 30, False)


@pytest.mark.parametrize(
    ("capability", "has", "lacks"),
    [
        ("7.2", {"float16", "int8"}, {"bfloat16", "fp8"}),
        ("7.5", {"float16", "int8"}, {"bfloat16", "fp8"}),
        ("8.0", {"bfloat16", "int8"}, {"fp8"}),
        ("8.6", {"bfloat16", "int8"}, {"fp8"}),
        ("8.7", {"bfloat16", "int8"}, {"fp8", "fp4"}),
        ("8.9", {"fp8"}, {"fp4"}),
        ("9.0", {"fp8"}, {"fp4"}),
        ("11.0", {"fp8", "fp4"}, set()),
        ("12.0", {"fp8", "fp4"}, set()),
    ],
)
def test_precisions_follow_the_compute_capability(capability: str, has: set[str], lacks: set[str]) -> None:
    found = set(precisions_of(capability))
    assert has <= found
    assert not lacks & found
    assert "float32" in found


def test_profiles_cover_the_devices_people_use() -> None:
    wanted = {
        "orin-nano",
        "orin-nx",
        "orin-agx",
        "thor",
        "xavier-agx",
        "rtx-30",
        "rtx-40",
        "rtx-50",
        "l4",
        "a100",
        "h100",
    }
    assert wanted | {"h200", "x86-cpu", "arm-cpu"} <= set(DEVICES)
    for profile in DEVICES.values():
        assert set(profile.jetpacks) <= set(JETPACKS)
        assert profile.shared_memory == profile.is_jetson


def test_the_workspace_leaves_room_where_memory_is_shared() -> None:
    nano = device_profile("orin-nano")
    assert nano.workspace_mib is not None
    assert nano.workspace_mib == 2048
    assert device_profile("l4").workspace_mib == 12 * 1024
    assert device_profile("arm-cpu").workspace_mib is None


def test_only_devices_with_a_dla_have_cores() -> None:
    assert device_profile("orin-nano").dla_cores == 0
    assert device_profile("thor").dla_cores == 0
    assert device_profile("orin-agx").dla_cores == 2


def test_an_unknown_device_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean 'orin-nano'"):
        device_profile("orin-nan0")


CANNOT: dict[str, tuple[str, dict[str, Any], str]] = {
    "FP8 on Orin": ("orin-nano", {"product": "tensorrt", "precision": "fp8"}, "has no FP8"),
    "BF16 on Turing": ("t4", {"product": "tensorrt", "precision": "bfloat16"}, "has no BF16"),
    "TensorRT 11 on JetPack 6": (
        "orin-agx",
        {"product": "tensorrt", "version": "11.4.1", "jetpack": "6.2"},
        "TensorRT 11.4.1 does not run on JetPack 6.2",
    ),
    "TensorRT 11 on Orin Nano": (
        "orin-nano",
        {"product": "tensorrt", "version": "11.4.1"},
        "takes TensorRT 10 at most",
    ),
    "JetPack 7.0 on Orin": (
        "orin-nano",
        {"product": "tensorrt", "jetpack": "7.0"},
        "does not run on Jetson Orin Nano",
    ),
    "Xavier": ("xavier-agx", {"product": "tensorrt"}, "strongly typed networks need TensorRT 10"),
    "JetPack 6.0": ("orin-nano", {"product": "tensorrt", "jetpack": "6.0"}, "TensorRT 8.6.2"),
    "RTX on Jetson": ("orin-nano", {"product": "tensorrt-rtx"}, "for x86-64 machines"),
    "RTX on H100": ("h100", {"product": "tensorrt-rtx"}, "no compute capability 9.0"),
    "RTX for other targets": (
        "rtx-40",
        {"product": "tensorrt-rtx", "compute_capabilities": ("8.6",)},
        "not among the targets",
    ),
    "another GPU": ("orin-nano", {"product": "tensorrt", "gpu": L4}, "this machine's L4 has 8.9"),
    "a CPU": ("x86-cpu", {"product": "tensorrt"}, "no NVIDIA GPU"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_work_is_refused_with_a_way_out(case: str) -> None:
    device, arguments, message = CANNOT[case]
    problems = check_build(device_profile(device), **arguments)
    assert any(message in problem.why for problem in problems)
    assert all(problem.fix for problem in problems)
    with pytest.raises(EngineBuildError, match="This cannot work on"):
        preflight(device_profile(device), **arguments)


@pytest.mark.parametrize(
    ("device", "arguments"),
    [
        (
            "orin-nano",
            {"product": "tensorrt", "precision": "int8", "gpu": ORIN, "version": "10.3.0", "jetpack": "6.2"},
        ),
        ("orin-nano", {"product": "tensorrt", "precision": "bfloat16"}),
        ("orin-agx", {"product": "tensorrt", "version": "11.4.1", "jetpack": "7.2.2"}),
        ("thor", {"product": "tensorrt", "precision": "fp8", "version": "10.13.0"}),
        ("rtx-40", {"product": "tensorrt-rtx", "precision": "fp8"}),
        ("rtx-20", {"product": "tensorrt-rtx", "precision": "int8"}),
        ("h100", {"product": "tensorrt", "precision": "fp8"}),
    ],
)
def test_what_can_work_passes(device: str, arguments: dict[str, Any]) -> None:
    assert check_build(device_profile(device), **arguments) == []
    preflight(device_profile(device), **arguments)


def _sidecar(**changes: Any) -> EngineSidecar:
    facts: dict[str, Any] = {
        "product": "tensorrt",
        "version": "10.3.0",
        "platform": "linux-aarch64",
        "gpu": "Orin",
        "compute_capabilities": ("8.7",),
        "hardware_compatibility": "none",
        "version_compatible": False,
        "needs_refit": False,
        "refittable": False,
        "weight_streaming": False,
        "onnx_sha256": "0" * 64,
        "engine_sha256": "0" * 64,
        "engine_bytes": 1,
        "inputs": (),
        "outputs": (),
        "profiles": (),
        "precision": "int8",
        "requested": (),
        "settings": {},
        "metadata": {},
    }
    return EngineSidecar(**{**facts, **changes})


@pytest.mark.parametrize(
    ("device", "changes", "jetpack", "message"),
    [
        ("orin-nano", {"compute_capabilities": ("8.9",), "gpu": "L4"}, "6.2", "has 8.7"),
        ("orin-nano", {"version": "10.13.0"}, "6.2", "version 10.13.0, and this is version 10.3.0"),
        ("orin-nano", {"platform": "linux-x86_64"}, "6.2", "Jetson Orin Nano is aarch64"),
        ("x86-cpu", {}, None, "no NVIDIA GPU"),
    ],
)
def test_engines_of_another_gpu_version_or_platform_are_refused(
    device: str, changes: dict[str, Any], jetpack: str | None, message: str
) -> None:
    problems = check_engine(device_profile(device), _sidecar(**changes), jetpack=jetpack)
    assert any(message in problem.why for problem in problems)


def test_an_engine_of_the_device_passes() -> None:
    assert check_engine(device_profile("orin-nano"), _sidecar(), jetpack="6.2") == []


def test_rtx_capabilities_are_those_of_the_installed_product() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from vitexport.runtimes.tensorrt.api import load_api

    assert load_api("tensorrt-rtx").target_capabilities == RTX_CAPABILITIES
