from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitexport.benchmark import interleave, summarize


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
