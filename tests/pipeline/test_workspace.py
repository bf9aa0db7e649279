"""A bundle while a run works on it: made or current, kept at once, forced, dry, dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.linear_model import model_metadata, write_bundle
from vitexport.bundle.bundle import Bundle, Kind
from vitexport.bundle.layout import recording_name
from vitexport.errors import BundleError
from vitexport.files import StageResult, StepEvent
from vitexport.pipeline.step import Step
from vitexport.pipeline.workspace import StaleError, Workspace


class Maker:
    """Steps that write a text file, and how often each ran."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: list[str] = []

    def step(self, output: str, text: str = "text", *, stage: str = "export", kind: Kind = "onnx") -> Step:
        def run() -> StageResult:
            self.runs.append(output)
            path = self.root / f"{output.replace('/', '-')}.txt"
            path.write_text(text)
            return StageResult(path, "float32")

        return Step(stage=stage, output=output, kind=kind, settings={"text": text}, run=run)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def maker(root: Path) -> Maker:
    return Maker(root)


def workspace(root: Path, *, force: bool = False, dry_run: bool = False) -> tuple[Workspace, list[StepEvent]]:
    events: list[StepEvent] = []
    return Workspace(root, force=force, dry_run=dry_run, on_event=events.append), events


def test_a_step_is_made_kept_at_once_and_then_current(root: Path, maker: Maker) -> None:
    work, events = workspace(root)
    made = work.ensure(maker.step("onnx"))
    assert Bundle.open(root).artifact("onnx") == made, "another process finds it already"
    assert [(event.stage, event.status) for event in events] == [("export", "running"), ("export", "done")]
    again, events = workspace(root)
    assert again.ensure(maker.step("onnx")) == made
    assert [(event.status, event.message) for event in events] == [("skipped", "onnx is current")]
    assert (work.executed, work.skipped) == (["export"], [])
    assert (again.executed, again.skipped) == ([], ["export"])
    assert maker.runs == ["onnx"]


def test_changed_settings_make_it_again_in_its_place(root: Path, maker: Maker) -> None:
    work, _ = workspace(root)
    work.ensure(maker.step("onnx"))
    work.ensure(maker.step("int8"))
    work.ensure(maker.step("onnx", "other"))
    assert [artifact.name for artifact in work.current().artifacts] == ["simplified", "onnx", "int8"]
    assert maker.runs == ["onnx", "int8", "onnx"]


def test_a_stage_with_one_step_to_do_was_executed_and_not_skipped(root: Path, maker: Maker) -> None:
    workspace(root)[0].ensure(maker.step("onnx"))
    work, _ = workspace(root)
    for name in ("onnx", "int8", "onnx"):
        work.ensure(maker.step(name))
    assert (work.executed, work.skipped) == (["export"], [])


def test_force_makes_everything_once(root: Path, maker: Maker) -> None:
    workspace(root)[0].ensure(maker.step("onnx"))
    work, _ = workspace(root, force=True)
    work.ensure(maker.step("onnx"))
    work.ensure(maker.step("onnx"))
    assert maker.runs == ["onnx", "onnx"]


def test_a_dry_run_names_the_first_stale_stage_and_writes_nothing(root: Path, maker: Maker) -> None:
    workspace(root)[0].ensure(maker.step("onnx"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    work, _ = workspace(root, dry_run=True)
    work.ensure(maker.step("onnx"))
    with pytest.raises(StaleError) as caught:
        work.ensure(maker.step("int8", stage="quantize"))
    assert caught.value.stage == "quantize"
    work.drop({"onnx"})
    work.keep_models(())
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert maker.runs == ["onnx"]
    assert work.skipped == ["export"]


def test_a_failed_step_leaves_what_was_there(root: Path, maker: Maker) -> None:
    def fail() -> StageResult:
        raise BundleError("no", "try again")

    work, events = workspace(root)
    made = work.ensure(maker.step("onnx"))
    with pytest.raises(BundleError):
        work.ensure(Step(stage="quantize", output="int8", kind="quantized", run=fail))
    assert Bundle.open(root).artifact("onnx") == made
    assert work.executed == ["export"]
    assert (events[-1].stage, events[-1].status) == ("quantize", "running")


def test_nothing_can_be_kept_before_there_is_a_bundle(tmp_path: Path) -> None:
    work, _ = workspace(tmp_path / "new")
    assert work.bundle is None
    with pytest.raises(BundleError, match="holds no bundle yet"):
        work.current()
    assert not (tmp_path / "new").exists()


def test_a_bundle_begins_with_its_header_and_keeps_what_earlier_runs_made(root: Path, maker: Maker) -> None:
    work, _ = workspace(root)
    work.ensure(maker.step("onnx"))
    work.begin("renamed", model_metadata(batch=2))
    assert work.current().name == "renamed"
    assert [artifact.name for artifact in work.current().artifacts] == ["simplified", "onnx"]
    work.rename("again")
    opened = Bundle.open(root)
    assert opened.name == "again"
    assert opened.metadata == model_metadata(batch=2)


def test_dropped_artifacts_and_their_files_are_gone(root: Path, maker: Maker) -> None:
    work, _ = workspace(root)
    for name in ("onnx", "int8"):
        work.ensure(maker.step(name))
    work.drop({"int8", "nowhere"})
    assert [artifact.name for artifact in Bundle.open(root).artifacts] == ["simplified", "onnx"]
    assert (root / "onnx.txt").is_file()
    assert not (root / "int8.txt").exists()


def test_models_that_are_not_wanted_go_with_their_recordings_and_nothing_else(root: Path, maker: Maker) -> None:
    work, _ = workspace(root)
    for name in ("int8", "fp8"):
        work.ensure(maker.step(name, kind="quantized"))
        work.ensure(maker.step(recording_name(name), kind="recording"))
    work.ensure(maker.step("errors", kind="analysis"))
    work.keep_models({"simplified", "int8"})
    names = [artifact.name for artifact in Bundle.open(root).artifacts]
    assert names == ["simplified", "int8", "recording/int8", "errors"]


def test_progress_is_told_under_the_stages_name(root: Path) -> None:
    work, events = workspace(root)
    work.advance("quantize")("calibrating", 0.25)
    assert events == [StepEvent("quantize", "running", "calibrating", 0.25)]
