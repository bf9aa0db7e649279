"""An engine as the last variant: ``verify BUNDLE --engine``, on a stand-in for a GPU that runs its ONNX file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from vitexport.bundle.bundle import Bundle, FileRecord
from vitexport.bundle.layout import recording_name
from vitexport.bundle.recording import Recording
from vitexport.cli import main
from vitexport.engine.build import build_engine
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.runtimes import Runtime, open_runtime
from vitexport.runtimes.base import Adapter, RuntimeOptions
from vitexport.runtimes.tensorrt.audit import AuditedGemm, AuditReport
from vitexport.runtimes.tensorrt.sidecar import sidecar_path
from vitexport.tensors import Array

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

Change = Callable[[Array], Array]


class OnGpu(Adapter):
    """Answers as the engine's ONNX file does, takes the batches the engine was built for, and may be at fault."""

    name = "tensorrt-rtx"

    def __init__(self, model: Path, sizes: tuple[int, int], change: Change, found: str) -> None:
        self._inner = open_runtime(model)
        super().__init__(self._inner.inputs, self._inner.outputs, self._inner.metadata)
        self._sizes = sizes
        self._change = change
        self._found = found
        self.batches: list[int] = []

    @classmethod
    def open(cls, model: Path, options: RuntimeOptions) -> OnGpu:
        raise AssertionError("made by the fixture")

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        (size,) = {len(array) for array in feeds.values()}
        assert self._sizes[0] <= size <= self._sizes[1], f"no profile takes {size}"
        self.batches.append(size)
        return {name: self._change(value) for name, value in self._inner.run(feeds).items()}

    def executed(self, feeds: Mapping[str, Array]) -> Mapping[str, float]:
        return _audit(self._found).weighted_fraction

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="module")
def bundle(coloured_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle elsewhere, with engines built from its simplified variant beside it."""
    root = Path(shutil.copytree(coloured_bundle, tmp_path_factory.mktemp("device") / "bundle"))
    for name, batch in (("single", "1"), ("ranges", "1,6"), ("large", "32:32:32")):
        settings = EngineSettings.model_validate({"product": "tensorrt-rtx", "batch": batch})
        build_engine(root / "models" / "simplified.onnx", settings, root.parent / f"{name}.engine")
    return root


def _audit(found: str) -> AuditReport:
    gemms = [
        AuditedGemm("fc", "weighted", "float32", found, 90, "layer", "kernel"),
        AuditedGemm("head", "weighted", "float16", "float16", 10, "layer", "kernel"),
        AuditedGemm("bmm", "attention", "float16", "float16", 50, "layer", "kernel"),
    ]
    return AuditReport(tuple(gemms), {}, {}, 0, 0, 0, 0, 3, 0.99)


@pytest.fixture
def gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[OnGpu]]:
    """Return a function that puts a GPU into this machine."""

    def make(
        *, sizes: tuple[int, int] = (1, 64), change: Change = lambda value: value, found: str = "float32"
    ) -> list[OnGpu]:
        opened: list[OnGpu] = []

        def runs(model: Path, name: str | None = None, options: Any = None) -> Runtime:
            opened.append(OnGpu(bundle / "models" / "simplified.onnx", sizes, change, found))
            return opened[-1]

        monkeypatch.setattr("vitexport.verification.replay.open_runtime", runs)
        return opened

    return make


def _verify(bundle: Path, engine: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["verify", str(bundle), "--engine", str(bundle.parent / engine), *words])


def test_an_engine_is_judged_against_pytorch_and_against_the_model_it_was_built_from(
    bundle: Path, gpu: Callable[..., list[OnGpu]]
) -> None:
    gpu()
    done = _verify(bundle, "ranges.engine", "--json")
    assert done.exit_code == 0, done.output
    verification = json.loads(done.stdout)
    assert [(variant["name"], variant["runtime"]) for variant in verification["variants"]] == [
        ("pytorch", "pytorch"),
        ("simplified", "onnxruntime"),
        ("engine", "tensorrt-rtx"),
    ]
    engine = verification["variants"][-1]
    assert engine["precision"] == "float32"
    assert engine["bytes"] == (bundle.parent / "ranges.engine").stat().st_size
    assert engine["parity"]["images"] == 64
    assert engine["step"]["reference"] == "simplified"
    assert engine["step"]["outputs"][0]["max_abs"] < 1e-4
    assert engine["executed"] == {"float32": 0.9, "float16": 0.1}
    assert {check["passed"] for check in verification["checks"]} == {True}


def test_a_model_that_was_not_run_where_the_bundle_was_made_says_nothing_about_its_engine(
    bundle: Path, gpu: Callable[..., list[OnGpu]], tmp_path: Path
) -> None:
    gpu()
    moved = Bundle.open(shutil.copytree(bundle, tmp_path / "moved"))
    recorded = moved.artifact(recording_name("simplified"))
    Recording.of_nothing("no kernel").save(moved.path(recorded))
    record = FileRecord.of(moved.path(recorded), moved.root)
    moved.with_artifact(recorded.model_copy(update={"file": record})).save()
    engine = str(bundle.parent / "ranges.engine")
    done = CliRunner().invoke(main, ["verify", str(moved.root), "--engine", engine, "--json"])
    assert done.exit_code == 0, done.output
    assert [variant["name"] for variant in json.loads(done.stdout)["variants"]] == ["pytorch", "engine"]


@pytest.mark.parametrize(
    ("engine", "sizes", "batches"),
    [
        ("single.engine", (1, 1), [1] * 64),
        ("ranges.engine", (2, 6), [6] * 11),
        ("large.engine", (32, 32), [32] * 2),
    ],
)
def test_batches_are_those_the_engine_takes(
    engine: str, sizes: tuple[int, int], batches: list[int], bundle: Path, gpu: Callable[..., list[OnGpu]]
) -> None:
    opened = gpu(sizes=sizes)
    done = _verify(bundle, engine, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["variants"][-1]["parity"]["images"] == 64
    assert opened[0].batches == batches


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda value: np.roll(value, 1, axis=1), "engine: output 'logits': agreement"),
        (lambda value: np.full_like(value, np.nan), "engine: output 'logits' holds NaN or infinity on 64 of 64 images"),
    ],
    ids=["wrong classes", "nan"],
)
def test_an_engine_that_answers_otherwise_fails_by_name_and_the_model_before_it_does_not(
    change: Change, named: str, bundle: Path, gpu: Callable[..., list[OnGpu]]
) -> None:
    gpu(change=change)
    done = _verify(bundle, "ranges.engine")
    assert done.exit_code == 3, done.output
    assert f"FAILED {named}" in done.stdout
    assert "FAILED simplified" not in done.stdout


@pytest.mark.parametrize(("found", "code"), [("float32", 0), ("float16", 3), ("unknown", 3)])
def test_the_precision_gate_is_judged_by_the_audit(
    found: str, code: int, bundle: Path, tmp_path: Path, gpu: Callable[..., list[OnGpu]]
) -> None:
    gpu(found=found)
    copy = Path(shutil.copytree(bundle.parent, tmp_path / "copy")) / "bundle"
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("min_actual_precision: null", "min_actual_precision: 0.85"))
    content = json.loads((copy / "bundle.json").read_text())
    content["artifacts"] = [entry for entry in content["artifacts"] if entry["name"] != "recipe"] + [
        {**entry, "file": _record(copy, recipe)} for entry in content["artifacts"] if entry["name"] == "recipe"
    ]
    (copy / "bundle.json").write_text(json.dumps(content))
    done = _verify(copy, "ranges.engine")
    assert done.exit_code == code, done.output
    assert "gate min_actual_precision 0.85: 0.9 ok" in done.stdout or code
    assert f"tensorrt-rtx executed {found}" in " ".join(done.stdout.split()) or code == 0


def _record(root: Path, path: Path) -> dict[str, Any]:
    from vitexport.bundle.bundle import FileRecord

    return FileRecord.of(path, root).model_dump(mode="json")


def test_without_a_gpu_the_answer_is_ours(bundle: Path) -> None:
    from vitexport.runtimes.cuda.probe import probe_cuda

    if not probe_cuda().problem:
        pytest.skip("this machine has a GPU")
    done = _verify(bundle, "ranges.engine")
    assert done.exit_code == 1
    assert "needs an NVIDIA GPU" in done.stderr


def test_an_engine_of_another_model_is_refused(bundle: Path, tmp_path: Path, gpu: Callable[..., list[OnGpu]]) -> None:
    gpu()
    engine = Path(shutil.copy(bundle.parent / "single.engine", tmp_path / "other.engine"))
    content = json.loads(sidecar_path(bundle.parent / "single.engine").read_text())
    sidecar_path(engine).write_text(json.dumps({**content, "onnx_sha256": "0" * 64}))
    done = CliRunner().invoke(main, ["verify", str(bundle), "--engine", str(engine)])
    assert done.exit_code == 1
    assert "no model of the bundle" in done.stderr
    assert "onnx, simplified, int8" in done.stderr
    sidecar_path(engine).unlink()
    assert "has no sidecar" in CliRunner().invoke(main, ["verify", str(bundle), "--engine", str(engine)]).stderr
    assert "found none" in CliRunner().invoke(main, ["verify", str(bundle), "--engine", "absent.engine"]).stderr


def test_a_kit_without_the_models_recording_is_enough(
    bundle: Path, tmp_path: Path, gpu: Callable[..., list[OnGpu]]
) -> None:
    gpu()
    copy = Path(shutil.copytree(bundle.parent, tmp_path / "copy")) / "bundle"
    Bundle.open(copy).without({"recording/simplified", "recording/int8", "onnx", "int8"}).save()
    done = _verify(copy, "ranges.engine", "--json")
    assert done.exit_code == 0, done.output
    assert [variant["name"] for variant in json.loads(done.stdout)["variants"]] == ["pytorch", "engine"]


def test_an_onnx_file_is_no_engine(bundle: Path) -> None:
    done = CliRunner().invoke(main, ["verify", str(bundle), "--runtime", "tensorrt"])
    assert done.exit_code == 1
    assert "The runtime 'tensorrt' opens .engine and .plan files, found" in done.stderr
    assert "--engine" in done.stderr
    done = CliRunner().invoke(main, ["verify", str(bundle), "--runtime", "pytorch"])
    assert done.exit_code == 1
    assert "The runtime 'pytorch' opens .pt2 files" in done.stderr
