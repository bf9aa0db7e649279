"""Latency: one clock for every runtime, candidates interleaved so that a noisy machine is noisy for all of them.

The one measurement behind ``vitexport bench`` and the benchmark of a run, and what makes it trustworthy: pinning, and a
warning of a busy machine. What is compared with what is decided by the callers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import RuntimeBackendError
from vitexport.machine import usable_cores
from vitexport.runtimes import Runtime
from vitexport.tensors import Array, tile_rows

__all__ = [
    "Latency",
    "Timing",
    "batch_run",
    "interleave",
    "load_warning",
    "pin",
    "resident_bytes",
    "summarize",
    "time_by_turns",
]


@dataclass(frozen=True)
class Latency:
    """Latency of one candidate at one batch size.

    Attributes:
        batch: Images per run.
        runs: Number of measured runs.
        p50_ms: Median milliseconds per run.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        images_per_second: ``1000 * batch / p50_ms``.
        sample_ms: At most :data:`SAMPLE` of the run times, spread evenly over the measurement, for a plot.
    """

    batch: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    images_per_second: float
    sample_ms: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Latency:
        """Build a latency from what :func:`dataclasses.asdict` and JSON made of one."""
        return cls(**{**data, "sample_ms": tuple(data.get("sample_ms", ()))})


SAMPLE = 240
"""Run times kept for a plot of their distribution."""


@dataclass(frozen=True)
class Timing:
    """What one candidate took when timed by turns with others.

    Attributes:
        latency: Its latency.
        speedup: Median over the rounds of the first candidate's time over its own.
    """

    latency: Latency
    speedup: float


def batch_run(runtime: Runtime, feed: Array, batch: int) -> Callable[[], object]:
    """Return a function that runs one batch of a single-input model.

    Args:
        runtime: The opened model.
        feed: At least one row of its input; the batch starts again from the first where there are fewer than it takes.
        batch: Rows per run.
    """
    feeds = {runtime.inputs[0].name: tile_rows(feed, batch)}
    return lambda: runtime.run(feeds)


def time_by_turns(
    candidates: Mapping[str, Callable[[], object]], batch: int, *, seconds: float, warmup: int
) -> dict[str, Timing]:
    """Time candidates by turns; the first one is what the others are compared with.

    Args:
        candidates: Name to a function that runs one batch, see :func:`batch_run`.
        batch: Images per run.
        seconds: Measured time per candidate, in seconds.
        warmup: Runs of each before anything is measured.
    """
    if not candidates:
        return {}
    times = interleave(candidates, seconds=seconds, warmup=warmup)
    first = next(iter(times.values()))
    return {name: Timing(summarize(own, batch), float(np.median(first / own))) for name, own in times.items()}


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    warmup: int = 5,
    minimum_runs: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Time candidates in turn (A B A B ...) until each had its time.

    Args:
        candidates: Name to a function that runs it once.
        seconds: Measured time per candidate, in seconds.
        warmup: Runs of each before anything is measured.
        minimum_runs: Runs of each, however long they take.
        clock: Monotonic clock in seconds.

    Returns:
        Name to the seconds of each run, in order; all of equal length, so that ratios can be taken pair by pair.
    """
    for run in candidates.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    budget = seconds * len(candidates)
    spent, rounds = 0.0, 0
    order = list(candidates.items())
    while rounds < minimum_runs or spent < budget:
        for name, run in order:
            start = clock()
            run()
            times[name].append(clock() - start)
            spent += times[name][-1]
        order.append(order.pop(0))  # nobody always runs after the same neighbour
        rounds += 1
    return {name: np.array(values) for name, values in times.items()}


def summarize(seconds: NDArray[np.float64], batch: int) -> Latency:
    """Summarize the run times (in seconds) of one candidate."""
    count = min(len(seconds), SAMPLE)
    chosen = seconds[np.arange(count) * len(seconds) // count]
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 99]) * 1e3)
    return Latency(
        batch=batch,
        runs=len(seconds),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(seconds.mean() * 1e3),
        images_per_second=1e3 * batch / p50,
        sample_ms=tuple(round(float(value) * 1e3, 4) for value in chosen),
    )


def load_warning(load: float | None = None, cores: int | None = None) -> str | None:
    """Return a warning when the machine is busier than it has cores, for then times mean nothing; None otherwise.

    A quarter above is tolerated: what this process did just before counts in the load average as well.

    Args:
        load: Load average of the last minute; None asks the system, which not every one can tell.
        cores: Cores this process may use; None asks the system.
    """
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if cores is None:
        cores = usable_cores()
    if load <= 1.25 * cores:
        return None
    return (
        f"The load average is {load:.1f} on {cores} core{'s' * (cores > 1)}: other programs were running, so absolute "
        "times mean little. Ratios of models measured in turns still hold roughly."
    )


def pin(cores: Collection[int]) -> None:
    """Keep this process, and every thread it will start, on some cores.

    Raises:
        RuntimeBackendError: This system cannot, or has no such core.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise RuntimeBackendError(f"{sys.platform} has no way to pin a process.", "Leave out --cpus.")
    available = os.sched_getaffinity(0)
    missing = sorted(set(cores) - available)
    if missing or not cores:
        raise RuntimeBackendError(
            f"Expected cores of {sorted(available)}, found {sorted(cores)}.", "Name cores that this process may use."
        )
    os.sched_setaffinity(0, cores)


def resident_bytes() -> int | None:
    """Return the memory this process holds, or None where the system does not say (no ``/proc``)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
