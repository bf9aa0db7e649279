from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from vitexport.benchmark.latency import interleave, load_warning, pin, resident_bytes, summarize, time_by_turns
from vitexport.errors import RuntimeBackendError


class FakeClock:
    """A clock that candidates move forward by what they pretend to take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            self.order.append(name)

        return run


def test_candidates_take_turns_and_get_equal_runs() -> None:
    clock = FakeClock()
    calls = {"a": clock.candidate("a", 0.01), "b": clock.candidate("b", 0.03)}
    times = interleave(calls, seconds=0.4, warmup=2, minimum_runs=3, clock=clock)
    assert len(times["a"]) == len(times["b"]) == 20  # 2 x 0.4 s at 0.04 s a round
    np.testing.assert_allclose(times["b"] / times["a"], 3)
    measured = clock.order[4:]
    assert all({measured[i], measured[i + 1]} == {"a", "b"} for i in range(0, len(measured), 2))


def test_slow_candidates_still_get_the_minimum_of_runs() -> None:
    clock = FakeClock()
    times = interleave({"a": clock.candidate("a", 9.0)}, seconds=0.1, warmup=0, minimum_runs=5, clock=clock)
    assert len(times["a"]) == 5


def test_summary_is_in_milliseconds_and_images_per_second() -> None:
    found = summarize(np.arange(1, 102) / 1000, batch=8)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (51, 91, 100)
    assert found.images_per_second == 8 / 0.051
    assert found.runs == 101


def test_a_machine_busier_than_it_has_cores_is_warned_of() -> None:
    assert load_warning(2.5, 2) is None
    warning = load_warning(3.4, 2)
    assert warning is not None and "3.4 on 2 cores" in warning


def test_pinning_keeps_the_process_on_the_named_cores() -> None:
    source = "import os; from vitexport.benchmark.latency import pin; pin({min(os.sched_getaffinity(0))});"
    source += "print(len(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    with pytest.raises(RuntimeBackendError, match="Expected cores of"):
        pin({100_000})


def test_memory_that_is_held_is_seen() -> None:
    """Pages are mapped for this test alone: an array may be given memory that the process holds already."""
    size = 64 << 20
    before = resident_bytes()
    with mmap.mmap(-1, size) as held:
        for page in range(0, size, mmap.PAGESIZE):
            held[page] = 1
        after = resident_bytes()
    assert before is not None and after is not None
    assert after - before > 0.9 * size


def test_candidates_are_compared_with_the_first_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round in which the machine was busy slows both; a ratio of medians (here 2 to 3) would not see that."""
    times = {"first": np.array([1.0, 2.0, 9.0]), "other": np.array([4.0, 1.0, 3.0])}
    monkeypatch.setattr("vitexport.benchmark.latency.interleave", lambda *arguments, **options: times)
    timings = time_by_turns({"first": print, "other": print}, 4, seconds=1, warmup=0)
    assert {name: timing.speedup for name, timing in timings.items()} == {"first": 1.0, "other": 2.0}
    assert timings["other"].latency == summarize(times["other"], 4)


def test_nothing_to_time_gives_no_timings() -> None:
    assert time_by_turns({}, 1, seconds=0.01, warmup=0) == {}
