"""What a measurement says of the machine it was taken on."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitexport import machine

X86 = """processor\t: 0
model name\t: A Server CPU
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd asimdhp asimddp
CPU part\t: 0xd42
"""


def here(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> dict[str, str]:
    """Describe a machine of these files."""

    def read(path: Path, **_: str) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    return machine.describe_machine()


def test_an_x86_processor_is_named_with_what_decides_the_speed_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    found = here(monkeypatch, {"/proc/cpuinfo": X86})
    assert (found["processor"], found["features"]) == ("A Server CPU", "AVX2, AVX-512, VNNI")
    assert machine.cpu_features()["i8mm"] is False


def test_a_jetson_is_named_by_its_board(monkeypatch: pytest.MonkeyPatch) -> None:
    found = here(monkeypatch, {"/proc/cpuinfo": ARM, "/proc/device-tree/model": "A Board\n\0"})
    assert (found["processor"], found["features"]) == ("A Board", "dotprod, fp16 arithmetic")


def test_a_system_without_proc_does_not_know_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    found = here(monkeypatch, {})
    assert found["processor"]
    assert found["features"] == "unknown"
    assert set(machine.cpu_features().values()) == {None}
