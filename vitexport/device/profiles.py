"""Device profiles: what each target can compute, how much memory it has, and which software its JetPack brings.

Sources, all NVIDIA's own pages: "CUDA GPU Compute Capability"; the Jetson module data sheets (memory, DLA count);
"TensorRT Support Matrix" (hardware and precision); the JetPack release pages (TensorRT, CUDA and Python of each); the
TensorRT 11 release notes (DLA, JetPack 7.2.2); "TensorRT-RTX Support Matrix" (compute capabilities, x86-64 only).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from vitexport.errors import RecipeError

__all__ = ["DEVICES", "JETPACKS", "RTX_CAPABILITIES", "DeviceProfile", "JetPack", "device_profile", "precisions_of"]

Architecture = Literal["x86_64", "aarch64"]

# Compute capabilities TensorRT-RTX builds for (TensorRT-RTX Support Matrix; members of its ComputeCapability enum).
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True)
class JetPack:
    """Software of one JetPack release.

    Attributes:
        name: Release, e.g. ``6.2``.
        tensorrt: TensorRT version it brings.
        cuda: CUDA version.
        python: System Python.
        max_tensorrt: Highest TensorRT major version that can be installed on it.
    """

    name: str
    tensorrt: str
    cuda: str
    python: str
    max_tensorrt: int


# JetPack 5.1: TensorRT 8.5.2 has no explicitly typed ONNX networks with FP16 Q/DQ and Python 3.8 is below our minimum.
# JetPack 6.x stays on TensorRT 10. TensorRT 11.4.1 asks for JetPack 7.2.2 or later (TensorRT 11.4.1 release notes).
JETPACKS: dict[str, JetPack] = {
    "5.1": JetPack("5.1", "8.5.2", "11.4", "3.8", 8),
    "6.0": JetPack("6.0", "8.6.2", "12.2", "3.10", 10),
    "6.1": JetPack("6.1", "10.3.0", "12.6", "3.10", 10),
    "6.2": JetPack("6.2", "10.3.0", "12.6", "3.10", 10),
    "7.0": JetPack("7.0", "10.13", "13.0", "3.12", 10),
    "7.1": JetPack("7.1", "10.13", "13.0", "3.12", 10),
    "7.2": JetPack("7.2", "10.16.2", "13.2", "3.12", 11),
}


@dataclass(frozen=True)
class DeviceProfile:
    """One target.

    Attributes:
        name: Name on the command line.
        title: What people call it.
        architecture: Processor.
        compute_capability: Of its GPU, e.g. ``8.7``; empty without one.
        memory_gib: Memory a model can count on, in GiB: the smallest variant sold under this name.
        shared_memory: True where CPU and GPU share it.
        jetpacks: JetPack releases that run on it, oldest first; empty off Jetson.
        dla_cores: Deep learning accelerators of the largest variant. TensorRT 10.7 was the last 10.x to use them;
            11.0 to 11.3 cannot, 11.4.1 can again on AGX Orin only.
        tensorrt_11: Whether TensorRT 11 (11.4.1 with JetPack 7.2.2 or later) is released for it.
    """

    name: str
    title: str
    architecture: Architecture
    compute_capability: str
    memory_gib: float
    shared_memory: bool = False
    jetpacks: tuple[str, ...] = ()
    dla_cores: int = 0
    tensorrt_11: bool = True

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions the hardware computes GEMMs in."""
        return precisions_of(self.compute_capability) if self.compute_capability else ("float32", "int8")

    @property
    def workspace_mib(self) -> int | None:
        """Scratch memory a builder may plan with, in MiB.

        A quarter of shared memory, because the operating system, the weights being built (twice) and the application
        live in it too; half of a discrete GPU's own memory. None without a GPU.
        """
        if not self.compute_capability:
            return None
        return int(self.memory_gib * 1024 / (4 if self.shared_memory else 2))

    @property
    def is_jetson(self) -> bool:
        """True for Jetson modules."""
        return bool(self.jetpacks)


def precisions_of(compute_capability: str) -> tuple[str, ...]:
    """Return what tensor cores of a compute capability multiply ("Hardware and Precision" in the Support Matrix).

    FP16 from 7.0; INT8 from 7.2; BF16 from 8.0; FP8 on 8.9, 9.0 and later but on no 8.6 or 8.7; FP4 from 10.0.
    """
    major, _, minor = compute_capability.partition(".")
    capability = (int(major), int(minor))
    precisions = ["float32"]
    precisions += ["float16"] if capability >= (7, 0) else []
    precisions += ["int8"] if capability >= (7, 2) else []
    precisions += ["bfloat16"] if capability >= (8, 0) else []
    precisions += ["fp8"] if capability >= (8, 9) else []
    precisions += ["fp4"] if capability >= (10, 0) else []
    return tuple(precisions)


_ORIN = ("6.0", "6.1", "6.2", "7.2")

_PROFILES = (
    DeviceProfile("orin-nano", "Jetson Orin Nano", "aarch64", "8.7", 8, True, _ORIN, 0, tensorrt_11=False),
    DeviceProfile("orin-nx", "Jetson Orin NX", "aarch64", "8.7", 8, True, _ORIN, 2, tensorrt_11=False),
    DeviceProfile("orin-agx", "Jetson AGX Orin", "aarch64", "8.7", 32, True, _ORIN, 2),
    DeviceProfile("thor", "Jetson AGX Thor", "aarch64", "11.0", 128, True, ("7.0", "7.1", "7.2"), 0),
    DeviceProfile("xavier-nx", "Jetson Xavier NX", "aarch64", "7.2", 8, True, ("5.1",), 2),
    DeviceProfile("xavier-agx", "Jetson AGX Xavier", "aarch64", "7.2", 32, True, ("5.1",), 2),
    DeviceProfile("rtx-20", "GeForce RTX 20 series", "x86_64", "7.5", 6),
    DeviceProfile("rtx-30", "GeForce RTX 30 series", "x86_64", "8.6", 8),
    DeviceProfile("rtx-40", "GeForce RTX 40 series", "x86_64", "8.9", 8),
    DeviceProfile("rtx-50", "GeForce RTX 50 series", "x86_64", "12.0", 8),
    DeviceProfile("t4", "T4", "x86_64", "7.5", 15),
    DeviceProfile("a10", "A10", "x86_64", "8.6", 24),
    DeviceProfile("l4", "L4", "x86_64", "8.9", 24),
    DeviceProfile("a100", "A100", "x86_64", "8.0", 40),
    DeviceProfile("h100", "H100", "x86_64", "9.0", 80),
    DeviceProfile("h200", "H200", "x86_64", "9.0", 141),
    DeviceProfile("x86-cpu", "x86-64 processor", "x86_64", "", 8),
    DeviceProfile("arm-cpu", "64-bit ARM processor", "aarch64", "", 4),
)

DEVICES: dict[str, DeviceProfile] = {profile.name: profile for profile in _PROFILES}


def device_profile(name: str) -> DeviceProfile:
    """Return a profile by name.

    Raises:
        RecipeError: There is none of that name.
    """
    profile = DEVICES.get(name)
    if profile is None:
        close = difflib.get_close_matches(name, DEVICES, n=1)
        raise RecipeError(
            f"Expected a device profile, found '{name}'" + (f"; did you mean '{close[0]}'?" if close else "."),
            f"Known are {', '.join(DEVICES)}.",
        )
    return profile
