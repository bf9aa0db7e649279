"""The comparison of inference speeds: workers answer, take turns, and say why one cannot run. No time is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import engine_inference
from benchmarks.suites import turns
from benchmarks.suites.processes import last_error
from benchmarks.suites.turns import Candidate, Worker, WorkerError, start, take_turns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "dev.npy", np.zeros((2, 3, 8, 8), dtype=np.float32))
    return tmp_path


def test_a_worker_runs_as_often_as_it_is_told(folder: Path) -> None:
    worker = Worker(Candidate("product", "gemm-numpy", "-"), folder, 1).wait()
    try:
        assert worker.version["package"] == "numpy"
        assert len(worker.ask("time 3")["seconds"]) == 3
    finally:
        worker.close()


def test_a_candidate_that_cannot_run_is_named_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VITEXPORT_PEERS", str(folder))
    absent = Candidate("peer", "openvino", "m.onnx", "openvino")
    broken = Candidate("broken", "onnxruntime", "nowhere.onnx")
    workers, skipped = start((absent, broken), folder, 1)
    assert workers == {}
    assert skipped["peer"] == "skipped: openvino is not installed (`make peers`)"
    assert "nowhere.onnx" in skipped["broken"]
    assert "broken" in capsys.readouterr().err


class _Fake(Worker):
    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def ask(self, command: str) -> dict[str, object]:
        self._log.append(self._name)
        return {"seconds": [1.0, 3.0, 2.0]}


def test_every_worker_has_one_turn_in_every_round_and_no_fixed_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAUSE", 0.0)
    log: list[str] = []
    found = take_turns({name: _Fake(name, log) for name in "abcd"}, rounds=12, calls=3)
    assert {name: list(values) for name, values in found.items()} == {name: [2.0] * 12 for name in "abcd"}
    assert all(sorted(log[i : i + 4]) == list("abcd") for i in range(0, 48, 4))
    before_b = {first for first, second in zip(log, log[1:], strict=False) if second == "b"}
    assert before_b >= {"a", "c", "d"}


def test_a_worker_that_ends_without_an_answer_is_an_error(folder: Path) -> None:
    with pytest.raises(WorkerError, match="nothing-of-the-kind"):
        Worker(Candidate("wrong", "nothing-of-the-kind", "-"), folder, 1).wait()


def test_engines_that_cannot_run_are_rows_with_the_reason(folder: Path) -> None:
    (folder / "done.json").write_text('{"flops": 1, "random": true}', encoding="utf-8")
    absent = {candidate.name: "no GPU here" for candidate in engine_inference.CANDIDATES}
    rows = engine_inference.measure(folder, 8, rounds=1, calls=1, absent=absent)
    assert [row["candidate"] for row in rows] == list(absent)
    assert {(row["batch"], row["note"]) for row in rows} == {(8, "skipped: no GPU here")}


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("", "it ended without a word"),
        ("Traceback ...\nValueError: what\nwhat to do", "ValueError: what\nwhat to do"),
        ("killed", "killed"),
    ],
)
def test_the_reason_of_a_failure_is_the_whole_last_exception(stderr: str, message: str) -> None:
    assert last_error(stderr) == message
