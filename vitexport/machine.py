"""What machine a measurement was taken on, in the words a report needs. Standard library only."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

__all__ = ["cpu_features", "describe_machine", "processor_name", "return_freed_memory", "usable_cores"]

# What the int8 kernels of ONNX Runtime's MLAS look for; the names are those of /proc/cpuinfo on Linux.
_CPU_FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX int8": ("amx_int8",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "fp16 arithmetic": ("avx512_fp16", "asimdhp"),
}


def describe_machine() -> dict[str, str]:
    """Return processor, its features, usable cores, memory, operating system and Python version of this machine.

    Processors of one name differ in what decides the speed of int8, hence the features (``AVX2, AVX-512, VNNI``).
    """
    return {
        "processor": processor_name(),
        "features": ", ".join(name for name, there in cpu_features().items() if there) or "unknown",
        "cores": str(usable_cores()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Return the cores this process may use, which a container can limit below what the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def return_freed_memory() -> None:
    """Give the memory that was freed back to the system: glibc keeps it, in an arena for each thread that ran.

    Nothing happens with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def processor_name() -> str:
    """Return the processor's marketing name; Jetson names its board in the device tree instead."""
    try:
        return _cpuinfo().get("model name") or (
            Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        )
    except OSError:
        return platform.processor() or platform.machine()


def cpu_features() -> dict[str, bool | None]:
    """Return which of the instructions that int8 and float16 products use the CPU has; None where it cannot be told."""
    try:
        fields = _cpuinfo()
    except OSError:
        return dict.fromkeys(_CPU_FEATURES)
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return {feature: any(flag in flags for flag in names) for feature, names in _CPU_FEATURES.items()}


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor that has them.

    Raises:
        OSError: The system has no /proc/cpuinfo.
    """
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if value.strip():
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
