"""Any number of rows goes through a model that takes some: in runs, padded where the model asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from vitexport.bundle.recording import input_hashes
from vitexport.errors import FeedMismatchError, InferenceError
from vitexport.runtimes import RuntimeOptions
from vitexport.runtimes import record as recording_module
from vitexport.runtimes.base import Adapter
from vitexport.runtimes.record import record, run_rows
from vitexport.tensors import Array, TensorSpec


class Doubling(Adapter):
    """Doubles its rows and remembers how many each run had."""

    name = "doubling"

    def __init__(self, batch: int | str = "batch") -> None:
        spec = TensorSpec("x", (batch, 2), "float32")
        super().__init__((spec,), (TensorSpec("y", (batch, 2), "float32"), TensorSpec("sum", (batch,), "float32")), {})
        self.runs: list[list[float]] = []

    @classmethod
    def open(cls, model: Path, options: RuntimeOptions) -> Doubling:
        return cls()

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = np.asarray(feeds["x"], np.float32)
        self.runs.append(rows[:, 0].tolist())
        return {"y": 2 * rows, "sum": rows.sum(axis=1)}

    def close(self) -> None: ...


def rows(count: int) -> Array:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)


@pytest.mark.parametrize(
    ("count", "size", "pad", "runs"),
    [
        (5, None, False, [[0, 1, 2, 3, 4]]),
        (5, 2, False, [[0, 1], [2, 3], [4]]),
        (5, 2, True, [[0, 1], [2, 3], [4, 4]]),
        (2, 4, True, [[0, 1, 1, 1]]),
        (2, 4, False, [[0, 1]]),
        (4, 2, True, [[0, 1], [2, 3]]),
        (1, 1, True, [[0]]),
    ],
)
def test_rows_go_through_in_runs_and_come_back_one_for_one(
    count: int, size: int | None, pad: bool, runs: list[list[float]]
) -> None:
    runtime = Doubling()
    found = run_rows(runtime, rows(count), size, pad=pad)
    assert runtime.runs == runs
    np.testing.assert_array_equal(found["y"], 2 * rows(count))
    np.testing.assert_array_equal(found["sum"], rows(count).sum(axis=1))


def test_a_model_of_a_fixed_batch_is_recorded_on_any_number_of_images() -> None:
    runtime = Doubling(batch=4)
    feeds = [rows(6)[:4], rows(6)[4:]]
    recording = record(runtime, list("abcdef"), feeds)
    assert runtime.runs == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert (recording.runtime, recording.images) == ("doubling", tuple("abcdef"))
    assert recording.input_sha256 == tuple(input_hashes(rows(6))), "padding is no image"
    np.testing.assert_array_equal(recording.outputs["y"], 2 * rows(6))


def test_an_engines_size_is_kept_although_its_batch_is_dynamic() -> None:
    runtime = Doubling()
    recording = record(runtime, list("abc"), [rows(3)], size=2)
    assert runtime.runs == [[0, 1], [2, 2]]
    assert recording.outputs["sum"].tolist() == [0, 2, 4]


def test_without_a_size_every_batch_is_one_run_and_nothing_is_padded() -> None:
    runtime = Doubling()
    record(runtime, list("abc"), [rows(3)[:2], rows(3)[2:]])
    assert runtime.runs == [[0, 1], [2]]


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FeedMismatchError, match=r"float64"):
        run_rows(Doubling(), np.zeros((2, 2)), 1)


def test_answers_too_large_to_keep_are_refused_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "LARGEST", 3 * 4 * (2 + 1))
    assert len(record(Doubling(), list("abc"), [rows(3)]).images) == 3
    runtime = Doubling()
    with pytest.raises(InferenceError, match=r"answers to 4 images .* y: float32\[batch, 2\]") as caught:
        record(runtime, list("abcd"), [rows(4)])
    assert runtime.runs == [] and "Compare at most 3 images: `data.verification.limit`" in caught.value.hint
