"""The speed of a model alone, without decoding, preprocessing or HTTP, in a process of its own.

    python -m benchmarks.suites.bare_model MODEL|BUNDLE BATCH SECONDS

prints images per second and images per second of CPU time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from vitexport.predict.predictor import Predictor

__all__ = ["bare"]


def bare(model: str, batch: int, seconds: float) -> tuple[float, float]:
    """Measure the model alone.

    Returns:
        Images per second, from the median time of a run of one batch; and images per second of CPU time, which a busy
        machine disturbs less.
    """
    with Predictor.open(Path(model)) as predictor:
        shape = [axis if isinstance(axis, int) else batch for axis in predictor.tensor.shape]
        feed = np.random.default_rng(0).normal(size=shape).astype(predictor.tensor.dtype)
        times: list[float] = []
        predictor.run(feed)
        cpu = time.process_time()
        end = time.perf_counter() + seconds
        while len(times) < 8 or time.perf_counter() < end:
            start = time.perf_counter()
            predictor.run(feed)
            times.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
    return shape[0] / float(np.median(times)), shape[0] * len(times) / cpu


if __name__ == "__main__":
    print(*bare(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
