"""Lines as tegrastats prints them on several boards, and a stand-in program that prints them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vitexport.benchmark.power import PowerMeter, parse_tegrastats, summarize_power

ORIN_NANO = (
    "11-21-2026 10:00:00 RAM 2448/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) CPU [12%@1510,8%@1510,off,off]"
    " EMC_FREQ 0%@2133 GR3D_FREQ 98%@[624] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.6C soc2@47.3C gpu@48.9C"
    " tj@48.9C VDD_IN 7250mW/6100mW VDD_CPU_GPU_CV 3120mW/2000mW VDD_SOC 1396mW/1396mW"
)
AGX_ORIN = (
    "RAM 5000/30536MB (lfb 5x4MB) CPU [0%@1190] GR3D_FREQ 0%@[0,0] tj@45C"
    " VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 2824mW/2824mW NC 0mW/0mW VDDQ_VDD2_1V8AO 400mW/400mW"
)
NANO = (
    "RAM 1216/3956MB (lfb 408x4MB) SWAP 0/1978MB (cached 0MB) CPU [5%@102,2%@102] EMC_FREQ 0% GR3D_FREQ 0%"
    " PLL@28C CPU@30.5C iwlwifi@37C PMIC@50C GPU@30C AO@36C thermal@30.25C POM_5V_IN 1022/1022 POM_5V_GPU 41/41"
    " POM_5V_CPU 123/123"
)


@pytest.mark.parametrize(
    ("line", "watts", "of"),
    [(ORIN_NANO, 7.25, "VDD_IN"), (AGX_ORIN, 5.624, "sum of rails"), (NANO, 1.022, "POM_5V_IN")],
    ids=["Orin Nano", "AGX Orin", "Nano"],
)
def test_the_power_of_the_module_is_read(line: str, watts: float, of: str) -> None:
    power = summarize_power([parse_tegrastats(line)])
    assert power is not None
    assert power.watts == pytest.approx(watts)
    assert power.of == of


def test_memory_clocks_and_temperatures_are_no_rails() -> None:
    assert parse_tegrastats(NANO) == {"POM_5V_IN": 1.022, "POM_5V_GPU": 0.041, "POM_5V_CPU": 0.123}
    assert parse_tegrastats("RAM 1216/3956MB CPU [5%@102] GR3D_FREQ 0%") == {}


def test_samples_are_averaged_and_lines_without_rails_do_not_count() -> None:
    power = summarize_power([{"VDD_IN": 4.0}, {}, {"VDD_IN": 6.0}])
    assert power is not None
    assert (power.watts, power.samples) == (5.0, 2)
    assert power.joules_per_image(20.0) == 0.25
    assert summarize_power([{}, {}]) is None


def test_the_meter_reads_a_running_program_and_ends_it(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(f'#!/bin/sh\nwhile true; do echo "{ORIN_NANO}"; sleep 0.02; done\n')
    program.chmod(0o755)
    meter = PowerMeter(str(program), interval_ms=20)
    with meter:
        deadline = time.monotonic() + 10
        while meter.power is None and time.monotonic() < deadline:
            time.sleep(0.02)
    power = meter.power
    assert power is not None and power.watts == pytest.approx(7.25)
    assert meter.power == power, "it went on reading after the end"
