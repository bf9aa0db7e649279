"""doctor and models as functions."""

from __future__ import annotations

import json

import pytest

from vitexport.api.machine import doctor, models
from vitexport.device.doctor import MachineDiagnosis, Package, RuntimeCheck
from vitexport.host.sources.families import FAMILIES
from vitexport.runtimes.cuda.probe import GpuInfo

MACHINE = MachineDiagnosis(
    python="3.11.9",
    system="Linux x86_64",
    cpu="Some CPU",
    cores=2,
    cpu_features={"AVX2": True, "VNNI": False, "i8mm": None},
    gpus=(GpuInfo(0, "L4", "8.9", 24 << 30, False),),
    cuda="driver for CUDA 12.6",
    packages=(Package("numpy", "tensors", "2.0", "pip install vitexport"), Package("onnx", "export", None, "pip x")),
    runtimes=(RuntimeCheck("onnxruntime", True, "1.20"), RuntimeCheck("tensorrt", False, "not installed")),
    advice=("Quantize with target ort-x86.",),
)


def test_doctor_examines_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitexport.device.doctor.available_runtimes", lambda: ("onnxruntime",))
    machine = doctor()
    assert [(runtime.name, runtime.usable) for runtime in machine.runtimes] == [("onnxruntime", True)]
    assert machine.cores >= 1


def test_a_diagnosis_shows_itself_as_tables() -> None:
    machine, packages, runtimes, advice = MACHINE.tables()
    assert dict(machine.rows)["CPU features"] == "AVX2 yes, VNNI no, i8mm ?"
    assert dict(machine.rows)["GPU"] == "L4, compute capability 8.9, 24 GiB, driver for CUDA 12.6"
    assert packages.rows == (("numpy", "2.0", "tensors", ""), ("onnx", "-", "export", "pip x"))
    assert runtimes.rows == (("onnxruntime", "yes", "1.20"), ("tensorrt", "no", "not installed"))
    assert advice.rows == (("Quantize with target ort-x86.",),)
    assert "24 GiB" in repr(MACHINE) and "<table>" in MACHINE._repr_html_()


def test_a_diagnosis_is_plain_values() -> None:
    document = MACHINE.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["gpus"][0]["memory_bytes"] == 24 << 30
    assert document["packages"][1]["version"] is None


def test_models_lists_every_family() -> None:
    found = models()
    assert found.families == FAMILIES
    families, others = found.tables()
    assert [row[0] for row in families.rows] == [family.name for family in FAMILIES]
    assert "attempted generically" in others.rows[0][0]
    document = found.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["others"] == found.others
