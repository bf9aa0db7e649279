"""Peers: their environments, the worker protocol, and what is said of one that is absent or fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.peers.install import install, peer_names, peer_python, why_absent
from benchmarks.peers.job import Job
from benchmarks.peers.launch import PeerError, run_worker
from benchmarks.suites.processes import environment, module_command
from tests.support.paths import ROOT
from vitexport.inputs.images import list_images

IMAGES = tuple(str(path) for path in list_images(ROOT / "calib" / "calibration", limit=4))


def test_a_job_survives_being_written_and_read(tmp_path: Path) -> None:
    job = Job("model.onnx", ("a.png", "b.png"), "out.onnx", {"method": "MinMax", "nodes": ["x"]})
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job


def test_a_worker_quantizes_in_its_own_process_and_reports_what_it_took(small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    outcome = run_worker(
        Path(sys.executable), "onnxruntime", Job(str(small_model), IMAGES, str(out), {"method": "MinMax"})
    )
    operators = {node.op_type for node in onnx.load(out).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert outcome.seconds > 0
    assert outcome.peak_bytes > 50e6
    assert outcome.versions["onnx"] == onnx.__version__


@pytest.mark.parametrize(
    ("worker", "options", "reason"),
    [
        ("onnxruntime", {"method": "Guess"}, "KeyError: 'Guess'"),
        ("vitexport", {"attention": "guess"}, "wrong setting: attention: .*, found 'guess'"),
    ],
)
def test_a_failing_worker_raises_with_its_exception_in_one_line(
    worker: str, options: dict[str, str], reason: str, small_model: Path, tmp_path: Path
) -> None:
    job = Job(str(small_model), IMAGES, str(tmp_path / "int8.onnx"), options)
    with pytest.raises(PeerError, match=reason):
        run_worker(Path(sys.executable), worker, job)


def test_every_peer_is_pinned_to_exact_versions() -> None:
    assert {"modelopt", "nncf", "optimum"} <= set(peer_names())
    for name in peer_names():
        lines = (ROOT / "benchmarks" / "peers" / f"{name}.txt").read_text().splitlines()
        loose = [line for line in lines if line and not line.startswith("#") and "==" not in line]
        assert not loose, f"{name}.txt"


def test_a_peer_that_pip_cannot_install_is_absent_with_pips_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITEXPORT_PEERS", str(tmp_path))
    assert peer_python("nncf") is None
    assert why_absent("nncf") == "not installed (`make peers`)"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    reason = install("nncf")
    assert "nncf==3" in reason
    assert peer_python("nncf") is None
    assert why_absent("nncf") == f"does not install: {reason}"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("job", {"numpy", "PIL", "pydantic", "pydantic_core", "annotated_types", "typing_extensions"}),
        ("inference_worker", {"numpy"}),
    ],
)
def test_a_workers_environment_needs_no_more_than_its_requirements_name(module: str, allowed: set[str]) -> None:
    """Peers lack nearly everything that this project's own environment has."""
    program = (
        "import json, sys, sysconfig\n"
        "before = set(sys.modules)\n"
        f"import benchmarks.peers.{module}\n"
        "places = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}\n"
        "files = {name: getattr(module, '__file__', None) or '' for name, module in list(sys.modules.items())}\n"
        "print(json.dumps(sorted({name for name, file in files.items() if '.' not in name and name not in before\n"
        "                         and any(file.startswith(place) for place in places)})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout)) <= allowed | {"typing_inspection"}


def test_a_worker_is_found_from_any_folder(tmp_path: Path) -> None:
    command = module_command("peers.inference_worker", "gemm-numpy", "-", 1, tmp_path / "inputs.npy")
    np.save(tmp_path / "inputs.npy", np.zeros((1, 2), np.float32))
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), input="time 1\n", capture_output=True, text=True, check=True
    )
    assert [line[0] for line in done.stdout.splitlines()] == ["@", "@"]
