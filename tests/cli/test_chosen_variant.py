"""One rule for the model of a bundle, in every command: always said, and written into what is made of it."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.audits import engine_information
from tests.support.fake_gpu import Pretend
from tests.support.http_server import running
from tests.support.judged_bundle import judged_bundle
from tests.support.linear_model import SIZE, save_image
from vitexport.bundle.bundle import Bundle
from vitexport.cli import main
from vitexport.runtimes.tensorrt.sidecar import read_sidecar

COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "lint": lambda out: [],
    "trtexec": lambda out: [],
    "triton": lambda out: ["-o", str(out)],
    "deepstream": lambda out: ["-o", str(out)],
    "kit": lambda out: ["--device", "arm-cpu", "-o", str(out / "kit.tar.gz")],
    "predict": lambda out: [str(out.parent / "photo.png")],
    "predict -o": lambda out: [str(out.parent / "photo.png"), "-o", str(out.parent / "rows.csv")],
    "build-engine": lambda out: ["-o", str(out / "vit.engine"), "--no-lint", "--no-audit"],
}
"""Command to its options, for a place to write to."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """PyTorch's answers are those of ``simplified``, and not those of ``int8``."""
    return judged_bundle(tmp_path_factory.mktemp("judged"), {"simplified": 0.0, "int8": 3.0}, conv=True)


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return judged_bundle(tmp_path_factory.mktemp("rejected"), {"simplified": 3.0, "int8": 3.0}, conv=True)


def call(name: str, bundle: Bundle, tmp_path: Path, *options: str) -> Result:
    save_image(tmp_path / "photo.png", 1)
    (tmp_path / "out").mkdir(exist_ok=True)
    words = [name.split()[0], str(bundle.root), *COMMANDS[name](tmp_path / "out"), *options]
    return CliRunner().invoke(main, words)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "build-engine"])
def test_the_last_accepted_variant_is_used_and_a_rejected_one_is_named(
    name: str, bundle: Bundle, tmp_path: Path
) -> None:
    result = call(name, bundle, tmp_path)
    assert result.exit_code == 0, result.output
    assert f"simplified (sha256 {bundle.artifact('simplified').sha256[:12]})" in result.stderr
    assert "note: passed over, as its checks did not pass: int8: " in result.stderr
    named = call(name, bundle, tmp_path / "named", "--variant", "int8")
    assert named.exit_code == 0, named.output
    assert f"int8 (sha256 {bundle.artifact('int8').sha256[:12]})" in named.stderr
    assert "note: int8 was asked for, although its checks did not pass: " in named.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_made_of_a_bundle_without_an_accepted_model(name: str, rejected: Bundle, tmp_path: Path) -> None:
    result = call(name, rejected, tmp_path)
    assert result.exit_code == 1, result.output
    assert "passed its checks: int8: " in result.stderr
    assert "name it with --variant" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_rows_of_results_name_variant_and_hash(bundle: Bundle, tmp_path: Path) -> None:
    assert call("predict -o", bundle, tmp_path).exit_code == 0
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["variant"], row["model_version"]) == ("simplified", bundle.artifact("simplified").sha256[:12])
    found = json.loads(call("predict", bundle, tmp_path, "--json").stdout)
    assert (found["variant"], found["sha256"]) == ("simplified", bundle.artifact("simplified").sha256)
    assert "int8" in found["notes"][0]


def test_lint_and_trtexec_name_the_file_they_mean(bundle: Bundle, tmp_path: Path) -> None:
    model = json.loads(call("lint", bundle, tmp_path, "--json").stdout)["model"]
    path = bundle.path(bundle.artifact("simplified"))
    assert (model["path"], model["variant"]) == (str(path), "simplified")
    assert f"--onnx={path}" in call("trtexec", bundle, tmp_path).stdout


def test_configurations_and_kits_name_variant_hash_and_reason(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("triton", "deepstream", "kit"):
        assert call(name, bundle, tmp_path).exit_code == 0
    out = tmp_path / "out"
    with tarfile.open(out / "kit.tar.gz") as tar:
        (member,) = [entry for entry in tar.getmembers() if entry.name.endswith("README.md")]
        stream = tar.extractfile(member)
        assert stream is not None
        readme = stream.read().decode()
    texts = (out / "linear" / "config.pbtxt", out / "config_infer.txt")
    for text in (*(path.read_text() for path in texts), readme):
        assert "simplified" in text
        assert bundle.artifact("simplified").sha256 in text
        assert "passed over, as its checks did not pass: int8: " in text


def test_the_model_of_a_kit_stays_chosen_and_keeps_its_own_answers(bundle: Bundle, tmp_path: Path) -> None:
    """On the device there is nothing left to choose from, and gates against absent variants cannot be judged again."""
    assert call("kit", bundle, tmp_path, "--variant", "int8").exit_code == 0
    with tarfile.open(tmp_path / "out" / "kit.tar.gz") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(tmp_path / "device")
    packed = Bundle.open(next((tmp_path / "device").iterdir()) / "bundle")
    assert {"recording/pytorch", "recording/int8", "int8"} <= {artifact.name for artifact in packed.artifacts}
    result = call("predict", packed, tmp_path)
    assert result.exit_code == 0, result.output
    assert "note: int8 was asked for, although its checks did not pass: " in result.stderr


def test_an_engine_says_in_its_sidecar_which_variant_it_was_built_from(
    bundle: Bundle, pretend: Pretend, tmp_path: Path
) -> None:
    pretend(inspector=engine_information("xmma_gemm_f32f32_"))
    result = call("build-engine", bundle, tmp_path, "--timing-cache", str(tmp_path / "cache"), "--json")
    assert result.exit_code == 0, result.output
    assert "note: passed over, as its checks did not pass: int8: " in result.stderr
    sidecar = read_sidecar(tmp_path / "out" / "vit.engine")
    assert sidecar is not None
    assert (sidecar.variant, sidecar.onnx_sha256) == ("simplified", bundle.artifact("simplified").file.sha256)
    model = json.loads(result.stdout)["model"]
    assert (model["variant"], model["sha256"]) == ("simplified", bundle.artifact("simplified").sha256)


def test_every_answer_of_a_server_names_variant_and_hash(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    digest = bundle.artifact("simplified").sha256
    with running(bundle.root) as server:
        ready = server.ask("GET", "/v2/health/ready")
        metadata = server.ask("GET", "/v2/models/linear")
        zeros = {"name": "pixel_values", "datatype": "FP32", "shape": [1, 3, SIZE, SIZE], "data": [0.0] * 3 * SIZE**2}
        inferred = server.ask("POST", "/v2/models/linear/infer", {"inputs": [zeros]})
        predicted = server.ask("POST", "/predict", save_image(tmp_path / "a.png", 1).read_bytes())
    for answer in (ready, metadata, inferred, predicted):
        assert answer.headers["x-model-variant"] == "simplified"
        assert answer.headers["x-model-sha256"] == digest
    for answer in (metadata, inferred):
        assert answer.json()["parameters"] == {"variant": "simplified", "sha256": digest}
    assert (predicted.json()["variant"], predicted.json()["sha256"]) == ("simplified", digest)
    assert metadata.json()["versions"] == [digest[:12]]
